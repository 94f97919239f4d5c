"""What questions would cost at prices per million tokens, whatever runs the models."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance

from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Prompt, Sampling, registry
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.settings import read_settings
from lm_eval_tandem.pair import problems

COMMON: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 16}
MENTOR = {"mentor_price_input": 2.0, "mentor_price_cached": 0.5, "mentor_price_output": 8.0}
INTERN = {"intern_price_input": 0.4, "intern_price_cached": 0.1, "intern_price_output": 1.6}
ROWS = [str(row["question"]) for row in problems.rows("math", "test", 20)]


def instances(questions: list[str] = ROWS) -> list[Instance]:
    asked = {"until": [], "max_gen_toks": 90, "do_sample": False}
    return [Instance("generate_until", {}, (text, asked), 0, ("t", i, 1)) for i, text in enumerate(questions)]


def paid(**arguments: Any) -> tuple[list[float | None], TandemLM]:
    """Dollars of each question."""
    lm = TandemLM(**COMMON, **arguments)
    try:
        lm.generate_until(instances(), disable_tqdm=True)
        return [record.dollars for record in sorted(lm.records, key=lambda record: record.doc_id)], lm
    finally:
        lm.close()


def test_a_fixed_stage_costs_its_prompts_and_tokens_with_what_is_read_again_as_cached() -> None:
    lm = TandemLM(**COMMON, **MENTOR, **INTERN, policy="stage:2")
    _, record = asyncio.run(lm.cascade.answer(Task(Question(ROWS[0]), Sampling(90), "t", 0)))
    mentor, intern = lm.cascade.mentor, lm.cascade.intern
    assert mentor is not None
    assert intern is not None
    asked = ROWS[0] + " Insights:"
    size, (low, medium, _) = len(mentor.encode(asked)), lm.settings.efforts
    wrote = asyncio.run(mentor.generate(Prompt(asked), Sampling(medium))).token_ids
    read = len(intern.encode(asked + mentor.decode(wrote) + " Steps:"))
    calls = [(size, 0, low), (size + low, size + low, len(wrote) - low)]
    expected = sum(Prices(2.0, 0.5, 8.0).dollars(*call) for call in calls)
    expected += Prices(0.4, 0.1, 1.6).dollars(read, 0, record.tokens.intern_new)
    assert record.dollars == pytest.approx(expected, rel=1e-12)
    lm.close()


def test_measuring_a_fixed_stage_adds_nothing_to_what_it_costs() -> None:
    plain, _ = paid(**MENTOR, **INTERN, policy="stage:1")
    assert paid(**MENTOR, **INTERN, policy="stage:1", record_features=True)[0] == plain


def test_refused_beginnings_and_the_judge_s_readings_are_paid_for() -> None:
    fixed, _ = paid(**MENTOR, **INTERN, policy="stage:3")
    found, lm = paid(**MENTOR, **INTERN, policy="cascade", thresholds="1:1:1:1")  # no stage passes
    assert all(a is not None and b is not None and a > b for a, b in zip(found, fixed, strict=True))
    refused = [record.refused_tokens for record in lm.records]
    assert min(refused) > 0
    # the beginnings alone, at the price of generated tokens, are less than the difference: each reads its prompt too
    more = sum(a - b for a, b in zip(found, fixed, strict=True) if a is not None and b is not None)
    assert more > 1.6e-6 * sum(refused)


@pytest.mark.parametrize("policy", ["cascade", "escalate", "budget_forcing:20", "mentor"])
def test_a_store_and_a_second_run_change_no_cent(policy: str, tmp_path: Path) -> None:
    undisturbed, lm = paid(**MENTOR, **INTERN, policy=policy)
    assert all(found is not None and found > 0 for found in undisturbed)
    for _ in range(2):
        found, stored = paid(**MENTOR, **INTERN, policy=policy, store=str(tmp_path / "s.sqlite"))
        assert found == undisturbed
    assert stored.totals()["computed"]["mentor"]["decode_tokens"] == 0, "the second run computed something"
    totals = lm.totals()
    assert totals["dollars_per_1000"] == pytest.approx(50 * sum(one for one in undisturbed if one is not None))
    assert lm.description["mentor"]["prices"] == {"input": 2.0, "cached": 0.5, "output": 8.0}


def test_prices_of_one_role_leave_the_other_out() -> None:
    both, one, other = (paid(**prices, policy="stage:1")[0] for prices in (MENTOR | INTERN, MENTOR, INTERN))
    assert [a + b for a, b in zip(one, other, strict=True)] == pytest.approx(both)  # type: ignore[operator]
    assert paid(policy="stage:1")[0] == [None] * len(ROWS)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"mentor_price_input": 1}, r"price_input and price_output \(dollars per million tokens\) belong together"),
        ({"intern_price_output": 1}, "belong together"),
        ({"mentor_price_cached": 1}, "belong together"),
        ({"mentor_price_input": "cheap", "mentor_price_output": 1}, "price_input=cheap has to be a number"),
        ({"mentor_price_input": 1, "mentor_price_output": -1}, "price_output=-1 has to be a number"),
        ({"mentor_price_input": 1, "mentor_price_output": "inf"}, "price_output=inf has to be a number"),
        ({"mentor_price_outptu": 1}, "'mentor_price_outptu' is not known.*did you mean mentor_price_output"),
    ],
)
def test_wrong_prices_are_one_sentence_before_a_model_is_loaded(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        read_settings(arguments, registry.arguments)


def test_prices_may_be_given_for_both_roles_at_once_and_for_any_backend() -> None:
    bare = read_settings({"price_input": 1, "price_output": 3}, registry.arguments)
    for role in bare.roles.values():
        assert role is not None
        assert role.prices == Prices(1, 1, 3)
        assert not role.arguments
    named = {"mentor": "m", "intern": "org/small", "policy": "stage:1", "mentor_backend": "local-completions"}
    given = read_settings({**named, "mentor_price_input": 1, "mentor_price_output": 3}, registry.arguments)
    assert given.mentor is not None
    assert given.mentor.prices == Prices(1, 1, 3)
    assert not given.mentor.arguments
    assert given.intern is not None
    assert given.intern.prices is None
