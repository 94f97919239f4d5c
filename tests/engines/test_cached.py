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
from lm_eval_tandem.errors import ContextError
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


LONG = Sampling(180)


async def until_it_works(engine: HFEngine) -> None:
    """Until the engine generates."""
    before = engine.work.decode_tokens
    while engine.work.decode_tokens == before:  # noqa: ASYNC110  the engine's thread counts
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("cancelled", [0, 1, 2])
def test_an_equal_call_gets_its_result_whichever_caller_is_cancelled(
    engine: HFEngine, cached: CachedEngine, cancelled: int
) -> None:
    expected = ask(engine, LONG)

    async def cancel_one() -> None:
        sessions = [f"s{i}" for i in range(3)]
        calls = [asyncio.ensure_future(cached.generate(Prompt(TEXT, session=one), LONG)) for one in sessions]
        await until_it_works(engine)
        calls[cancelled].cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(found.pop(cancelled), asyncio.CancelledError)
        for one in found:
            assert isinstance(one, Completion)
            assert_alike(one, expected)
        for one in sessions:
            cached.release(one)

    asyncio.run(cancel_one())
    assert not cached._in_flight


def test_where_all_equal_calls_are_cancelled_the_engine_stops(engine: HFEngine, cached: CachedEngine) -> None:
    async def cancel_all() -> None:
        calls = [asyncio.ensure_future(cached.generate(Prompt(TEXT, session="s"), LONG)) for _ in range(3)]
        await until_it_works(engine)
        for call in calls:
            call.cancel()
        found = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(one, asyncio.CancelledError) for one in found)
        cached.release("s")
        before = engine.work.decode_tokens
        await engine.generate(Prompt("x"), Sampling(5))
        assert engine.work.decode_tokens - before <= 4 + 2, "it was computed further"
        assert not engine._worker._decoding.running

    asyncio.run(cancel_all())
    assert not cached._in_flight
    assert ask(cached, LONG).new_tokens


def test_an_error_of_a_call_is_that_of_all_equal_ones(cached: CachedEngine) -> None:
    refused = Sampling(100_000)

    async def ask_twice() -> list[object]:
        calls = (cached.generate(Prompt(TEXT), refused) for _ in range(2))
        return list(await asyncio.gather(*calls, return_exceptions=True))

    assert [type(one) for one in asyncio.run(ask_twice())] == [ContextError] * 2


def test_who_wants_the_tokens_makes_no_difference_to_the_store(engine: HFEngine, cached: CachedEngine) -> None:
    reported: list[int] = []
    watched = ask(cached, WHOLE, Prompt(TEXT, on_tokens=reported.extend))
    assert tuple(reported) == watched.token_ids[: len(reported)]
    assert reported
    before = engine.work.decode_tokens
    assert_alike(ask(cached, WHOLE), watched)
    assert engine.work.decode_tokens == before
    assert cached.hits == 1
