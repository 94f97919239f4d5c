"""`Run`: one policy, or another model, on one domain, question by question; and reading runs from results folders."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.cascade.prompts import SETTING
from lm_eval_tandem.digits import nearest_decimal, without_last_bits
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files

Floats = NDArray[np.float64]
QuestionId = tuple[str, int]
"""Task and document id."""

MEASURES = ("length", "mentor_tokens", "tflops", "bill", "seconds", "stage", "truncated", "dollars")
"""Numbers that a run may have per question besides its grade: read from samples, or derived from ledger records."""
SUBJECT_FIELDS = ("subject", "type")
"""Fields of a document that name its subject, unless the user names another one."""
PAIR_SETTINGS = (*SETTING, "thinking")
"""Settings that make two runs of the same models runs of two different pairs."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run on one domain: a task, or all tasks of one of the harness's groups.

    Attributes
    ----------
    name
        For example tandem-pair-cascade.
    policy
        For example cascade or stage:2; "" for a model that is not a tandem.
    domain
        Name of the task or group.
    description
        What the tandem recorded about itself (`config.tandem` in the results file); empty for other models.
    arguments
        Model arguments as given.
    flags
        Further flags of the lm_eval command, as typed.
    commit
        The commit that the harness recorded.
    metric
        Name of the metric that `grades` holds.
    questions
        Task and document id of each of the Q questions, sorted.
    subjects
        Subject of each question; "" where there is none.
    grades
        Float64 (Q,), the metric per question, in [0, 1].
    measures
        Float64 (Q,) under names of `MEASURES`; those that are not known for every question are absent.
    records
        Ledger records, one per question; empty if the run has no ledger.
    """

    name: str
    policy: str
    domain: str
    description: Mapping[str, Any]
    arguments: Mapping[str, Any]
    flags: tuple[str, ...]
    commit: str
    metric: str
    questions: tuple[QuestionId, ...]
    subjects: tuple[str, ...]
    grades: Floats
    measures: Mapping[str, Floats]
    records: tuple[Mapping[str, Any], ...] = ()

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which questions count as answered correctly: those graded 0.5 or higher."""
        return np.asarray(without_last_bits(self.grades) >= 0.5, dtype=np.bool_)

    @property
    def identity(self) -> str:
        """A string that is the same for two runs of the same models with the same settings."""
        return identity(self.description) if self.description else self.name

    @property
    def classifier_facts(self) -> Mapping[str, Any]:
        """What the run recorded about its classifier: schema, model, labels, tasks, sha256; empty if nothing."""
        return self.description.get("judge") or {}

    @property
    def is_ensemble(self) -> bool:
        """Whether the models took no roles, but were combined as an ensemble."""
        return bool(self.description.get("models"))

    @property
    def has_both_models(self) -> bool:
        """Whether mentor and intern took part; False for a model that ran alone."""
        return {"mentor", "intern"} <= set(self.description)


@dataclass(frozen=True)
class _TaskRun:
    """A run on a single task, before tasks of a group are joined; `documents` has one entry per question."""

    run: Run
    documents: Sequence[Mapping[str, Any]]


def read(folders: Iterable[Path], metric: str | None = None, by: str | None = None) -> list[Run]:
    """Read every run below some folders; of a run that was repeated, the newest. Ledgers are joined later.

    Parameters
    ----------
    folders
        Folders that lm_eval got as --output_path.
    metric
        The metric to report, as NAME or NAME,FILTER; None for each task's first.
    by
        The document field that names a question's subject; None for `subject` or `type`, where documents have one.

    Returns
    -------
    list of Run
        Sorted by domain and name, without ledger records (see `ledgers.join`).

    Raises
    ------
    ArgumentError
        A folder holds no readable results, or results without samples, or no question has the field `by`.
    """
    paths = list(folders)
    newest: dict[tuple[str, str], _TaskRun] = {}
    group_of: dict[str, str] = {}
    files = [file for folder in paths for file in harness_files.find_results(folder)]
    for file in sorted(files, key=lambda file: file.name):  # names end in a time stamp: the newest comes last
        results = harness_files.load_results(file)
        for group, tasks in (results.get("group_subtasks") or {}).items():
            group_of |= dict.fromkeys(tasks, group)
        for task_run in read_task_runs(file, results, metric):
            newest[task_run.run.domain, task_run.run.identity] = task_run
    if by is not None:
        check_field(by, newest.values())
    parts: dict[tuple[str, str], list[_TaskRun]] = {}
    for (task, run_identity), task_run in sorted(newest.items()):
        parts.setdefault((group_of.get(task, task), run_identity), []).append(task_run)
    runs = [join_tasks(domain, part, by) for (domain, _), part in sorted(merge_per_task_cascades(parts).items())]
    return sorted(runs, key=lambda run: (run.domain, run.name, run.identity))


def check_field(field: str, task_runs: Iterable[_TaskRun]) -> None:
    """Refuse a document field that no question has."""
    if any(field in document for task_run in task_runs for document in task_run.documents):
        return
    known = sorted({name for task_run in task_runs for document in task_run.documents[:1] for name in document})
    raise ArgumentError(f"--by {field}: no question has this field; they have {', '.join(known)}.")


def read_task_runs(file: Path, results: dict[str, Any], metric: str | None) -> list[_TaskRun]:
    """Return the runs in one results file, one per task."""
    config = results["config"]
    arguments = harness_files.model_arguments(config.get("model_args"))
    description = dict(config.get("tandem") or {})
    if description:
        description["thinking"] = str(arguments.get("thinking", "auto"))
    task_runs = []
    for task, task_config in results["configs"].items():
        samples, metric_name = harness_files.read_samples(file, task, task_config, metric)
        run = Run(
            name=description.get("run", file.parent.name),
            policy=description.get("policy", ""),
            domain=task,
            description=description,
            arguments=arguments,
            flags=harness_files.command_flags(results),
            commit=str(results.get("git_hash") or "unknown"),
            metric=metric_name,
            questions=tuple((task, int(sample["doc_id"])) for sample in samples),
            subjects=(),
            grades=numbers_of(samples, metric_name, task),
            measures={
                name: numbers_of(samples, name, task)
                for name in MEASURES
                if all(sample.get(name) is not None for sample in samples)
            },
        )
        documents = [sample["doc"] if isinstance(sample.get("doc"), dict) else {} for sample in samples]
        task_runs.append(_TaskRun(run, documents))
    return task_runs


def numbers_of(samples: Sequence[Mapping[str, Any]], name: str, task: str) -> Floats:
    """Return one number of every sample, float64 (Q,).

    Raises
    ------
    ArgumentError
        One of them is no number, as with metrics that are computed from all questions together.
    """
    try:
        return np.array([float(sample[name]) for sample in samples])
    except (TypeError, ValueError):
        other = next(sample[name] for sample in samples if not isinstance(sample[name], (int, float)))
        raise ArgumentError(
            f"--metric {name}: {task} has {str(other)[:40]} for a question, where a report needs one number; "
            "name a metric that grades every question."
        ) from None


def merge_per_task_cascades(parts: dict[tuple[str, str], list[_TaskRun]]) -> dict[tuple[str, str], list[_TaskRun]]:
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
            common = identity(per_task_description(task_runs[0].run))
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


def identity(description: Mapping[str, Any]) -> str:
    """Return a string that is the same for two runs of the same models, settings, policy and classifier."""
    models = {
        name: [facts.get(key) for key in ("model", "parameters")] for name, facts in models_of(description).items()
    }
    names = ("run", "policy", "seed", "classifier", "recipe", "thresholds", "scorer", "reference", *PAIR_SETTINGS)
    settings = {name: description.get(name) for name in names}
    settings["thresholds"] = (
        [nearest_decimal(value) for value in settings["thresholds"]] if settings["thresholds"] else None
    )
    return json.dumps([models, settings, (description.get("judge") or {}).get("sha256")], sort_keys=True)


def models_of(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a run recorded about each of its models, by role, or by name in an ensemble; the mentor first."""
    roles = {role: description[role] for role in ("mentor", "intern") if role in description}
    return {**roles, **(description.get("models") or {})}


def join_tasks(domain: str, task_runs: Sequence[_TaskRun], by: str | None) -> Run:
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
    )


def subjects_of(task_run: _TaskRun, domain: str, several: bool, by: str | None) -> list[str]:
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
