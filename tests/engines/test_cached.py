"""A store in front of an engine: parts of an answer are read from the whole of it, and are those of the engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import tiny
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.store import Store

TEXT = "Mira starts with 40 coins and buys a lantern."
WHOLE = Sampling(24, return_token_stats=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    folder = tiny.save(tmp_path_factory.mktemp("cached"), "llama", 1)
    engine = HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu"})
    yield engine
    engine.close()


@pytest.fixture
def cached(engine: HFEngine, tmp_path: Path) -> Iterator[CachedEngine]:
    store = Store(tmp_path / "store.sqlite")
    yield CachedEngine(engine, store)
    store.close()


def ask(engine: HFEngine | CachedEngine, sampling: Sampling, prompt: Prompt | None = None) -> Completion:
    return asyncio.run(engine.generate(prompt or Prompt(TEXT), sampling))


def assert_alike(part: Completion, real: Completion) -> None:
    assert part.token_ids == real.token_ids
    assert part.finish_reason == real.finish_reason
    assert part.text == real.text
    assert part.prompt_tokens == real.prompt_tokens
    for name in ("logprob", "entropy"):
        one, other = getattr(part, name), getattr(real, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, atol=1e-5)


def test_beginning_and_rest_of_a_known_answer_are_computed_by_nobody(engine: HFEngine, cached: CachedEngine) -> None:
    whole = ask(cached, WHOLE)
    assert whole.entropy is not None
    limits = [None, float(np.median(whole.entropy)), float(whole.entropy.max()) + 1, float(whole.entropy.min()) / 2]
    cases = [
        (start, tokens, limit, measured)
        for start in (0, 1, 9, 20)
        for tokens in (1, 4, 24 - start)
        for limit in limits
        for measured in (True, False)
        if measured or limit is None
    ]
    for start, tokens, limit, measured in cases:
        if (start, tokens, limit, measured) == (0, 24, None, True):
            continue  # the whole itself
        sampling = Sampling(tokens, return_token_stats=measured, max_entropy=limit)
        prompt = Prompt(TEXT, whole.token_ids[:start], horizon=24 - start)
        real = ask(engine, sampling, prompt)
        before = replace(engine.work)
        assert_alike(ask(cached, sampling, prompt), real)
        assert engine.work.decode_tokens == before.decode_tokens, (start, tokens, limit, measured)


def test_what_a_known_answer_does_not_hold_is_computed(engine: HFEngine, cached: CachedEngine) -> None:
    whole = ask(cached, replace(WHOLE, return_token_stats=False))
    other = tuple(reversed(whole.token_ids[:3]))
    for prompt, sampling in (
        (Prompt(TEXT, horizon=24), Sampling(4, return_token_stats=True)),  # it was not measured
        (Prompt(TEXT, other, horizon=21), Sampling(4)),  # another beginning
        (Prompt(TEXT, horizon=30), Sampling(4)),  # a longer answer, whose stop strings could differ
        (Prompt(TEXT, horizon=24), Sampling(4, temperature=0.7, seed=3)),
        (Prompt(TEXT + " Then", horizon=24), Sampling(4)),
    ):
        assert_alike(ask(cached, sampling, prompt), ask(engine, sampling, prompt))
    assert cached.hits == 0


def test_an_answer_that_ended_ends_in_parts_as_well(engine: HFEngine, cached: CachedEngine) -> None:
    ids = ask(engine, WHOLE).token_ids
    word = engine.decode(ids[:12])[-4:]
    sampling = replace(WHOLE, stop=(word,))
    whole = ask(cached, sampling)
    assert whole.finish_reason == "stop"
    n = len(whole.token_ids)
    for start, tokens in ((0, n - 1), (0, n), (0, n + 3), (n - 2, 10)):
        prompt = Prompt(TEXT, whole.token_ids[:start], horizon=24 - start)
        part = replace(sampling, max_tokens=tokens)
        assert_alike(ask(cached, part, prompt), ask(engine, part, prompt))
