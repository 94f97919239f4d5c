"""What is said of a question that does not fit into a window: the real numbers, and advice that helps when followed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from bundled import COMMON
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Sampling
from lm_eval_tandem.engines.limits import check_window
from lm_eval_tandem.errors import ContextError
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.requests import longest_answer

SHORT = "1 + 1 ="
LOWER_ANSWER = r"lower max_gen_toks \(--gen_kwargs\) to at most (\d+)"
LOWER_POLICY = r"lower the number of policy=\w+:\d+ to at most (\d+)"
LOWER_EFFORTS = r"lower efforts to at most (\d+)"
POLICIES = ("intern", "mentor", "stage:3", "outline:20", "handoff:40", "steps:0.5", "verify:5", "budget_forcing:5")


def task(text: str, max_tokens: int, place: str = "") -> Task:
    return Task(Question(text), Sampling(max_tokens), "t", 3, place=place)


def refusal(lm: Any, asked: Task) -> str:
    with pytest.raises(ContextError) as refused:
        lm.check_fits(asked)
    return str(refused.value)


@pytest.fixture(scope="module")
def tandem() -> Iterator[TandemLM]:
    lm = TandemLM(policy="stage:3", **COMMON)
    yield lm
    lm.close()


def test_a_question_that_is_too_long_is_to_be_shortened(tandem: TandemLM) -> None:
    for policy in POLICIES:
        tandem.use(policy)
        sentence = refusal(tandem, task("7" * 600, 150, "line 4 (id b)"))
        numbers = r"window of \S+, 512 tokens: its prompt has [67]\d\d tokens, which leave none for an answer; shorten"
        assert re.match(rf"line 4 \(id b\) does not fit into the {numbers} the prompt, or use", sentence), sentence
        assert "max_gen_toks" not in sentence


@pytest.mark.parametrize("policy", POLICIES)
def test_advice_on_the_answer_is_true(tandem: TandemLM, policy: str) -> None:
    tandem.use(policy)
    for text in (SHORT, "7" * 330):
        sentence = refusal(tandem, task(text, 5_000))
        assert sentence.startswith("t #3 does not fit into the window of ")
        assert "max_gen_toks=5000 for the answer" in sentence
        size, left = re.findall(r"its prompt has (\d+) tokens, which leave (\d+),", sentence)[0]
        assert int(size) + int(left) == 512
        longest = int(re.findall(LOWER_ANSWER, sentence)[0])
        tandem.check_fits(task(text, longest))
        assert f"to at most {longest}," in refusal(tandem, task(text, longest + 1))


def test_advice_on_the_mentor_is_true(tandem: TandemLM) -> None:
    for policy in ("outline", "handoff"):
        tandem.use(f"{policy}:100000")
        asked = task(SHORT, 150)
        if policy == "handoff":  # whose number is a part of the answer, so a longer one changes nothing
            tandem.check_fits(asked)
            asked = task("7" * 420, 150)
        sentence = refusal(tandem, asked)
        assert "max_gen_toks=0" not in sentence
        longest = re.findall(LOWER_ANSWER, sentence)
        if longest:
            tandem.check_fits(replace(asked, sampling=Sampling(int(longest[0]))))
        most = int(re.findall(LOWER_POLICY, sentence)[0])
        tandem.use(f"{policy}:{most + 1}")
        assert f"to at most {most}," in refusal(tandem, asked) or policy == "handoff"
        if policy == "outline":
            assert f"up to 100000 of insights (policy={policy}:100000); lower the number" in sentence
            tandem.use(f"{policy}:{most}")
            tandem.check_fits(asked)


def test_efforts_that_are_too_large_are_named() -> None:
    lm = TandemLM(policy="stage:3", efforts="100:200:900", **COMMON)
    sentence = refusal(lm, task(SHORT, 150))
    lm.close()
    assert "what may follow is up to 900 of insights (efforts); lower efforts to at most" in sentence
    most = re.findall(LOWER_EFFORTS, sentence)[0]
    lm = TandemLM(policy="stage:3", efforts=f"100:200:{most}", **COMMON)
    assert lm.check_fits(task(SHORT, 150)) > 0
    lm.close()


@pytest.mark.parametrize("policy", [*POLICIES, "outline:100000", "handoff:100000"])
def test_the_longest_answer_fits_and_no_longer_one(tandem: TandemLM, policy: str) -> None:
    tandem.use(policy)
    longest = longest_answer(task(SHORT, 1), tandem.settings, tandem.engines)
    refusal(tandem, task(SHORT, max(1, longest + 1)))
    if longest > 0:
        tandem.check_fits(task(SHORT, longest))


def test_only_a_policy_that_rates_reserves_room_for_it(tandem: TandemLM) -> None:
    longest = {}
    for policy in ("mentor", "steps:0.5", "verify:5"):
        tandem.use(policy)
        longest[policy] = longest_answer(task(SHORT, 1), tandem.settings, tandem.engines)
    assert longest["steps:0.5"] == longest["mentor"] > longest["verify:5"]
    assert "max_gen_toks=5000 for the answer and 4 for its rating" in refusal(tandem, task(SHORT, 5_000))


def test_an_ensemble_says_the_same() -> None:
    lm = EnsembleLM(aggregation="vote", **COMMON)
    assert "its prompt has 6" in refusal(lm, task("7" * 600, 9))
    assert "max_gen_toks" not in refusal(lm, task("7" * 600, 9))
    sentence = refusal(lm, task(SHORT, 5_000, "line 1"))
    assert sentence.startswith("line 1 does not fit into the window of ")
    longest = int(re.findall(LOWER_ANSWER, sentence)[0])
    lm.check_fits(task(SHORT, longest))
    refusal(lm, task(SHORT, longest + 1))
    lm.close()


@pytest.mark.parametrize(
    ("prompt", "new", "words"),
    [
        (600, 0, "a prompt of 600 tokens exceeds the window of m, 512 tokens, which the prompt alone fills; shorten"),
        (512, 9, "of 512 tokens and 9 tokens to generate exceed .* which the prompt alone fills; shorten it"),
        (500, 13, "500 tokens and 13 tokens to generate exceed .* of which the prompt leaves 12; lower max_gen_toks"),
    ],
)
def test_a_call_that_does_not_fit_says_what_is_left(prompt: int, new: int, words: str) -> None:
    check_window("m", 512, 512, 0)
    check_window("m", 512, 500, 12)
    with pytest.raises(ContextError, match=words):
        check_window("m", 512, prompt, new)
