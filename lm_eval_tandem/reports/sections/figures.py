"""The figures: trade-off, guidance length (paper, Figure 5), entropy by sufficiency (Figure 3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.judge.features import FEATURE_NAMES
from lm_eval_tandem.reports.formats.svg import Drawing, Plot, Point, place_labels, ticks
from lm_eval_tandem.reports.intervals import auc, wilson
from lm_eval_tandem.reports.sections.accuracy import accuracy, cost, mean, name
from lm_eval_tandem.reports.sections.sweep import sweep
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.sources.study import ORACLE, Study
from lm_eval_tandem.reports.table import Cell, Figure, Number, Part, Section, table

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

WIDTH = 440.0
ENTROPY = FEATURE_NAMES.index("mean_entropy")
COLOUR = {"intern": "intern", "mentor": "mentor", "cascade": "cascade", "stage": "fixed", ORACLE: "ink"}


def trade_off(studies: Sequence[Study], judge: Sufficiency | None) -> Section:
    """Accuracy against cost, every policy a point."""
    parts: list[Part] = []
    for study in studies:
        shown = [run for run in study.rows if "tflops" in run.columns]
        if len(shown) > 1:
            points = sweep(study, judge)
            parts.append(trade_off_figure(study, shown, [points] if points else []))
        else:
            parts.append(study.missing("The trade-off", ["intern", "stage:N", "mentor", "cascade"]))
    return Section(
        "trade-off",
        "The trade-off: accuracy against cost",
        "Up and to the left is better. Bars are 95 % intervals; the dashed line joins the fixed stages. The solid "
        "line, where the ledgers of the fixed stages allow it, is what the cascade's judge would reach with one and "
        "the same threshold at every stage, from never to always sufficient; none was chosen on these questions.",
        tuple(parts),
    )


def trade_off_figure(study: Study, runs: Sequence[Run], swept: Sequence[list[Point]]) -> Figure:
    """Points with labels, further classifiers' cascades without; the fixed stages joined by a line."""
    unit = study.unit
    costs = [unit.factor * digits.mean(run.columns["tflops"]) for run in runs]
    scores = [100 * digits.mean(run.score) for run in runs]
    bounds = [tuple(100 * end for end in wilson(digits.total(run.score), len(run.score))) for run in runs]
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    room = max(2.0, 0.12 * (high - low))
    drawing = Drawing(WIDTH, 340, f"Accuracy against cost of every policy, {study.title}")
    plot = Plot((46, 30, WIDTH - 14, 288), (0.0, 1.12 * max(costs)), (low - room, high + room))
    plot.y_axis(drawing, [mark for mark in ticks(low - room, high + room) if mark <= 100])
    plot.x_axis(drawing, ticks(0.0, 1.12 * max(costs)))
    drawing.text((plot.box[0] + plot.box[2]) / 2, 324, f"cost, {unit.name} a question", "middle", "soft")
    drawing.upright(12, (plot.box[1] + plot.box[3]) / 2, "accuracy, %")
    places = [plot.at(x, y) for x, y in zip(costs, scores, strict=True)]
    fixed = [place for run, place in zip(runs, places, strict=True) if run in study.stages.values()]
    if len(fixed) > 1:
        drawing.line(sorted(fixed, key=lambda place: tuple(digits.settled(place))), "thin-fixed dashed")
    for run, (x, _), ends in zip(runs, places, bounds, strict=True):
        drawing.line([(x, plot.at(0, ends[0])[1]), (x, plot.at(0, ends[1])[1])], f"thin-{colour(run)}")
    for curve in swept:
        drawing.line([plot.at(unit.factor * x, 100 * y) for x, y in curve], "thin-cascade")
    labels = [name(study, run) for run in runs]
    for run, (x, y), label in zip(runs, places, labels, strict=True):
        tip = f"{label}: {accuracy(run)} % at {cost(study, run)} {unit.name}"
        mark = drawing.ring if run.policy == ORACLE else drawing.dot
        kind = "line-ink" if run.policy == ORACLE else f"fill-{colour(run)}"
        mark(x, y, 5.5 if run.policy in ("cascade", ORACLE) else 4.5, kind, tip)
    further = [run.policy == "cascade" and run not in (study.cascade, study.paper_s) for run in runs]
    written = ["" if more else label for label, more in zip(labels, further, strict=True)]
    for (x, y), label, spot in zip(places, written, place_labels(places, written, (46, 4, WIDTH, 288)), strict=True):
        if label and spot[3]:
            drawing.line([(x, y), (spot[0], spot[1] - 4)], "lead")
        if label:
            drawing.text(spot[0], spot[1], label, spot[2], "strong" if label.startswith("cascade") else "")
    rows: list[list[Cell]] = [[label, cost(study, run), accuracy(run)] for label, run in zip(labels, runs, strict=True)]
    for curve in swept:
        rows += [["one threshold", unit.number(x), Number(100 * y)] for x, y in curve]
    data = table(f"trade-off-{study.name}", study.title, "", ["policy", f"cost ({unit.name})", "accuracy %"], rows)
    return Figure(data.name, study.title, "", drawing.svg(), data)


def colour(run: Run) -> str:
    """The colour of a policy."""
    return COLOUR.get(run.policy.partition(":")[0], "other")


def guidance(studies: Sequence[Study]) -> Section:
    """Figure 5: accuracy, and who wrote how many tokens, by length of guidance."""
    parts: list[Part] = []
    for study in studies:
        stages = study.stages
        if len(stages) > 1 and all("mentor_tokens" in run.columns for run in stages.values()):
            parts.append(guidance_figure(study))
        else:
            parts.append(study.missing("Accuracy by length of guidance", ["intern", "stage:1"]))
    return Section(
        "guidance",
        "Accuracy and tokens by length of guidance",
        "Paper, Figure 5: the fixed stages, from no guidance to the highest effort. "
        "The mentor may end before its budget.",
        tuple(parts),
    )


def guidance_figure(study: Study) -> Figure:
    """Two panels over one axis: accuracy above, tokens below."""
    stages = study.stages
    names = ["none" if stage == 0 else f"≤ {study.efforts[stage - 1]}" for stage in stages]
    runs = list(stages.values())
    bounds = [tuple(100 * end for end in wilson(digits.total(run.score), len(run.score))) for run in runs]
    low, high = min(b[0] for b in bounds), max(b[1] for b in bounds)
    room = max(1.0, 0.08 * (high - low))
    drawing = Drawing(WIDTH, 380, f"Accuracy and tokens by length of guidance, {study.title}")
    above = Plot((46, 26, WIDTH - 14, 170), (-0.5, len(runs) - 0.5), (low - room, high + room))
    above.y_axis(drawing, [mark for mark in ticks(low - room, high + room, 4) if mark <= 100])
    drawing.text(46, 14, "accuracy, %", "start", "soft")
    longest = max(digits.mean(run.columns["length"]) for run in runs)
    below = Plot((46, 212, WIDTH - 14, 324), (-0.5, len(runs) - 0.5), (0.0, 1.08 * longest))
    below.y_axis(drawing, ticks(0.0, 1.08 * longest, 4))
    drawing.text(46, 200, "tokens a question:", "start", "soft")
    for x, (label, kind) in zip((160.0, 226.0), (("intern", "intern"), ("mentor", "mentor")), strict=True):
        drawing.box(x, 191, 10, 10, f"fill-{kind}")
        drawing.text(x + 15, 200, label)
    centres: list[Point] = []
    for i, (run, ends, label) in enumerate(zip(runs, bounds, names, strict=True)):
        share = 100 * digits.mean(run.score)
        x, y = above.at(i, share)
        centres.append((x, y))
        drawing.line([(x, above.at(0, ends[0])[1]), (x, above.at(0, ends[1])[1])], "thin-cascade")
        mentor = digits.mean(run.columns["mentor_tokens"])
        total = digits.mean(run.columns["length"])
        middle, foot = below.at(i, total - mentor)[1], below.box[3]
        told = [f"{who}: {digits.decimals(n, 1)} tokens" for who, n in (("intern", total - mentor), ("mentor", mentor))]
        drawing.box(x - 24, middle, 48, foot - middle, "fill-intern", told[0])
        top = below.at(i, total)[1]
        drawing.box(x - 24, top, 48, middle - top, "fill-mentor", told[1])
        drawing.text(x, 342, label, "middle", "soft")
    drawing.line(centres, "line-cascade")
    for (x, y), run in zip(centres, runs, strict=True):
        drawing.dot(x, y, 4.5, "fill-cascade", f"{accuracy(run)} %")
        rising = any(digits.apart(y, next_y) > 0 for (next_x, next_y) in centres if next_x > x) or x == centres[-1][0]
        drawing.text(x + 9, y + (18 if rising else -8), accuracy(run).text)
    drawing.text((above.box[0] + above.box[2]) / 2, 366, "mentor tokens allowed", "middle", "soft")
    rows: list[list[Cell]] = []
    for label, run in zip(names, runs, strict=True):
        mine = run.columns["length"] - run.columns["mentor_tokens"]
        rows.append([label, accuracy(run), Number(digits.mean(mine)), mean(study, run, "mentor_tokens")])
    columns = ["mentor tokens allowed", "accuracy %", "intern tokens", "mentor tokens"]
    data = table(f"guidance-{study.name}", study.title, "", columns, rows)
    return Figure(data.name, study.title, "", drawing.svg(), data)


def entropy(studies: Sequence[Study]) -> Section:
    """Figure 3: the intern's entropy where its answer will be right, and where it will be wrong."""
    parts: list[Part] = []
    for study in studies:
        found = {stage: values for stage, run in study.stages.items() if (values := entropies(run)) is not None}
        if found and len(found) == len(study.efforts) + 1:
            parts.append(entropy_figure(study, found))
        else:
            policies = ["intern", *[f"stage:{stage}" for stage in range(1, len(study.efforts) + 1)]]
            parts.append(study.missing("Entropy by sufficiency", policies, ledger=True))
    return Section(
        "entropy",
        "Entropy by sufficiency and stage",
        "Paper, Figure 3: the mean entropy of the intern's next-token distribution over question and insights, where "
        "its answer turns out right (sufficient) and where it turns out wrong. Densities by a Gaussian kernel "
        "(Silverman's width), each scaled to its own height; AUC: how often a wrong answer has the higher entropy.",
        tuple(parts),
    )


def entropies(run: Run) -> Floats | None:
    """The mean entropy of what the intern read, per question; None where the ledger has no features."""
    if not run.records or not all(record["stages"] and record["stages"][-1].get("features") for record in run.records):
        return None
    return np.array([record["stages"][-1]["features"][ENTROPY] for record in run.records], dtype=np.float64)


def entropy_figure(study: Study, found: dict[int, Floats]) -> Figure:
    """Small panels, one per stage."""
    rows, panel = (len(found) + 1) // 2, (WIDTH - 28 - 22) / 2
    drawing = Drawing(WIDTH, 34 + 148 * rows, f"Entropy by sufficiency and stage, {study.title}")
    for x, (label, kind) in zip((46.0, 200.0), (("right (sufficient)", "right"), ("wrong", "wrong")), strict=True):
        drawing.box(x, 6, 10, 10, f"fill-{kind}")
        drawing.text(x + 15, 15, label)
    pooled = np.concatenate(list(found.values()))
    low, high = (float(end) for end in np.quantile(pooled, (0.002, 0.998)))
    low, high = low - 0.08 * (high - low), high + 0.08 * (high - low)
    told: list[list[Cell]] = []
    for i, (stage, values) in enumerate(found.items()):
        left, top = 14 + (i % 2) * (panel + 22), 34 + (i // 2) * 148
        plot = Plot((left, top + 20, left + panel, top + 112), (low, max(high, low + 1e-9)), (0.0, 1.1))
        good = study.stages[stage].right
        title = "question alone" if stage == 0 else f"≤ {study.efforts[stage - 1]} mentor tokens"
        drawing.text(left, top + 12, f"stage {stage}: {title}", "start", "strong")
        for mask, kind in ((good, "right"), (~good, "wrong")):
            curve = density(values[mask], low, high)
            if curve:
                places = [plot.at(x, y) for x, y in curve]
                foot = plot.box[3]
                drawing.area([(places[0][0], foot), *places, (places[-1][0], foot)], f"area-{kind}")
                drawing.line(places, f"line-{kind}")
        plot.x_axis(drawing, ticks(low, high, 4))
        area = auc((~good).astype(np.float64), values)
        for mask, label in ((good, "right"), (~good, "wrong")):
            part = values[mask]
            quartiles = (
                [Number(float(q), None, 3) for q in np.quantile(part, (0.25, 0.5, 0.75))] if len(part) else ["", "", ""]
            )
            shown: Cell = "" if area is None or label == "right" else Number(area, None, 3)
            told.append([f"{stage}: {title}", label, str(len(part)), *quartiles, shown])
    drawing.text(WIDTH / 2, 34 + 148 * rows - 4, "mean entropy, nats", "middle", "soft")
    columns = ["stage", "answer", "questions", "first quartile", "median", "third quartile", "AUC of entropy"]
    data = table(f"entropy-{study.name}", study.title, "Mean entropy in nats.", columns, told)
    return Figure(data.name, study.title, "", drawing.svg(), data)


def density(values: Floats, low: float, high: float, steps: int = 80) -> list[Point]:
    """A kernel density from low to high, scaled to height 1; nothing for fewer than five values."""
    if len(values) < 5:
        return []
    iqr = float(digits.apart(*np.quantile(values, (0.75, 0.25)))) / 1.34
    spread = min(float(values.std()), iqr) if iqr > 0 else float(values.std())
    width = max(0.9 * spread * len(values) ** -0.2, (high - low) / 100)
    grid = np.linspace(low, high, steps)
    height = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).sum(axis=1)
    top = float(height.max())
    return [(float(x), float(y / top)) for x, y in zip(grid, height, strict=True)] if top > 0 else []
