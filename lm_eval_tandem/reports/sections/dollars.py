"""What 1,000 questions cost at the prices of an API (paper, Table 4)."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.reports.sections.cells import accuracy_of
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.missing import command, run_like, unknown_costs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import models_of
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Table, make_table

PRICED = ("input", "cached", "output")
"""Kinds of tokens that have a price."""


def dollars(data: ReportData) -> list[Part]:
    """Return a table for each comparison with known prices, or what it takes to get one."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        if any("dollars" in run.measures for run in comparison.runs):
            parts += [table(comparison), *unknown_costs(comparison, "dollars", "the table")]
    if parts:
        return parts
    first = data.comparisons[0]
    names = [f"{role}_price_{kind}" for role in ("mentor", "intern") for kind in PRICED]
    prices = {name: run_like(first).arguments.get(name, "P") for name in names}
    return [
        Missing(
            "Dollars need runs with prices per million tokens (those of an API, or what an API would charge for local "
            "models) and with a ledger; none of these runs has both.",
            command(first, "cascade", ledger=True, changes=prices),
        )
    ]


def table(comparison: Comparison) -> Table:
    """Return accuracy and dollars per 1,000 questions of every policy, by subject and for all."""
    masks = {subject: comparison.subject_mask(subject) for subject in comparison.subjects}
    masks["all"] = np.ones(comparison.n_questions, dtype=bool)
    columns = ["policy", *[f"{subject}: {what}" for subject in masks for what in ("accuracy %", "$ per 1,000")]]
    rows: list[list[Cell]] = []
    for run in comparison.rows:
        if "dollars" not in run.measures:
            continue
        row: list[Cell] = [comparison.label(run)]
        for subject, mask in masks.items():
            low, high = comparison.interval(run, "dollars")
            interval = (1000 * low, 1000 * high) if subject == "all" else None
            paid = digits.mean(1000 * run.measures["dollars"][mask])
            row += [accuracy_of(run.grades[mask]), Number(paid, interval, 4)]
        rows.append(row)
    return make_table(f"dollars-{comparison.name}", comparison.title, prices_of(comparison), columns, rows)


def prices_of(comparison: Comparison) -> str:
    """Return a sentence with the prices of a comparison's runs; "" if none recorded them."""
    prices: dict[str, None] = {}
    for run in comparison.runs:
        recorded = {role: facts.get("prices") for role, facts in models_of(run.description).items()}
        if run.model is not None and run.model.prices is not None:
            recorded[run.name] = asdict(run.model.prices)
        for name, of_model in recorded.items():
            if of_model:
                amounts = ", ".join(f"{digits.significant(of_model[kind], 6)} ({kind})" for kind in PRICED)
                prices[f"{name} {amounts}"] = None
    return f"Dollars per million tokens: {'; '.join(prices)}." if prices else ""
