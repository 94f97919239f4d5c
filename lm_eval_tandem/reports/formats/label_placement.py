"""Placing the labels of points in a drawing so that they cover neither each other nor a point."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lm_eval_tandem.reports.formats.svg import Box, Point, coordinate

LETTER_WIDTH = 7.0
"""Width of a letter in SVG units; a little more than most fonts need."""
LINE_HEIGHT = 14.0
"""Height of a line of text in SVG units."""
POINT_RADIUS = 6.0
"""Radius of the area around a point that labels avoid, in SVG units."""

_DISTANCES = (16, 30, 44, 58, 74, 90)
_OFFSETS: list[tuple[float, float, str]] = [
    *[(9.0, 4.0, "start"), (-9.0, 4.0, "end"), (0.0, -10.0, "middle"), (0.0, 20.0, "middle")],
    *[(0.0, -24.0, "middle"), (0.0, 34.0, "middle"), (0.0, 48.0, "middle")],
    *[(0.6 * d, dy, "start") for d in _DISTANCES for dy in (float(d), 8.0 - d)],
    *[(-0.6 * d, dy, "end") for d in _DISTANCES for dy in (float(d), 8.0 - d)],
]
"""Where a label may be relative to its point, the best first: offset of its baseline, and its anchor."""


@dataclass(frozen=True)
class LabelPosition:
    """Where a label is written: its baseline, its anchor, and whether it is so far away that a line leads to it."""

    x: float
    y: float
    anchor: str
    needs_line: bool


def place_labels(points: Sequence[Point], labels: Sequence[str], frame: Box) -> list[LabelPosition]:
    """Return a position for each label beside its point, chosen one after the other.

    Parameters
    ----------
    points
        Points in SVG units.
    labels
        One per point; "" for points without a label.
    frame
        The part of the drawing that labels should stay in.
    """
    # rounded as they are drawn: between positions that cover equally much, last bits must not choose
    points = [(float(coordinate(x)), float(coordinate(y))) for x, y in points]
    taken: list[Box] = [(x - POINT_RADIUS, y - POINT_RADIUS, x + POINT_RADIUS, y + POINT_RADIUS) for x, y in points]
    positions = []
    for point, label in zip(points, labels, strict=True):
        position, box = _best(point, label, frame, taken)
        taken.append(box)
        positions.append(position)
    return positions


def _best(point: Point, label: str, frame: Box, taken: Sequence[Box]) -> tuple[LabelPosition, Box]:
    """Return the position that covers least of what is taken, and of these the first, with the label's box there."""
    candidates = []
    width = LETTER_WIDTH * len(label)
    for rank, (dx, dy, anchor) in enumerate(_OFFSETS):
        x, y = point[0] + dx, point[1] + dy
        left = x - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
        box = (left, y - LINE_HEIGHT + 3, left + width, y + 3)
        outside = width * LINE_HEIGHT - overlap(box, frame)
        cost = 3 * outside + sum(overlap(box, other) for other in taken)
        position = LabelPosition(x, y, anchor, needs_line=abs(dx) + abs(dy) > 24)
        candidates.append((round(cost, 3), rank, position, box))
    _, _, position, box = min(candidates, key=lambda candidate: candidate[:2])
    return position, box


def overlap(a: Box, b: Box) -> float:
    """Return the area that two boxes share."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return max(0.0, width) * max(0.0, height)
