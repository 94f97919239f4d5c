"""`TaskRun`: a run on a single task, as its results file and its samples have it, before runs are chosen and joined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import answer_tokens, harness_files
from lm_eval_tandem.reports.sources.other_models import GivenCosts, OtherModel
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.runs import MEASURES, Floats, Run


@dataclass(frozen=True, eq=False)
class TaskRun:
    """A run on a single task.

    Attributes
    ----------
    run
        The run.
    documents
        One per question; empty where the samples do not have them.
    recorded
        The results file that it was read from.
    """

    run: Run
    documents: Sequence[Mapping[str, Any]]
    recorded: RecordedRun


def tasks_of(recorded: RecordedRun, metric: str | None, given: GivenCosts) -> list[TaskRun]:
    """Return the runs in one results file, one per task; parameters as `reading.read`."""
    arguments, description = recorded.arguments, dict(recorded.config.get("tandem") or {})
    if description:
        description["thinking"] = str(arguments.get("thinking", "auto"))
    other = None if recorded.model is None else given.complete(recorded.model)
    task_runs = []
    for task, task_config in recorded.results["configs"].items():
        samples, metric_name = harness_files.read_samples(recorded.file, task, task_config, metric)
        model: OtherModel | None = None
        counted: dict[str, Floats] = {}
        if other is not None:
            model, counted = answer_tokens.count(other, samples, task_config, arguments)
        run = Run(
            name=recorded.name,
            policy=description.get("policy", ""),
            domain=task,
            description=description,
            arguments=arguments,
            flags=harness_files.command_flags(recorded.results),
            commit=str(recorded.results.get("git_hash") or "unknown"),
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
            settings={task: recorded.settings(task, metric_name)},
            documents=tuple(harness_files.document_checksum(sample) for sample in samples),
            prompts=tuple(harness_files.prompt_checksum(sample) for sample in samples),
        )
        documents = [sample["doc"] if isinstance(sample.get("doc"), dict) else {} for sample in samples]
        task_runs.append(TaskRun(run, documents, recorded))
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
