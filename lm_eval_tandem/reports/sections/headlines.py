"""What a report begins with: the main results of each comparison in a few numbers."""

from __future__ import annotations

from lm_eval_tandem import digits
from lm_eval_tandem.reports.sections.cells import accuracy, cost_ratio
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Number, percent

Headline = tuple[str, tuple[tuple[str, str], ...]]
"""A title, and pairs of a value and what it means."""


def headlines(data: ReportData) -> list[Headline]:
    """Return the main results of every comparison that has a cascade."""
    return [
        (f"{comparison.title}: {comparison.label(cascade)}", tuple(main_results(comparison, cascade)))
        for comparison in data.comparisons
        if (cascade := comparison.cascade) is not None
    ]


def main_results(comparison: Comparison, cascade: Run) -> list[tuple[str, str]]:
    """Return a cascade's accuracy, its costs relative to other policies, and the share of the oracle's saving."""
    results = [(f"{accuracy(cascade).text} %", f"correct, of {comparison.n_questions:,} questions")]
    for other, name in ((comparison.mentor, "the mentor"), (comparison.always_high, "always-high")):
        relative = cost_ratio(comparison, cascade, other)
        if other is not None and isinstance(relative, Number):
            points = percent(comparison.difference(cascade, other)[0], signed=True).text
            bill = cost_ratio(comparison, cascade, other, "bill")
            whole = f" and {bill.text} % of its whole bill" if isinstance(bill, Number) else ""
            results.append((f"{relative.text} %", f"of the cost of {name}{whole} (accuracy {points} points)"))
    paper = comparison.paper_cascade
    relative = cost_ratio(comparison, cascade, paper)
    if paper is not None and isinstance(relative, Number):
        points = str(percent(*comparison.difference(cascade, paper), signed=True))
        results.append((f"{relative.text} %", f"of the cost with the paper's recipe (accuracy {points} points)"))
    gap = comparison.gap_closed(cascade)
    if gap is not None:
        share = digits.decimals(100 * gap[0], 0)
        results.append((f"{share} %", "of the cost between always-high and the oracle saved"))
    return results
