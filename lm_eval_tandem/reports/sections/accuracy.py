"""Accuracy, length and cost of every policy (paper, Tables 1 and 7).

To add a column to the policies table, write a function that returns its cell and add a `Column` to `POLICY_COLUMNS`. A
measure that no column shows yet also needs a name in `MEASURES` (`sources/runs.py`) and, if it gets an interval, in
`RESAMPLED` (`sources/comparison.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import digits
from lm_eval_tandem.reports.sections.cells import (
    accuracy,
    accuracy_of,
    cost,
    cost_ratio,
    gap_closed,
    mean,
    with_dashes,
)
from lm_eval_tandem.reports.sources.comparison import ORACLE, Comparison
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Number, Part, Table, make_table, percent
from lm_eval_tandem.training.bootstrap import Interval, central_interval, resampled_means


@dataclass(frozen=True)
class Column:
    """A column of the policies table.

    Attributes
    ----------
    heading
        Its heading; "{unit}" stands for the unit of costs.
    needs
        Measures per question that a run must have for it (see `sources.runs.MEASURES`). The cell of a run that lacks
        one is empty, and a column that is empty in every row is left out of the table.
    cell
        Computes the cell of a run: a `Number` with its interval, or text.
    """

    heading: str
    needs: tuple[str, ...]
    cell: Callable[[Comparison, Run], Cell]


def length(comparison: Comparison, run: Run) -> Cell:
    """Return the number of tokens that mentor and intern generate per question, together."""
    return mean(comparison, run, "length")


def mentor_tokens(comparison: Comparison, run: Run) -> Cell:
    """Return the number of tokens that the mentor generates per question."""
    return mean(comparison, run, "mentor_tokens")


def cost_relative_to_mentor(comparison: Comparison, run: Run) -> Cell:
    """Return the cost in percent of the mentor's when it answers alone."""
    return cost_ratio(comparison, run, comparison.mentor)


def cost_relative_to_always_high(comparison: Comparison, run: Run) -> Cell:
    """Return the cost in percent of that of the fixed stage with the highest effort."""
    return cost_ratio(comparison, run, comparison.always_high)


def whole_bill(comparison: Comparison, run: Run) -> Cell:
    """Return the cost of every token that passed through a model, with those of prompts and of discarded work."""
    return comparison.unit.number(digits.mean(run.measures["bill"]), comparison.interval(run, "bill"))


def whole_bill_relative_to_mentor(comparison: Comparison, run: Run) -> Cell:
    """Return the whole bill in percent of the mentor's when it answers alone."""
    return cost_ratio(comparison, run, comparison.mentor, "bill")


def call_seconds(comparison: Comparison, run: Run) -> Cell:
    """Return the seconds that a question's calls took, added up, waiting for others of a batch included."""
    return Number(digits.mean(run.measures["seconds"]), comparison.interval(run, "seconds"), 2)


def wall_seconds(comparison: Comparison, run: Run) -> Cell:
    """Return the wall-clock seconds of the run per question; "" where they are not known."""
    known = None if run.policy == ORACLE else run.wall_seconds
    return "" if known is None else Number(known, None, 3)


def difference_to_cascade(comparison: Comparison, run: Run) -> Cell:
    """Return by how many points the accuracy exceeds the cascade's; paired, since both answer the same questions."""
    cascade = comparison.cascade
    if cascade is None or run is cascade:
        return ""
    return percent(*comparison.difference(run, cascade), signed=True)


def truncated(comparison: Comparison, run: Run) -> Cell:
    """Return the percentage of answers that were cut off at the token limit."""
    return percent(digits.mean(run.measures["truncated"]))


POLICY_COLUMNS: tuple[Column, ...] = (
    Column("accuracy %", (), lambda comparison, run: accuracy(run)),
    Column("length (tokens)", ("length",), length),
    Column("mentor tokens", ("mentor_tokens",), mentor_tokens),
    Column("cost ({unit})", ("tflops",), cost),
    Column("cost / mentor %", ("tflops",), cost_relative_to_mentor),
    Column("whole bill / mentor %", ("bill",), whole_bill_relative_to_mentor),
    Column("cost / always-high %", ("tflops",), cost_relative_to_always_high),
    Column("gap to the oracle closed %", ("tflops",), gap_closed),
    Column("whole bill ({unit})", ("bill",), whole_bill),
    Column("call seconds (summed)", ("seconds",), call_seconds),
    Column("wall seconds", (), wall_seconds),
    Column("points above the cascade", (), difference_to_cascade),
    Column("truncated %", ("truncated",), truncated),
)
"""The columns of the policies table after the policy's name, from left to right."""
CALL_SECONDS = (
    " Call seconds are the times of a question's calls when they were computed, each from its beginning to its end, "
    "added up: calls of many questions run at once and wait for each other, so they are far more than the time of the "
    "run."
)
WALL_SECONDS = (
    " Wall seconds are that time, from the first request to the last answer on all tasks of the run, divided by the "
    "number of questions; they are left out where a store had some of the calls."
)
"""What the table says of its seconds, where it has them."""


def by_policy(data: ReportData) -> list[Part]:
    """Return for each comparison the policies table, and the table by subject if there are several subjects."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        parts.append(policies_table(comparison))
        if comparison.subjects:
            parts.append(subjects_table(comparison))
    return parts


def policies_table(comparison: Comparison) -> Table:
    """Return the table with one row per policy, the oracle last, and the columns of `POLICY_COLUMNS`."""
    rows: list[list[Cell]] = []
    for run in comparison.rows:
        cells = [
            column.cell(comparison, run) if all(measure in run.measures for measure in column.needs) else ""
            for column in POLICY_COLUMNS
        ]
        rows.append([comparison.label(run), *cells])
    has_calls = any("seconds" in run.measures for run in comparison.rows)
    has_wall = any(wall_seconds(comparison, run) != "" for run in comparison.rows)
    return make_table(
        f"policies-{comparison.name}",
        comparison.title,
        f"Every policy on the same {comparison.n_questions:,} questions. Always-high is the fixed stage with the "
        "highest effort. The oracle takes for each question the cheapest fixed stage that is correct, or the intern "
        "alone if none is: a judge without errors would do the same. The gap is the cost between always-high and "
        "the oracle. The whole bill counts every token that passed through a model."
        + CALL_SECONDS * has_calls
        + WALL_SECONDS * has_wall,
        ["policy", *[column.heading.format(unit=comparison.unit.name) for column in POLICY_COLUMNS]],
        with_dashes(comparison.rows, rows),
    )


def subjects_table(comparison: Comparison) -> Table:
    """Return Table 1: three rows per policy (accuracy, length, cost) and a column per subject."""
    unit, subjects = comparison.unit, comparison.subjects
    masks = [comparison.subject_mask(subject) for subject in subjects]
    # Subject by subject, because the resamples of one are drawn once for all policies.
    means = [
        {
            (place, measure): mean_with_interval(run, measure, mask)
            for place, run in enumerate(comparison.rows)
            for measure in ("length", "tflops")
            if measure in run.measures
        }
        for mask in masks
    ]
    rows: list[list[Cell]] = []
    for place, run in enumerate(comparison.rows):
        label = comparison.label(run)
        rows.append([label, "accuracy %", *[accuracy_of(run.grades[mask]) for mask in masks], accuracy(run)])
        if "length" in run.measures:
            cells = [Number(*of_subject[place, "length"]) for of_subject in means]
            rows.append([label, "length", *cells, length(comparison, run)])
        if "tflops" in run.measures:
            cells = [unit.number(*of_subject[place, "tflops"]) for of_subject in means]
            rows.append([label, f"cost, {unit.name}", *cells, cost(comparison, run)])
    counts = ", ".join(f"{subject} ({int(mask.sum())})" for subject, mask in zip(subjects, masks, strict=True))
    return make_table(
        f"subjects-{comparison.name}",
        f"{comparison.title}, by subject",
        f"Number of questions: {counts}.",
        ["policy", "figure", *subjects, "all"],
        rows,
        collapsed=True,
    )


def mean_with_interval(run: Run, measure: str, mask: NDArray[np.bool_]) -> tuple[float, Interval]:
    """Return the mean of a measure over some questions, and its bootstrap interval."""
    values = run.measures[measure][mask]
    return digits.mean(values), central_interval(resampled_means(values[:, None])[:, 0])
