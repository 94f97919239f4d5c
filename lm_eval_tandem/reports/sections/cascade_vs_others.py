"""The cascade against every other policy, question by question (paper, Table 6, with significance tests)."""

from __future__ import annotations

from lm_eval_tandem.reports.intervals import mcnemar
from lm_eval_tandem.reports.sections.cells import accuracy, cost, cost_ratio, p_value, with_dashes
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.missing import has_run, missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Part, Table, make_table, percent

BASELINES = ("budget_forcing:N", "llm_cascade", "escalate")
"""The efficiency baselines of the paper's Table 6."""


def paired(data: ReportData) -> list[Part]:
    """Return for each comparison the table against its cascade, and which of the baselines were not run."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        if comparison.cascade is None:
            parts.append(missing_runs(comparison, "Comparing the cascade with other policies", ["cascade"]))
            continue
        parts.append(table(comparison, comparison.cascade))
        lacking = [policy for policy in BASELINES if not has_run(comparison, policy)]
        if lacking:
            parts.append(missing_runs(comparison, "The comparison with the paper's efficiency baselines", lacking))
    return parts


def table(comparison: Comparison, cascade: Run) -> Table:
    """Return the table with one row per other run."""
    rows: list[list[Cell]] = []
    others = [run for run in comparison.rows if run is not cascade]
    for run in others:
        only_cascade = int((cascade.correct & ~run.correct).sum())
        only_other = int((run.correct & ~cascade.correct).sum())
        rows.append(
            [
                comparison.label(run),
                accuracy(run),
                cost(comparison, run),
                percent(*comparison.difference(cascade, run), signed=True),
                f"{only_cascade} / {only_other}",
                p_value(mcnemar(cascade.grades, run.grades)),
                cost_ratio(comparison, cascade, run),
                cost_ratio(comparison, cascade, run, "bill"),
            ]
        )
    label, unit = comparison.label(cascade), comparison.unit.name
    spent = cost(comparison, cascade)
    reached = f"{label} reaches {accuracy(cascade)} %" + (f" at {spent} {unit} per question" if spent else "")
    return make_table(
        f"compared-{comparison.name}",
        comparison.title,
        f"{reached}. Differences are its accuracy minus that of the policy in the row. Cost is Eq. 12, and the whole "
        "bill counts every token that passed through a model.",
        [
            "policy",
            "accuracy %",
            f"cost ({unit})",
            f"{label}: accuracy difference (points)",
            f"correct only with {label} / only with this policy",
            "McNemar p",
            f"{label}: cost in % of this policy's",
            f"{label}: whole bill in % of this policy's",
        ],
        with_dashes(others, rows),
    )
