"""`benchmarks/unpack.py` on a real model: TANDEM_TEST_MODELS names the folder that holds it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from engines.conformance import run
from engines.llamacpp.local import NEEDS_REAL_MODELS, REAL_MODELS
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.llamacpp.gguf_file import GGUFFile

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # its own folder is where a program finds its imports
unpack = pytest.importorskip("unpack", reason="the tests were copied without benchmarks/")
pytestmark = NEEDS_REAL_MODELS


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_an_unpacked_model_answers_in_transformers_and_counts_as_many_parameters(tmp_path: Path, dtype: str) -> None:
    file = Path(REAL_MODELS, "smollm2-135m-instruct-q4_1.gguf")
    unpack.main([str(file), str(tmp_path), "--dtype", dtype])
    assert json.loads((tmp_path / "config.json").read_text())["dtype"] == dtype
    engine = HFEngine({"pretrained": str(tmp_path), "dtype": dtype, "device": "cpu", "batch_size": 1})
    assert engine.parameters == GGUFFile.read(file).parameters
    text = engine.render((("user", "What is the capital of France? Answer in one word."),))
    assert text.endswith("<|im_start|>assistant\n")
    answer = run(engine.generate(Prompt(text), Sampling(40)))
    assert "Paris" in answer.text
    assert "<|" not in answer.text
    assert answer.finish_reason == "stop"
    engine.close()
