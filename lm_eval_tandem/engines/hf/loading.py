"""Loading a model: lm-eval's HFLM, with what this engine cannot run refused before the weights are read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig

from lm_eval_tandem.engines.tokenizer import require_end_token
from lm_eval_tandem.errors import EngineError, one_line

CACHE_ARGUMENTS = ("past_key_values", "cache_params", "cache")
"""Names under which models of transformers accept one of its standard caches.

The second is that of state-space models; from release 5.24 on, all its own models use the third.
"""


class CheckedHFLM(HFLM):
    """HFLM that refuses architectures and tokenizers which the engine cannot run as soon as they are known."""

    def _get_backend(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(config, *args, **kwargs)
        # A class from the model's own repository is not known yet; `Network` looks at it once it is loaded.
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        refuse_other_caches(config.name_or_path, config.model_type, self.backend, model_class)

    def _create_tokenizer(self, pretrained: Any, *args: Any, **kwargs: Any) -> None:
        super()._create_tokenizer(pretrained, *args, **kwargs)
        require_end_token(str(pretrained), self.tokenizer)


def load_hflm(arguments: Mapping[str, Any]) -> HFLM:
    """lm-eval's model with these arguments, on a GPU where there is one.

    Raises
    ------
    EngineError
        It cannot be loaded, or the engine cannot run it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return CheckedHFLM(**{"device": device, **arguments})
    except (OSError, ValueError, TypeError, ImportError, AssertionError) as error:
        raise EngineError(f"the model {arguments['pretrained']} could not be loaded: {one_line(error)}") from error


def refuse_other_caches(name: str, kind: str, backend: str, model_class: type[PreTrainedModel] | None) -> None:
    """Refuse an architecture that does not run on one of transformers' standard caches.

    Parameters
    ----------
    name, kind
        The model's name, and the `model_type` of its configuration.
    backend
        As HFLM names it: "causal" or "seq2seq".
    model_class
        Its class; None where that is not known.

    Raises
    ------
    EngineError
        It is an encoder-decoder, or keeps its state in a way of its own, or none at all.
    """
    if backend != "causal":
        raise EngineError(f"{name} is a model of the type {kind}, which has an encoder; name a decoder-only model.")
    if model_class is None:
        return
    standard = getattr(model_class, "_supports_default_dynamic_cache", lambda: True)()
    if not standard or cache_argument(model_class) is None:
        raise EngineError(
            f"{name} is a model of the type {kind}, which transformers does not run on one of its standard caches; "
            "name a model of another type, or serve this one and use backend=openai."
        )


def cache_argument(model: Any) -> str | None:
    """Name of the argument with which a model, or its class, accepts a cache; None where it accepts none."""
    accepted = inspect.signature(model.forward).parameters
    return next((name for name in CACHE_ARGUMENTS if name in accepted), None)
