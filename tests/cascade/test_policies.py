"""The table of policies: each is described, parsed as it is documented, and refused with the list of all."""

from __future__ import annotations

import pytest

from lm_eval_tandem.cascade.policies import POLICIES, Policy, PolicyKind, described
from lm_eval_tandem.errors import ArgumentError


def test_every_policy_is_described_in_one_line() -> None:
    assert [syntax for syntax, _ in described()] == [kind.syntax for kind in POLICIES.values()]
    for syntax, description in described():
        assert description.endswith("."), syntax
        assert "\n" not in description


@pytest.mark.parametrize("kind", POLICIES.values(), ids=list(POLICIES))
def test_a_policy_is_read_as_it_is_written(kind: PolicyKind) -> None:
    text = kind.syntax.replace(":N", ":2")
    policy = Policy.parse(text, stages=3)
    assert str(policy) == text
    assert policy.kind is kind
    needed = {"mentor": policy.needs_mentor, "intern": policy.needs_intern, "judge": policy.needs_judge}
    assert tuple(role for role, needs in needed.items() if needs) == kind.needs


def test_a_refused_policy_lists_every_policy_with_its_numbers() -> None:
    with pytest.raises(ArgumentError, match=r"^policy=best is not known; use cascade, ") as refusal:
        Policy.parse("best", stages=3)
    assert all(syntax in str(refusal.value) for syntax, _ in described())
    assert "stage:N with N from 0 to 3" in str(refusal.value)


@pytest.mark.parametrize(
    "text",
    [
        "stage:4",
        "stage:-1",
        "stage:",
        "budget_forcing:0",
        "cascade:1",
        "intern:0",
        "handoff:0",
        "outline:x",
        "steps:-1",
        "steps:",
        "steps:1e3",
        "verify:10",
    ],
)
def test_numbers_out_of_range_are_refused(text: str) -> None:
    name = text.partition(":")[0]
    sentence = (
        rf"^policy={text} cannot work: (N of {name}:N has to be a|{name} takes no number; write policy={name}\.$)"
    )
    with pytest.raises(ArgumentError, match=sentence):
        Policy.parse(text, stages=3)


def test_a_number_of_nats_may_have_decimals() -> None:
    assert Policy.parse("steps:0.75", stages=3).entropy == 0.75
    assert str(Policy.parse("steps:0.750", stages=3)) == "steps:0.75"
    assert str(Policy.parse("budget_forcing:1000000", stages=3)) == "budget_forcing:1000000"


def test_stage_0_needs_no_mentor() -> None:
    assert not Policy("stage", 0).needs_mentor
    assert Policy("stage", 1).needs_mentor


def test_policies_say_who_writes_the_answer() -> None:
    alone = {name for name in POLICIES if Policy(name).mentor_alone}
    sometimes = {name for name in POLICIES if Policy(name).mentor_may_answer}
    assert alone == {"mentor", "budget_forcing"}
    assert sometimes == {*alone, "escalate"}
