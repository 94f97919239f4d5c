"""The cells that several tables share: accuracy, means, costs and shares, each with its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.table import NOT_KNOWN, Cell, Number, percent

JUDGING_POLICIES = ("cascade", "llm_cascade", "escalate")
"""Policies that decide per question how much the mentor does."""


def accuracy(run: Run) -> Number:
    """Return a run's accuracy in percent, with Wilson's interval."""
    return accuracy_of(run.grades)


def accuracy_of(grades: Floats) -> Number:
    """Return the accuracy in percent of some questions' grades (Q,), with Wilson's interval."""
    return percent(digits.mean(grades), wilson(digits.total(grades), len(grades)))


def mean(comparison: Comparison, run: Run, measure: str) -> Cell:
    """Return the mean of a measure per question; "" if the run does not have it."""
    if measure not in run.measures:
        return ""
    return Number(digits.mean(run.measures[measure]), comparison.interval(run, measure))


def cost(comparison: Comparison, run: Run) -> Cell:
    """Return the mean cost per question in the comparison's unit; "" if it is not known."""
    if "tflops" not in run.measures:
        return ""
    return comparison.unit.number(digits.mean(run.measures["tflops"]), comparison.interval(run, "tflops"))


def cost_ratio(comparison: Comparison, run: Run, other: Run | None, measure: str = "tflops") -> Cell:
    """Return a run's cost in percent of another run's; "" if one is not known or both are the same run.

    The cost is Eq. 12, or with `measure="bill"` the whole bill.
    """
    if other is None or other is run or not all(measure in one.measures for one in (run, other)):
        return ""
    return percent(*comparison.ratio(run, other, measure))


def gap_closed(comparison: Comparison, run: Run) -> Cell:
    """Return in percent how much of the cost between always-high and the oracle a judging policy saves; else ""."""
    gap = comparison.gap_closed(run) if run.policy in JUDGING_POLICIES else None
    return "" if gap is None else percent(*gap)


def p_value(p: float | None) -> str:
    """Return a p value with three decimals, "< 0.001" for smaller ones, and "" for None."""
    if p is None:
        return ""
    return "< 0.001" if digits.nearest_decimal(p) < 0.001 else digits.decimals(p, 3)


def stage_label(comparison: Comparison, stage: int) -> str:
    """Return a fixed stage with the number of mentor tokens that it allows."""
    return "0: question alone" if stage == 0 else f"{stage}: ≤ {comparison.efforts[stage - 1]} mentor tokens"


def with_dashes(runs: Sequence[Run], rows: Sequence[Sequence[Cell]]) -> list[list[Cell]]:
    """Return the rows of runs with dashes for what is not known of another model but of some run in the table."""
    filled = [any(cell != "" for cell in column) for column in zip(*rows, strict=True)]
    return [
        [NOT_KNOWN if cell == "" and known and run.model else cell for cell, known in zip(row, filled, strict=True)]
        for run, row in zip(runs, rows, strict=True)
    ]
