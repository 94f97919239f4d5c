"""Engines with models of random weights, for `gpu_group.py`: arguments, the memory that is needed, and loading."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import psutil
import torch
from gpu_results import PAIRS, Group
from random_models import SHAPES, Shape, randomise, save_shape
from transformers.utils import logging as transformers_logging

from lm_eval_tandem.engines import Engine, Role, registry

GIB = 2**30
SPARE = 4 * GIB
"""Memory of an engine beyond weights and key-value cache, on a GPU."""
WINDOW = 4096
"""vLLM's; the longest text has 3,200 tokens."""
LONGEST = 3072
"""Tokens of each question for which vLLM's engines get memory, where there is enough."""


def arguments(group: Group, device: str) -> list[dict[str, Any]]:
    """Return the engine arguments of mentor and intern."""
    most = max(group.in_flight)
    common: dict[str, Any] = {"dtype": "bfloat16"}
    if group.engine == "hf":
        return [common | {"device": device, "batch_size": most}] * 2
    common |= {"load_format": "dummy", "max_model_len": WINDOW, "max_num_seqs": 2 * most}
    if device == "cpu":
        return [common | {"kv_cache_memory_bytes": GIB // 4}] * 2
    free, total = memory(device)
    wanted = [weights(shape) + 2 * shape.cached_numbers * most * LONGEST + SPARE for shape in shapes_of(group)]
    intern = min(wanted[1] / total, 0.45)
    mentor = min(wanted[0] / total, 0.93 * free / total - intern)
    return [common | {"gpu_memory_utilization": round(share, 3)} for share in (mentor, intern)]


def shapes_of(group: Group) -> list[Shape]:
    """Return the shapes of mentor and intern."""
    return [SHAPES[name] for name in PAIRS[group.pair]]


def weights(shape: Shape) -> float:
    """Return the bytes of a model's weights in bfloat16, with some room."""
    return 2.1 * shape.parameters


def lacking_memory(group: Group, device: str) -> str:
    """Return why both models do not fit into the device's memory; "" where they do."""
    needed, (free, _) = sum(map(weights, shapes_of(group))) + 2 * SPARE * (device == "cuda"), memory(device)
    return f"both need {needed / GIB:.0f} GiB, and {free / GIB:.0f} GiB are free" if needed > free else ""


def memory(device: str) -> tuple[int, int]:
    """Return the free and the total memory of the device in bytes."""
    if device == "cuda":
        return torch.cuda.mem_get_info()
    state = psutil.virtual_memory()
    return state.available, state.total


def load(engine: str, folder: Path, name: str, arguments: dict[str, Any]) -> Engine:
    """Return a loaded engine with a model of this shape, whose weights were made on its device."""
    transformers_logging.set_verbosity_error()  # a list of all weights that the file lacks
    os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"  # so that a function can be sent to vLLM's own process
    model = save_shape(folder / name, SHAPES[name])
    loaded = registry.load(Role(str(model), engine, arguments, name))
    if engine == "vllm":
        loaded.lm.model.call_workers("apply_model", randomise)
    else:
        randomise(loaded.lm.model)
    return loaded
