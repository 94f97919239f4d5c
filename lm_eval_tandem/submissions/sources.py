"""Runs as a format submits them: every results file with its samples, and the ledger once it was checked against both.

What a report reads is read by the functions of the reports, so that both have the same numbers. A submission needs more
than a report: every metric with every filter, the harness's own values, and all records of a question that was asked
repeatedly. It also accepts less: what does not fit together is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from lm_eval_tandem.digits import mean
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files, ledgers, other_models, reading, runs
from lm_eval_tandem.reports.sources.labels import model_name
from lm_eval_tandem.reports.sources.ledgers import Ledger
from lm_eval_tandem.reports.sources.other_models import GivenCosts
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.submissions import ledger_check, samples_check

NOT_A_METRIC = ("alias", "name", "samples", "sample_len", "sample_count")
"""Entries of a task's results that are no metric."""


@dataclass(frozen=True, eq=False)
class Score:
    """One metric of a task as the harness reports it.

    Attributes
    ----------
    metric, filter
        Its name, and the name of the filter whose answers it grades.
    value
        The harness's value.
    standard_error
        The harness's; None where it has none.
    higher_is_better
        As the task says; True where it says nothing.
    values
        Float64 (Q,), the metric per question, of which `value` is the mean; None where it is no mean.
    """

    metric: str
    filter: str
    value: float
    standard_error: float | None
    higher_is_better: bool
    values: Floats | None


@dataclass(frozen=True, eq=False)
class TaskResults:
    """One task of a results file.

    Attributes
    ----------
    run
        The run on this task as reports read it: its first metric as `grades`, costs as `measures`.
    config
        The task's configuration in the results file.
    scores
        Every metric with every filter, in the harness's order.
    samples
        Lines of the samples file by filter, each in the order of `run.questions`.
    records
        For each question the ledger's records of all its repeats; empty without a ledger.
    available
        Number of questions that the data set has; None if the harness did not record it.
    """

    run: Run
    config: Mapping[str, Any]
    scores: tuple[Score, ...]
    samples: Mapping[str, Sequence[Mapping[str, Any]]]
    records: tuple[Sequence[Mapping[str, Any]], ...] = ()
    available: int | None = None

    @property
    def name(self) -> str:
        """The task's name."""
        return self.run.domain

    @property
    def grade(self) -> Score | None:
        """The metric that says whether an answer is correct: the one that reports show as accuracy."""
        return next((score for score in self.scores if score.metric == self.run.metric), None)


@dataclass(frozen=True, eq=False)
class SubmittedRun:
    """One results file: a model, or a system of several, on one or more tasks.

    Attributes
    ----------
    file
        The results file.
    results
        Its content.
    tasks
        Its tasks, without those that a newer run of the same models with the same settings has repeated.
    """

    file: Path
    results: Mapping[str, Any]
    tasks: tuple[TaskResults, ...]

    @property
    def config(self) -> Mapping[str, Any]:
        """What the harness recorded about the run."""
        config: Mapping[str, Any] = self.results["config"]
        return config

    @property
    def description(self) -> Mapping[str, Any]:
        """What a tandem or an ensemble recorded about itself; empty for any other model."""
        return described(self.results)

    @property
    def arguments(self) -> Mapping[str, Any]:
        """The model arguments as given, secrets left out."""
        return harness_files.model_arguments(self.config.get("model_args"))

    @property
    def name(self) -> str:
        """What messages call the run."""
        return str(self.description.get("run") or self.file.parent.name)


def described(results: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a tandem or an ensemble recorded about itself, without the totals; {} for any other model."""
    recorded = results["config"].get("tandem") or {}
    return {name: value for name, value in recorded.items() if name != "totals"}


def read(folders: Sequence[Path], metric: str | None = None) -> list[SubmittedRun]:
    """Read the runs below some folders; of a run that was repeated, the newest.

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
    files = results_files(folders)
    contents = {file: harness_files.load_results(file) for file in files}
    newest: dict[tuple[str, str, str], Path] = {}
    for file in sorted(files, key=lambda file: file.name):  # names end in a time stamp: the newest comes last
        for task in contents[file]["configs"]:
            newest[key_of(file, contents[file], task)] = file
    found = [ledger for folder in folders for ledger in ledgers.read(folder)]
    submitted = []
    for file, results in contents.items():
        kept = [task for task in results["configs"] if newest[key_of(file, results, task)] == file]
        if kept:
            read_runs = [part.run for part in reading.read_task_runs(file, results, metric, GivenCosts())]
            tasks = tuple(task_results(file, results, run) for run in read_runs)
            whole = with_ledger(SubmittedRun(file, results, tasks), found)
            submitted.append(replace(whole, tasks=tuple(task for task in whole.tasks if task.name in kept)))
    return submitted


def results_files(folders: Sequence[Path]) -> list[Path]:
    """Return the results files below some folders, of which one at least has to hold any."""
    for folder in folders:
        if not folder.is_dir():
            harness_files.find_results(folder)  # refuses it
    files = sorted({file for folder in folders for file in folder.rglob("results_*.json")})
    return files or harness_files.find_results(folders[0])


def key_of(file: Path, results: Mapping[str, Any], task: str) -> tuple[str, str, str]:
    """Return what is the same for two runs of the same models with the same settings on a task, as reports have it."""
    arguments = harness_files.model_arguments(results["config"].get("model_args"))
    description = described(results)
    if not description:
        shots = (results.get("n-shot") or {}).get(task)
        return task, other_models.read(results, file.parent.name, arguments).key, str(shots)
    return task, runs.identity({**description, "thinking": str(arguments.get("thinking", "auto"))}), ""


def task_results(file: Path, results: Mapping[str, Any], run: Run) -> TaskResults:
    """Return one task of a results file with its samples.

    Raises
    ------
    ArgumentError
        The samples are not those that the results were computed from.
    """
    task = run.domain
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
    )


def scores_of(
    file: Path, results: Mapping[str, Any], task: str, samples: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[Score]:
    """Return every metric of a task, or of a group of tasks where there are no samples.

    Raises
    ------
    ArgumentError
        A metric that is a mean, or its standard error, is not that of the samples.
    """
    entries = results["results"].get(task) or {}
    directions = (results.get("higher_is_better") or {}).get(task) or {}
    for aggregated in results["configs"].get(task, {}).get("metric_list") or []:
        if aggregated.get("aggregation") == "mean":
            metric = str(aggregated.get("metric"))
            for name, lines in samples.items():
                value, error = (entries.get(f"{entry},{name}") for entry in (metric, f"{metric}_stderr"))
                samples_check.check_mean(f"{file}, task {task},", metric, value, error, lines)
    scores = []
    for key, value in entries.items():
        metric, _, name = key.partition(",")
        if metric in NOT_A_METRIC or metric.endswith("_stderr") or not is_number(value):
            continue
        error = entries.get(f"{metric}_stderr,{name}" if name else f"{metric}_stderr")
        values = values_of(samples.get(name or "none", ()), metric)
        agrees = values is not None and samples_check.is_close(value, mean(values))
        scores.append(
            Score(
                metric,
                name or "none",
                float(value),
                float(error) if is_number(error) else None,
                bool(directions.get(metric, True)),
                values if agrees else None,
            )
        )
    return scores


def is_number(value: Any) -> TypeGuard[float]:
    """Whether a value of a results file is a finite number; the harness writes "N/A" where there is none."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and bool(np.isfinite(value))


def values_of(samples: Sequence[Mapping[str, Any]], metric: str) -> Floats | None:
    """Return a metric of every sample, float64 (Q,); None if some sample has no finite number."""
    values = [sample.get(metric) for sample in samples]
    if not values or not all(isinstance(value, bool) or is_number(value) for value in values):
        return None
    return np.array([float(value) for value in values if value is not None])


def with_ledger(submitted: SubmittedRun, found: Sequence[Ledger]) -> SubmittedRun:
    """Return a run with the records of its ledger; as it is where none was written.

    Raises
    ------
    ArgumentError
        The run wrote a ledger, which is missing or was changed.
    """
    description = submitted.description
    if not description:
        return submitted
    own = [ledger for ledger in found if same_run(ledger.description, description)]
    named = submitted.arguments.get("ledger")
    if not own:
        if named:
            raise ArgumentError(
                f"{submitted.name} on {', '.join(task.name for task in submitted.tasks)} was run with a ledger, "
                f"{model_name(str(named))}, but none of the folders holds it as it was written; add its folder."
            )
        return submitted
    faults = []
    for ledger in reversed(own):
        fault = ledger_check.fault(ledger, submitted.results, [(task.run, task.samples) for task in submitted.tasks])
        if fault is None:
            return replace(submitted, tasks=tuple(with_records(task, ledger) for task in submitted.tasks))
        faults.append(fault)
    raise ArgumentError(
        f"the ledger of {submitted.name} is not that of the results {submitted.file.name}: {faults[0]}; "
        "give both as the run wrote them."
    )


def same_run(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> bool:
    """Whether a ledger's header and a results file describe the same models with the same settings."""
    one, other = ({**description, "thinking": None} for description in (theirs, ours))
    return runs.identity(one) == runs.identity(other)


def with_records(task: TaskResults, ledger: Ledger) -> TaskResults:
    """Return a task with a ledger's records of its questions, and with the measures that they add."""
    records = ledgers.records_of(ledger, task.run)
    assert records is not None, "ledger_check has found them"
    measures = {**ledgers.measures_of(records), **task.run.measures}
    run = replace(task.run, records=tuple(repeats[0] for repeats in records), measures=measures)
    return replace(task, run=run, records=tuple(records))
