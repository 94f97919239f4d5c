"""What a report is made of: tables of numbers with intervals, figures, what is missing. No files, no formats."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lm_eval_tandem.digits import decimals, magnitude, typed

Interval = tuple[float, float]


@dataclass(frozen=True)
class Number:
    """A figure with, where it has one, its 95 % interval.

    digits: decimals shown. signed: show a plus sign, for differences.
    """

    value: float
    interval: Interval | None = None
    digits: int = 1
    signed: bool = False

    @property
    def text(self) -> str:
        """The value as it is shown, without its interval."""
        return self.shown(self.value)

    @property
    def range(self) -> str:
        """The interval as it is shown, "" without one."""
        return "" if self.interval is None else f"[{', '.join(self.shown(end) for end in self.interval)}]"

    def shown(self, value: float) -> str:
        """A number with this one's decimals; a rounded zero never shows as -0."""
        return decimals(value, self.digits, self.signed)

    def __str__(self) -> str:
        return f"{self.text} {self.range}".strip()


Cell = str | Number


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. `name` is unique within a report: the name of its file, its anchor, its label."""

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    folded: bool = False
    """Long detail that a page shows on demand."""

    def __post_init__(self) -> None:
        for row in self.rows:
            assert len(row) == len(self.columns), (self.name, self.columns, row)


@dataclass(frozen=True)
class Figure:
    """A drawing as SVG text (colours by class, see `svg.STYLE`), and the numbers it shows."""

    name: str
    title: str
    caption: str
    svg: str
    data: Table


@dataclass(frozen=True)
class Missing:
    """What the given runs cannot show: the reason in a sentence, and the command that would mend it ("" for none)."""

    what: str
    command: str = ""


Part = Table | Figure | Missing


@dataclass(frozen=True)
class Section:
    """Parts that answer one question."""

    name: str
    title: str
    intro: str
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Report:
    """The whole: what comes out first (per study, figures with what they mean), sections, what the runs ran on."""

    title: str
    headlines: tuple[tuple[str, tuple[tuple[str, str], ...]], ...]
    sections: tuple[Section, ...]
    circumstances: tuple[str, ...]

    @property
    def tables(self) -> list[Table]:
        """Every table, those behind the figures last in each section."""
        found = []
        for section in self.sections:
            found += [part for part in section.parts if isinstance(part, Table)]
            found += [part.data for part in section.parts if isinstance(part, Figure)]
        return found

    @property
    def figures(self) -> list[Figure]:
        """Every figure."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Figure)]


def table(
    name: str,
    title: str,
    caption: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    fill: bool = True,
    folded: bool = False,
) -> Table:
    """A table; columns in which no row says anything are left out (unless `fill` is False)."""
    kept = [tuple(row) for row in rows]
    used = [i for i in range(len(columns)) if not fill or any(row[i] != "" for row in kept)]
    shown = tuple(tuple(row[i] for i in used) for row in kept)
    return Table(name, title, caption, tuple(columns[i] for i in used), shown, folded)


def percent(share: float, interval: Interval | None = None, digits: int = 1, signed: bool = False) -> Number:
    """A share as a percentage."""
    scaled = None if interval is None else (100 * interval[0], 100 * interval[1])
    return Number(100 * share, scaled, digits, signed)


@dataclass(frozen=True)
class Unit:
    """In which unit costs are shown, so that those of tiny models can be read; `factor` times TFLOPs."""

    name: str
    factor: float
    digits: int

    def number(self, tflops: float, interval: Interval | None = None) -> Number:
        """A cost in this unit."""
        scaled = None if interval is None else (self.factor * interval[0], self.factor * interval[1])
        return Number(self.factor * tflops, scaled, self.digits)


def unit_of(tflops: Iterable[float]) -> Unit:
    """The unit that suits the largest of some costs (TFLOPs a question), with about four digits of it."""
    largest = max([abs(cost) for cost in tflops if math.isfinite(cost)], default=0.0)
    largest = typed(largest)  # one that is a unit but for its last bit is a unit
    names = (("TFLOPs", 1.0), ("GFLOPs", 1e3), ("MFLOPs", 1e6))
    name, factor = next((pair for pair in names if typed(largest * pair[1]) >= 1), names[-1] if largest else names[0])
    shown = largest * factor
    return Unit(name, factor, max(0, 3 - magnitude(shown)) if shown > 0 else 2)
