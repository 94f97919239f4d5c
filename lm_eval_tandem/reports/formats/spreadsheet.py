"""A report's tables as CSV: figures to seven digits, the ends of intervals in columns of their own."""

from __future__ import annotations

import csv
import io

from lm_eval_tandem.digits import significant
from lm_eval_tandem.reports.table import Cell, Number, Table


def text(table: Table) -> str:
    """One table, with a heading line."""
    ranged = [
        any(isinstance(one, Number) and one.interval for one in column) for column in zip(*table.rows, strict=True)
    ]
    ranged = ranged or [False] * len(table.columns)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    heading: list[str] = []
    for column, has_range in zip(table.columns, ranged, strict=True):
        heading += [column, f"{column}, low", f"{column}, high"] if has_range else [column]
    writer.writerow(heading)
    for row in table.rows:
        line: list[str] = []
        for content, has_range in zip(row, ranged, strict=True):
            line += cells(content, has_range)
        writer.writerow(line)
    return out.getvalue()


def cells(content: Cell, has_range: bool) -> list[str]:
    """One cell, and the ends of its interval where the column has some."""
    if not isinstance(content, Number):
        return [content.strip(), "", ""] if has_range else [content.strip()]
    value = [significant(content.value)]
    if not has_range:
        return value
    return value + ([significant(end) for end in content.interval] if content.interval else ["", ""])
