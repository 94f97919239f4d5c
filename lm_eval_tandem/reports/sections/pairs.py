"""Several pairs side by side, and models of several sizes (paper, Tables 2 and 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lm_eval_tandem import digits
from lm_eval_tandem.reports.sections.cells import accuracy, cost, mean
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.labels import model_names
from lm_eval_tandem.reports.sources.missing import command, missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Table, make_table

EFFORT_NAMES = {1: ("high",), 2: ("low", "high"), 3: ("low", "medium", "high")}
"""What the efforts are called, by their number; more of them are called by their stage."""


def pairs(data: ReportData) -> list[Part]:
    """Return both tables for each domain, and what it takes to compare pairs if there is only one."""
    parts: list[Part] = []
    for domain in dict.fromkeys(comparison.domain for comparison in data.comparisons):
        on_domain = [comparison for comparison in data.comparisons if comparison.domain == domain]
        parts += [models_table(domain, on_domain), efforts_table(domain, on_domain)]
    if len({comparison.pair for comparison in data.comparisons}) < 2:
        parts.append(
            Missing(
                "The comparison of pairs needs the runs of a second pair on the same questions.",
                command(data.comparisons[0], "cascade", changes={"mentor": "OTHER", "intern": "OTHER"}),
            )
        )
    return parts


def models_table(domain: str, comparisons: Sequence[Comparison]) -> Table:
    """Return Table 2: models alone, then pairs under the cascade."""
    alone: dict[str, tuple[Comparison, Run, str]] = {}  # a run of one model belongs to every pair that has the model
    for comparison in comparisons:
        for role, run in (("intern", comparison.intern), ("mentor", comparison.mentor)):
            if run is not None:
                alone.setdefault(run.identity, (comparison, run, role))
    labels = labels_of_models([(run, role) for _, run, role in alone.values()])
    rows = [
        row(comparison, run, label, comparisons[0])
        for (comparison, run, _), label in zip(alone.values(), labels, strict=True)
    ]
    for comparison in comparisons:
        if comparison.cascade is not None:
            rows.append(row(comparison, comparison.cascade, comparison.pair, comparisons[0]))
    return make_table(
        f"pairs-{domain}",
        f"{domain}: models alone and pairs under the cascade",
        "",
        ["models", "accuracy %", "length (tokens)", f"cost ({comparisons[0].unit.name})"],
        rows,
    )


def labels_of_models(runs: Sequence[tuple[Run, str]]) -> list[str]:
    """Return what each run of one model is called, given with the model's role; no two are called alike."""
    called = model_names(run.description[role]["model"] for run, role in runs)
    labels = [f"{called[run.description[role]['model']]} alone ({size_of(run, role)})" for run, role in runs]
    thinking = [
        f"{label}, thinking {run.description.get('thinking')}" if labels.count(label) > 1 else label
        for label, (run, _) in zip(labels, runs, strict=True)
    ]
    return [
        f"{label}, number {thinking[: i + 1].count(label)}" if thinking.count(label) > 1 else label
        for i, label in enumerate(thinking)
    ]


def row(comparison: Comparison, run: Run, label: str, first: Comparison) -> list[Cell]:
    """Return the row of a run; its cost is in the unit of the first comparison, so that all rows have the same."""
    cell = cost(comparison, run)
    if isinstance(cell, Number):
        factor = first.unit.factor / comparison.unit.factor
        ends = None if cell.interval is None else (cell.interval[0] * factor, cell.interval[1] * factor)
        cell = Number(cell.value * factor, ends, first.unit.digits)
    return [label, accuracy(run), mean(comparison, run, "length"), cell]


def size_of(run: Run, role: str) -> str:
    """Return a model's number of parameters with three digits and a letter, such as 7.62B."""
    parameters = run.description[role].get("parameters")
    if not parameters:
        return "size unknown"
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{digits.significant(parameters / unit, 3)}{letter}"
    return str(parameters)


def efforts_table(domain: str, comparisons: Sequence[Comparison]) -> Part:
    """Return Table 3: accuracy and length of every pair at every fixed effort."""
    with_stages = [comparison for comparison in comparisons if len(comparison.stages) > 1]
    if not with_stages:
        return missing_runs(comparisons[0], f"The table of efforts and sizes of models on {domain}", ["stage:1"])
    n_efforts = max(len(comparison.efforts) for comparison in with_stages)
    efforts = EFFORT_NAMES.get(n_efforts) or tuple(f"stage {stage}" for stage in range(1, n_efforts + 1))
    columns = ["model", "mentor", *[f"{effort}: {what}" for effort in efforts for what in ("accuracy %", "length")]]
    rows: list[list[Cell]] = []
    called = model_names(
        run.description[role]["model"]
        for comparison in with_stages
        for run in comparison.runs
        for role in ("mentor", "intern")
        if role in run.description
    )
    for comparison in sorted(with_stages, key=lambda comparison: comparison.pair):
        rows += effort_rows(comparison, n_efforts, called)
    # pairs that share a model repeat its row
    padded = {tuple(map(str, cells)): cells + [""] * (len(columns) - len(cells)) for cells in rows}
    return make_table(
        f"sizes-{domain}",
        f"{domain}: every effort, by sizes of models",
        "The numbers of a model alone are in the columns of the first effort.",
        columns,
        padded.values(),
    )


def effort_rows(comparison: Comparison, n_efforts: int, called: Mapping[str, str]) -> list[list[Cell]]:
    """Return three rows: the intern alone, the pair at each effort, the mentor alone; `called` names the models."""
    run_of_both = next(run for run in comparison.runs if run.has_both_models)
    intern, mentor = (
        f"{called[run_of_both.description[role]['model']]} ({size_of(run_of_both, role)})"
        for role in ("intern", "mentor")
    )

    def cells(run: Run | None) -> list[Cell]:
        return ["", ""] if run is None else [accuracy(run), mean(comparison, run, "length")]

    rows: list[list[Cell]] = []
    if comparison.intern is not None:
        rows.append([intern, "alone", *cells(comparison.intern)])
    stages = [comparison.stages.get(stage) for stage in range(1, n_efforts + 1)]
    rows.append([intern, mentor, *[cell for run in stages for cell in cells(run)]])
    if comparison.mentor is not None:
        rows.append([mentor, "alone", *cells(comparison.mentor)])
    return rows
