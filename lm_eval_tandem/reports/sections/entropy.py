"""The intern's entropy over question and insights, for its correct and for its wrong answers (paper, Figure 3)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import digits
from lm_eval_tandem.judge.features import FEATURE_NAMES
from lm_eval_tandem.reports.formats.svg import Drawing, Plot, Point, round_ticks
from lm_eval_tandem.reports.intervals import auc
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.judge_scores import judgement_of
from lm_eval_tandem.reports.sources.missing import missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.table import Cell, Figure, Number, Part, Table, make_table

WIDTH = 440.0
"""Width of the figure in SVG units."""
TOP, PANEL_HEIGHT, GAP, MARGIN = 34, 148, 22, 14
"""Height of the legend, height of a panel, gap between two panels and margin of the figure, in SVG units."""
MEAN_ENTROPY = FEATURE_NAMES.index("mean_entropy")
"""Position of the mean entropy among the recorded features."""


def entropy(data: ReportData) -> list[Part]:
    """Return one figure per comparison."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        recorded = {stage: mean_entropies(run) for stage, run in comparison.stages.items()}
        by_stage = {stage: values for stage, values in recorded.items() if values is not None}
        if by_stage and len(by_stage) == len(comparison.efforts) + 1:
            parts.append(figure(comparison, by_stage))
        else:
            policies = ["intern", *[f"stage:{stage}" for stage in range(1, len(comparison.efforts) + 1)]]
            parts.append(missing_runs(comparison, "Entropy by sufficiency", policies, ledger=True))
    return parts


def mean_entropies(run: Run) -> Floats | None:
    """Return the mean entropy (Q,) of the intern's next-token distributions; None if the ledger has no features."""
    features = [judgement_of(record).get("features") for record in run.records]
    measured = [vector for vector in features if vector and len(vector) == len(FEATURE_NAMES)]
    if not measured or len(measured) < len(features):
        return None
    return np.array([vector[MEAN_ENTROPY] for vector in measured], dtype=np.float64)


def figure(comparison: Comparison, by_stage: dict[int, Floats]) -> Figure:
    """Return the figure: a panel per stage, two side by side, with both densities over one common range."""
    height = TOP + PANEL_HEIGHT * ((len(by_stage) + 1) // 2)
    drawing = Drawing(WIDTH, height, f"Entropy by sufficiency and stage, {comparison.title}")
    drawing.legend(15, [(46.0, "correct (sufficient)", "fill-correct"), (200.0, "wrong", "fill-wrong")])
    low, high = common_range(np.concatenate(list(by_stage.values())))
    width = (WIDTH - 2 * MARGIN - GAP) / 2
    for i, (stage, values) in enumerate(by_stage.items()):
        left, top = MARGIN + (i % 2) * (width + GAP), TOP + (i // 2) * PANEL_HEIGHT
        plot = Plot((left, top + 20, left + width, top + 112), (low, max(high, low + 1e-9)), (0.0, 1.1))
        drawing.text(left, top + 12, f"stage {stage}: {stage_title(comparison, stage)}", "start", "strong")
        draw_panel(drawing, plot, (low, high), values, comparison.stages[stage].correct)
    drawing.text(WIDTH / 2, height - 4, "mean entropy, nats", "middle", "soft")
    table = quartiles(comparison, by_stage)
    return Figure(table.name, comparison.title, "", drawing.svg(), table)


def common_range(values: Floats) -> tuple[float, float]:
    """Return the range of the horizontal axes: all but the outermost values, with a margin."""
    low, high = (float(end) for end in np.quantile(values, (0.002, 0.998)))
    margin = 0.08 * (high - low)
    return low - margin, high + margin


def stage_title(comparison: Comparison, stage: int) -> str:
    """Return what the intern reads at a stage."""
    return "question alone" if stage == 0 else f"≤ {comparison.efforts[stage - 1]} mentor tokens"


def draw_panel(drawing: Drawing, plot: Plot, x_range: Point, values: Floats, correct: NDArray[np.bool_]) -> None:
    """Draw the densities of the values of correct and of wrong answers over a range of values."""
    low, high = x_range
    bottom = plot.box[3]
    for mask, name in ((correct, "correct"), (~correct, "wrong")):
        points = [plot.at(x, y) for x, y in density(values[mask], low, high)]
        if points:
            drawing.area([(points[0][0], bottom), *points, (points[-1][0], bottom)], f"area-{name}")
            drawing.line(points, f"line-{name}")
    plot.x_axis(drawing, round_ticks(low, high, 4))


def density(values: Floats, low: float, high: float, steps: int = 80) -> list[Point]:
    """Return a Gaussian kernel density with Silverman's bandwidth.

    Parameters
    ----------
    values
        The sample, (n,).
    low, high
        Range of the curve.
    steps
        Number of its points.

    Returns
    -------
    list of (float, float)
        The curve, scaled so that its maximum is 1; empty for fewer than five values.
    """
    if len(values) < 5:
        return []
    scaled_iqr = float(digits.subtract(*np.quantile(values, (0.75, 0.25)))) / 1.34
    deviation = float(values.std())
    spread = min(deviation, scaled_iqr) if scaled_iqr > 0 else deviation
    bandwidth = max(0.9 * spread * len(values) ** -0.2, (high - low) / 100)
    grid = np.linspace(low, high, steps)
    heights = np.exp(-0.5 * ((grid[:, None] - values) / bandwidth) ** 2).sum(axis=1)
    top = float(heights.max())
    return [(float(x), float(y / top)) for x, y in zip(grid, heights, strict=True)] if top > 0 else []


def quartiles(comparison: Comparison, by_stage: dict[int, Floats]) -> Table:
    """Return the numbers behind the figure: per stage the quartiles of correct and of wrong answers, and AUC."""
    rows: list[list[Cell]] = []
    for stage, values in by_stage.items():
        correct = comparison.stages[stage].correct
        area = auc((~correct).astype(np.float64), values)
        for mask, name in ((correct, "correct"), (~correct, "wrong")):
            part = values[mask]
            cells: list[Cell] = ["", "", ""]
            if len(part):
                cells = [Number(float(quantile), None, 3) for quantile in np.quantile(part, (0.25, 0.5, 0.75))]
            area_cell: Cell = "" if area is None or name == "correct" else Number(area, None, 3)
            rows.append([f"{stage}: {stage_title(comparison, stage)}", name, str(len(part)), *cells, area_cell])
    columns = ["stage", "answer", "questions", "first quartile", "median", "third quartile", "AUC of entropy"]
    name = f"entropy-{comparison.name}"
    return make_table(name, comparison.title, "Mean entropy in nats.", columns, rows)
