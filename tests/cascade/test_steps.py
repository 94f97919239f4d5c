"""Answers written step by step, against the same done by hand; with real engines whose tokenizers differ."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

import tiny
from lm_eval_tandem.accounting import tflops
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import RATE, Prompts, Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.steps import RATING_TOKENS
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.ledger import STEP_BY_STEP, Record, Segment
from lm_eval_tandem.ledger_file import rounded
from lm_eval_tandem.store import Store

QUESTION = "How many coins?"
LENGTH, END = 24, "e"
"""A letter ends a step, which these random models write often enough."""


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[HFEngine, HFEngine]]:
    base = tmp_path_factory.mktemp("steps")
    models = (("mentor", "qwen3", 3, None), ("intern", "llama", 1, tiny.other_tokenizer()))
    pair = [
        HFEngine({"pretrained": str(tiny.save(base / role, *given)), "dtype": "float32", "device": "cpu"})
        for role, *given in models
    ]
    assert pair[0].encode(QUESTION) != pair[1].encode(QUESTION)
    yield pair[0], pair[1]
    for engine in pair:
        engine.close()


@pytest.fixture
def cascade(engines: tuple[HFEngine, HFEngine]) -> Cascade:
    return Cascade(*engines, Prompts(), Policy("intern"), (5,), step_end=END)


def answer(cascade: Cascade, policy: str, **sampling: object) -> tuple[str, Record]:
    given = replace(cascade, policy=Policy.parse(policy, 1))
    task = Task(Question(QUESTION), replace(Sampling(LENGTH), **sampling), "t", 1)
    return asyncio.run(given.answer(task))


def generate(engine: HFEngine, text: str, tokens: int, **sampling: object) -> Completion:
    return asyncio.run(engine.generate(Prompt(text), replace(Sampling(tokens, (END,)), **sampling)))


def by_hand(engines: tuple[HFEngine, HFEngine], policy: str, length: int = LENGTH) -> tuple[str, list[Segment]]:
    """Steps in the order in which they are written, each from the text so far."""
    (mentor, intern), (name, _, number) = engines, policy.partition(":")
    text, steps, left = QUESTION, [], length
    while True:
        if name == "steps":
            first = generate(intern, text, 1, return_token_stats=True)
            assert first.entropy is not None
            score: float | None = float(first.entropy[0])
            accepted = float(first.entropy[0]) <= float(number)
        else:
            step = intern.decode(generate(intern, text, left).token_ids)
            rating = generate(mentor, text + step + RATE, RATING_TOKENS, stop=())
            digit = re.search("[0-9]", mentor.decode(rating.token_ids))
            score = None if digit is None else float(digit[0])
            accepted = score is not None and score >= int(number)
        writer = ("mentor", "intern")[accepted]
        engine = engines[accepted]
        written = generate(engine, text, left)
        whole = engine.decode(written.token_ids)
        text, left = text + whole, left - written.new_tokens
        steps.append(Segment(writer, written.new_tokens, len(whole), score))
        if left <= 0 or END not in whole:
            return text.removeprefix(QUESTION), steps


@pytest.mark.parametrize("policy", ["steps:0", "steps:5.5", "steps:100", "verify:0", "verify:4", "verify:9"])
def test_both_models_write_what_they_would_by_hand(
    cascade: Cascade, engines: tuple[HFEngine, HFEngine], policy: str
) -> None:
    text, record = answer(cascade, policy)
    expected, steps = by_hand(engines, policy)
    assert text == expected
    assert [replace(one, score=None) for one in record.segments] == [replace(one, score=None) for one in steps]
    assert [one.score for one in record.segments] == pytest.approx([one.score for one in steps], abs=1e-5)
    assert (record.policy, record.reason) == (policy, STEP_BY_STEP)
    assert sum(one.characters for one in record.segments) == len(text)
    written = sum(one.tokens for one in record.segments)
    assert written == LENGTH or (written < LENGTH and record.finish_reason == "stop")
    assert len(steps) > 2, "no step ended here"


def test_a_limit_decides_who_writes(cascade: Cascade) -> None:
    """Nothing is certain of a random model, and nothing exceeds the entropy of its whole vocabulary."""
    (all_mentors, mentors), (all_interns, interns) = answer(cascade, "steps:0"), answer(cascade, "steps:100")
    assert {one.writer for one in mentors.segments} == {"mentor"}
    assert {one.writer for one in interns.segments} == {"intern"}
    assert all_mentors != all_interns
    assert (mentors.stage, interns.stage) == (1, 0)
    assert interns.refused_tokens == 0
    assert mentors.refused_tokens == len(mentors.segments), "of each step one token of the intern was dropped"
    scores = sorted(one.score for one in interns.segments if one.score is not None)
    middle = answer(cascade, f"steps:{scores[len(scores) // 2]:.3f}")[1]
    assert {one.writer for one in middle.segments} == {"mentor", "intern"}


def test_what_is_dropped_and_what_is_read_to_rate_is_on_the_bill(cascade: Cascade) -> None:
    _, record = answer(cascade, "verify:9")
    written = {role: sum(one.tokens for one in record.segments if one.writer == role) for role in ("mentor", "intern")}
    ratings = RATING_TOKENS * len(record.segments)
    assert written["mentor"] < record.tokens.mentor_new <= written["mentor"] + ratings
    assert record.tokens.intern_new == written["intern"] + record.refused_tokens
    assert record.refused_tokens > 0
    assert record.tokens.mentor_prefill > len(QUESTION)
    mentor, intern = cascade.mentor, cascade.intern
    assert mentor is not None
    assert intern is not None
    read = sum(one.tokens for one in record.segments[:-1] if one.writer == "mentor")
    assert record.tflops == tflops(record.tokens, mentor.parameters, intern.parameters, read=read)


@pytest.mark.parametrize("policy", ["steps:5.5", "verify:4"])
def test_a_stop_string_ends_the_answer_whoever_writes_it(cascade: Cascade, policy: str) -> None:
    whole, _ = answer(cascade, policy)
    for stop in (whole[3:5], whole[len(whole) // 2 :][:3]):
        text, record = answer(cascade, policy, stop=(stop,))
        assert text == whole[: whole.index(stop)]
        assert record.finish_reason == "stop"


def test_a_step_that_ends_with_the_answer_ends_it(cascade: Cascade) -> None:
    text, record = answer(cascade, "verify:0", stop=(END,))
    assert END not in text
    assert (record.finish_reason, len(record.segments)) == ("stop", 1)


def test_sampled_steps_differ_from_each_other_and_are_the_same_again(cascade: Cascade) -> None:
    one, again = (answer(cascade, "steps:5.5", temperature=1.0, seed=7)[0] for _ in range(2))
    assert one == again != answer(cascade, "steps:5.5", temperature=1.0, seed=8)[0]


def test_a_stored_answer_is_not_computed_again(cascade: Cascade, tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    mentor, intern = cascade.mentor, cascade.intern
    assert mentor is not None
    assert intern is not None
    stored = replace(cascade, mentor=CachedEngine(mentor, store), intern=CachedEngine(intern, store))
    for policy in ("steps:5.5", "verify:4"):
        text, record = answer(stored, policy)
        computed = mentor.work.decode_tokens, intern.work.decode_tokens
        again, repeated = answer(stored, policy)
        assert (mentor.work.decode_tokens, intern.work.decode_tokens) == computed
        assert (again, repeated.tokens, repeated.segments) == (text, record.tokens, record.segments)
    store.close()


def test_a_conversation_is_rated_after_its_answer(cascade: Cascade) -> None:
    class Plain:
        def render(self, messages: tuple[tuple[str, str], ...], generation_prompt: bool = True) -> str:
            return "".join(f"<{role}>{text}" for role, text in messages)

    prompts = Prompts()
    asked = Question("", (("user", "Why?"),))
    assert prompts.rating(Plain(), asked, "So.") == f"<user>Why?<assistant>So.<user>{RATE.strip()}"
    begun = Question("", (("user", "Why?"), ("assistant", "Well, ")), generation_prompt=False)
    assert prompts.rating(Plain(), begun, "so.") == f"<user>Why?<assistant>Well, so.<user>{RATE.strip()}"


def test_a_ledger_names_the_writers_where_there_are_two(cascade: Cascade) -> None:
    _, record = answer(cascade, "steps:5.5")
    assert rounded(asdict(record))["segments"][0].keys() == {"writer", "tokens", "characters", "score"}
    assert "segments" not in rounded(asdict(answer(cascade, "intern")[1]))
