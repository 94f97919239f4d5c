"""A report's tables as CSV: numbers with seven significant digits, and the ends of intervals in separate columns."""

from __future__ import annotations

import csv
import io

from lm_eval_tandem.digits import significant
from lm_eval_tandem.reports.table import NOT_KNOWN, Cell, Number, Table


def render(table: Table) -> str:
    """Return one table with a line of headings; a column with intervals is followed by "…, low" and "…, high"."""
    has_interval = [
        any(isinstance(cell, Number) and cell.interval for cell in column) for column in zip(*table.rows, strict=True)
    ] or [False] * len(table.columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heading: list[str] = []
    for column, three in zip(table.columns, has_interval, strict=True):
        heading += [column, f"{column}, low", f"{column}, high"] if three else [column]
    writer.writerow(heading)
    for row in table.rows:
        line: list[str] = []
        for cell, three in zip(row, has_interval, strict=True):
            line += cell_entries(cell, three)
        writer.writerow(line)
    return out.getvalue()


def cell_entries(cell: Cell, with_interval: bool) -> list[str]:
    """Return the entries of one cell: its value, and if its column has intervals the two ends ("" if it has none)."""
    if not isinstance(cell, Number):
        text = "" if cell == NOT_KNOWN else cell.strip()
        return [text, "", ""] if with_interval else [text]
    value = [significant(cell.value)]
    if not with_interval:
        return value
    return value + ([significant(end) for end in cell.interval] if cell.interval else ["", ""])
