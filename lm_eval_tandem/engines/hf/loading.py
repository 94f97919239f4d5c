"""Loading a model: lm-eval's HFLM, with what this engine cannot run refused before the weights are read."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedModel
from transformers.configuration_utils import PretrainedConfig

from lm_eval_tandem.engines.tokenizer import require_end_token
from lm_eval_tandem.errors import ArgumentError, EngineError

CACHE_ARGUMENTS = ("past_key_values", "cache_params", "cache")
"""Names under which models of transformers accept one of its standard caches.

The second is that of state-space models; from release 5.24 on, all its own models use the third.
"""
DTYPES = ("dtype", "softmax_dtype", "mixed_precision_dtype", "bnb_4bit_compute_dtype")
"""Arguments that name a type of numbers."""
LOW_BITS = ("load_in_4bit", "load_in_8bit")
"""Arguments that ask bitsandbytes to quantise the weights while they are loaded."""
OF_4BIT = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant")
"""Arguments that say how it does that with 4 bits."""


class CheckedHFLM(HFLM):
    """HFLM that refuses architectures and tokenizers which the engine cannot run as soon as they are known.

    From release 5 on transformers takes what bitsandbytes is to do as a configuration, where lm-eval still passes
    single arguments.
    """

    def _get_backend(self, config: PretrainedConfig, *args: Any, **kwargs: Any) -> None:
        super()._get_backend(config, *args, **kwargs)
        # A class from the model's own repository is not known yet; `Network` looks at it once it is loaded.
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
        refuse_other_caches(config.name_or_path, config.model_type, self.backend, model_class)

    def _create_tokenizer(self, pretrained: Any, *args: Any, **kwargs: Any) -> None:
        super()._create_tokenizer(pretrained, *args, **kwargs)
        require_end_token(str(pretrained), self.tokenizer)

    def _create_model(self, pretrained: Any, *args: Any, **kwargs: Any) -> None:
        asked = {name: kwargs.pop(name) for name in (*LOW_BITS, *OF_4BIT) if name in kwargs}
        if any(asked.get(name) for name in LOW_BITS):
            from transformers import BitsAndBytesConfig

            if kwargs.get("quantization_config") is not None:
                bits = next(name for name in LOW_BITS if asked.get(name))
                raise EngineError(f"the weights of {pretrained} are quantised already; leave out {bits}=True.")
            kwargs["quantization_config"] = BitsAndBytesConfig(**asked)
        super()._create_model(pretrained, *args, **kwargs)


def check_arguments(arguments: Mapping[str, Any], whose: str) -> None:
    """Refuse, before a model is loaded, values that lm-eval would pass over in silence or fail on late.

    Parameters
    ----------
    arguments
        Those of `--model hf`.
    whose
        The model that they are of, for messages.

    Raises
    ------
    ArgumentError
        A type of numbers or a device is not known or not there, or bitsandbytes is missing.
    """
    for name in DTYPES:
        given = arguments.get(name)
        if given is None or isinstance(given, torch.dtype) or (name == "dtype" and given == "auto"):
            continue
        if not isinstance(getattr(torch, str(given), None), torch.dtype):
            usual = "auto, float32, float16 or bfloat16" if name == "dtype" else "float32, float16 or bfloat16"
            raise ArgumentError(f"{name}={given} of {whose} is not known; use {usual}.")
    if arguments.get("device") is not None:
        check_device(str(arguments["device"]), whose)
    check_low_bits(arguments, whose)


def check_device(device: str, whose: str) -> None:
    """Refuse a device that torch does not know, or a CUDA device that is not there; lm-eval would take another one.

    The first CUDA device is lm_eval's own default, also where there is none; lm-eval then takes the CPU.
    """
    try:
        asked = torch.device(device)
    except RuntimeError:
        raise ArgumentError(f"device={device} of {whose} is not known; use cpu, cuda, cuda:0 or mps.") from None
    there = torch.cuda.device_count()
    if asked.type == "cuda" and asked.index != 0 and (asked.index or 0) >= there:
        last = f"; use one from cuda:0 to cuda:{there - 1}, or cpu" if there else "; use device=cpu, or leave it out"
        raise ArgumentError(f"device={device} of {whose} is not there, since torch finds {there} CUDA devices{last}.")


def check_low_bits(arguments: Mapping[str, Any], whose: str) -> None:
    """Refuse quantisation while loading that is contradictory, or whose package is not installed."""
    asked = [name for name in LOW_BITS if arguments.get(name)]
    if len(asked) > 1:
        raise ArgumentError(f"load_in_4bit and load_in_8bit of {whose} were both given; keep one of them.")
    idle = next((name for name in OF_4BIT if name in arguments), None)
    if idle is not None and "load_in_4bit" not in asked:
        raise ArgumentError(f"{idle} of {whose} has no effect without load_in_4bit=True; leave it out.")
    if asked and find_spec("bitsandbytes") is None:
        raise ArgumentError(
            f"{asked[0]}=True of {whose} needs the package bitsandbytes; install it with `pip install bitsandbytes`, "
            "or name a model that was saved quantised."
        )


def load_hflm(arguments: Mapping[str, Any]) -> HFLM:
    """lm-eval's model with these arguments, on a GPU where there is one.

    Whatever lm-eval, transformers and torch raise goes on to the caller, who turns it into a sentence
    (`errors.loading`).

    Raises
    ------
    EngineError
        The engine cannot run it.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return CheckedHFLM(**{"device": device, **arguments})


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
