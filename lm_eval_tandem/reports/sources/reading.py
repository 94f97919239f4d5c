"""Reading runs from results folders: one `Run` per policy or other model and domain, the newest of those repeated."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import answer_tokens, harness_files, other_models
from lm_eval_tandem.reports.sources.other_models import GivenCosts, OtherModel
from lm_eval_tandem.reports.sources.question_settings import FEW_SHOT, settings_of
from lm_eval_tandem.reports.sources.runs import MEASURES, Floats, Run, identity

SUBJECT_FIELDS = ("subject", "type")
"""Fields of a document that name its subject, unless the user names another one."""


@dataclass(frozen=True)
class TaskRun:
    """A run on a single task, before tasks of a group are joined; `documents` has one entry per question."""

    run: Run
    documents: Sequence[Mapping[str, Any]]


def read(
    folders: Iterable[Path], metric: str | None = None, by: str | None = None, given: GivenCosts | None = None
) -> list[Run]:
    """Read every run below some folders; of a run that was repeated, the newest. Ledgers are joined later.

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

    Returns
    -------
    list of Run
        Sorted by domain and name, without ledger records (see `ledgers.join`).

    Raises
    ------
    ArgumentError
        A folder holds no readable results, or results without samples, no question has the field `by`, or no model a
        name in `given`.
    """
    paths, given = list(folders), given or GivenCosts()
    newest: dict[tuple[str, str, str], TaskRun] = {}
    group_of: dict[str, str] = {}
    files = [file for folder in paths for file in harness_files.find_results(folder)]
    for file in sorted(files, key=lambda file: file.name):  # names end in a time stamp: the newest comes last
        results = harness_files.load_results(file)
        for group, tasks in (results.get("group_subtasks") or {}).items():
            group_of |= dict.fromkeys(tasks, group)
        for task_run in read_task_runs(file, results, metric, given):
            run = task_run.run
            newest[run.domain, run.identity, run.settings[run.domain][FEW_SHOT] if run.model else ""] = task_run
    given.check_names([task_run.run.model for task_run in newest.values() if task_run.run.model])
    if by is not None:
        check_field(by, newest.values())
    parts: dict[tuple[str, str], list[TaskRun]] = {}
    for (task, _, _), task_run in sorted(with_own_identities(newest).items()):
        parts.setdefault((group_of.get(task, task), task_run.run.identity), []).append(task_run)
    runs = [join_tasks(domain, part, by) for (domain, _), part in sorted(merge_per_task_cascades(parts).items())]
    return sorted(runs, key=lambda run: (run.domain, run.name, run.identity))


def with_own_identities(task_runs: Mapping[tuple[str, str, str], TaskRun]) -> dict[tuple[str, str, str], TaskRun]:
    """Return runs by task, identity and number of examples, with an identity of its own for each number of them.

    One other model may have been run on a task with several numbers of few-shot examples.
    """
    keys = [key[:2] for key in task_runs]
    apart = {}
    for key, task_run in task_runs.items():
        task, run_identity, shots = key
        if keys.count((task, run_identity)) > 1 and task_run.run.model is not None:
            model = replace(task_run.run.model, key=f"{run_identity}, {shots} examples")
            task_run = replace(task_run, run=replace(task_run.run, model=model))
        apart[key] = task_run
    return apart


def check_field(field: str, task_runs: Iterable[TaskRun]) -> None:
    """Refuse a document field that no question has."""
    if any(field in document for task_run in task_runs for document in task_run.documents):
        return
    known = sorted({name for task_run in task_runs for document in task_run.documents[:1] for name in document})
    raise ArgumentError(f"--by {field}: no question has this field; they have {', '.join(known)}.")


def read_task_runs(file: Path, results: dict[str, Any], metric: str | None, given: GivenCosts) -> list[TaskRun]:
    """Return the runs in one results file, one per task."""
    config = results["config"]
    arguments = harness_files.model_arguments(config.get("model_args"))
    description = dict(config.get("tandem") or {})
    if description:
        description["thinking"] = str(arguments.get("thinking", "auto"))
    other = None if description else given.complete(other_models.read(results, file.parent.name, arguments))
    task_runs = []
    for task, task_config in results["configs"].items():
        samples, metric_name = harness_files.read_samples(file, task, task_config, metric)
        model: OtherModel | None = None
        counted: dict[str, Floats] = {}
        if other is not None:
            model, counted = answer_tokens.count(other, samples, task_config, arguments)
        run = Run(
            name=description.get("run", file.parent.name) if model is None else model.label,
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
            measures=counted
            | {
                name: numbers_of(samples, name, task)
                for name in MEASURES
                if all(sample.get(name) is not None for sample in samples)
            },
            model=model,
            settings={task: settings_of(results, task, task_config, arguments, metric_name)},
            documents=tuple(harness_files.document_checksum(sample) for sample in samples),
            prompts=tuple(harness_files.prompt_checksum(sample) for sample in samples),
        )
        documents = [sample["doc"] if isinstance(sample.get("doc"), dict) else {} for sample in samples]
        task_runs.append(TaskRun(run, documents))
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
