"""Accuracy, and who generates how many tokens, by how many mentor tokens are allowed (paper, Figure 5)."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_tandem import digits
from lm_eval_tandem.reports.formats.svg import Drawing, Plot, Point, round_ticks
from lm_eval_tandem.reports.sections.cells import accuracy, mean
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.missing import missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Figure, Number, Part, Table, make_table

WIDTH, HEIGHT = 440.0, 380.0
"""Size of the figure in SVG units."""
LEFT, RIGHT = 46.0, WIDTH - 14
"""Where both panels start and end."""


def guidance(data: ReportData) -> list[Part]:
    """Return one figure per comparison."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        stages = comparison.stages
        if len(stages) > 1 and all("mentor_tokens" in run.measures for run in stages.values()):
            parts.append(figure(comparison))
        else:
            parts.append(missing_runs(comparison, "Accuracy by length of guidance", ["intern", "stage:1"]))
    return parts


def figure(comparison: Comparison) -> Figure:
    """Return the figure: accuracy above, tokens below, over the fixed stages from left to right."""
    runs = list(comparison.stages.values())
    labels = ["none" if stage == 0 else f"≤ {comparison.efforts[stage - 1]}" for stage in comparison.stages]
    drawing = Drawing(WIDTH, HEIGHT, f"Accuracy and tokens by length of guidance, {comparison.title}")
    draw_accuracy(drawing, runs)
    draw_tokens(drawing, runs, labels)
    drawing.text((LEFT + RIGHT) / 2, 366, "mentor tokens allowed", "middle", "soft")
    table = numbers(comparison, runs, labels)
    return Figure(table.name, comparison.title, "", drawing.svg(), table)


def draw_accuracy(drawing: Drawing, runs: Sequence[Run]) -> None:
    """Draw the upper panel: accuracies joined by a line, with error bars."""
    accuracies = [accuracy(run) for run in runs]
    ends = [end for number in accuracies for end in number.interval or ()]
    margin = max(1.0, 0.08 * (max(ends) - min(ends)))
    low, high = min(ends) - margin, max(ends) + margin
    plot = Plot((LEFT, 26, RIGHT, 170), (-0.5, len(runs) - 0.5), (low, high))
    plot.y_axis(drawing, [tick for tick in round_ticks(low, high, 4) if tick <= 100])
    drawing.text(LEFT, 14, "accuracy, %", "start", "soft")
    points: list[Point] = []
    for i, number in enumerate(accuracies):
        assert number.interval is not None
        points.append(plot.at(i, number.value))
        plot.error_bar(drawing, i, number.interval, "thin-cascade")
    drawing.line(points, "line-cascade")
    for i, ((x, y), number) in enumerate(zip(points, accuracies, strict=True)):
        drawing.dot(x, y, 4.5, "fill-cascade", f"{number} %")
        # the label goes below the line where the line rises from here, and above it where it does not
        rises = any(digits.subtract(y, later) > 0 for _, later in points[i + 1 :]) or i == len(points) - 1
        drawing.text(x + 9, y + (18 if rises else -8), number.text)


def draw_tokens(drawing: Drawing, runs: Sequence[Run], labels: Sequence[str]) -> None:
    """Draw the lower panel: a bar per stage, the mentor's tokens on top of the intern's."""
    longest = max(digits.mean(run.measures["length"]) for run in runs)
    plot = Plot((LEFT, 212, RIGHT, 324), (-0.5, len(runs) - 0.5), (0.0, 1.08 * longest))
    plot.y_axis(drawing, round_ticks(0.0, 1.08 * longest, 4))
    drawing.text(LEFT, 200, "tokens per question:", "start", "soft")
    drawing.legend(200, [(180.0, "intern", "fill-intern"), (246.0, "mentor", "fill-mentor")])
    bottom = plot.box[3]
    for i, (run, label) in enumerate(zip(runs, labels, strict=True)):
        mentor, total = digits.mean(run.measures["mentor_tokens"]), digits.mean(run.measures["length"])
        x, top = plot.at(i, total)
        middle = plot.at(i, total - mentor)[1]
        tooltips = [
            f"{role}: {digits.decimals(n, 1)} tokens" for role, n in (("intern", total - mentor), ("mentor", mentor))
        ]
        drawing.box(x - 24, middle, 48, bottom - middle, "fill-intern", tooltips[0])
        drawing.box(x - 24, top, 48, middle - top, "fill-mentor", tooltips[1])
        drawing.text(x, 342, label, "middle", "soft")


def numbers(comparison: Comparison, runs: Sequence[Run], labels: Sequence[str]) -> Table:
    """Return the numbers that the figure shows."""
    rows: list[list[Cell]] = []
    for label, run in zip(labels, runs, strict=True):
        intern_tokens = digits.mean(run.measures["length"] - run.measures["mentor_tokens"])
        rows.append([label, accuracy(run), Number(intern_tokens), mean(comparison, run, "mentor_tokens")])
    columns = ["mentor tokens allowed", "accuracy %", "intern tokens", "mentor tokens"]
    return make_table(f"guidance-{comparison.name}", comparison.title, "", columns, rows)
