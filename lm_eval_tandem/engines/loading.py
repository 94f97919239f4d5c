"""Which engine runs a role: chosen by its backend's name, and imported only when it is used."""

from __future__ import annotations

import inspect
from collections.abc import Collection

from lm_eval_tandem.engines import Engine
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.settings import Role

BACKENDS = ("hf",)
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
    raise ArgumentError(f"backend={backend} is not known; use one of {', '.join(BACKENDS)}.")


def load(role: Role) -> Engine:
    """The engine of one role, its model loaded.

    Raises:
        EngineError: the model cannot be loaded.
    """
    from lm_eval_tandem.engines.hf import HFEngine

    return HFEngine({"pretrained": role.model, **role.arguments})
