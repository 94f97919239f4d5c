"""The transformers engine keeps the contract, on several architectures, and wastes no work."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from engines.conformance import (
    SCRIPT,
    TEXTS,
    THOUGHT,
    EngineConformance,
    Reference,
    StopConformance,
    run,
    together,
    together_reported,
)
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Prompt, Role, Sampling, registry
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.token_stats import (
    generated_token_stats,
    likeliest_tokens,
)
from lm_eval_tandem.errors import EngineError

KINDS = ["llama", "qwen3", "gpt2"]


def opened(folder: Path, batch_size: int = 4, **arguments: object) -> HFEngine:
    given = {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": batch_size}
    return HFEngine(given | arguments)


@pytest.fixture(scope="module", params=[*KINDS, "pair"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "pair":
        return pair.INTERN
    return tiny.save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture
def engine(folder: Path) -> Iterator[HFEngine]:
    engine = opened(folder)
    yield engine
    engine.close()


class TestHFEngine(EngineConformance):
    """The contract of every engine, and what this engine promises beyond it."""

    def test_each_call_reads_at_most_one_known_token_again(self, engine: HFEngine) -> None:
        async def question(text: str) -> None:
            for size in (len(text) // 2, len(text)):
                await engine.score(Prompt(text[:size], session=text))
            await engine.generate(Prompt(text, session=text), Sampling(6))
            engine.release(text)

        run(together(*map(question, TEXTS)))
        assert engine.work.recomputed_tokens <= 2 * len(TEXTS)

    def test_a_failed_batch_fails_its_own_questions_alone(
        self, engine: HFEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A broken pass over a prompt leaves what is being decoded unharmed."""
        forward = engine.lm.model.forward

        def broken(input_ids: torch.Tensor, **given: object) -> object:
            if input_ids.shape[1] > 1 and engine.work.decode_tokens:
                raise RuntimeError("a broken kernel")
            return forward(input_ids=input_ids, **given)

        async def while_decoding() -> list[Any]:
            long = asyncio.ensure_future(engine.generate(Prompt(TEXTS[0]), Sampling(40)))
            while not engine.work.decode_tokens:  # noqa: ASYNC110  the engine's thread counts
                await asyncio.sleep(0.001)
            others = (engine.score(Prompt(TEXTS[2])), engine.generate(Prompt(TEXTS[3]), Sampling(3)))
            return [*await asyncio.gather(*others, return_exceptions=True), await long]

        with monkeypatch.context() as patched:
            patched.setattr(engine.lm.model, "forward", broken)
            *failed, long = run(while_decoding())
        assert [str(error) for error in failed] == ["a broken kernel"] * 2
        assert list(long.token_ids) == reference.greedy(TEXTS[0], 40)
        assert list(run(engine.generate(Prompt("x"), Sampling(3))).token_ids) == reference.greedy("x", 3)

    @pytest.mark.parametrize("fitting", [3, 2, 1])
    def test_where_memory_lacks_the_batch_is_halved_once(
        self, engine: HFEngine, reference: Reference, fitting: int, monkeypatch: pytest.MonkeyPatch, caplog: Any
    ) -> None:
        """The work is tried again with two rows instead of four; where they are too many, one sentence says so."""
        forward = engine.lm.model.forward

        def small(input_ids: torch.Tensor, **given: object) -> object:
            if len(input_ids) > fitting:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return forward(input_ids=input_ids, **given)

        monkeypatch.setattr(engine.lm.model, "forward", small)
        scores = together(*(engine.score(Prompt(text)) for text in TEXTS))
        if fitting == 1:
            with pytest.raises(EngineError, match=r"ran out of memory, with batch_size=2 too, .* smaller batch_size"):
                run(scores)
            assert list(run(engine.generate(Prompt("x"), Sampling(3))).token_ids) == reference.greedy("x", 3)
            return
        for text, stats in zip(TEXTS, run(scores), strict=True):
            np.testing.assert_allclose(stats.logprob[1:], reference.stats(text)[0], atol=2e-4)
        assert "ran out of memory with batch_size=4 and goes on with 2" in caplog.text

    def test_a_generation_that_runs_out_of_memory_begins_again(
        self, engine: HFEngine, reference: Reference, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward, before = engine.lm.model.forward, engine.work.decode_tokens

        def full(input_ids: torch.Tensor, **given: object) -> object:
            if len(input_ids) > 2 and engine.work.decode_tokens >= before + 20:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return forward(input_ids=input_ids, **given)

        monkeypatch.setattr(engine.lm.model, "forward", full)
        sampling = Sampling(30, return_token_stats=True)
        found = run(together(*(engine.generate(Prompt(text), sampling) for text in TEXTS)))
        for text, completion in zip(TEXTS, found, strict=True):
            assert list(completion.token_ids) == reference.greedy(text, 30)
            assert completion.entropy is not None
            assert len(completion.entropy) == completion.new_tokens

    def test_tokens_of_a_generation_that_begins_again_are_reported_once(
        self, engine: HFEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        forward, before = engine.lm.model.forward, engine.work.decode_tokens

        def full(input_ids: torch.Tensor, **given: object) -> object:
            if len(input_ids) > 2 and engine.work.decode_tokens >= before + 20:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
            return forward(input_ids=input_ids, **given)

        monkeypatch.setattr(engine.lm.model, "forward", full)
        calls, found = run(together_reported(engine, [Prompt(text) for text in TEXTS], Sampling(30)))
        assert engine._worker.batch_size == 2, "the memory was never too small"
        for reported, completion in zip(calls, found, strict=True):
            assert tuple(token for new in reported for token in new) == completion.token_ids

    def test_the_tokens_of_a_draft_are_reported(self, engine: HFEngine, reference: Reference) -> None:
        draft = tuple(reference.greedy(TEXTS[0], 12))
        prompt = Prompt(TEXTS[0], draft=(*draft[:8], 5, 6))
        (reported,), (found,) = run(together_reported(engine, [prompt], Sampling(20)))
        assert tuple(token for new in reported for token in new) == found.token_ids
        assert reported[0][:8] == draft[:8] or not engine.reads_drafts

    def test_a_release_frees_what_is_kept_although_nothing_else_is_asked(self, engine: HFEngine) -> None:
        async def release() -> None:
            await engine.score(Prompt(TEXTS[0], session="a"))
            assert "a" in engine._worker._prefixes._entries
            engine.release("a")
            while "a" in engine._worker._prefixes._entries:  # noqa: ASYNC110  the engine's thread frees it
                await asyncio.sleep(0.001)

        run(release())

    def test_kept_prefixes_stay_within_their_memory(self, engine: HFEngine) -> None:
        engine._worker._prefixes.max_bytes = 1
        first = run(engine.score(Prompt(TEXTS[0], session="a")))
        again = run(engine.score(Prompt(TEXTS[0], session="a")))
        assert again.cached_tokens == 0
        assert (first.logprob[1:] == again.logprob[1:]).all()


@pytest.fixture(scope="module")
def scripted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    engine = opened(tiny.save_script(tmp_path_factory.mktemp("script"), SCRIPT))
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def thinking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    folder = tiny.save_script(tmp_path_factory.mktemp("thought"), THOUGHT)
    engine = opened(folder, think_end_token="</think>")
    yield engine
    engine.close()


class TestStopRule(StopConformance):
    """The stop rule of every engine, and that an integer think_end_token is a token."""

    tokenizer = AutoTokenizer.from_pretrained(pair.INTERN)

    def test_a_token_may_end_the_thinking(self, tmp_path: Path) -> None:
        script = "Let me see. 40\n\nminus 3;\n\n \n\nÉté: 37\n\nDone"
        (end,) = self.tokenizer(";").input_ids
        engine = opened(tiny.save_script(tmp_path, script), think_end_token=end)
        found = run(engine.generate(Prompt("x"), Sampling(99, ("\n\n",))))
        assert (found.text, found.finish_reason) == ("Été: 37", "stop")
        assert self.tokenizer.decode(list(found.token_ids)) == script.removesuffix("Done")
        engine.close()


@pytest.mark.parametrize("batch_size", [1, 3, 16])
def test_the_batch_size_changes_no_token(folder: Path, reference: Reference, batch_size: int) -> None:
    engine = opened(folder, batch_size)
    found = run(together(*(engine.generate(Prompt(t), Sampling(10 + i)) for i, t in enumerate(TEXTS))))
    engine.close()
    for i, (text, completion) in enumerate(zip(TEXTS, found, strict=True)):
        assert list(completion.token_ids) == reference.greedy(text, 10 + i)


def test_a_model_with_a_sliding_window_is_generated_and_scored_exactly(tmp_path: Path) -> None:
    folder = tiny.save(tmp_path, "mistral")
    reference = Reference(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)
    )
    engine = opened(folder)
    assert not engine.reads_drafts
    suite = EngineConformance()
    suite.test_greedy_tokens_are_those_of_one_prompt_alone(engine, reference)
    suite.test_score_is_exact_over_the_whole_vocabulary(engine, reference)
    suite.test_each_generation_ends_at_its_own_stop_string(engine, reference)
    engine.close()


def test_a_model_that_cannot_be_loaded_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=f"^the model {tmp_path} could not be loaded: "):
        registry.load(Role(str(tmp_path), "hf", {"device": "cpu"}, "broken"))


@pytest.mark.parametrize("rows", [slice(0, 7), slice(2, 3), slice(6, 7)])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shift", [0.0, 200.0, -200.0])
def test_token_statistics_are_exact_for_certain_tokens_too(rows: slice, masked: bool, shift: float) -> None:
    """Five tokens that are not the likeliest, one that just is, and one that is far ahead of all others."""
    logits = torch.randn(7, 300, generator=torch.Generator().manual_seed(1)) * 8 + shift
    for row, lead in ((5, 1.0), (6, 10.1)):
        logits[row, 4] = logits[row].max() + lead
    if masked:
        logits[2, 10:] = -torch.inf
    logits, tokens = logits[rows], [0, 3, 7, 1, 9, 4, 4][rows]
    exact = torch.log_softmax(logits.double(), -1)
    logprob, entropy = exact.gather(-1, torch.tensor(tokens).unsqueeze(-1)), torch.special.entr(exact.exp()).sum(-1)
    found = np.array(generated_token_stats(logits, tokens))
    np.testing.assert_allclose(found, np.column_stack([logprob, entropy]), atol=1e-5)
    assert (found[:, 1] > 0).all()
    assert likeliest_tokens(logits) == (logits.argmax(-1).tolist(), [True] * len(logits))
