"""Aggregation by response: every selected model answers the question, and one of the responses is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

import regex

from lm_eval_tandem.digits import without_last_bits
from lm_eval_tandem.engines.rating import Scorer
from lm_eval_tandem.ensembles.run import EnsembleRun, Member, Writing, finite
from lm_eval_tandem.errors import ArgumentError, CallError

Extract = Callable[[str], str | None]
"""The answer in a response, in one way of writing; None where there is none."""
FINAL_ANSWER = "answer"
"""`extract=` for the final answer as the package's math tasks read it."""
EXTRACT_SECONDS = 5.0
"""Longest search of a response; some expressions take for ever on some texts."""


async def responses(run: EnsembleRun) -> list[Writing]:
    """The response of every selected model, all written at once."""
    calls = [run.generate(member, 0, run.task.sampling) for member in run.selected]
    return list(await asyncio.gather(*calls))


@dataclass(frozen=True)
class One:
    """The first of the selected models answers alone."""

    async def write(self, run: EnsembleRun) -> tuple[str, str]:
        """The graded answer, and the reason for it."""
        member = run.selected[0]
        run.live.begin(member.name, 0)
        writing = await run.generate(member, 0, run.task.sampling, run.live.by(member.engine))
        return run.answer_with(writing), "one model"


@dataclass(frozen=True)
class Vote:
    """The answer that most models give, in the words of the first model that gave it.

    Of answers that equally many give, that of the first model counts. A response without an answer has no vote; where
    none has one, the first response is taken.

    Parameters
    ----------
    extract
        Finds the answer in a response.
    """

    extract: Extract

    async def write(self, run: EnsembleRun) -> tuple[str, str]:
        """The graded answer, and the reason for it: the number of votes."""
        written = await responses(run)
        answers = [self.extract(writing.completion.text) for writing in written]
        votes = [0 if answer is None else answers.count(answer) for answer in answers]
        best = votes.index(max(votes))
        return run.answer_with(written[best]), f"{votes[best]} of {len(votes)} votes"


@dataclass(frozen=True)
class BestOf:
    """The response with the highest score; of equal scores, up to their last bits, the first.

    Parameters
    ----------
    scorer
        Rates the responses.
    reader
        The member that does, where the scorer is one.
    """

    scorer: Scorer
    reader: Member | None = None

    async def write(self, run: EnsembleRun) -> tuple[str, str]:
        """The graded answer, and the reason for it."""
        written = await responses(run)
        candidates = [run.candidate(writing.completion.text) for writing in written]
        scores = await run.rate(self.scorer, candidates, self.reader)
        run.response_scores = {one.member.name: finite(score) for one, score in zip(written, scores, strict=True)}
        best = highest(scores)
        return run.answer_with(written[best], scores[best]), "highest score"


def highest(scores: list[float]) -> int:
    """The place of the highest score; of those that are equal up to their last bits, the first."""
    return int(without_last_bits(scores).argmax())


def extractor(how: str) -> Extract:
    r"""The function that finds answers.

    Parameters
    ----------
    how
        "answer", for the final answer as the package's math tasks read it; or a regular expression, whose last match
        counts: its first group, where it has one.

    Raises
    ------
    ArgumentError
        It is no regular expression. The function raises CallError where one takes too long.

    Examples
    --------
    >>> extractor(r"####\s*(-?\d+)")("So 3.\n#### 4")
    '4'
    """
    if how == FINAL_ANSWER:
        return final_answer
    try:
        pattern = regex.compile(how)
    except regex.error as error:
        raise ArgumentError(
            f"extract={how} is no regular expression ({error}); give one, or extract={FINAL_ANSWER}."
        ) from None

    def last_match(response: str) -> str | None:
        try:
            found = list(pattern.finditer(response, timeout=EXTRACT_SECONDS))
        except TimeoutError:
            raise CallError(
                f"extract={how} takes longer than {EXTRACT_SECONDS:g} seconds on a response; simplify it"
            ) from None
        return None if not found else (found[-1][1] if pattern.groups else found[-1][0])

    return last_match


def final_answer(response: str) -> str | None:
    r"""The final answer of a response to a mathematics problem, in one way of writing.

    Examples
    --------
    >>> final_answer(r"So it is \boxed{\dfrac12}.") == final_answer(r"The answer is \frac{1}{2}.")
    True
    """
    from lm_eval_tandem.grading.math.answer import extract
    from lm_eval_tandem.grading.math.normalise import normalise  # imports sympy, which nothing else here needs

    found = extract(response)
    return None if found is None else normalise(found)
