"""The cascade on domains that its classifier was not fitted on (paper, Table 5)."""

from __future__ import annotations

from lm_eval_tandem.reports.sections.cells import accuracy, cost
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.missing import command, missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Missing, Part, Table, make_table


def transfer(data: ReportData) -> list[Part]:
    """Return a table for each comparison whose cascade was fitted on other domains, or what it takes to get one."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        cascade = comparison.cascade
        if cascade is None:
            parts.append(missing_runs(comparison, "Transfer to another domain", ["cascade"]))
        elif not training_tasks(cascade):
            parts.append(
                Missing(
                    f"The cascade on {comparison.title} was run with a version that did not record the tasks that its "
                    "classifier was fitted on; run it again.",
                    command(comparison, "cascade"),
                )
            )
        elif is_transfer(comparison, cascade):
            parts.append(table(comparison, cascade))
    return parts or [no_other_domain(data)]


def no_other_domain(data: ReportData) -> Missing:
    """Return that every cascade ran on the domain of its training tasks."""
    cascades = [comparison.cascade for comparison in data.comparisons if comparison.cascade]
    tasks = ", ".join(sorted({task for cascade in cascades for task in training_tasks(cascade)}))
    first = data.comparisons[0]
    return Missing(
        f"Transfer needs a cascade on a domain that its classifier was not fitted on; it was fitted on {tasks}.",
        command(first, "cascade", task="OTHER_TASK"),
    )


def table(comparison: Comparison, cascade: Run) -> Table:
    """Return the models alone, the fixed stages, and every cascade whose classifier was fitted on other domains."""
    runs = [comparison.intern, comparison.mentor, *[run for stage, run in comparison.stages.items() if stage]]
    runs += [run for run in comparison.cascades if is_transfer(comparison, run)]
    rows: list[list[Cell]] = []
    for run in runs:
        if run is not None:
            counts = f"{int(run.correct.sum())} / {len(run.grades)}"
            rows.append([comparison.label(run), accuracy(run), counts, cost(comparison, run)])
    return make_table(
        f"transfer-{comparison.name}",
        comparison.title,
        f"The classifier was fitted on {', '.join(training_tasks(cascade))}.",
        ["policy", "accuracy %", "correct / questions", f"cost ({comparison.unit.name})"],
        rows,
    )


def is_transfer(comparison: Comparison, run: Run) -> bool:
    """Whether a cascade's classifier was fitted on other domains only."""
    domains = {task.removesuffix("_train") for task in training_tasks(run)}
    return bool(domains) and comparison.domain not in domains


def training_tasks(run: Run) -> list[str]:
    """Return the tasks that a cascade's classifier was fitted on; empty if the run did not record them."""
    return [str(task) for task in run.classifier_facts.get("tasks") or ()]
