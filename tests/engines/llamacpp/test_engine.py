"""The engine for llama.cpp: the contract, agreement with transformers, and no process left behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from engines.conformance import SCRIPT, TEXTS, THOUGHT, EngineConformance, Reference, StopConformance, run, together
from engines.llamacpp.local import NEEDS_LLAMACPP, converted, opened
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.errors import ArgumentError, EngineError

pytestmark = NEEDS_LLAMACPP


@pytest.fixture(scope="module", params=["pair", "llama", "qwen3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "pair":
        return pair.INTERN
    return tiny.save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(folder, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[Any]:
    engine = opened(file)
    yield engine
    engine.close()


class TestLlamaEngine(EngineConformance):
    """The contract of every engine, and what this engine promises beyond it.

    Not for gpt2: llama.cpp looks its activation function up in a table of 16-bit numbers, which is up to 4e-4 nats off.
    """

    def test_each_call_reads_at_most_one_known_token_again(self, engine: Any) -> None:
        async def question(text: str) -> None:
            for size in (len(text) // 2, len(text)):
                await engine.score(Prompt(text[:size], session=text))
            await engine.generate(Prompt(text, session=text), Sampling(6))
            engine.release(text)

        before = engine.work.recomputed_tokens
        long = [f"{text} {TEXTS[2]}" for text in TEXTS[:5]]
        for text in long:  # at once, llama.cpp may give a question's slot to another one that starts alike
            run(question(text))
        assert engine.work.recomputed_tokens - before <= 2 * len(long)
        assert not set(long) & set(engine._sessions)

    def test_parameters_and_tokens_are_those_of_transformers(self, engine: Any, reference: Reference) -> None:
        assert engine.parameters == sum(parameter.numel() for parameter in reference.model.parameters())
        for text in (*TEXTS, SCRIPT):
            assert engine.encode(text) == reference.tokenizer(text).input_ids


def test_the_process_of_a_closed_engine_has_ended(tmp_path: Path) -> None:
    engine = opened(converted(pair.INTERN, tmp_path))
    server = psutil.Process(engine._server._process.pid)
    assert run(engine.generate(Prompt(TEXTS[0]), Sampling(3))).new_tokens == 3
    engine.close()
    assert not server.is_running()


def test_a_running_server_gives_the_same_answers_and_is_left_running(tmp_path: Path) -> None:
    """By its address, and a name that is no file: the tokenizer is then named."""
    own = opened(converted(pair.INTERN, tmp_path))
    other = opened(Path("intern"), base_url=own._server.address + "/v1", tokenizer=str(pair.INTERN))
    prompts = [Prompt(text) for text in TEXTS[:3]]
    answers = [
        run(together(*(engine.generate(prompt, Sampling(8, return_token_stats=True)) for prompt in prompts)))
        for engine in (own, other)
    ]
    for one, two in zip(*answers, strict=True):
        assert one.token_ids == two.token_ids
        np.testing.assert_allclose(one.entropy, two.entropy, atol=1e-4)
    assert other.parameters == own.parameters
    assert other.max_concurrency == 4
    other.close()
    assert run(own.generate(prompts[0], Sampling(8))).token_ids == answers[0][0].token_ids
    own.close()


def test_llamacpps_own_tokenizer_reads_marks_and_shows_no_special_tokens(tmp_path: Path) -> None:
    from engines.llamacpp import to_gguf

    engine = opened(to_gguf.save(pair.INTERN, tmp_path / "model.gguf", embed_tokenizer=False))
    end = engine.lm.eot_token_id
    ids = engine.encode("Mira</s>")
    assert ids[-1] == end
    assert engine.decode(tuple(ids)) == "Mira"
    assert engine.lm.tokenizer.decode(ids) == "Mira</s>"
    assert engine.decode(tuple(engine.encode("é"))[:1]) == "", "half a character is no text"
    text = engine.render((("user", "1 + 1?"), ("assistant", "2"), ("user", "And 2 + 2?")))
    assert text == AutoTokenizer.from_pretrained(pair.INTERN).apply_chat_template(
        [
            {"role": "user", "content": "1 + 1?"},
            {"role": "assistant", "content": "2"},
            {"role": "user", "content": "And 2 + 2?"},
        ],
        tokenize=False,
        add_generation_prompt=True,
    )
    engine.close()


def test_estimates_state_their_error_and_keep_it(tmp_path: Path) -> None:
    file = converted(pair.INTERN, tmp_path)
    exact, estimate = opened(file), opened(file, entropy="topk:20")
    found = [run(engine.score(Prompt(TEXTS[0]))) for engine in (exact, estimate)]
    np.testing.assert_allclose(found[1].logprob, found[0].logprob, atol=1e-4)
    wrong = np.abs(found[1].entropy[1:] - found[0].entropy[1:]).sum()
    work = estimate.work
    assert work.estimated_entropies == len(found[0]) - 1
    assert 0 < wrong <= work.entropy_error + 1e-4
    assert exact.work.entropy_error == exact.work.estimated_entropies == 0
    exact.close()
    estimate.close()


def test_files_that_are_none_are_refused_in_one_sentence(tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"a page of an error")
    with pytest.raises(ArgumentError, match="is no GGUF file"):
        opened(broken)
    broken.write_bytes(b"GGUF\x03")
    with pytest.raises(ArgumentError, match="cannot be read as a GGUF file"):
        opened(broken)
    whole = converted(pair.INTERN, tmp_path)
    broken.write_bytes(whole.read_bytes()[:-100_000])
    with pytest.raises(EngineError, match=r"llama\.cpp could not load the model"):
        opened(broken)
    with pytest.raises(ArgumentError, match=r"max_length=9999 .* at most 512"):
        opened(whole, max_length=9999)
    with pytest.raises(ArgumentError, match="cache_type=f8 is not known"):
        opened(whole, cache_type="f8")


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tiny.save_script(tmp_path_factory.mktemp("script"), SCRIPT)
    engine = opened(converted(folder, tmp_path_factory.mktemp("gguf")))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    folder = tiny.save_script(tmp_path_factory.mktemp("thought"), THOUGHT)
    engine = opened(converted(folder, tmp_path_factory.mktemp("gguf")), think_end_token="</think>")
    yield engine
    engine.close()


class TestStops(StopConformance):
    """The stop rule."""

    tokenizer = AutoTokenizer.from_pretrained(pair.INTERN)
