"""The file of results of Every Eval Ever: one model on one task or group, with every metric and its interval.

Field names are those of `eval.schema.json`, version 0.3.0. All `additional_details` and `details` map names to text.
`every_eval_ever_settings` has what is known of the model and of the way it was run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_eval_tandem import __version__, digits
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.reports.sources.runs import MEASURES
from lm_eval_tandem.submissions.every_eval_ever_settings import (
    generation_config,
    model_info,
    source_data,
    totals,
    versions,
)
from lm_eval_tandem.submissions.groups import BY_QUESTIONS
from lm_eval_tandem.submissions.metrics import metric
from lm_eval_tandem.submissions.models import PROJECT, UNKNOWN, Identity, slug
from lm_eval_tandem.submissions.redaction import short
from lm_eval_tandem.submissions.scores import Score
from lm_eval_tandem.submissions.sources import SubmittedRun
from lm_eval_tandem.submissions.task_results import TaskResults
from lm_eval_tandem.training.bootstrap import RESAMPLES, Interval, central_interval, resampled_means

LEVEL = 0.95
LONGEST_SETTING = 40
"""Characters of a setting that may be part of an id."""


def results_file(
    submitted: SubmittedRun,
    task: TaskResults,
    model: Identity,
    organization: str,
    relationship: str,
    now: float,
    samples: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of the file of results.

    Parameters
    ----------
    submitted, task
        The run, and the task of it.
    model
        What it was of.
    organization, relationship
        Who ran it, and its relation to the models' developers.
    now
        The time of the export in seconds since 1970.
    samples
        `detailed_evaluation_results`: the file of samples; None without one.
    """
    scores = all_scores(task)
    between = intervals(scores)
    content: dict[str, Any] = {
        "schema_version": "0.3.0",
        "evaluation_id": evaluation_id(submitted, task, model),
        "retrieved_timestamp": str(int(now)),
        **({"evaluation_timestamp": text} if (text := timestamp(submitted)) else {}),
        "source_metadata": {
            "source_name": "lm-evaluation-harness",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": relationship,
            "additional_details": {"exported_by": f"{PROJECT} {__version__}", **totals(submitted)},
        },
        "eval_library": {
            "name": "lm_eval",
            "version": short(submitted.results.get("lm_eval_version")) or UNKNOWN,
            "additional_details": versions(submitted),
        },
        "model_info": model_info(submitted, model),
        "evaluation_results": [
            result(submitted, task, score, between.get(id(score)), score is task.grade) for score in scores
        ],
    }
    return content | ({"detailed_evaluation_results": dict(samples)} if samples else {})


def evaluation_id(submitted: SubmittedRun, task: TaskResults, model: Identity) -> str:
    """Return task, model, what distinguishes this run from others of the model, and the time of the run."""
    description = submitted.description
    names = ("efforts", "guidance", "thresholds") if model.is_system else ("policy",)
    variant = "_".join(text for name in names if (text := short(description.get(name) or "")))
    if variant in ("mentor", "intern"):
        variant = ""
    variant = "_".join(part for part in (variant, *map(way_to_ask, task.told_apart)) if part)
    return "/".join(part for part in (task.name, model.id, variant, timestamp(submitted) or UNKNOWN) if part)


def way_to_ask(words: str) -> str:
    """Return what tells how a run was asked as a part of an id; of anything but a short setting a checksum."""
    if short(words) == words and len(words) <= LONGEST_SETTING:
        return slug(words)
    return f"asked-{harness_files.checksum(words)[:8]}"


def timestamp(submitted: SubmittedRun) -> str:
    """Return when a run began, in seconds since 1970; "" if the harness did not record it."""
    date = submitted.results.get("date")
    return repr(float(date)) if isinstance(date, (int, float)) else ""


def result_id(task: str, score: Score) -> str:
    """Return the id of a metric's result, to which its rows of samples point."""
    return f"{task}/{score.filter}/{score.metric}"


def evaluation_name(task: str, score: Score) -> str:
    """Return the name of an evaluation as the board's own converter has it: the task, and the filter if it has one."""
    return task if score.filter == "none" else f"{task}/{score.filter}"


def all_scores(task: TaskResults) -> list[Score]:
    """Return the harness's metrics, and then the costs that the ledger knows and the task does not show."""
    shown = {score.metric for score in task.scores}
    measures = task.run.measures
    added = [
        Score(name, "none", digits.mean(measures[name]), None, False, measures[name])
        for name in MEASURES
        if name in measures and name not in shown
    ]
    return [*task.scores, *added]


def result(
    submitted: SubmittedRun, task: TaskResults, score: Score, between: Interval | None, is_grade: bool
) -> dict[str, Any]:
    """Return one entry of `evaluation_results`; that of the grade also has the costs, as text."""
    details: dict[str, Any] = {"score": score.value, "uncertainty": uncertainty(task, score, between)}
    if is_grade:
        details["details"] = {f"mean_{name}": repr(digits.mean(values)) for name, values in task.run.measures.items()}
    return {
        "evaluation_result_id": result_id(task.name, score),
        "evaluation_name": evaluation_name(task.name, score),
        "source_data": source_data(task),
        "metric_config": metric_config(score, task.parts),
        "score_details": details,
        "generation_config": generation_config(submitted, task),
    }


def metric_config(score: Score, parts: Sequence[TaskResults]) -> dict[str, Any]:
    """Return what a metric is, of a group also how it was aggregated over its tasks.

    One without known bounds has no type of scores, as from the board's own converter.
    """
    what = metric(score.metric)
    details = {"harness_metric": score.metric}
    if parts:
        details |= {"aggregation": "mean", "weights": score.weights or BY_QUESTIONS}
        details["tasks"] = ",".join(f"{part.name} ({len(part.run.questions)})" for part in parts)
    named = {
        "metric_id": what.id,
        "metric_name": what.name,
        "metric_kind": what.kind,
        "metric_unit": what.unit,
        "evaluation_description": what.description,
    }
    config: dict[str, Any] = {name: text for name, text in named.items() if text}
    config["lower_is_better"] = not score.higher_is_better
    if what.bounds is None:
        return config | {"additional_details": {"bounds_status": UNKNOWN, **details}}
    low, high = (bound if math.isfinite(bound) else "Infinity" for bound in what.bounds)
    return config | {
        "score_type": "continuous",
        "min_score": low,
        "max_score": high,
        "additional_details": details,
    }


def uncertainty(task: TaskResults, score: Score, between: Interval | None) -> dict[str, Any]:
    """Return the harness's standard error and our 95 % interval, by the methods of the report."""
    found: dict[str, Any] = {"num_samples": len(task.run.questions)}
    if score.standard_error is not None:
        found["standard_error"] = {"value": score.standard_error, "method": "lm_eval"}
    if between is None:
        return found
    is_proportion = metric(score.metric).is_proportion
    method = "Wilson" if is_proportion else "bootstrap over questions, percentiles"
    low, high = between
    found["confidence_interval"] = {"lower": low, "upper": high, "confidence_level": LEVEL, "method": method}
    return found if is_proportion else found | {"num_bootstrap_samples": RESAMPLES}


def intervals(scores: Sequence[Score]) -> dict[int, Interval]:
    """Return the 95 % interval of each mean by the score's `id`: Wilson's of a share, otherwise by bootstrap."""
    found = {}
    resampled = []
    for score in scores:
        if score.values is None:
            continue
        if metric(score.metric).is_proportion:
            found[id(score)] = wilson(digits.total(score.values), len(score.values))
        else:
            resampled.append((score, score.values))
    if resampled:
        means = resampled_means(np.stack([values for _, values in resampled], axis=1))
        found |= {id(score): central_interval(means[:, place]) for place, (score, _) in enumerate(resampled)}
    return found


def unknown_bounds(task: TaskResults) -> Sequence[str]:
    """Return the metrics of a task whose bounds are not known."""
    return sorted({score.metric for score in task.scores if metric(score.metric).bounds is None})
