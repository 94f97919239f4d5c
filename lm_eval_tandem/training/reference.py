"""How the models of an ensemble read questions in general, for the selections `zscore` and `self_assessment`.

No token is generated: each model reads each question (`ensembles.selection.measure`, `assess`), and the mean and
standard deviation of what was measured are written to a reference file.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from lm_eval_tandem import digits
from lm_eval_tandem.cascade.prompts import Question, prompt_of
from lm_eval_tandem.engines import Engine
from lm_eval_tandem.ensembles.reference_file import Reference, template_of, write_reference
from lm_eval_tandem.ensembles.selection import UNSAID, assess, assessment_prompt, measure
from lm_eval_tandem.errors import ENDS_THE_RUN, ArgumentError, TandemError
from lm_eval_tandem.event_loop import EventLoopThread

log = logging.getLogger(__name__)

BATCHES_IN_FLIGHT = 4
"""Questions that each engine has at once, in multiples of what keeps it fully used."""
MIN_QUESTIONS = 2
"""Questions without which there is no standard deviation."""


@dataclass(frozen=True)
class Reading:
    """What one model has made of one question.

    Attributes
    ----------
    perplexity, confidence
        See `selection.measure`.
    assessment, said
        Value and probability of `selection.assess`; None where the model was not asked.
    """

    perplexity: float
    confidence: float
    assessment: float | None
    said: float | None = None


def collect_reference(
    engines: Mapping[str, Engine],
    questions: Iterable[Question],
    path: Path,
    description: Mapping[str, Any],
    *,
    assessed: bool = True,
    disable_tqdm: bool = False,
) -> dict[str, Reference]:
    """Measure every question with every model and write the reference file.

    A question that one of the models cannot read, such as one that exceeds its window, counts for none of them, so that
    all statistics are of the same questions; a warning says how many those are.

    Parameters
    ----------
    engines
        The loaded models by label, of backends that report confidence (`registry.check_view` with
        `selection.CONFIDENT`).
    questions
        The reference questions, all of them plain texts or all of them conversations.
    path
        The file to write.
    description
        Further entries of the file, such as {"task": "gsm8k"}.
    assessed
        Whether to ask each model, too, if it can solve the question (`Reference.assessment_mean`).
    disable_tqdm
        Whether to show no progress.

    Returns
    -------
    dict
        What was written: the statistics by the model's label.

    Raises
    ------
    ArgumentError
        Fewer than two questions could be measured, or all are alike to a model, or the file cannot be written.
    UnreachableError, StoreError
        No further question could be measured.
    """
    asked = list(questions)
    loop = EventLoopThread()
    bar = tqdm(total=len(asked) * len(engines), disable=disable_tqdm, desc="Measuring")
    try:
        readings = loop.run(_read_all(engines, asked, assessed, bar))
    finally:
        bar.close()
        loop.close()
    kept = [row for row in readings if not isinstance(row, TandemError)]
    first = next((row for row in readings if isinstance(row, TandemError)), None)
    if len(kept) < MIN_QUESTIONS:
        why = "" if first is None else f" (the first that failed: {first})"
        raise ArgumentError(
            f"{len(kept)} of {len(asked)} questions could be measured by every model{why}, but a reference needs "
            f"{MIN_QUESTIONS} or more; give more questions."
        )
    if first is not None:
        log.warning("%d of %d questions are left out, the first because %s", len(asked) - len(kept), len(asked), first)
    found = {}
    for column, label in enumerate(engines):
        try:
            found[label] = replace(
                statistics([row[column] for row in kept]), chat_template=template_of(engines[label], asked[0])
            )
        except ArgumentError as error:
            raise ArgumentError(f"{label} cannot be given a reference: {error}") from None
    warn_of_unsaid({label: [row[column] for row in kept] for column, label in enumerate(engines)})
    write_reference(path, found, description)
    return found


def warn_of_unsaid(readings: Mapping[str, Sequence[Reading]]) -> None:
    """Warn of models, by label, that give Yes and No together next to no probability (`selection.UNSAID`)."""
    for label, ones in readings.items():
        said = [one.said for one in ones if one.said is not None]
        mean = digits.mean(said) if said else 1.0
        if mean < UNSAID:
            log.warning(
                "%s gives Yes and No together a probability of %.1g when it is asked whether it can solve a question, "
                "so its assessment_mean means nothing; use another selection than self_assessment for it.",
                label,
                mean,
            )


def statistics(readings: Sequence[Reading]) -> Reference:
    """Mean and standard deviation (of the whole population) of what one model has measured.

    Raises
    ------
    ArgumentError
        A value is not finite, or all are equal.
    """
    assessments = [one.assessment for one in readings if one.assessment is not None]
    return Reference(
        *_mean_and_deviation([one.perplexity for one in readings]),
        *_mean_and_deviation([one.confidence for one in readings]),
        questions=len(readings),
        assessment_mean=digits.mean(assessments) if assessments else None,
    )


def _mean_and_deviation(values: Sequence[float]) -> tuple[float, float]:
    if not all(map(math.isfinite, values)):
        return math.inf, math.inf  # `Reference` refuses them
    mean = digits.mean(values)
    return mean, math.sqrt(digits.mean(np.square(digits.subtract(values, mean))))


async def _read_all(
    engines: Mapping[str, Engine], questions: Sequence[Question], assessed: bool, bar: Any
) -> list[list[Reading] | TandemError]:
    """What the models, in the order of `engines`, have made of each question, or why the first of them could not."""

    async def with_engine(engine: Engine) -> list[Reading | TandemError]:
        free = asyncio.Semaphore(BATCHES_IN_FLIGHT * engine.max_concurrency)

        async def read(number: int, question: Question) -> Reading | TandemError:
            async with free:
                try:
                    return await _read(engine, question, f"reference/{number}", assessed)
                except ENDS_THE_RUN:
                    raise
                except TandemError as error:
                    return error
                finally:
                    bar.update(1)

        return await asyncio.gather(*(read(number, question) for number, question in enumerate(questions)))

    columns = await asyncio.gather(*map(with_engine, engines.values()))
    rows: list[list[Reading] | TandemError] = []
    for row in zip(*columns, strict=True):
        failure = next((one for one in row if isinstance(one, TandemError)), None)
        rows.append([one for one in row if isinstance(one, Reading)] if failure is None else failure)
    return rows


async def _read(engine: Engine, question: Question, session: str, assessed: bool) -> Reading:
    """One model reads one question; what the engine keeps for it is freed afterwards."""
    try:
        measured = await measure(engine, prompt_of(engine, question), session)
        said = await assess(engine, assessment_prompt(engine, question), session) if assessed else None
    finally:
        engine.release(session)
    if said is None:
        return Reading(*measured.values, None)
    return Reading(*measured.values, said.value, said.probability)
