"""The reported score on replies in the styles of models, on spellings of right answers and on near-misses."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

pytest.importorskip("math_verify", reason="the extra lm-eval-tandem[math] is not installed")

import shared_data
from grading.math import cases, near_misses, replies
from lm_eval_tandem.grading.math import grader
from lm_eval_tandem.grading.math.answer import extract


def pairs(table: dict[str, list[tuple[str, str]]]) -> list[tuple[str, str, str]]:
    return [(kind, *pair) for kind, group in table.items() for pair in group]


def test_300_replies_in_the_styles_of_models_get_their_grades() -> None:
    some = list(itertools.islice(replies.replies(), 300))
    grades = grader.grade_all([(reply.gold, extract(reply.text)) for reply in some])
    wrong = [(reply, grade) for reply, grade in zip(some, grades, strict=True) if grade.verified != reply.right]
    assert wrong == []
    assert sum(reply.is_boxed for reply in some) == 150
    assert len({reply.text for reply in some}) > 280


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_both_graders_agree_with_what_is_known_of_each_case(right: bool) -> None:
    known = pairs(cases.RIGHT if right else cases.WRONG)
    grades = grader.grade_all([(gold, answer) for _, gold, answer in known])
    reported = [pair for pair, grade in zip(known, grades, strict=True) if grade.verified != right]
    second = [pair for pair, grade in zip(known, grades, strict=True) if grade.normalised != right]
    assert reported == []
    assert len(second) <= 1, second


def test_no_near_miss_is_right() -> None:
    some = list(near_misses.near_misses(500))
    grades = grader.grade_all([(gold, answer) for _, gold, answer in some])
    assert [miss for miss, grade in zip(some, grades, strict=True) if grade.verified] == []
    assert len(Counter(kind for kind, _, _ in some)) > 10


def test_no_other_row_s_answer_is_right() -> None:
    golds = [row["answer"] for row in shared_data.rows("math500_first200.jsonl")]
    shifted = [(golds[i], golds[(i + step) % len(golds)]) for step in (1, 2, 3) for i in range(len(golds))]
    some = [pair for pair in shifted if pair[0].removeprefix("x=") != pair[1].removeprefix("x=")]
    grades = grader.grade_all([(gold, rf"{answer}") for gold, answer in some])
    assert [pair for pair, grade in zip(some, grades, strict=True) if grade.verified] == []
    assert len(some) > 550
