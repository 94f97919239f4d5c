"""An intern behind a real llama-server, by the OpenAI protocol: the contract, the same answers, closed streams."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("openai", reason="the package openai is not installed")

import tiny
from engines import conformance
from engines.conformance import TEXTS, Reference, run, together
from engines.http.behind_server import (
    EXACT,
    TOKENIZER,
    InIds,
    JudgedConformance,
    assert_answers_are_those_in_process,
    assert_refused_beginnings_end,
)
from engines.llamacpp.llama_server import WINDOW, passes, serving
from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Engine, Prompt, Sampling
from lm_eval_tandem.engines.http.openai import APIEngine

pytestmark = NEEDS_LLAMACPP


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    from engines.llamacpp import to_gguf

    with serving(to_gguf.save(pair.INTERN, tmp_path_factory.mktemp("gguf") / "intern.gguf")) as address:
        yield address


@pytest.fixture(scope="module")
def reference() -> Reference:
    model = AutoModelForCausalLM.from_pretrained(pair.INTERN, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(pair.INTERN))


@pytest.fixture(scope="module")
def engine(address: str) -> Iterator[InIds]:
    engine = InIds("served", {"base_url": f"{address}/v1", "max_length": WINDOW, **EXACT})
    assert engine.resume == "stream"
    yield engine
    engine.close()


@pytest.fixture
def readable(reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only texts whose answers hold whole characters: of parts of them a llama-server sends nothing by this API."""
    for module in (conformance, sys.modules[__name__]):
        texts = [text for text in conformance.TEXTS if "\N{REPLACEMENT CHARACTER}" not in answer_to(text, reference)]
        assert len(texts) >= 3
        monkeypatch.setattr(module, "TEXTS", texts)


def answer_to(text: str, reference: Reference) -> str:
    answer: str = TOKENIZER.decode(reference.greedy(text, 20))
    return answer


@pytest.mark.usefixtures("readable")
class TestJudgedAnswers(JudgedConformance):
    """The contract; a llama-server leaves out the tokens of a stop string."""

    def test_each_generation_ends_at_its_own_stop_string(self, engine: Engine, reference: Reference) -> None:
        ids = [reference.greedy(text, 20) for text in TEXTS]
        whole = [TOKENIZER.decode(one, skip_special_tokens=True) for one in ids]
        stops = [max(text[len(text) // 2 :].split("\N{REPLACEMENT CHARACTER}"), key=len)[:3] for text in whole]
        samplings = [Sampling(20, (stop,)) for stop in stops]
        found = run(together(*(engine.generate(Prompt(t), s) for t, s in zip(TEXTS, samplings, strict=True))))
        for text, stop, completion in zip(whole, stops, found, strict=True):
            assert completion.text == (text.split(stop)[0] if stop else text)
            assert completion.finish_reason == ("stop" if stop else completion.finish_reason)


@pytest.mark.parametrize("n", [8, pytest.param(200, marks=pytest.mark.slow)])
def test_the_answers_are_those_of_the_same_intern_in_process(address: str, n: int) -> None:
    assert_answers_are_those_in_process(f"{address}/v1", n)


def test_refused_beginnings_end_at_the_server_within_16_tokens(tmp_path: Path) -> None:
    """On a model that is slow enough for the connection's end to arrive: 30 million parameters."""
    from engines.llamacpp import to_gguf

    sizes: dict[str, Any] = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}
    sizes |= {"num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": WINDOW}
    folder = tiny.save(tmp_path, **sizes)
    with serving(to_gguf.save(folder, tmp_path / "model.gguf"), slots=1) as address:
        engine = APIEngine("served", {"base_url": f"{address}/v1", **EXACT, "entropy": "topk:20"})
        questions = [f"Mira starts with {n} coins." for n in range(10, 14)]
        print(
            "tokens after a refusal, at most:",
            assert_refused_beginnings_end(engine, lambda: passes(address), questions),
        )
        engine.close()
