"""llama.cpp in tests: the mark of those that need it, settings that change no number, files and engines."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

NEEDS_LLAMACPP = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("gguf") is None,
    reason="xllamacpp is not installed: pip install '.[llamacpp]'",
)
REAL_MODELS = os.environ.get("TANDEM_TEST_MODELS", "")
"""The folder of the real models; "" for none."""
NEEDS_REAL_MODELS = [
    pytest.mark.skipif(not REAL_MODELS, reason="TANDEM_TEST_MODELS names no folder with GGUF files"),
    NEEDS_LLAMACPP,
]
EXACT = {"batch_size": 4, "cache_type": "f32", "threads": 1}
"""Arguments of an engine with the numbers of transformers in float32."""


def opened(model: Path | str, **arguments: Any) -> Any:
    """An engine for a GGUF file, or for a model at `base_url`."""
    from lm_eval_tandem.engines.llamacpp.engine import LlamaEngine

    return LlamaEngine(str(model), {**EXACT, **arguments})


def converted(folder: Path, to: Path) -> Path:
    """The model of a folder as a GGUF file in another one."""
    from engines.llamacpp import to_gguf

    return to_gguf.save(folder, to / "model.gguf")
