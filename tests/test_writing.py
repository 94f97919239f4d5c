"""An answer that was begun as a probe reads exactly as one written at a stretch, with a real engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

import tiny
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.hf import HFEngine
from lm_eval_tandem.sufficiency.probe import Probe
from lm_eval_tandem.writing import Writing

PROMPT = Prompt("Mira starts with 40 coins: 1) buys a lantern. How many coins does Mira have? Steps:", session="s")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    folder = tiny.save(tmp_path_factory.mktemp("writer"), "llama", 1)
    made = HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu"})
    yield made
    made.close()


def written(engine: HFEngine, sampling: Sampling, probe: Probe | None) -> tuple[str, Writing, int]:
    """The text, the writing and the tokens that its calls were counted with."""
    counted: list[Completion] = []

    def count(continued: tuple[int, ...], completion: Completion) -> None:
        assert len(continued) == sum(len(one.token_ids) for one in counted)
        counted.append(completion)

    async def write() -> tuple[str, Writing]:
        writing = Writing(engine, PROMPT, sampling, count)
        if probe is not None:
            await writing.begin(probe)
            assert len(writing.entropy) == len(writing.ids) == probe.length(writing.entropy)
        return await writing.finish(), writing

    text, writing = asyncio.run(write())
    engine.release("s")
    return text, writing, sum(len(one.token_ids) for one in counted)


@pytest.mark.parametrize("piece", [1, 3, 8])
@pytest.mark.parametrize("tokens", [5, 12, 40])
def test_a_begun_answer_ends_as_if_it_had_never_been_interrupted(engine: HFEngine, piece: int, tokens: int) -> None:
    sampling = Sampling(24)
    whole, direct, _ = written(engine, sampling, None)
    text, writing, counted = written(engine, sampling, Probe(tokens, np.inf, piece))
    assert (text, writing.ids, writing.finish_reason) == (whole, direct.ids, direct.finish_reason)
    assert counted == len(direct.ids)


@pytest.mark.parametrize("piece", [1, 2, 3, 8])
def test_a_stop_string_across_two_pieces_ends_the_answer(engine: HFEngine, piece: int) -> None:
    free, _, _ = written(engine, Sampling(24), None)
    for start in range(0, len(free) - 4, 3):
        sampling = Sampling(24, stop=(free[start : start + 4],))
        whole, direct, _ = written(engine, sampling, None)
        text, writing, _ = written(engine, sampling, Probe(6, np.inf, piece))
        assert (
            (text, writing.finish_reason)
            == (whole, direct.finish_reason)
            == (free[: free.index(sampling.stop[0])], "stop")
        )


def test_doubt_ends_the_probe_after_its_piece(engine: HFEngine) -> None:
    """A random model is never sure: the first piece is the last."""

    async def begin() -> Writing:
        writing = Writing(engine, PROMPT, Sampling(24), lambda continued, completion: None)
        await writing.begin(Probe(20, 1e-6, 4))
        return writing

    assert len(asyncio.run(begin()).ids) == 4


def test_sampled_pieces_have_seeds_of_their_own_and_repeat(engine: HFEngine) -> None:
    sampling = Sampling(24, temperature=1.0, seed=5)
    first, again = (written(engine, sampling, Probe(8, np.inf, 4))[1].ids for _ in range(2))
    assert first == again and len(set(first)) > 1
