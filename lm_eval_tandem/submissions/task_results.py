"""`TaskResults`: one task of a results file with its samples and records, once they were compared with each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files, ledgers
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.submissions import samples_check
from lm_eval_tandem.submissions.scores import Score, scores_of


@dataclass(frozen=True, eq=False)
class TaskResults:
    """One task of a results file, or a group of its tasks that the harness has aggregated.

    Attributes
    ----------
    run
        The run on this task as reports read it: its first metric as `grades`, costs as `measures`.
    config
        The task's configuration in the results file; empty for a group.
    scores
        Every metric with every filter, in the harness's order.
    samples
        Lines of the samples file by filter, each in the order of `run.questions`; empty for a group.
    records
        For each question the ledger's records of all its repeats; empty without a ledger.
    available
        Number of questions that the data set has; None if the harness did not record it.
    parts
        The tasks of a group; empty for a task.
    told_apart
        What tells how this run was asked from other runs of the same models and settings on the task; mostly nothing.
    """

    run: Run
    config: Mapping[str, Any]
    scores: tuple[Score, ...]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    records: tuple[Sequence[Mapping[str, Any]], ...] = ()
    available: int | None = None
    parts: tuple[TaskResults, ...] = ()
    told_apart: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The task's name."""
        return self.run.domain

    @property
    def asked(self) -> str:
        """How many of the task's questions were asked, as in "60 of 1,000 questions"; "" for all of them."""
        if self.available is None or self.available == len(self.run.questions):
            return ""
        return f"{len(self.run.questions):,} of {self.available:,} questions"

    @property
    def grade(self) -> Score | None:
        """The metric that says whether an answer is correct: the one that reports show as accuracy."""
        return next((score for score in self.scores if score.metric == self.run.metric), None)


def read(recorded: RecordedRun, run: Run, words: Sequence[str]) -> TaskResults:
    """Return one task of a results file with its samples.

    Parameters
    ----------
    recorded, run
        The results file, and its run on the task.
    words
        `TaskResults.told_apart`.

    Raises
    ------
    ArgumentError
        The samples are not those that the results were computed from.
    """
    file, results, task = recorded.file, recorded.results, run.domain
    samples: dict[str, list[dict[str, Any]]] = {}
    for sample in harness_files.load_samples(harness_files.find_samples(file, task)):
        samples.setdefault(str(sample.get("filter", "none")), []).append(sample)
    counts = (results.get("n-samples") or {}).get(task) or {}
    expected = counts.get("effective")
    for lines in samples.values():
        if expected is not None and len(lines) != expected:
            raise ArgumentError(
                f"{file} was computed from {expected:,} samples of {task}, but the samples file beside it has "
                f"{len(lines):,}; give the files as the harness wrote them."
            )
        if [int(line["doc_id"]) for line in lines] != [doc_id for _, doc_id in run.questions]:
            raise ArgumentError(f"the samples of {task} beside {file} differ in their questions from filter to filter.")
    samples_check.check_questions(file, results, task)
    return TaskResults(
        run=run,
        config=results["configs"][task],
        scores=tuple(scores_of(file, results, task, samples)),
        samples=samples,
        available=counts.get("original"),
        told_apart=tuple(words),
    )


def with_records(task: TaskResults, ledger: ledgers.Ledger | None) -> TaskResults:
    """Return a task with a ledger's records of its questions, and with the measures that they add."""
    if ledger is None:
        return task
    records = ledgers.records_of(ledger, task.run)
    assert records is not None, "ledger_check has found them"
    measures = {**ledgers.measures_of(records), **task.run.measures}
    run = replace(task.run, records=tuple(repeats[0] for repeats in records), measures=measures)
    return replace(task, run=run, records=tuple(records))
