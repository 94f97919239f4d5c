"""Which engine runs a role: chosen by its backend's name, and imported only when it is used."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from importlib.util import find_spec
from pathlib import Path

from lm_eval_tandem.engines import DEFAULT_VIEW, Engine, Role, ScoringView
from lm_eval_tandem.engines.http.options import IGNORED, Options
from lm_eval_tandem.errors import ArgumentError, ClassifierError

BACKENDS = ("hf", "vllm", "openai")
SCORING_VIEW_BACKENDS = ("hf",)
"""Backends whose engines know other views of a prompt than the plain one: hidden states, adapters."""
FROM_PRETRAINED = (
    "attn_implementation",
    "device_map",
    "load_in_4bit",
    "load_in_8bit",
    "bnb_4bit_compute_dtype",
    "bnb_4bit_quant_type",
    "bnb_4bit_use_double_quant",
    "low_cpu_mem_usage",
    "use_safetensors",
    "variant",
)
"""What HFLM hands on to transformers beside its own arguments."""


def arguments(backend: str) -> Collection[str] | None:
    """Names of the arguments that a backend takes; None where any will do.

    Raises
    ------
    ArgumentError
        No backend has this name, or what it needs is not installed.
    """
    if backend == "hf":
        from lm_eval.models.huggingface import HFLM

        return (set(inspect.signature(HFLM.__init__).parameters) - {"self", "kwargs", "backend"}) | {*FROM_PRETRAINED}
    if backend == "vllm":
        return vllm_arguments()
    if backend == "openai":
        if find_spec("openai") is None:
            raise ArgumentError(
                "backend=openai needs the package openai; install it with pip install 'lm-eval-tandem[openai]'."
            )
        return {*Options.names(), *IGNORED}
    from lm_eval_tandem.engines.http.registered import accepted

    named = accepted(backend)
    if named is None:
        known = ", ".join(BACKENDS)
        raise ArgumentError(f"backend={backend} is not known; use one of {known}, or a registered model of lm_eval.")
    return {*named, *IGNORED, "parameters"} - {"pretrained", "model"}


def vllm_arguments() -> set[str]:
    """What lm-eval's `vllm` model and vLLM's engine take, and how entropies are found."""
    try:
        from lm_eval_tandem.engines.vllm.arguments import names
    except ImportError as error:
        raise ArgumentError(
            f"backend=vllm needs vLLM, which cannot be imported ({error}); "
            "install it with pip install 'lm-eval-tandem[vllm]' (README, Engines), or use backend=hf."
        ) from error
    return names()


def load(role: Role) -> Engine:
    """The engine of one role, its model loaded.

    Raises
    ------
    EngineError
        The model cannot be loaded.
    """
    if role.backend == "vllm":
        from lm_eval_tandem.engines.vllm.engine import VLLMEngine

        return VLLMEngine({"pretrained": role.model, **role.arguments})
    if role.backend == "openai":
        from lm_eval_tandem.engines.http.openai import APIEngine

        return APIEngine(role.model, role.arguments)
    if role.backend not in BACKENDS:
        from lm_eval_tandem.engines.http.registered import RegisteredEngine

        return RegisteredEngine(role.backend, role.model, role.arguments)
    from lm_eval_tandem.engines.hf.engine import HFEngine

    return HFEngine({"pretrained": role.model, **role.arguments})


def check_view(view: ScoringView, backend: str, who: str) -> None:
    """Before a model is loaded: can an intern of this backend look at prompts as `who` (a clause) wants it to?

    Raises
    ------
    ClassifierError
        It cannot, or what that needs is not installed.
    """
    if view != DEFAULT_VIEW and backend not in SCORING_VIEW_BACKENDS:
        raise ClassifierError(
            f"{who} needs the intern's hidden states, which intern_backend={backend} does not tell; "
            f"use intern_backend={SCORING_VIEW_BACKENDS[0]}, or other inputs (fit --inputs statistics, for example)."
        )
    if view.adapter is not None:
        need_peft(who)


def need_peft(who: str) -> None:
    """Raises ClassifierError where peft is not installed, which `who` (a clause) needs."""
    if find_spec("peft") is None:
        raise ClassifierError(f"{who} needs the package peft; install it with pip install 'lm-eval-tandem[peft]'.")


def prepare(intern: Engine, view: ScoringView, width: int | None, adapter: Path | None, who: str) -> None:
    """After the models are loaded: the intern is ready for this view of prompts.

    width: D, where the hidden state has to be of so many numbers. adapter: the folder of the view's adapter.

    Raises
    ------
    ClassifierError
        Its hidden states are others, or the adapter is not for it.
    """
    if view == DEFAULT_VIEW:
        return
    from lm_eval_tandem.engines.hf.engine import HFEngine

    assert isinstance(intern, HFEngine)
    if intern.width is None or width not in (None, intern.width):
        raise ClassifierError(
            f"{who} reads hidden states of {width or 'any'} numbers, but {intern.name} has "
            f"{intern.width or 'no output layer to take them from, so none'}; use the intern that it was fitted on."
        )
    if view.adapter is not None and adapter is not None:
        intern.adapt(adapter, view.adapter)
