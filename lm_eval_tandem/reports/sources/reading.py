"""Reading runs from results folders: one `Run` for each policy or other model, way to ask, and domain."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files, recorded_runs, repeats, variants
from lm_eval_tandem.reports.sources.other_models import GivenCosts
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.repeats import LeftOut
from lm_eval_tandem.reports.sources.runs import MEASURES, Run, identity
from lm_eval_tandem.reports.sources.task_runs import TaskRun, tasks_of

SUBJECT_FIELDS = ("subject", "type")
"""Fields of a document that name its subject, unless the user names another one."""


@dataclass(frozen=True)
class Found:
    """The runs of some results files.

    Attributes
    ----------
    runs
        Sorted by domain and name, without ledger records (see `ledgers.join`).
    left_out
        The runs in whose place another one was taken.
    """

    runs: list[Run]
    left_out: list[LeftOut]


def read(
    folders: Iterable[Path], metric: str | None = None, by: str | None = None, given: GivenCosts | None = None
) -> Found:
    """Read every run below some folders, each once (`repeats`). Ledgers are joined later.

    Parameters
    ----------
    folders
        Folders that lm_eval got as --output_path.
    metric
        The metric to report, as NAME or NAME,FILTER; None for each task's first.
    by
        The document field that names a question's subject; None for `subject` or `type`, where documents have one.
    given
        What the command line says of models other than tandem's.

    Raises
    ------
    ArgumentError
        A folder holds no readable results, or results without samples, no question has the field `by`, or no model a
        name in `given`.
    """
    given = given or GivenCosts()
    recorded = recorded_runs.read(file for folder in folders for file in harness_files.find_results(folder))
    kept, left_out = read_task_runs(recorded, metric, given)
    given.check_names([task_run.run.model for task_run in kept if task_run.run.model])
    if by is not None:
        check_field(by, kept)
    group_of = groups(recorded)
    parts: dict[tuple[str, str], list[TaskRun]] = {}
    for task_run in sorted(kept, key=lambda one: (one.run.domain, one.run.identity)):
        domain = group_of.get(task_run.run.domain, task_run.run.domain)
        parts.setdefault((domain, task_run.run.identity), []).append(task_run)
    runs = [join_tasks(domain, part, by) for (domain, _), part in sorted(merge_per_task_cascades(parts).items())]
    return Found(sorted(runs, key=order), left_out)


def order(run: Run) -> tuple[str, str, str, list[tuple[int, str]]]:
    """Return a sorting key: by domain, name and system; of those, numbers in the way to ask by their size."""
    parts = [(int(part) if part.isdecimal() else 0, part) for part in re.split(r"(\d+)", run.variant)]
    return run.domain, run.name, run.system, parts


def read_task_runs(
    recorded: Sequence[RecordedRun], metric: str | None, given: GivenCosts
) -> tuple[list[TaskRun], list[LeftOut]]:
    """Return what reports and submissions show of some results files: the runs on each task, and those left out.

    Parameters
    ----------
    recorded
        The results files, the oldest first.
    metric, given
        As for `read`.
    """
    kept, left_out = repeats.choose([part for run in recorded for part in tasks_of(run, metric, given)])
    return variants.tell_apart(kept, groups(recorded)), left_out


def groups(recorded: Iterable[RecordedRun]) -> dict[str, str]:
    """Return the group of each task that some run asked for as part of one."""
    group_of: dict[str, str] = {}
    for run in recorded:
        for group, tasks in (run.results.get("group_subtasks") or {}).items():
            group_of |= dict.fromkeys(tasks, group)
    return group_of


def check_field(field: str, task_runs: Iterable[TaskRun]) -> None:
    """Refuse a document field that no question has."""
    if any(field in document for task_run in task_runs for document in task_run.documents):
        return
    known = sorted({name for task_run in task_runs for document in task_run.documents[:1] for name in document})
    raise ArgumentError(f"--by {field}: no question has this field; they have {', '.join(known)}.")


def merge_per_task_cascades(parts: dict[tuple[str, str], list[TaskRun]]) -> dict[tuple[str, str], list[TaskRun]]:
    """Join cascades that ran on single tasks of a group, each with a classifier fitted for its task, into one run.

    They are joined only where they cover every task of the group exactly once; all else stays as it is.

    Parameters
    ----------
    parts
        Task runs by domain and identity.

    Returns
    -------
    dict
        The same, the joined cascades under an identity of their own.
    """
    tasks: dict[str, set[str]] = {}
    for (domain, _), task_runs in parts.items():
        tasks.setdefault(domain, set()).update(task_run.run.domain for task_run in task_runs)
    candidates: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for (domain, run_identity), task_runs in parts.items():
        if len(task_runs) < len(tasks[domain]) and all(judged_by_own_classifier(part.run) for part in task_runs):
            common = f"{identity(per_task_description(task_runs[0].run))} {task_runs[0].run.variant}"
            candidates.setdefault((domain, common), []).append((domain, run_identity))
    merged = dict(parts)
    for (domain, common), keys in candidates.items():
        joined = [part for key in keys for part in parts[key]]
        if sorted(part.run.domain for part in joined) == sorted(tasks[domain]):
            for key in keys:
                del merged[key]
            merged[domain, common] = [
                replace(part, run=replace(part.run, description=per_task_description(part.run))) for part in joined
            ]
    return merged


def judged_by_own_classifier(run: Run) -> bool:
    """Whether a run on a single task is a cascade whose classifier was fitted for this task alone."""
    fitted_on = [str(task).removesuffix("_train") for task in run.classifier_facts.get("tasks") or ()]
    per_task = run.classifier_facts.get("per") == "task" or fitted_on == [run.domain]
    return "classifier" in run.description and per_task


def per_task_description(run: Run) -> dict[str, Any]:
    """Return the description of a cascade that has one classifier per task, from that of its run on one of them."""
    return {**run.description, "classifier": "one per task", "thresholds": None, "judge": {"per": "task"}}


def join_tasks(domain: str, task_runs: Sequence[TaskRun], by: str | None) -> Run:
    """Return the run on a whole domain, from its runs on the domain's tasks."""
    runs = [task_run.run for task_run in task_runs]
    shared = set.intersection(*(set(run.measures) for run in runs))
    several = len(task_runs) > 1
    return replace(
        runs[-1],
        domain=domain,
        questions=tuple(question for run in runs for question in run.questions),
        subjects=tuple(subject for task_run in task_runs for subject in subjects_of(task_run, domain, several, by)),
        grades=np.concatenate([run.grades for run in runs]),
        measures={name: np.concatenate([run.measures[name] for run in runs]) for name in MEASURES if name in shared},
        settings={task: settings for run in runs for task, settings in run.settings.items()},
        documents=tuple(document for run in runs for document in run.documents),
        prompts=tuple(prompt for run in runs for prompt in run.prompts),
        model=next((run.model for run in runs if run.model and run.model.uncounted), runs[-1].model),
    )


def subjects_of(task_run: TaskRun, domain: str, several: bool, by: str | None) -> list[str]:
    """Return the subject of each question: its task if the domain has several, otherwise a field of its document."""
    documents = task_run.documents
    if by is None and several:
        return [task_run.run.domain.removeprefix(f"{domain}_")] * len(documents)
    for name in SUBJECT_FIELDS if by is None else (by,):
        values = ["" if document.get(name) is None else str(document[name]) for document in documents]
        if any(values):
            numeric = all(value.replace(".", "", 1).isdecimal() for value in values)
            return [f"{name} {value}" for value in values] if numeric else values
    return [""] * len(documents)
