"""The numbers of a report, and whether an export has the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lm_eval_tandem.reports.sections.accuracy import policies_table
from lm_eval_tandem.reports.sources import report_data
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Number


def report_cells(folder: Path) -> Iterator[tuple[Run, tuple[str, Number]]]:
    """Return every number of the report's tables of policies, with its run and the heading of its column."""
    for comparison in report_data.read([folder]).comparisons:
        table = policies_table(comparison)
        for run, row in zip(comparison.rows, table.rows, strict=True):
            for heading, cell in zip(table.columns, row, strict=True):
                if isinstance(cell, Number) and run.policy in {one.policy for one in comparison.runs}:
                    yield run, (f"{heading} {comparison.unit.factor}" if "FLOPs" in heading else heading, cell)


def agrees(heading: str, number: Number, metrics: dict[str, Any], grade: str) -> bool:
    """Compare a cell of the report with what was exported; False for cells that compare runs with each other."""
    factors = {"accuracy %": (grade, 100.0), "truncated %": ("truncated", 100.0)}
    factors |= {"call seconds (summed)": ("seconds", 1.0)}
    factors |= {"length (tokens)": ("length", 1.0), "mentor tokens": ("mentor_tokens", 1.0)}
    for start, name in (("cost (", "tflops"), ("whole bill (", "bill")):
        if heading.startswith(start):
            factors[heading] = (name, float(heading.rpartition(" ")[2]))
    if heading not in factors:
        return False
    name, factor = factors[heading]
    details = metrics[name]["score_details"]
    assert factor * details["score"] == pytest.approx(number.value, rel=1e-9)
    if number.interval is not None:
        interval = details["uncertainty"]["confidence_interval"]
        ends = factor * interval["lower"], factor * interval["upper"]
        assert ends == pytest.approx(number.interval, rel=1e-9, abs=1e-12)
    return True
