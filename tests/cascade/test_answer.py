"""An answer started by a probe is exactly the answer of a single call, with a real engine."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator

import numpy as np
import pytest

import tiny
from engines.conformance import THOUGHT
from lm_eval_tandem.cascade.answer import PartialAnswer
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.judge.probe import Probe

PROMPT = Prompt("Mira starts with 40 coins: 1) buys a lantern. How many coins does Mira have? Steps:", session="s")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    folder = tiny.save(tmp_path_factory.mktemp("writer"), "llama", 1)
    made = HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu"})
    yield made
    made.close()


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HFEngine]:
    folder = tiny.save_script(tmp_path_factory.mktemp("thinker"), THOUGHT)
    made = HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu", "think_end_token": "</think>"})
    yield made
    made.close()


def written(
    engine: HFEngine,
    sampling: Sampling,
    probe: Probe | None,
    draft: tuple[int, ...] = (),
    prompt: Prompt = PROMPT,
) -> tuple[str, PartialAnswer, int]:
    """The text, the answer, and the number of tokens that its calls were counted with."""
    counted: list[Completion] = []

    def record_call(continued: tuple[int, ...], completion: Completion, draft: tuple[int, ...]) -> None:
        assert len(continued) == sum(len(one.token_ids) for one in counted)
        counted.append(completion)

    async def write() -> tuple[str, PartialAnswer]:
        answer = PartialAnswer(engine, prompt, sampling, record_call, draft)
        if probe is not None:
            await answer.start(probe)
            assert len(answer.entropy) == len(answer.ids) == probe.length(answer.entropy)
        return await answer.finish(), answer

    text, answer = asyncio.run(write())
    engine.release("s")
    return text, answer, sum(len(one.token_ids) for one in counted)


@pytest.mark.parametrize("tokens", [1, 5, 12, 40])
def test_a_started_answer_ends_as_if_it_had_never_been_interrupted(engine: HFEngine, tokens: int) -> None:
    sampling = Sampling(24)
    whole, direct, _ = written(engine, sampling, None)
    text, answer, counted = written(engine, sampling, Probe(tokens))
    assert (text, answer.ids, answer.finish_reason) == (whole, direct.ids, direct.finish_reason)
    assert counted == len(direct.ids)


@pytest.mark.parametrize("tokens", [1, 2, 3, 6])
def test_a_stop_string_across_two_calls_ends_the_answer(engine: HFEngine, tokens: int) -> None:
    free, _, _ = written(engine, Sampling(24), None)
    for start in range(0, len(free) - 4, 3):
        sampling = Sampling(24, stop=(free[start : start + 4],))
        whole, direct, _ = written(engine, sampling, None)
        text, answer, counted = written(engine, sampling, Probe(tokens))
        assert (whole, direct.finish_reason) == (free[: free.index(sampling.stop[0])], "stop")
        assert (text, answer.ids, answer.finish_reason) == (whole, direct.ids, "stop")
        assert counted == len(direct.ids)


@pytest.mark.parametrize("tokens", [1, 9, 20, 33, 40, 99])
@pytest.mark.parametrize("stop", ["\n\n", "。", "é", "40"])
def test_a_thinking_model_may_think_a_stop_string_in_a_probe(thinker: HFEngine, tokens: int, stop: str) -> None:
    text, answer, _ = written(thinker, Sampling(99, (stop,)), Probe(tokens, math.inf), prompt=Prompt("x", session="s"))
    assert text == "Été: 37。\n\nDone".split(stop)[0]
    assert answer.finish_reason == "stop"


def test_a_probe_ends_with_its_first_uncertain_token(engine: HFEngine) -> None:
    """What comes after it is generated as if there had been no probe."""
    whole, direct, _ = written(engine, Sampling(24), Probe(24))
    for place in (0, 3, 11):
        below = np.sort(direct.entropy[:place])[-1:]
        if len(below) and below[0] >= direct.entropy[place]:
            continue
        limit = float(direct.entropy[place]) * 0.9999
        text, answer, counted = written(
            engine, Sampling(24), Probe(24, max(limit, float(below[0]) if len(below) else 0))
        )
        assert (text, answer.ids, counted) == (whole, direct.ids, len(direct.ids))
        assert len(answer.entropy) <= place + 1 < 24
    assert len(written(engine, Sampling(24), Probe(20, 1e-6))[1].entropy) == 1, "a random model is never certain"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_draft_changes_no_answer_and_is_accepted_as_far_as_it_agrees(engine: HFEngine, temperature: float) -> None:
    sampling = Sampling(24, temperature=temperature, seed=5)
    whole, direct, _ = written(engine, sampling, None)
    for true in (0, 1, 7, 23, 24):
        wrong = (direct.ids[true] + 1,) if true < 24 else ()
        for probe in (None, Probe(9)):
            before = engine.work.decode_tokens
            text, answer, _ = written(engine, sampling, probe, (*direct.ids[:true], *wrong, *direct.ids[true + 1 :]))
            if probe is None or not temperature:  # under sampling, a second call has another seed
                assert (text, answer.ids, answer.finish_reason) == (whole, direct.ids, direct.finish_reason)
            if probe is None:
                assert engine.work.decode_tokens - before == max(0, 24 - true - 1)


def test_sampled_calls_have_seeds_of_their_own_and_repeat(engine: HFEngine) -> None:
    sampling = Sampling(24, temperature=1.0, seed=5)
    first, again = (written(engine, sampling, Probe(8))[1].ids for _ in range(2))
    assert first == again
    assert len(set(first)) > 1
