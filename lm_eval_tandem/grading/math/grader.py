"""Grades the answer of a response against the gold answer, by two graders that share no code.

Math-Verify gives the reported score (`Grade.verified`); `normalise` is the second grader (`Grade.normalised`). Both can
hang or crash on what a model writes, so `grade` and `grade_all` run them in a pool of processes that can be killed,
with `LIMIT` seconds per answer. An answer whose grader fails counts as wrong and is marked `failed`; no other answer is
affected. Nothing here uses signals, so any thread may grade.
"""

from __future__ import annotations

import importlib.util
import itertools
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from lm_eval_tandem.grading import GradingError
from lm_eval_tandem.grading.math.answer import extract
from lm_eval_tandem.grading.math.pool import CallFailed, Pool

LIMIT = 10.0
"""Seconds of wall clock that one grader may take for one answer."""
VERIFY = f"{__name__}:verify"
NORMALISED = "lm_eval_tandem.grading.math.normalise:equal"
POOL = Pool(prepare=f"{__name__}:prepare")
"""The grading processes of this interpreter; the first one starts with the first answer."""

_NUMBER_WITH_BASE = re.compile(r"^\W*([0-9A-Za-z]+)\s*_\s*\{?(\d+)\}?\W*$")
_PERCENT = re.compile(r"\s*\\?%")


@dataclass(frozen=True)
class Grade:
    """The verdicts of both graders on one response.

    Attributes
    ----------
    answer
        The answer that the response holds; None if it holds none, which counts as wrong.
    verified
        Whether the answer is right according to Math-Verify.
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
            "Grading mathematics needs Math-Verify, which is not installed; run: pip install 'lm-eval-tandem[math]'"
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
        return bool(POOL.call(grader, gold, answer, limit=LIMIT))
    except CallFailed:
        return None


def prepare() -> None:
    """Import the graders and compare one answer with each, in a new worker, so that no answer's time includes it."""
    require()
    from lm_eval_tandem.grading.math import normalise

    normalise.equal(r"\frac{1}{2}", "0.5")
    verify(r"\frac{1}{2}", "0.5")


def verify(gold: str, answer: str) -> bool:
    """Return whether Math-Verify accepts the answer as equal to the gold answer.

    There is no bound on its time, so `grade` calls it in a worker. Both answers are parsed as the content of a box.
    Three rules are applied here, because Math-Verify ignores these cases or treats them differently from one release of
    its parser to the next:

    - The character `°` is a degree sign.
    - Numbers with a base as index are different if their bases differ: 52_8 is not 52_9.
    - 75% equals 75 and 0.75, if the other answer has no percent sign.
    """
    bases = [_NUMBER_WITH_BASE.match(text) for text in (gold, answer)]
    if bases[0] and bases[1] and bases[0][2] != bases[1][2]:
        return False
    if _PERCENT.search(gold) and _PERCENT.search(answer):
        gold, answer = _PERCENT.sub("", gold), _PERCENT.sub("", answer)
    return any(_math_verify(*pair) for pair in itertools.product(_readings(gold), _readings(answer)))


def _readings(text: str) -> list[str]:
    """The text, or what it may stand for if it has a percent sign."""
    number = _PERCENT.sub("", text)
    return [text] if number == text else [number, rf"\frac{{{number}}}{{100}}"]


def _math_verify(gold: str, answer: str) -> bool:
    import math_verify

    boxes = [r"\boxed{" + text.replace("°", r"^\circ ") + "}" for text in (gold, answer)]
    # No time limits of Math-Verify's own: they use SIGALRM, which works in the main thread only.
    parsed = [math_verify.parse(box, parsing_timeout=None) for box in boxes]
    return bool(math_verify.verify(parsed[0], parsed[1], timeout_seconds=None))
