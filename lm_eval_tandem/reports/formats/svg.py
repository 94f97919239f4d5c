"""Drawings as SVG text: shapes with class names, so that one style sheet serves light and dark; numbers rounded."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources

from lm_eval_tandem.digits import decimals, magnitude, settled

Point = tuple[float, float]
Box = tuple[float, float, float, float]

LETTER = 7.0
"""Width of a letter of a label, in units of the drawing; a little more than most fonts need."""
LINE = 14.0


def style() -> str:
    """Return the style sheet that the drawings' class names refer to."""
    return resources.files(__package__).joinpath("templates/drawing.css").read_text(encoding="utf-8")


def number(value: float) -> str:
    """A coordinate, to a tenth."""
    return decimals(value, 1).replace(",", "").removesuffix(".0")


@dataclass
class Drawing:
    """Shapes in a frame of so many units."""

    width: float
    height: float
    title: str
    shapes: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], kind: str) -> None:
        """A line through points."""
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points)
        self.shapes.append(f'<path class="{kind}" d="{path}"/>')

    def area(self, points: Sequence[Point], kind: str) -> None:
        """A closed shape."""
        path = "M" + "L".join(f"{number(x)} {number(y)}" for x, y in points) + "Z"
        self.shapes.append(f'<path class="{kind}" d="{path}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        """A rectangle."""
        place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(max(0.0, height))}"'
        self.shapes.append(f'<rect class="{kind}" {place}>{tooltip(tip)}</rect>')

    def dot(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        """A disc with a rim of the background, so that neighbours stay apart."""
        place = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
        self.shapes.append(
            f'<circle class="{kind}" {place} stroke="var(--paper)" stroke-width="1.5">{tooltip(tip)}</circle>'
        )

    def ring(self, x: float, y: float, radius: float, kind: str, tip: str = "") -> None:
        """A circle that is empty inside."""
        place = f'cx="{number(x)}" cy="{number(y)}" r="{number(radius)}"'
        self.shapes.append(f'<circle class="{kind}" {place}>{tooltip(tip)}</circle>')

    def text(self, x: float, y: float, text: str, anchor: str = "start", kind: str = "") -> None:
        """A line of text whose foot stands at y."""
        told = f' class="{kind}"' if kind else ""
        self.shapes.append(f'<text{told} x="{number(x)}" y="{number(y)}" text-anchor="{anchor}">{escape(text)}</text>')

    def upright(self, x: float, y: float, text: str) -> None:
        """A title of a vertical axis, read from below."""
        turned = f'transform="translate({number(x)} {number(y)}) rotate(-90)"'
        self.shapes.append(f'<text class="soft" {turned} text-anchor="middle">{escape(text)}</text>')

    def svg(self) -> str:
        """The drawing as an element to be put into a page that has `style`."""
        size = f'viewBox="0 0 {number(self.width)} {number(self.height)}"'
        title = escape(self.title, quote=True)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">'
        return f"{head}{''.join(self.shapes)}</svg>"


def tooltip(text: str) -> str:
    """What a pointer over the shape shows."""
    return f"<title>{escape(text)}</title>" if text else ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers from low to high, about `count` of them."""
    low, high = (float(end) for end in settled([low, high]))
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** magnitude(rough)
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, all_of_them: Sequence[float]) -> str:
    """A tick with as many decimals as its neighbours need."""
    step = abs(all_of_them[1] - all_of_them[0]) if len(all_of_them) > 1 else abs(value)
    digits = max(0, -magnitude(step)) if step else 0
    digits += int(step > 0 and not math.isclose(step * 10**digits, round(step * 10**digits)))
    return decimals(value, digits)


@dataclass(frozen=True)
class Plot:
    """Where data stand in a drawing: from x and y values to places."""

    box: Box
    """Left, top, right, bottom."""
    x: Point
    y: Point

    def at(self, x: float, y: float) -> Point:
        """The place of a point of the data."""
        left, top, right, bottom = self.box
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def y_axis(self, drawing: Drawing, marks: Sequence[float]) -> None:
        """Grid lines and their values."""
        for mark in marks:
            _, y = self.at(self.x[0], mark)
            drawing.line([(self.box[0], y), (self.box[2], y)], "grid")
            drawing.text(self.box[0] - 6, y + 4, tick_label(mark, marks), "end", "soft")

    def x_axis(self, drawing: Drawing, marks: Sequence[float]) -> None:
        """The foot line, with values below."""
        drawing.line([(self.box[0], self.box[3]), (self.box[2], self.box[3])], "axis")
        for mark in marks:
            x, y = self.at(mark, self.y[0])
            drawing.line([(x, y), (x, y + 4)], "axis")
            drawing.text(x, y + 17, tick_label(mark, marks), "middle", "soft")


def overlap(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)


def place_labels(points: Sequence[Point], labels: Sequence[str], frame: Box) -> list[tuple[float, float, str, bool]]:
    """Places for labels beside their points where they cover neither each other nor a point.

    Returns (x, y of the foot, anchor, whether a line has to lead there) for each.
    """
    # places as they are drawn: of labels that cover equally much, last bits must not choose
    points = [(float(number(x)), float(number(y))) for x, y in points]
    taken: list[Box] = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]
    placed: list[tuple[float, float, str, bool]] = []
    for (x, y), label in zip(points, labels, strict=True):
        width = LETTER * len(label)
        best: tuple[float, int, Box, tuple[float, float, str, bool]] | None = None
        for rank, (dx, dy, anchor) in enumerate(_AROUND):
            left = x + dx - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
            box = (left, y + dy - LINE + 3, left + width, y + dy + 3)
            outside = width * LINE - overlap(box, frame)
            cost = 3 * outside + sum(overlap(box, other) for other in taken)
            if best is None or (round(cost, 3), rank) < best[:2]:
                best = (round(cost, 3), rank, box, (x + dx, y + dy, anchor, abs(dx) + abs(dy) > 24))
        assert best is not None
        taken.append(best[2])
        placed.append(best[3])
    return placed


_AROUND = [
    *[(9.0, 4.0, "start"), (-9.0, 4.0, "end"), (0.0, -10.0, "middle"), (0.0, 20.0, "middle")],
    *[(0.0, -24.0, "middle"), (0.0, 34.0, "middle"), (0.0, 48.0, "middle")],
    *[
        (dx, dy, "start")
        for d in (16, 30, 44, 58, 74, 90)
        for dx, dy in ((d * 0.6, float(d)), (d * 0.6, -float(d) + 8))
    ],
    *[(-dx, dy, "end") for d in (16, 30, 44, 58, 74, 90) for dx, dy in ((d * 0.6, float(d)), (d * 0.6, -float(d) + 8))],
]
"""Where a label may stand around its point, the nearest first: shift of its foot, and its anchor."""
