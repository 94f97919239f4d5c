"""Every solution of MBPP passes in every style of reply; one with a fault passes only where plain Python says so."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from typing import Any

import pytest

from grading.code.mutants import mutants, passes_in_plain_python
from lm_eval_tandem.grading.code import grader
from shared_data import rows

Doc = dict[str, Any]
SPECIAL = (18, 123, 126, 223, 596)
"""A constant before the function; slow; called `sum`; with a helper; tests that use what only the code imports."""

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"),
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)


def with_prose(doc: Doc) -> str:
    """The code in a fence, with prose around it."""
    return f"Sure!\n\n```python\n{doc['code']}\n```\n\nIt goes through the input once.\n"


def with_other_blocks(doc: Doc) -> str:
    """Other blocks before and after, and wrong examples in the same block."""
    name = grader.mbpp(doc).names[0]
    return (
        "A sketch:\n\n```python\ndef sketch_of_it(a):\n    return a\nprint(sketch_of_it(1))\n```\n\nThe answer:\n\n"
        f"```python\n{doc['code']}\n\nassert {name} is None\nprint({name}(int(input())))\n```\n\n"
        f"Run it by\n\n```bash\npython {name}.py\n```\n\nor\n\n```python\nresult = {name}()\nprint(result)\n```\n\n"
        "which prints\n\n```\n3\n```\n"
    )


STYLES: dict[str, Callable[[Doc], str]] = {
    "bare": lambda doc: doc["code"],
    "fenced with prose": with_prose,
    "fenced among other blocks": with_other_blocks,
}


def documents(step: int = 1) -> list[Doc]:
    """Every `step`-th row, and all special ones."""
    return [doc for i, doc in enumerate(rows("mbpp_sanitized.jsonl")) if i % step == 0 or doc["task_id"] in SPECIAL]


def check_solutions(docs: list[Doc], style: str) -> None:
    """All pass."""
    grades = grader.grade_all([grader.mbpp(doc) for doc in docs], [STYLES[style](doc) for doc in docs])
    assert [doc["task_id"] for doc, grade in zip(docs, grades, strict=True) if grade.outcome != "passed"] == []


def check_mutants(docs: list[Doc], style: str) -> None:
    """The verdicts are those of plain Python."""
    broken = [(doc, {**doc, "code": code}) for doc in docs for code in mutants(doc["code"])]
    problems = [grader.mbpp(doc) for doc, _ in broken]
    grades = grader.grade_all(problems, [STYLES[style](mutant) for _, mutant in broken])
    plain = [
        passes_in_plain_python(mutant["code"], problem.setup, problem.tests)
        for (_, mutant), problem in zip(broken, problems, strict=True)
    ]
    assert sum(plain) < len(plain) / 4
    different = [
        (mutant["task_id"], mutant["code"], grade)
        for (_, mutant), grade, passes in zip(broken, grades, plain, strict=True)
        if (grade.outcome == "passed") != passes or grade.outcome == "no_answer"
    ]
    assert different == []


@needs_bubblewrap
@pytest.mark.parametrize("style", STYLES)
def test_some_solutions_pass(style: str) -> None:
    check_solutions(documents(step=20), style)


@needs_bubblewrap
def test_some_solutions_with_a_fault_fail() -> None:
    check_mutants(documents(step=40), "fenced among other blocks")


@needs_bubblewrap
@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_all_solutions_pass(style: str) -> None:
    docs = documents()
    assert len(docs) == 427
    check_solutions(docs, style)


@needs_bubblewrap
@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_all_solutions_with_a_fault_fail(style: str) -> None:
    check_mutants(documents(), style)
