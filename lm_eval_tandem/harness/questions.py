"""Answers all questions of a run at once, one coroutine each; what fails for one question fails that question alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.errors import ENDS_THE_RUN, EngineError, StoreError, TandemError
from lm_eval_tandem.ledger import Record

NAMED = 5
"""Number of failed questions that the message about them names."""

Key = tuple[str, int, int]
"""Task, document and repetition, as in `Record.key`."""


class Answerer(Protocol):
    """What answers questions: a cascade, or an ensemble."""

    async def answer(self, task: Task, watcher: Watcher = SILENT) -> tuple[str, Record]:
        """The graded text of one question, and the record of what was done and spent for it.

        The watcher is told what happens meanwhile. Where this is cancelled, the models stop working on the question.
        """
        ...


@dataclass
class Outcome:
    """How the questions of one process ended, or those of all. It can be pickled, so that processes can exchange it.

    Attributes
    ----------
    asked, answered
        Every question, and those that have an answer.
    failed
        The sentence of each failed question's error.
    ended_by
        The error that ended the run before every question was asked; None where there was none.
    """

    asked: set[Key] = field(default_factory=set)
    answered: set[Key] = field(default_factory=set)
    failed: dict[Key, str] = field(default_factory=dict)
    ended_by: TandemError | None = None

    @classmethod
    def merged(cls, outcomes: Iterable[Outcome]) -> Outcome:
        """The outcome of all processes; a question that several were asked counts once."""
        whole = cls()
        for one in outcomes:
            whole.asked |= one.asked
            whole.answered |= one.answered
            whole.failed |= one.failed
            whole.ended_by = whole.ended_by or one.ended_by
        return whole

    def check(self, store: Path | None) -> None:
        """Raise the error of a run that is not complete, with what to do next.

        Raises
        ------
        TandemError
            `ended_by`, where there is one.
        EngineError
            Some questions failed.
        """
        if isinstance(self.ended_by, StoreError):
            raise self.ended_by  # it says itself what to do, and its store is no place to go on from
        next_step = "give store=FILE in --model_args, and another run will ask only those."
        if store is not None:
            finished = f"the other {len(self.answered):,}" if self.answered else "finished calls"
            next_step = f"{finished} are in store={store}: run again with it to ask only the rest."
        if self.ended_by is not None:
            raise type(self.ended_by)(f"{str(self.ended_by).rstrip('.')}; {next_step}")
        if self.failed:
            keys = sorted(self.failed)
            names = ", ".join(f"{task or 'request'} #{doc_id}" for task, doc_id, _ in keys[:NAMED])
            more = f" and {len(keys) - NAMED:,} more" if len(keys) > NAMED else ""
            raise EngineError(
                f"{len(keys):,} of {len(self.asked):,} questions failed ({names}{more}), the first of them because "
                f"{self.failed[keys[0]].rstrip('.')}; {next_step}"
            )


async def answer_all(
    answerer: Answerer, tasks: Sequence[Task], concurrency: int, take: Callable[[int, str, Record], None]
) -> Outcome:
    """Answer questions, a limited number of them at a time.

    Parameters
    ----------
    answerer
        Answers one question.
    tasks
        The questions, in the order in which they are begun.
    concurrency
        Number of questions under way at once.
    take
        Called with each answer: the question's place in `tasks`, the text and the record.

    Returns
    -------
    Outcome
        An error of `ENDS_THE_RUN` is in it; those that are no `TandemError` are raised.
    """
    outcome = Outcome(asked={task.key for task in tasks})
    slots = asyncio.Semaphore(concurrency)

    async def answer_one(i: int) -> None:
        async with slots:
            try:
                text, record = await answerer.answer(tasks[i])
            except ENDS_THE_RUN:
                raise
            except TandemError as error:  # of this question alone: the others continue
                outcome.failed[tasks[i].key] = str(error)
            else:
                outcome.answered.add(tasks[i].key)
                take(i, text, record)

    running = [asyncio.ensure_future(answer_one(i)) for i in range(len(tasks))]
    try:
        await asyncio.gather(*running)
    except ENDS_THE_RUN as error:
        outcome.ended_by = error
    finally:
        for one in running:
            one.cancel()
        await asyncio.gather(*running, return_exceptions=True)
    return outcome
