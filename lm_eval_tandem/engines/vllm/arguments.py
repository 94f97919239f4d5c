"""The arguments of `backend=vllm`. Importing this loads vLLM's own list of them, no engine."""

from __future__ import annotations

import inspect
from dataclasses import fields

from lm_eval.models.vllm_causallms import VLLM
from vllm.engine.arg_utils import AsyncEngineArgs


def names() -> set[str]:
    """What lm-eval's `vllm` model and vLLM's engine take, and how entropies are found."""
    own = set(inspect.signature(VLLM.__init__).parameters) - {"self", "kwargs"}
    engine = {field.name for field in fields(AsyncEngineArgs)} - {"model", "hf_token"}
    return own | engine | {"device", "swap_space", "entropy"}
