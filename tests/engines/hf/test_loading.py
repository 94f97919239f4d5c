"""What cannot be loaded is refused in one sentence, and before a model is loaded where that can be known."""

from __future__ import annotations

import asyncio
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import tiny
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Prompt, Role, Sampling, registry
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import ArgumentError, EngineError, TandemError
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.model import TandemLM

NOWHERE = "org/no-such-model"
THOUGHT = "nothing tells where its thought ends and its answer begins; give think_end_token="


def intern(**arguments: Any) -> Role:
    return Role(str(pair.INTERN), "hf", {"device": "cpu", **arguments}, "pair/intern")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dtype": "float99"}, "dtype=float99 of {} is not known; use auto, float32, float16 or bfloat16."),
        ({"dtype": "nn"}, "dtype=nn of {} is not known"),
        ({"softmax_dtype": "auto"}, "softmax_dtype=auto of {} is not known; use float32"),
        ({"mixed_precision_dtype": 16}, "mixed_precision_dtype=16 of {} is not known"),
        ({"device": "nonsense"}, "device=nonsense of {} is not known; use cpu, cuda, cuda:0 or mps."),
        ({"device": "cuda:99"}, "device=cuda:99 of {} is not there, since torch finds "),
        pytest.param(
            {"device": "cuda"},
            "device=cuda of {} is not there, since torch finds 0 CUDA devices; use device=cpu, or leave it out.",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device"),
        ),
        ({"enable_thinking": True}, "{} is to think (enable_thinking), and with backend=hf " + THOUGHT),
        ({"load_in_4bit": True, "load_in_8bit": True}, "load_in_4bit and load_in_8bit of {} were both given"),
        ({"bnb_4bit_quant_type": "nf4"}, "bnb_4bit_quant_type of {} has no effect without load_in_4bit=True"),
    ],
)
def test_a_value_that_cannot_work_is_refused_before_any_model_is_loaded(
    arguments: dict[str, Any], sentence: str
) -> None:
    """The mentor, which would be loaded first and is nowhere, is not what the message is about."""
    given = {"device": "cpu", **{f"intern_{name}": value for name, value in arguments.items()}}
    with pytest.raises(ArgumentError) as refused:
        TandemLM(mentor=NOWHERE, intern="pair", policy="stage:1", **given)
    assert sentence.format("intern") in str(refused.value)
    models = [NOWHERE, {"model": "pair/intern", "name": "small", **arguments}]
    with pytest.raises(ArgumentError) as refused:
        EnsembleLM(models=models, aggregation="vote", device="cpu")
    assert sentence.format("small") in str(refused.value)


@pytest.mark.parametrize("thinking", ["mentor", "both"])
def test_a_role_that_is_to_think_needs_the_end_of_its_thought(thinking: str) -> None:
    with pytest.raises(ArgumentError, match=r"^mentor is to think .* beside the model's path\.$"):
        TandemLM(mentor=NOWHERE, intern="pair", policy="stage:1", thinking=thinking)
    nowhere = f"the model {NOWHERE} could not be loaded: .*; there is no such folder: give one, a GGUF file, or the id"
    with pytest.raises(EngineError, match=nowhere):  # the next thing to fail
        TandemLM(mentor=NOWHERE, intern="pair", policy="stage:1", thinking=thinking, think_end_token="</think>")


@pytest.mark.parametrize(
    ("arguments", "cause"),
    [
        ({"attn_implementation": "nonsense"}, "attn_implementation"),
        ({"attn_implementation": -1}, "AttributeError: 'int' object has no attribute"),
        ({"max_length": "long"}, "invalid literal for int"),
        ({"add_bos_token": "nonsense"}, "'str' object"),
        ({"variant": "nonsense"}, "no file named model.nonsense.safetensors"),
        ({"tokenizer": -1}, "AssertionError"),
        ({"peft": "nonsense"}, "adapter_config.json"),
    ],
)
def test_whatever_is_raised_while_a_model_is_loaded_becomes_a_sentence_with_its_cause(
    arguments: dict[str, Any], cause: str
) -> None:
    with pytest.raises(TandemError, match=r"^the model .*intern could not be loaded: \S") as caught:
        registry.load(intern(**arguments))
    assert cause in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("bits", ["load_in_4bit", "load_in_8bit"])
def test_quantising_while_loading_needs_bitsandbytes(bits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    registry.check({"intern": intern(**{bits: False})})
    with pytest.raises(ArgumentError, match=rf"^{bits}=True of intern needs the package bitsandbytes; install it with"):
        registry.check({"intern": intern(**{bits: True})})


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize(
    "arguments",
    [
        {"load_in_8bit": True},
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": "float32"},
    ],
    ids=["8 bits", "4 bits"],
)
def test_a_model_is_quantised_while_it_is_loaded_and_counts_as_many_parameters(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    folder = pair.INTERN if "load_in_8bit" in arguments else tiny.save(tmp_path, hidden_size=128, intermediate_size=256)
    plain = HFEngine({"pretrained": str(folder), "device": "cpu", "dtype": "float32"})
    small = HFEngine({"pretrained": str(folder), "device": "cpu", "dtype": "float32", **arguments})
    assert small.parameters == plain.parameters
    assert any(parameter.dtype in (torch.int8, torch.uint8) for parameter in small.lm.model.parameters())
    assert "bitsandbytes" in small.identity
    assert small.identity != plain.identity
    assert asyncio.run(small.generate(Prompt("1 + 1"), Sampling(max_tokens=3))).new_tokens == 3
    plain.close()
    small.close()


@pytest.mark.parametrize("output", ["tied", "the input layer's", "its own"])
def test_an_output_layer_that_is_the_input_layer_counts_once(output: str, tmp_path: Path) -> None:
    """As of a GGUF file that holds it twice, rounded in two ways, for which llama.cpp's engine counts it once, too."""
    folder = tiny.save(tmp_path, tie_word_embeddings=output == "tied")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    layer = model.get_input_embeddings().weight
    if output == "the input layer's":
        with torch.no_grad():
            model.get_output_embeddings().weight.copy_(layer.to(torch.float8_e4m3fn).float())
        model.save_pretrained(folder)
    engine = HFEngine({"pretrained": str(folder), "device": "cpu", "dtype": "float32"})
    assert engine.parameters == model.num_parameters() - (layer.numel() if output == "the input layer's" else 0)
    engine.close()
