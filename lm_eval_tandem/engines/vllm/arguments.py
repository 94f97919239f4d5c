"""Names of the arguments of `backend=vllm`. Importing this module loads vLLM's definitions, but no model."""

from __future__ import annotations

import inspect
from dataclasses import fields

from lm_eval.models.vllm_causallms import VLLM
from vllm.engine.arg_utils import AsyncEngineArgs


def names() -> set[str]:
    """The arguments of lm-eval's `vllm` model, those of vLLM's engine, and `entropy`."""
    harness = set(inspect.signature(VLLM.__init__).parameters) - {"self", "kwargs"}
    engine = {field.name for field in fields(AsyncEngineArgs)} - {"model", "hf_token"}
    return harness | engine | {"device", "swap_space", "entropy"}
