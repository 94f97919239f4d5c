"""Runs as a format submits them: every results file with its samples, and the ledger once it was checked against both.

What a report reads is read by the functions of the reports, so that both have the same runs and the same numbers. A
submission needs more than a report: every metric with every filter, the harness's own values, and all records of a
question that was asked repeatedly. It also accepts less: what does not fit together is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_tandem.reports.sources import harness_files, ledgers, reading, recorded_runs
from lm_eval_tandem.reports.sources.other_models import GivenCosts
from lm_eval_tandem.reports.sources.question_settings import told_apart
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.repeats import LeftOut
from lm_eval_tandem.reports.sources.task_runs import TaskRun, tasks_of
from lm_eval_tandem.submissions import groups, ledger_check, task_results
from lm_eval_tandem.submissions.task_results import TaskResults


@dataclass(frozen=True, eq=False)
class SubmittedRun(RecordedRun):
    """One results file: a model, or a system of several, on one or more tasks.

    Attributes
    ----------
    file, results
        The results file, and its content.
    tasks
        Its tasks, without those that another run of the same models, settings and way to ask has repeated.
    groups
        The groups of tasks whose results the harness has aggregated, of which all tasks are in `tasks`.
    unverified
        A sentence for each result of a group that does not follow from those of its tasks, and so does not go out.
    left_out
        The runs in whose place this one was taken.
    checked
        What of the ledger was compared with the results, in a sentence; "" without a ledger.
    """

    tasks: tuple[TaskResults, ...] = ()
    groups: tuple[TaskResults, ...] = ()
    unverified: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    checked: str = ""

    @property
    def notes(self) -> list[str]:
        """What a user is told about the run: what was left out for it, and what of its ledger was checked."""
        return [*[left.sentence() for left in self.left_out], *([self.checked] if self.checked else [])]


def read(folders: Sequence[Path], metric: str | None = None) -> list[SubmittedRun]:
    """Read the runs below some folders; of a run that was repeated, the one that a report takes (`repeats`).

    Parameters
    ----------
    folders
        Folders that lm_eval got as --output_path, and folders that hold the runs' ledgers.
    metric
        The metric that says whether an answer is correct, NAME or NAME,FILTER; None for each task's first.

    Returns
    -------
    list of SubmittedRun
        Sorted by path; at least one.

    Raises
    ------
    ArgumentError
        There are no results; samples or a ledger are missing, or do not fit the results.
    """
    recorded = recorded_runs.read(results_files(folders))
    kept, left_out = reading.read_task_runs(recorded, metric, GivenCosts())
    words = words_of(kept)
    found = [ledger for folder in folders for ledger in ledgers.read(folder)]
    submitted = []
    for run in sorted(recorded, key=lambda run: run.file):
        own = {one.run.domain: one.run for one in kept if one.recorded is run}
        if not own:
            continue
        # the ledger is that of all tasks, also of those that another run has repeated
        repeated = [] if len(own) == len(run.task_names) else tasks_of(run, metric, GivenCosts())
        all_runs = {part.run.domain: part.run for part in repeated} | own
        results = [task_results.read(run, all_runs[task], words.get((run.file, task), ())) for task in run.task_names]
        records, checked = ledger_check.find(run, [(task.run, task.samples) for task in results], found)
        tasks = tuple(task_results.with_records(task, records) for task in results if task.name in own)
        grouped, unverified = groups.read(run, tasks)
        submitted.append(
            SubmittedRun(
                run.file,
                run.results,
                tasks=tasks,
                groups=grouped,
                unverified=tuple(unverified),
                left_out=tuple(left for left in left_out if left.taken == run.file),
                checked=checked,
            )
        )
    return submitted


def results_files(folders: Sequence[Path]) -> list[Path]:
    """Return the results files below some folders, of which one at least has to hold any."""
    for folder in folders:
        if not folder.is_dir():
            harness_files.find_results(folder)  # refuses it
    files = sorted({file for folder in folders for file in folder.rglob("results_*.json")})
    return files or harness_files.find_results(folders[0])


def words_of(kept: Sequence[TaskRun]) -> dict[tuple[Path, str], tuple[str, ...]]:
    """Return by results file and task what tells apart runs of the same models and settings (`told_apart`)."""
    systems: dict[tuple[str, str], list[TaskRun]] = {}
    for one in kept:
        systems.setdefault((one.run.domain, one.run.system), []).append(one)
    return {
        (one.recorded.file, one.run.domain): tuple(words)
        for same in systems.values()
        for one, words in zip(same, told_apart([one.run.settings[one.run.domain] for one in same]), strict=True)
    }
