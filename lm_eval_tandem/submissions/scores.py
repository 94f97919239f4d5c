"""`Score`: one metric of a task, or of a group of tasks, as the harness reports it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from lm_eval_tandem.digits import mean
from lm_eval_tandem.reports.sources.runs import Floats
from lm_eval_tandem.submissions import samples_check

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
    weights
        Of a group's metric, by what its tasks were weighted; "" for a task's.
    """

    metric: str
    filter: str
    value: float
    standard_error: float | None
    higher_is_better: bool
    values: Floats | None
    weights: str = ""


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
