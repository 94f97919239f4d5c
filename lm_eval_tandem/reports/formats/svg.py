"""Drawing figures as SVG text: shapes whose class names refer to `templates/drawing.css`, and axes in data coordinates.

Coordinates are rounded to a tenth, so that the same data give the same file on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from importlib import resources

from lm_eval_tandem.digits import decimals, magnitude, without_last_bits

Point = tuple[float, float]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom."""


def style() -> str:
    """Return the style sheet that the class names refer to."""
    return resources.files(__package__).joinpath("templates/drawing.css").read_text(encoding="utf-8")


def standalone(drawing: str) -> str:
    """Return a drawing as a standalone SVG file, with its style sheet and a background."""
    head, _, rest = drawing.partition(">")
    background = '<rect class="fill-paper" width="100%" height="100%"/>'
    return f"{head}><style>{style()}</style>{background}{rest}\n"


def coordinate(value: float) -> str:
    """Return a coordinate as text, rounded to a tenth."""
    return decimals(value, 1).replace(",", "").removesuffix(".0")


@dataclass
class Drawing:
    """A drawing that is built up shape by shape; later shapes cover earlier ones.

    Attributes
    ----------
    width, height
        Size in SVG units; x grows to the right and y downwards.
    title
        Description for screen readers.
    shapes
        SVG elements so far.
    """

    width: float
    height: float
    title: str
    shapes: list[str] = field(default_factory=list)

    def line(self, points: Sequence[Point], css_class: str) -> None:
        """Draw a line through points."""
        self.shapes.append(f'<path class="{css_class}" d="{_path(points)}"/>')

    def area(self, points: Sequence[Point], css_class: str) -> None:
        """Draw a closed shape."""
        self.shapes.append(f'<path class="{css_class}" d="{_path(points)}Z"/>')

    def box(self, x: float, y: float, width: float, height: float, css_class: str, tooltip: str = "") -> None:
        """Draw a rectangle whose upper left corner is (x, y)."""
        corner = f'x="{coordinate(x)}" y="{coordinate(y)}"'
        size = f'width="{coordinate(width)}" height="{coordinate(max(0.0, height))}"'
        self.shapes.append(f'<rect class="{css_class}" {corner} {size}>{_tooltip(tooltip)}</rect>')

    def dot(self, x: float, y: float, radius: float, css_class: str, tooltip: str = "") -> None:
        """Draw a disc with a rim in the background's colour, which separates it from its neighbours."""
        rim = ' stroke="var(--paper)" stroke-width="1.5"'
        self.shapes.append(f'<circle class="{css_class}" {_circle(x, y, radius)}{rim}>{_tooltip(tooltip)}</circle>')

    def ring(self, x: float, y: float, radius: float, css_class: str, tooltip: str = "") -> None:
        """Draw an empty circle."""
        self.shapes.append(f'<circle class="{css_class}" {_circle(x, y, radius)}>{_tooltip(tooltip)}</circle>')

    def text(self, x: float, y: float, text: str, anchor: str = "start", css_class: str = "") -> None:
        """Write a line of text with its baseline at y; anchor: which end of it is at x (start, middle, end)."""
        attribute = f' class="{css_class}"' if css_class else ""
        place = f'x="{coordinate(x)}" y="{coordinate(y)}" text-anchor="{anchor}"'
        self.shapes.append(f"<text{attribute} {place}>{escape(text)}</text>")

    def vertical_text(self, x: float, y: float, text: str) -> None:
        """Write the title of a vertical axis, centred at (x, y) and read from below."""
        turned = f'transform="translate({coordinate(x)} {coordinate(y)}) rotate(-90)"'
        self.shapes.append(f'<text class="soft" {turned} text-anchor="middle">{escape(text)}</text>')

    def legend(self, y: float, entries: Sequence[tuple[float, str, str]]) -> None:
        """Draw coloured squares with labels in a row: (x, label, CSS class) each, with their baseline at y."""
        for x, label, css_class in entries:
            self.box(x, y - 9, 10, 10, css_class)
            self.text(x + 15, y, label)

    def svg(self) -> str:
        """Return the drawing as an `<svg>` element, for a page that contains `style()`."""
        size = f'viewBox="0 0 {coordinate(self.width)} {coordinate(self.height)}"'
        title = escape(self.title, quote=True)
        head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img" aria-label="{title}">'
        return f"{head}{''.join(self.shapes)}</svg>"


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{coordinate(x)} {coordinate(y)}" for x, y in points)


def _circle(x: float, y: float, radius: float) -> str:
    return f'cx="{coordinate(x)}" cy="{coordinate(y)}" r="{coordinate(radius)}"'


def _tooltip(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""


@dataclass(frozen=True)
class Plot:
    """The part of a drawing in which data are plotted.

    Attributes
    ----------
    box
        Left, top, right and bottom in the drawing.
    x, y
        The smallest and the largest value on each axis.
    """

    box: Box
    x: tuple[float, float]
    y: tuple[float, float]

    @property
    def centre(self) -> Point:
        """The middle of the box."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2

    def at(self, x: float, y: float) -> Point:
        """Return where a point of the data is in the drawing."""
        left, top, right, bottom = self.box
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        return left + across * (right - left), bottom - up * (bottom - top)

    def y_axis(self, drawing: Drawing, ticks: Sequence[float]) -> None:
        """Draw horizontal grid lines with their values to the left."""
        for tick in ticks:
            _, y = self.at(self.x[0], tick)
            drawing.line([(self.box[0], y), (self.box[2], y)], "grid")
            drawing.text(self.box[0] - 6, y + 4, tick_label(tick, ticks), "end", "soft")

    def x_axis(self, drawing: Drawing, ticks: Sequence[float]) -> None:
        """Draw the lower edge with ticks and their values below."""
        drawing.line([(self.box[0], self.box[3]), (self.box[2], self.box[3])], "axis")
        for tick in ticks:
            x, y = self.at(tick, self.y[0])
            drawing.line([(x, y), (x, y + 4)], "axis")
            drawing.text(x, y + 17, tick_label(tick, ticks), "middle", "soft")

    def error_bar(self, drawing: Drawing, x: float, interval: Point, css_class: str) -> None:
        """Draw a vertical bar at a value of x over an interval of y."""
        drawing.line([self.at(x, interval[0]), self.at(x, interval[1])], css_class)


def round_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Return about `count` round numbers between low and high."""
    low, high = (float(end) for end in without_last_bits([low, high]))
    if high <= low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** magnitude(rough)
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [round(i * step, 12) for i in range(first, math.floor(high / step + 1e-9) + 1)]


def tick_label(value: float, ticks: Sequence[float]) -> str:
    """Return a tick's value with as many decimals as the distance between ticks needs."""
    step = abs(ticks[1] - ticks[0]) if len(ticks) > 1 else abs(value)
    digits = max(0, -magnitude(step)) if step else 0
    digits += int(step > 0 and not math.isclose(step * 10**digits, round(step * 10**digits)))
    return decimals(value, digits)
