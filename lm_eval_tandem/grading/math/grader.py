r"""Grading mathematics: the answer of a response against the gold answer, by two graders that share no code.

`verify` is Math-Verify (gold first), the reported score. `normalised` compares strings and, by a reader of this
project, sympy expressions. Both can hang or crash on what a model writes, so `grade` and `grade_all` run them in
processes that can be killed, each with `LIMIT` seconds: an item whose grader is lost is graded as wrong by it and
says so (`failed`), and no other item is touched. No signals are used; every thread may grade.
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
"""Seconds of wall clock that one grader may take for one item."""
VERIFY = f"{__name__}:verify"
NORMALISED = "lm_eval_tandem.grading.math.normalise:equal"
POOL = Pool(prepare=f"{__name__}:prepare")
"""The processes that grade, for the whole interpreter; none is started before there is something to grade."""

_BASED = re.compile(r"^\W*([0-9A-Za-z]+)\s*_\s*\{?(\d+)\}?\W*$")
_PERCENT = re.compile(r"\s*\\?%")


@dataclass(frozen=True)
class Grade:
    """What both graders say of one response."""

    answer: str | None
    """The answer found in the response; None if there is none, which is wrong."""
    verified: bool
    normalised: bool
    failed: bool
    """A grader hung or crashed on this item; it counts as saying "wrong"."""

    @property
    def disagree(self) -> bool:
        """Whether the two graders differ."""
        return self.verified != self.normalised


def require() -> None:
    """Raise GradingError, with the command to run, where Math-Verify is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise GradingError(
            "Grading mathematics needs Math-Verify, which is not installed; run: pip install 'lm-eval-tandem[math]'"
        )


def grade(gold: str, response: str) -> Grade:
    """Grade one response. gold: the answer itself, as LaTeX or plain text, without a box around it."""
    return grade_answer(gold, extract(response))


def grade_all(items: Sequence[tuple[str, str | None]]) -> list[Grade]:
    """Grade pairs of a gold answer and an extracted one, as many at once as the pool has workers; in order."""
    with ThreadPoolExecutor(POOL.size) as threads:
        return list(threads.map(lambda item: grade_answer(*item), items))


def grade_answer(gold: str, answer: str | None) -> Grade:
    """Grade an answer that `answer.extract` found; None is wrong."""
    if answer is None:
        return Grade(None, verified=False, normalised=False, failed=False)
    verified, normalised = (_judged(grader, gold, answer) for grader in (VERIFY, NORMALISED))
    return Grade(answer, verified is True, normalised is True, failed=None in (verified, normalised))


def _judged(grader: str, gold: str, answer: str) -> bool | None:
    try:
        return bool(POOL.call(grader, gold, answer, limit=LIMIT))
    except CallFailed:
        return None


def prepare() -> None:
    """In a worker: import the graders and read one answer with each, so that no item pays for that."""
    require()
    from lm_eval_tandem.grading.math import normalise

    normalise.equal(r"\frac{1}{2}", "0.5")
    verify(r"\frac{1}{2}", "0.5")


def verify(gold: str, answer: str) -> bool:
    """Whether Math-Verify takes the answer for the gold one. May take for ever: `grade` calls it in a worker.

    Both are read as the content of a box. Three things are settled before, which Math-Verify passes over or, with
    percent signs, reads in one release of its parser and not in another: the degree sign as a character; the base of a
    numeral written as an index (52_8 is not 52_9); 75% is 75 or 0.75 where the other side has no percent sign.
    """
    bases = [_BASED.match(text) for text in (gold, answer)]
    if bases[0] and bases[1] and bases[0][2] != bases[1][2]:
        return False
    if _PERCENT.search(gold) and _PERCENT.search(answer):
        gold, answer = _PERCENT.sub("", gold), _PERCENT.sub("", answer)
    return any(_verified(*sides) for sides in itertools.product(_readings(gold), _readings(answer)))


def _readings(text: str) -> list[str]:
    number = _PERCENT.sub("", text)
    return [text] if number == text else [number, rf"\frac{{{number}}}{{100}}"]


def _verified(gold: str, answer: str) -> bool:
    import math_verify

    boxes = [r"\boxed{" + text.replace("°", r"^\circ ") + "}" for text in (gold, answer)]
    sides = [math_verify.parse(box, parsing_timeout=None) for box in boxes]  # its own time limits use SIGALRM
    return bool(math_verify.verify(sides[0], sides[1], timeout_seconds=None))
