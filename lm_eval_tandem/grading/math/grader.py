"""Grades the answer of a response against the gold answer, by two graders.

`library`, with Math-Verify, gives the reported score (`Grade.verified`); `normalise` is the second grader
(`Grade.normalised`). Both read answers by the rules of `rules`, and each compares mathematics in its own way. Both can
hang or crash on what a model writes, so `grade` and `grade_all` run them in a pool of processes that can be killed,
with `LIMIT` seconds per answer. An answer whose grader fails counts as wrong and is marked `failed`; no other answer is
affected. Nothing here uses signals, so any thread may grade.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lm_eval_tandem.errors import install
from lm_eval_tandem.grading import GradingError
from lm_eval_tandem.grading.math.answer import extract
from lm_eval_tandem.grading.math.pool import CallFailed, Pool

LIMIT = 10.0
"""Seconds of CPU time that one grader may take for one answer."""
WALL_FACTOR = 12.0
"""By how much the limit of wall clock is larger, so that no verdict depends on what else the machine does."""
VERIFY = "lm_eval_tandem.grading.math.library:verify"
NORMALISED = "lm_eval_tandem.grading.math.normalise:equal"
POOL = Pool(prepare=f"{__name__}:prepare")
"""The grading processes of this interpreter; the first one starts with the first answer."""


@dataclass(frozen=True)
class Grade:
    """The verdicts of both graders on one response.

    Attributes
    ----------
    answer
        The answer that the response holds; None if it holds none, which counts as wrong.
    verified
        Whether the answer is right according to Math-Verify and the rules.
    normalised
        Whether the answer is right according to the second grader.
    failed
        Whether a grader hung or crashed on this answer; its verdict is then "wrong".
    """

    answer: str | None
    verified: bool
    normalised: bool
    failed: bool

    @property
    def disagree(self) -> bool:
        """Whether the two graders disagree."""
        return self.verified != self.normalised


def require() -> None:
    """Raise GradingError, with the command that installs it, if Math-Verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise GradingError(
            f"Grading mathematics needs Math-Verify, which is not installed; install it with {install('math')}."
        )


def grade(gold: str, response: str) -> Grade:
    r"""Grade one response.

    Parameters
    ----------
    gold
        The right answer as LaTeX or plain text, without a box around it.
    response
        What the model wrote, its thought included.

    Examples
    --------
    >>> grade("5", r"2 + 3 is \boxed{5}.")  # doctest: +SKIP
    Grade(answer='5', verified=True, normalised=True, failed=False)
    """
    return grade_answer(gold, extract(response))


def grade_all(items: Sequence[tuple[str, str | None]]) -> list[Grade]:
    """Grade pairs of a gold answer and an answer found by `answer.extract`, as many in parallel as the pool allows."""
    with ThreadPoolExecutor(POOL.size) as threads:
        return list(threads.map(lambda item: grade_answer(*item), items))


def grade_answer(gold: str, answer: str | None) -> Grade:
    """Grade an answer found by `answer.extract`; None, which stands for no answer, is wrong."""
    if answer is None:
        return Grade(None, verified=False, normalised=False, failed=False)
    verified, normalised = (_run_grader(grader, gold, answer) for grader in (VERIFY, NORMALISED))
    return Grade(answer, verified is True, normalised is True, failed=None in (verified, normalised))


def _run_grader(grader: str, gold: str, answer: str) -> bool | None:
    """Verdict of one grader; None if it hung or crashed."""
    try:
        return bool(POOL.call(grader, gold, answer, limit=LIMIT, wall_limit=WALL_FACTOR * LIMIT))
    except CallFailed:
        return None


def prepare() -> None:
    """Import the graders and compare one answer with each, in a new worker, so that no answer's time includes it."""
    require()
    from lm_eval_tandem.grading.math import library, normalise

    normalise.equal(r"\frac{1}{2}", "0.5")
    library.verify(r"\frac{1}{2}", "0.5")
