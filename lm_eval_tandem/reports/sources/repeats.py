"""Which of several runs of the same models, with the same settings and asked in the same way, is taken.

A run is left out for a newer one on the same questions, and for one that has its questions and more, whichever of the
two is newer. What is left out is always named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_tandem.reports.sources.question_settings import GRADE
from lm_eval_tandem.reports.sources.task_runs import TaskRun


@dataclass(frozen=True)
class LeftOut:
    """A run on a task in whose place another one was taken.

    Attributes
    ----------
    name, task
        What the run is called, and its task.
    file, taken
        The results file that is left out, and the one that is taken.
    questions, taken_questions
        The numbers of their questions.
    """

    name: str
    task: str
    file: Path
    taken: Path
    questions: int
    taken_questions: int

    def sentence(self, names: bool = False) -> str:
        """The line that says which file was taken and which was left; with `names` their names alone."""
        file, taken = (one.name if names else str(one) for one in (self.file, self.taken))
        if self.questions < self.taken_questions:
            why = f"which has fewer questions ({self.questions:,}; {self.taken_questions:,} were taken)"
        else:
            why = "which is older" if self.file.name < self.taken.name else "which is of the same time"
        return f"{self.name} on {self.task} was run repeatedly: {taken} is taken, and not {file}, {why}."


def choose(task_runs: Sequence[TaskRun]) -> tuple[list[TaskRun], list[LeftOut]]:
    """Return the runs that are taken, and those that are left out.

    Two runs neither of which has all the questions of the other are both taken.

    Parameters
    ----------
    task_runs
        Runs on single tasks, the oldest first.
    """
    alike: dict[tuple[str, str, str], list[TaskRun]] = {}
    for task_run in task_runs:
        alike.setdefault(key_of(task_run), []).append(task_run)
    kept: list[TaskRun] = []
    left_out: list[LeftOut] = []
    for same in alike.values():
        taken = [one for place, one in enumerate(same) if not better(same, place)]
        kept += taken
        for place, one in enumerate(same):
            if one not in taken:
                best = [other for other in better(same, place) if other in taken][-1]
                counts = len(one.run.questions), len(best.run.questions)
                left_out.append(LeftOut(one.run.name, one.run.domain, one.recorded.file, best.recorded.file, *counts))
    return kept, left_out


def key_of(task_run: TaskRun) -> tuple[str, str, str]:
    """Return what is the same for two runs that repeat each other: task, models with settings, and way to ask."""
    run = task_run.run
    asked = {name: value for name, value in run.settings[run.domain].items() if name != GRADE}
    return run.domain, run.system, json.dumps(asked, sort_keys=True)


def better(same: Sequence[TaskRun], place: int) -> list[TaskRun]:
    """Return those of some runs, the oldest first, that may take the place of one: newer ones, or with more questions.

    Each has all the questions of the one at `place`.
    """
    own = set(same[place].run.questions)
    return [
        other
        for number, other in enumerate(same)
        if own < set(other.run.questions) or (number > place and own == set(other.run.questions))
    ]
