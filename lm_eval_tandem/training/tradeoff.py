"""What the command line does with collected questions: fit a classifier, show its trade-off. No engine in here."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import pair
from lm_eval_tandem.digits import settled
from lm_eval_tandem.engines import registry
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.harness.arguments import PAIR
from lm_eval_tandem.judge import artefact, input_schemas
from lm_eval_tandem.training import card
from lm_eval_tandem.training.collect import read
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit import RECIPES, fit_sufficiency, per_question
from lm_eval_tandem.training.thresholds import Outcomes, centred, choose, curve, simulate

Floats = NDArray[np.float64]

RESAMPLES = 1000
BUNDLED = f"{PAIR}/intern"
TOGETHER = 8
"""Prompts that the intern reads together while it is finetuned."""
POINTS = 15


def fit(
    paths: Sequence[Path], output: Path, per: str = "all", objective: str = "accuracy", **how: Any
) -> list[tuple[Path, dict[str, Any]]]:
    """Fit on collected questions and write the artefact into the folder `output`, or one a task into folders in it.

    per: "all" (one classifier for all tasks) or "task". how: recipe, seed, inputs, model, labels of `fit_sufficiency`;
        for the inputs "lora" also batch_size and device.

    Returns the folders written, and the report of each fit. Raises ClassifierError, ArgumentError.
    """
    if per not in ("all", "task"):
        raise ArgumentError(f"--per {per} is not known; use all or task.")
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"--output {output} is a file; name a folder for the classifier.")
    data, description = read(*paths)
    if per == "all":
        return [(output, _fit_one(data, description, output, per, objective, how))]
    assert data.tasks is not None
    made = []
    for task in dict.fromkeys(data.tasks):
        rows = np.array([name == task for name in data.tasks], dtype=bool)
        try:
            report = _fit_one(data.part(rows), {**description, "tasks": [task]}, output / task, per, objective, how)
        except ClassifierError as error:
            raise ClassifierError(f"{task}: {error}") from error
        made.append((output / task, report))
    return made


def _fit_one(
    data: Collected, description: dict[str, Any], output: Path, per: str, objective: str, how: dict[str, Any]
) -> dict[str, Any]:
    finetune: Any = None
    if how.get("inputs") == "lora":
        finetune = finetuning(data, description, how.get("batch_size") or TOGETHER, how.get("device"))
    of_fit = {name: value for name, value in how.items() if name not in ("batch_size", "device")}
    fitted = fit_sufficiency(data, objective=objective, finetune=finetune, **of_fit)
    report = fitted.report
    fitted_on = {name: report[name] for name in ("questions", "objective", "inputs", "model", "labels")}
    fitted_on |= {name: description[name] for name in ("tasks", "efforts", "insights", "guidance")}
    artefact.save(
        output,
        fitted.estimator,
        fitted.thresholds,
        pair={role: description[role]["model"] for role in ("mentor", "intern")},
        fitted_on=fitted_on | {"per": per, "report": report},
        recipe=report["recipe"],
        card=card.write(output.name, description, report),
        schema=fitted.schema,
        probe=fitted.probe,
        out_of_fold={"questions": keys(data.ids), "scores": fitted.scores.astype(np.float32)},
        adapter=None if finetune is None else finetune.files,
    )
    return report


def finetuning(data: Collected, description: dict[str, Any], together: int, device: str | None) -> Any:
    """The intern of collected questions, to be finetuned (`lora.Finetuning`).

    Raises
    ------
    ClassifierError
        Peft is missing, or the questions were collected without what this needs.
    """
    registry.require_peft("fit --inputs lora")
    data.tokens()
    told = description["intern"]
    model, arguments = told["model"], dict(told.get("arguments", {}))
    if device is not None:
        arguments["device"] = device
    from lm_eval_tandem.training.lora import Finetuning  # brings torch and peft

    path = str(pair.INTERN) if model == BUNDLED else model
    return Finetuning({**arguments, "pretrained": path}, model, together)


def keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """One number per question, by which an artefact knows those that it was fitted on."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def honest_outcomes(data: Collected, folder: Path, labels: str = "truth") -> tuple[Outcomes, Floats]:
    """Scores that no classifier gave to a question it was fitted on, with grades and costs; and costs without probes.

    Questions of the artefact's own fit get the out-of-fold scores kept with it (those without one are left out), all
    others are judged by it.

    Raises
    ------
    ClassifierError
        The artefact or the data lack what is needed, or no question is left.
    """
    judge = artefact.load(folder, stages=data.features.shape[1])
    kept = artefact.out_of_fold_of(folder)
    if input_schemas.adapted(judge.schema):  # what the adapter shows of other questions was not collected
        scores = np.full(data.correct.shape, np.nan)
    else:
        vectors = data.inputs(judge.schema, judge.probe)
        scores = judge.estimator.predict_proba(vectors.reshape(-1, vectors.shape[2]))[:, 1].reshape(vectors.shape[:2])
    if kept:
        place = {int(key): row for row, key in enumerate(kept["questions"])}
        for q, key in enumerate(keys(data.ids)):
            if int(key) in place:
                scores[q] = kept["scores"][place[int(key)]]
    elif set(judge.config["fitted_on"].get("tasks", ())) & set(data.tasks or ()):
        raise ClassifierError(
            f"{folder} keeps no out-of-fold scores, and these questions may be those it was fitted on; "
            "fit it again, or give questions of another task."
        )
    rows = np.asarray(np.isfinite(scores).all(axis=1), dtype=np.bool_)
    if not rows.any():
        raise ClassifierError(f"{folder} has no out-of-sample scores for any of these questions; collect others.")
    grades = data.agrees if labels == "mentor" else None
    outcomes = data.part(rows).outcomes(scores[rows], judge.probe, None if grades is None else grades[rows])
    return outcomes, data.cost[rows]


@dataclass(frozen=True)
class Point:
    """One way to set the thresholds: accuracy (a share) and mean cost, each with a 95 % interval over questions."""

    name: str
    thresholds: tuple[float, ...] | None
    accuracy: tuple[float, float, float]
    cost: tuple[float, float, float]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {"name": self.name, "thresholds": self.thresholds, "accuracy": self.accuracy, "cost": self.cost}


def tradeoff(
    outcomes: Outcomes, fixed_cost: Floats, objective: str, grid: Sequence[float], points: int = POINTS
) -> list[Point]:
    """The whole trade-off: what no other thresholds beat in accuracy and cost, every fixed stage, and the choice.

    fixed_cost: (Q, T), what always answering from a stage costs. At most `points` of the frontier are kept, evenly in
    cost. Choosing and measuring on the same questions flatters the points a little; the point "chosen, cross-fitted"
    is free of that.
    """
    # combinations that decide alike tie in both, whatever the last bits of their sums: the lowest thresholds are kept
    accuracy, cost = (settled(values) for values in curve(outcomes, grid))
    order = np.lexsort((-accuracy.ravel(), cost.ravel()))
    best = np.maximum.accumulate(accuracy.ravel()[order])
    rises = np.concatenate([[True], best[1:] > best[:-1]])
    frontier = order[rises]
    if len(frontier) > points:
        wanted = np.linspace(cost.ravel()[frontier[0]], cost.ravel()[frontier[-1]], points)
        nearest = np.abs(cost.ravel()[frontier][:, None] - wanted).argmin(axis=0)
        frontier = frontier[np.unique([*nearest, len(frontier) - 1])]
    values = np.asarray(grid)
    rows: list[tuple[str, tuple[float, ...] | None, Floats, Floats]] = []
    for cell in frontier:
        limits = tuple(float(values[i]) for i in np.unravel_index(int(cell), accuracy.shape))
        rows.append(("frontier", limits, *simulate(outcomes, limits)[1:]))
    for stage in range(outcomes.scores.shape[1]):
        rows.append((f"stage:{stage}", None, outcomes.correct[:, stage], fixed_cost[:, stage]))
    chosen = centred(outcomes, choose(outcomes, objective, grid), grid)
    rows.append(("chosen", chosen, *simulate(outcomes, chosen)[1:]))
    rows.append(("chosen, cross-fitted", None, *per_question(outcomes, objective, grid, 42)))
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(rows[0][2]), np.full(len(rows[0][2]), 1 / len(rows[0][2])), RESAMPLES)
    return [
        Point(name, limits, _interval(right, weights), _interval(spent, weights)) for name, limits, right, spent in rows
    ]


def _interval(values: Floats, weights: NDArray[np.int64]) -> tuple[float, float, float]:
    """The mean and the 2.5th and 97.5th percentile of its bootstrap."""
    means = weights @ values / len(values)
    low, high = np.percentile(means, (2.5, 97.5))
    return float(values.mean()), float(low), float(high)


def thresholds(
    paths: Sequence[Path], folder: Path, objective: str, points: int = POINTS, labels: str = "truth"
) -> list[Point]:
    """`tradeoff` of a classifier on collected questions, each scored out of sample."""
    data, description = read(*paths)
    judge = artefact.load(folder, stages=data.features.shape[1])
    pair = {role: description[role]["model"] for role in ("mentor", "intern")}
    if pair != judge.pair:
        raise ClassifierError(
            f"{folder} was fitted on the pair {judge.pair}, but the questions were collected with {pair}; "
            "give what belongs together."
        )
    grid = RECIPES[judge.recipe].grid if judge.recipe in RECIPES else RECIPES["default"].grid
    return tradeoff(*honest_outcomes(data, folder, labels), objective, grid, points)


def shown(found: Sequence[Point]) -> str:
    """Points as a table for a terminal; costs in TFLOPs a question."""
    lines = [f"{'':24}{'thresholds':28}{'accuracy %':>24}{'TFLOPs a question':>38}"]
    for point in found:
        limits = ":".join(f"{value:g}" for value in point.thresholds or ())
        right = "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * value for value in point.accuracy))
        spent = "{:.4g} [{:.4g}, {:.4g}]".format(*point.cost)
        lines.append(f"{point.name:24}{limits:28}{right:>24}{spent:>38}")
    return "\n".join(lines)


def write_points(found: Sequence[Point], path: Path) -> None:
    """The same as JSON."""
    path.write_text(json.dumps([point.as_dict() for point in found], indent=1) + "\n", encoding="utf-8")
