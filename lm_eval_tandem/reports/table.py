"""The parts of a report as plain data: numbers with intervals, tables, figures, missing parts, sections.

Sections make them, formats write them. Nothing here reads a file or knows an output format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lm_eval_tandem.digits import decimals, magnitude, nearest_decimal

Interval = tuple[float, float]

ENVIRONMENT_TITLE = "Models and software of the runs"
"""Heading of `Report.environment`."""


@dataclass(frozen=True)
class Number:
    """A number in a table, with its 95 % interval if it has one.

    Attributes
    ----------
    value
        The number at full precision.
    interval
        Both ends of its interval, or None.
    digits
        Decimals that are printed.
    signed
        Whether to print a plus sign, for differences.

    Examples
    --------
    >>> str(Number(61.94, (58.8, 64.9)))
    '61.9 [58.8, 64.9]'
    """

    value: float
    interval: Interval | None = None
    digits: int = 1
    signed: bool = False

    @property
    def text(self) -> str:
        """The value as it is printed, without its interval."""
        return self._format(self.value)

    @property
    def interval_text(self) -> str:
        """The interval as it is printed; "" if there is none."""
        return "" if self.interval is None else f"[{', '.join(self._format(end) for end in self.interval)}]"

    def _format(self, value: float) -> str:
        return decimals(value, self.digits, self.signed)

    def __str__(self) -> str:
        return f"{self.text} {self.interval_text}".strip()


Cell = str | Number
"""One entry of a table; "" where there is nothing to show."""
NOT_KNOWN = "–"
"""The entry where another row has a number and that of this row is not known."""


@dataclass(frozen=True)
class Table:
    """A table; `make_table` builds one.

    Attributes
    ----------
    name
        Unique within the report: the name of its CSV file and its LaTeX label.
    title, caption
        Heading, and a paragraph below it; the caption may be "".
    columns, rows
        Headings, and rows of as many cells.
    collapsed
        Whether the HTML page shows it only on demand, for long detail.
    of_words
        Whether the HTML page aligns every column to the left, also those with numbers among words.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    collapsed: bool = False
    of_words: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.name, self.columns, row)


@dataclass(frozen=True)
class Figure:
    """A drawing, and the numbers behind it.

    Attributes
    ----------
    name
        Unique within the report: the name of its SVG file and its anchor in the page.
    title, caption
        Heading, and a paragraph below it.
    svg
        The drawing as an `<svg>` element; class names refer to `formats/templates/drawing.css`.
    data
        The numbers that it shows.
    """

    name: str
    title: str
    caption: str
    svg: str
    data: Table


@dataclass(frozen=True)
class Missing:
    """What the runs cannot show: why, in a sentence, and the command that would change it ("" if there is none)."""

    reason: str
    command: str = ""


Part = Table | Figure | Missing


@dataclass(frozen=True)
class Section:
    """A section: its name for `--only` and links, its heading, an introduction, and its parts in order."""

    name: str
    title: str
    intro: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Report:
    """A whole report, ready to be written in any format.

    Attributes
    ----------
    title
        Heading of the report.
    headlines
        Main results: for each comparison its title and pairs of a value and what it means.
    sections
        Sections in order.
    environment
        Lines on models, engines, versions and commits of the runs.
    """

    title: str
    headlines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    sections: tuple[Section, ...]
    environment: tuple[str, ...]

    @property
    def tables(self) -> list[Table]:
        """Every table; in each section those behind its figures come last."""
        tables: list[Table] = []
        for section in self.sections:
            tables += [part for part in section.parts if isinstance(part, Table)]
            tables += [part.data for part in section.parts if isinstance(part, Figure)]
        return tables

    @property
    def figures(self) -> list[Figure]:
        """Every figure."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Figure)]


def make_table(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    keep_empty_columns: bool = False,
    collapsed: bool = False,
    of_words: bool = False,
) -> Table:
    """Return a table without the columns that are empty in every row, unless `keep_empty_columns`; see `Table`."""
    all_rows = [tuple(row) for row in rows]
    kept = [i for i in range(len(columns)) if keep_empty_columns or any(row[i] != "" for row in all_rows)]
    return Table(
        name,
        title,
        caption,
        tuple(columns[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in all_rows),
        collapsed,
        of_words,
    )


def percent(share: float, interval: Interval | None = None, digits: int = 1, signed: bool = False) -> Number:
    """Return a share in [0, 1] and its interval as a percentage."""
    scaled = None if interval is None else (100 * interval[0], 100 * interval[1])
    return Number(100 * share, scaled, digits, signed)


@dataclass(frozen=True)
class CostUnit:
    """The unit in which costs are printed, so that those of tiny models are readable.

    Attributes
    ----------
    name
        TFLOPs, GFLOPs or MFLOPs.
    factor
        What a number of TFLOPs is multiplied by.
    digits
        Decimals that are printed.
    """

    name: str
    factor: float
    digits: int

    def number(self, tflops: float, interval: Interval | None = None) -> Number:
        """Return a cost in TFLOPs and its interval in this unit."""
        scaled = None if interval is None else (self.factor * interval[0], self.factor * interval[1])
        return Number(self.factor * tflops, scaled, self.digits)


def cost_unit(tflops: Iterable[float]) -> CostUnit:
    """Return the unit that suits the largest of some costs (TFLOPs per question), which is printed with four digits."""
    largest = max([abs(cost) for cost in tflops if math.isfinite(cost)], default=0.0)
    largest = nearest_decimal(largest)  # so that 0.999…9 TFLOPs count as 1 on every machine
    units = (("TFLOPs", 1.0), ("GFLOPs", 1e3), ("MFLOPs", 1e6))
    fitting = units[-1] if largest else units[0]
    name, factor = next((unit for unit in units if nearest_decimal(largest * unit[1]) >= 1), fitting)
    scaled = largest * factor
    return CostUnit(name, factor, max(0, 3 - magnitude(scaled)) if scaled > 0 else 2)
