"""Logits that are NaN are an error of their question; they never become tokens, statistics or insights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import architectures
from bundled import COMMON, instances
from engines.conformance import TEXTS, run
from lm_eval_tandem.engines import Prompt, Sampling, ScoringView
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import CallError, EngineError
from lm_eval_tandem.harness.model import TandemLM

BROKEN = TEXTS[4]
"""The prompt with a word whose embedding is NaN."""


@pytest.fixture(scope="module")
def partly_broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that computes NaN for prompts with one certain word."""
    folder = architectures.save(tmp_path_factory.mktemp("nan"), "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    others = {token for text in TEXTS if text != BROKEN for token in tokenizer(text).input_ids}
    word = next(token for token in tokenizer(BROKEN).input_ids if token not in others)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data[word] = float("nan")
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def engine(partly_broken: Path) -> Iterator[HFEngine]:
    engine = HFEngine({"pretrained": str(partly_broken), "dtype": "float32", "device": "cpu", "batch_size": 8})
    yield engine
    engine.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(6),
        Sampling(6, return_token_stats=True),
        Sampling(6, temperature=1.0, seed=3),
        Sampling(6, repetition_penalty=1.2),
    ],
)
def test_one_broken_prompt_of_a_batch_fails_alone(engine: HFEngine, sampling: Sampling) -> None:
    async def ask() -> list[Any]:
        from asyncio import gather

        calls = (engine.generate(Prompt(t, draft=(5, 6, 7)), sampling) for t in TEXTS)
        return list(await gather(*calls, return_exceptions=True))

    for text, found in zip(TEXTS, run(ask()), strict=True):
        if text == BROKEN:
            assert isinstance(found, CallError)
            assert "are NaN or infinite" in str(found)
            assert "dtype=" in str(found)
        else:
            assert found.token_ids == run(engine.generate(Prompt(text), sampling)).token_ids


def test_sampling_that_leaves_no_probabilities_fails_alone(engine: HFEngine) -> None:
    """Both where a generation begins and later: the first tokens are not yet subject to a penalty."""
    texts = [text for text in TEXTS if text != BROKEN][:2]
    extremes = [Sampling(40, temperature=1e-300), Sampling(40, temperature=1.0, repetition_penalty=1e-38, top_k=1000)]

    async def ask() -> list[Any]:
        from asyncio import gather

        calls = [engine.generate(Prompt(text), sampling) for text in texts for sampling in (*extremes, Sampling(40))]
        return list(await gather(*calls, return_exceptions=True))

    found = run(ask())
    for one in (found[0], found[3]):
        assert isinstance(one, CallError)
        assert "extreme values of temperature" in str(one)
    for text, one in zip(texts, (found[2], found[5]), strict=True):
        assert one.token_ids == run(engine.generate(Prompt(text), Sampling(40))).token_ids


@pytest.mark.parametrize("view", [ScoringView(), ScoringView(hidden=True)])
def test_a_broken_prompt_has_no_statistics(engine: HFEngine, view: ScoringView) -> None:
    with pytest.raises(CallError, match="are NaN or infinite"):
        run(engine.score(Prompt(BROKEN, session="s"), view))
    assert len(run(engine.score(Prompt(TEXTS[0]), view))) > 1


def with_norm(folder: Path, value: float) -> str:
    """A model whose last norm has this weight: NaN makes every logit NaN, 0 makes all equal, so that it writes pads."""
    architectures.save(folder, "llama")
    model = AutoModelForCausalLM.from_pretrained(folder)
    torch.nn.init.constant_(model.model.norm.weight, value)
    model.save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("value", "words"),
    [(float("nan"), "logits of .* are NaN"), (0.0, r"has written no readable insight up to stage 2 \(8 of its tokens")],
)
def test_a_mentor_that_writes_nothing_never_guides(tmp_path: Path, value: float, words: str) -> None:
    folders = {"mentor": with_norm(tmp_path / "m", value), "intern": str(architectures.save(tmp_path / "i", "llama"))}

    def answered(policy: str) -> list[str]:
        lm = TandemLM(policy=policy, efforts="4:8", prompts="pair", **folders, **COMMON)
        try:
            return lm.generate_until(instances(3, max_gen_toks=8), disable_tqdm=True)
        finally:
            lm.close()

    with pytest.raises(EngineError, match=rf"3 of 3 questions failed .*{words}") as failure:
        answered("stage:2")
    assert "\n" not in str(failure.value)
    assert answered("stage:0") == answered("intern")


def test_an_intern_whose_logits_are_nan_is_named_with_what_to_check(tmp_path: Path) -> None:
    folders = {
        "mentor": str(architectures.save(tmp_path / "m", "llama")),
        "intern": with_norm(tmp_path / "i", float("nan")),
    }
    classifier = {"classifier": "pair", "efforts": "8:16:32", "prompts": "pair"}
    lm = TandemLM(policy="cascade", **folders, **classifier, **COMMON)
    with pytest.raises(EngineError, match=r"3 of 3 questions failed .* the logits of .*/i are NaN.*dtype="):
        lm.generate_until(instances(3, max_gen_toks=8), disable_tqdm=True)
    lm.close()
