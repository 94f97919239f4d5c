"""The trade-off: accuracy against cost, every policy a point, and the curve of the judge over its thresholds."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_tandem import digits
from lm_eval_tandem.reports.formats.label_placement import place_labels
from lm_eval_tandem.reports.formats.svg import Drawing, Plot, Point, round_ticks
from lm_eval_tandem.reports.sections.cells import accuracy, cost
from lm_eval_tandem.reports.sections.threshold_sweep import sweep
from lm_eval_tandem.reports.sources.comparison import ORACLE, Comparison
from lm_eval_tandem.reports.sources.missing import missing_runs, unknown_costs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Figure, Number, Part, make_table

WIDTH, HEIGHT = 440.0, 340.0
"""Size of the figure in SVG units."""
COLOUR = {"intern": "intern", "mentor": "mentor", "cascade": "cascade", "stage": "fixed", ORACLE: "ink"}
"""Colour of a policy, as class names of `formats/templates/drawing.css` have it; "other" for policies not listed."""


def trade_off(data: ReportData) -> list[Part]:
    """Return one figure per comparison."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        runs = [run for run in comparison.rows if "tflops" in run.measures]
        if len(runs) > 1:
            parts.append(figure(comparison, runs, sweep(comparison, data.classifier)))
        else:
            parts.append(missing_runs(comparison, "The trade-off", ["intern", "stage:N", "mentor", "cascade"]))
        parts += unknown_costs(comparison, "tflops", "the figure")
    return parts


def figure(comparison: Comparison, runs: Sequence[Run], curve: Sequence[Point]) -> Figure:
    """Return the figure of some runs, with the fixed stages joined by a line.

    Parameters
    ----------
    comparison
        Where the runs belong.
    runs
        Runs whose costs are known.
    curve
        Costs in TFLOPs and accuracies in [0, 1] of the judge at one threshold or another; may be empty.
    """
    unit = comparison.unit
    costs = [unit.factor * digits.mean(run.measures["tflops"]) for run in runs]
    accuracies = [accuracy(run) for run in runs]
    drawing = Drawing(WIDTH, HEIGHT, f"Accuracy against cost of every policy, {comparison.title}")
    plot = draw_axes(drawing, costs, accuracies, unit.name)
    points = [plot.at(x, number.value) for x, number in zip(costs, accuracies, strict=True)]
    stages = [point for run, point in zip(runs, points, strict=True) if run in comparison.stages.values()]
    if len(stages) > 1:
        drawing.line(sorted(stages, key=lambda point: tuple(digits.without_last_bits(point))), "thin-fixed dashed")
    for run, x, number in zip(runs, costs, accuracies, strict=True):
        assert number.interval is not None
        plot.error_bar(drawing, x, number.interval, f"thin-{colour(run)}")
    if curve:
        drawing.line([plot.at(unit.factor * x, 100 * y) for x, y in curve], "thin-cascade")
    draw_points(drawing, comparison, runs, points)
    draw_labels(drawing, comparison, runs, points)
    rows: list[list[Cell]] = [[comparison.label(run), cost(comparison, run), accuracy(run)] for run in runs]
    rows += [["one threshold", unit.number(x), Number(100 * y)] for x, y in curve]
    columns = ["policy", f"cost ({unit.name})", "accuracy %"]
    table = make_table(f"trade-off-{comparison.name}", comparison.title, "", columns, rows)
    return Figure(table.name, comparison.title, "", drawing.svg(), table)


def draw_axes(drawing: Drawing, costs: Sequence[float], accuracies: Sequence[Number], unit: str) -> Plot:
    """Draw both axes with room for all intervals, and return the plot between them."""
    ends = [end for number in accuracies for end in number.interval or ()]
    margin = max(2.0, 0.12 * (max(ends) - min(ends)))
    low, high = min(ends) - margin, max(ends) + margin
    most = 1.12 * max(costs)
    plot = Plot((46, 30, WIDTH - 14, 288), (0.0, most), (low, high))
    plot.y_axis(drawing, [tick for tick in round_ticks(low, high) if tick <= 100])
    plot.x_axis(drawing, round_ticks(0.0, most))
    drawing.text(plot.centre[0], 324, f"cost, {unit} per question", "middle", "soft")
    drawing.vertical_text(12, plot.centre[1], "accuracy, %")
    return plot


def draw_points(drawing: Drawing, comparison: Comparison, runs: Sequence[Run], points: Sequence[Point]) -> None:
    """Draw a disc per run and a ring for the oracle, with name and numbers as tooltips."""
    for run, (x, y) in zip(runs, points, strict=True):
        tooltip = f"{comparison.label(run)}: {accuracy(run)} % at {cost(comparison, run)} {comparison.unit.name}"
        if run.policy == ORACLE:
            drawing.ring(x, y, 5.5, "line-ink", tooltip)
        else:
            drawing.dot(x, y, 5.5 if run.policy == "cascade" else 4.5, f"fill-{colour(run)}", tooltip)


def draw_labels(drawing: Drawing, comparison: Comparison, runs: Sequence[Run], points: Sequence[Point]) -> None:
    """Write the names of runs beside their points; of several cascades only the main one and the paper's."""
    labelled = (comparison.cascade, comparison.paper_cascade)
    names = short_names([comparison.label(run) for run in runs])
    named = zip(runs, names, strict=True)
    labels = ["" if run.policy == "cascade" and run not in labelled else name for run, name in named]
    positions = place_labels(points, labels, (46, 4, WIDTH, 288))
    for point, label, position in zip(points, labels, positions, strict=True):
        if not label:
            continue
        if position.needs_line:
            drawing.line([point, (position.x, position.y - 4)], "lead")
        css_class = "strong" if label.startswith("cascade") else ""
        drawing.text(position.x, position.y, label, position.anchor, css_class)


def short_names(names: Sequence[str]) -> list[str]:
    """Leave out options in parentheses and the word before an ensemble's strategies, where names stay different.

    >>> short_names(["ensemble:gac (threshold=0.5)", "cascade (pair)", "cascade (paper)"])
    ['gac', 'cascade (pair)', 'cascade (paper)']
    """
    short = [name.partition(" (")[0].removeprefix("ensemble:") for name in names]
    return [one if short.count(one) == 1 else name for one, name in zip(short, names, strict=True)]


def colour(run: Run) -> str:
    """Return the colour of a run's policy."""
    return COLOUR.get(run.policy.partition(":")[0], "other")
