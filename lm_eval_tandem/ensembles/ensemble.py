"""An ensemble: models are selected for a question, and what they write becomes one answer.

`Ensemble.answer` is the whole of it: select, write, record. What the strategies do is in `selection`, `responses`,
`segments` and `tokens`; `strategies` describes them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.engines import Engine
from lm_eval_tandem.ensembles import selection
from lm_eval_tandem.ensembles.reference_file import Reference
from lm_eval_tandem.ensembles.run import EnsembleRun, Member
from lm_eval_tandem.ledger import Record


class Aggregation(Protocol):
    """Makes one answer of several models."""

    async def write(self, run: EnsembleRun) -> tuple[str, str]:
        """The graded answer of the models `run.selected`, and the reason why it is this one or why it ended."""
        ...


@dataclass
class Replies:
    """How many questions the models were asked about themselves, and for how many of them none would say Yes or No."""

    questions: int = 0
    unsaid: int = 0

    def add(self, found: Sequence[selection.SelfAssessment]) -> None:
        """Count one question, with what each model says of it."""
        self.questions += 1
        self.unsaid += all(one.is_unsaid for one in found)

    @property
    def warning(self) -> str:
        """What to warn of, as a sentence; "" for nothing."""
        if not self.unsaid:
            return ""
        return (
            f"selection=self_assessment: for {self.unsaid} of {self.questions} questions no model gives Yes and No "
            f"together a probability of {selection.UNSAID:g}, so which model was selected there means nothing; use "
            "another selection for these models."
        )


@dataclass(frozen=True)
class Selector:
    """Selects the models of a question.

    Parameters
    ----------
    kind
        A name of `strategies.SELECTIONS`.
    count
        Number of models; None for the strategy's own.
    reference
        What is usual for each model, by its name.
    replies
        Of "self_assessment": what the questions so far have shown of it.
    """

    kind: Literal["all", "random", "zscore", "self_assessment"] = "all"
    count: int | None = None
    reference: Mapping[str, Reference] | None = None
    replies: Replies = field(default_factory=Replies, compare=False)

    async def select(self, run: EnsembleRun) -> list[Member]:
        """The members that answer a question; what they read for it is counted, and their scores are recorded."""
        members = list(run.members.values())
        if self.kind == "all":
            return members
        if self.kind == "random":
            names = list(run.members)
            drawn = selection.select_random(names, self.count or 1, run.task.sampling.seed, run.task.key)
            return [run.members[name] for name in drawn]
        started = time.perf_counter()
        names = await (self._by_zscore(run, members) if self.kind == "zscore" else self._by_assessment(run, members))
        run.judge_seconds += time.perf_counter() - started
        return [run.members[name] for name in names]

    async def _by_zscore(self, run: EnsembleRun, members: list[Member]) -> list[str]:
        assert self.reference is not None
        session = run.task.session
        found = await asyncio.gather(
            *(selection.measure(member.engine, run.prompt(member), session) for member in members)
        )
        count_texts(run, members, found)
        measured = {member.name: one.values for member, one in zip(members, found, strict=True)}
        run.selection_scores = selection.zscores(measured, self.reference)
        return selection.select_by_zscore(measured, self.reference, self.count)

    async def _by_assessment(self, run: EnsembleRun, members: list[Member]) -> list[str]:
        session, question = run.task.session, run.task.question
        prompts = [selection.assessment_prompt(member.engine, question) for member in members]
        found = await asyncio.gather(
            *(selection.assess(member.engine, prompt, session) for member, prompt in zip(members, prompts, strict=True))
        )
        count_texts(run, members, found)
        self.replies.add(found)
        assessed = {member.name: one.value for member, one in zip(members, found, strict=True)}
        run.selection_scores = selection.compared_with_usual(assessed, self.reference)
        return [selection.select_by_assessment(assessed, self.reference)]


def count_texts(
    run: EnsembleRun, members: Sequence[Member], found: Sequence[selection.Measurement | selection.SelfAssessment]
) -> None:
    """Count what each member read for what was found with it."""
    for member, one in zip(members, found, strict=True):
        for text in one.texts:
            run.count_judged(member, text)


@dataclass(frozen=True)
class Ensemble:
    """Several models, ready to answer questions.

    Parameters
    ----------
    members
        The models, in the order in which they were given.
    selector
        Selects those that answer a question.
    aggregation
        Makes one answer of what they write.
    policy
        The strategies, as records name them.
    joint
        The engine of all members, where they decode in step; it keeps what it has read for a question too.
    """

    members: tuple[Member, ...]
    selector: Selector
    aggregation: Aggregation
    policy: str
    joint: Engine | None = None

    async def answer(self, task: Task, watcher: Watcher = SILENT) -> tuple[str, Record]:
        """Answer one question.

        Parameters
        ----------
        task
            The question.
        watcher
            Is told what happens meanwhile.

        Returns
        -------
        tuple[str, Record]
            The graded text, and the record of what every model did for it.
        """
        run = EnsembleRun(task, {member.name: member for member in self.members}, self.policy, watcher)
        try:
            run.selected = await self.selector.select(run)
            text, reason = await self.aggregation.write(run)
            run.live.show(text)
            return text, run.record(reason)
        finally:
            for engine in (*(member.engine for member in self.members), self.joint):
                if engine is not None:
                    engine.release(task.session)
