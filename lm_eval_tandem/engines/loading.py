"""Which engine runs a role: chosen by its backend's name, and imported only when it is used."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import fields
from importlib.util import find_spec

from lm_eval_tandem.engines import Engine
from lm_eval_tandem.engines.remote import IGNORED, Options
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.settings import Role

BACKENDS = ("hf", "vllm", "openai")
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

    Raises:
        ArgumentError: no backend has this name, or what it needs is not installed.
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
    from lm_eval_tandem.engines.registered import accepted

    named = accepted(backend)
    if named is None:
        known = ", ".join(BACKENDS)
        raise ArgumentError(f"backend={backend} is not known; use one of {known}, or a registered model of lm_eval.")
    return {*named, *IGNORED, "parameters"} - {"pretrained", "model"}


def vllm_arguments() -> set[str]:
    """What lm-eval's `vllm` model and vLLM's engine take, and how entropies are found."""
    try:
        from lm_eval.models.vllm_causallms import VLLM
        from vllm.engine.arg_utils import AsyncEngineArgs
    except ImportError as error:
        raise ArgumentError(
            f"backend=vllm needs vLLM, which cannot be imported ({error}); "
            "install it with pip install 'lm-eval-tandem[vllm]' (README, Engines), or use backend=hf."
        ) from error
    own = set(inspect.signature(VLLM.__init__).parameters) - {"self", "kwargs"}
    engine = {field.name for field in fields(AsyncEngineArgs)} - {"model", "hf_token"}
    return own | engine | {"device", "swap_space", "entropy"}


def load(role: Role) -> Engine:
    """The engine of one role, its model loaded.

    Raises:
        EngineError: the model cannot be loaded.
    """
    if role.backend == "vllm":
        from lm_eval_tandem.engines.vllm import VLLMEngine

        return VLLMEngine({"pretrained": role.model, **role.arguments})
    if role.backend == "openai":
        from lm_eval_tandem.engines.openai import APIEngine

        return APIEngine(role.model, role.arguments)
    if role.backend not in BACKENDS:
        from lm_eval_tandem.engines.registered import RegisteredEngine

        return RegisteredEngine(role.backend, role.model, role.arguments)
    from lm_eval_tandem.engines.hf import HFEngine

    return HFEngine({"pretrained": role.model, **role.arguments})
