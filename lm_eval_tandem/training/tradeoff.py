"""The commands `lm-eval-tandem fit` and `lm-eval-tandem thresholds`, as functions.

`fit` writes a classifier's folder from collected questions. `thresholds` shows what other thresholds of a fitted one
would reach: the trade-off between accuracy and cost. No engine runs here, except to finetune an intern.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import pair
from lm_eval_tandem.digits import without_last_bits
from lm_eval_tandem.engines import registry
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.harness.arguments import PAIR
from lm_eval_tandem.judge import artefact, input_schemas
from lm_eval_tandem.training import card
from lm_eval_tandem.training.bootstrap import central_interval, resampled_means
from lm_eval_tandem.training.collected_file import read
from lm_eval_tandem.training.cross_fitting import cross_fitted_outcomes
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit import fit_sufficiency
from lm_eval_tandem.training.labels import check_values
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.recipes import RECIPES, Recipe
from lm_eval_tandem.training.threshold_grid import MAX_COMBINATIONS, evaluate_grid
from lm_eval_tandem.training.thresholds import Objective, best_thresholds

Floats = NDArray[np.float64]

BUNDLED = f"{PAIR}/intern"
"""The name of the bundled intern in collected files."""
BATCH_SIZE = 8
"""Prompts per forward pass while the intern is finetuned."""
POINTS = 15
"""Points of the frontier that are shown by default."""


def fit(
    paths: Sequence[Path],
    output: Path,
    per: str = "all",
    objective: str = "accuracy",
    cost: str | None = None,
    **how: Any,
) -> list[tuple[Path, dict[str, Any]]]:
    """Fit on collected questions and write the classifier's folder.

    Parameters
    ----------
    paths
        What `collect` wrote, all of one pair.
    output
        The folder; with per="task", the folder of one folder per task.
    per
        "all" (one classifier for all tasks) or "task" (one each).
    objective
        What thresholds are chosen for.
    cost
        The unit of costs, a key of `costs.UNITS`; None for the first that is known for both models.
    **how
        recipe, seed, inputs, model and labels of `fit_sufficiency`; for inputs="lora" also batch_size and device.

    Returns
    -------
    list[tuple[Path, dict]]
        Each folder written, with the report of its fit.

    Raises
    ------
    ArgumentError, ClassifierError
        An argument cannot work, or the questions cannot be fitted on.
    """
    if per not in ("all", "task"):
        raise ArgumentError(f"--per {per} is not known; use all or task.")
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"--output {output} is a file; name a folder for the classifier.")
    data, description = read(*paths, cost=cost, objective=objective)
    if per == "all":
        return [(output, _fit_one(data, description, output, per, objective, how))]
    assert data.tasks is not None
    written = []
    for task in dict.fromkeys(data.tasks):
        rows = np.array([name == task for name in data.tasks], dtype=bool)
        try:
            report = _fit_one(data.subset(rows), {**description, "tasks": [task]}, output / task, per, objective, how)
        except ClassifierError as error:
            raise ClassifierError(f"{task}: {error}") from error
        written.append((output / task, report))
    return written


def _fit_one(
    data: Collected, description: dict[str, Any], output: Path, per: str, objective: str, how: dict[str, Any]
) -> dict[str, Any]:
    """Fit one classifier and write its folder; returns the report."""
    finetune: Any = None
    if how.get("inputs") == "lora":
        finetune = prepare_finetuning(data, description, how.get("batch_size") or BATCH_SIZE, how.get("device"))
    of_fit = {name: value for name, value in how.items() if name not in ("batch_size", "device")}
    fitted = fit_sufficiency(data, objective=objective, finetune=finetune, **of_fit)
    report = fitted.report
    fitted_on = {name: report[name] for name in ("questions", "objective", "cost_unit", "inputs", "model", "labels")}
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
        out_of_fold={"questions": question_keys(data.ids), "scores": fitted.scores.astype(np.float32)},
        adapter=None if finetune is None else finetune.files,
    )
    return report


def prepare_finetuning(data: Collected, description: dict[str, Any], batch_size: int, device: str | None) -> Any:
    """The intern of collected questions, ready to be finetuned (`lora.Finetuning`).

    Raises
    ------
    ClassifierError
        Peft is missing, or the prompts were not collected.
    """
    registry.require_peft("fit --inputs lora")
    data.prompt_tokens()
    intern = description["intern"]
    model, arguments = intern["model"], dict(intern.get("arguments", {}))
    if device is not None:
        arguments["device"] = device
    from lm_eval_tandem.training.lora import Finetuning  # brings torch and peft

    path = str(pair.INTERN) if model == BUNDLED else model
    return Finetuning({**arguments, "pretrained": path}, model, batch_size)


def question_keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of each question's id, by which an artefact identifies the questions that it was fitted on."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def out_of_sample_outcomes(data: Collected, folder: Path, labels: str = "truth") -> tuple[Outcomes, Floats]:
    """Outcomes of collected questions under a classifier, none scored by a classifier that was fitted on it.

    Questions of the artefact's own fit have the out-of-fold scores stored with it (those without one are left out); all
    others are scored by the artefact.

    Parameters
    ----------
    data
        The questions.
    folder
        The artefact.
    labels
        "truth" for the task's grades, "mentor" for agreement with the mentor's answers.

    Returns
    -------
    tuple[Outcomes, NDArray[numpy.float64]]
        The outcomes, and the costs of always answering from each stage (without probes), (Q, T).

    Raises
    ------
    ClassifierError
        The artefact or the data lack what is needed, or no question is left.
    """
    check_values(data)
    judge = artefact.load(folder, stages=data.features.shape[1])
    stored = artefact.load_out_of_fold(folder)
    if input_schemas.uses_adapter(judge.schema):  # hidden states under the adapter are not in collected files
        scores = np.full(data.correct.shape, np.nan)
    else:
        vectors = data.inputs(judge.schema, judge.probe)
        scores = judge.estimator.predict_proba(vectors.reshape(-1, vectors.shape[2]))[:, 1].reshape(vectors.shape[:2])
    if stored:
        row_of = {int(key): row for row, key in enumerate(stored["questions"])}
        for q, key in enumerate(question_keys(data.ids)):
            if int(key) in row_of:
                scores[q] = stored["scores"][row_of[int(key)]]
    elif set(judge.config["fitted_on"].get("tasks", ())) & set(data.tasks or ()):
        raise ClassifierError(
            f"{folder} holds no out-of-fold scores, and these questions may be those it was fitted on; "
            "fit it again, or give questions of another task."
        )
    rows = np.asarray(np.isfinite(scores).all(axis=1), dtype=np.bool_)
    if not rows.any():
        raise ClassifierError(f"{folder} has no out-of-sample scores for any of these questions; collect others.")
    grades = data.agrees if labels == "mentor" else None
    outcomes = data.subset(rows).outcomes(scores[rows], judge.probe, None if grades is None else grades[rows])
    return outcomes, data.cost[rows]


@dataclass(frozen=True)
class Point:
    """One way to answer the questions, with what it reaches.

    Parameters
    ----------
    name
        "frontier", "stage:N", "chosen" or "chosen, cross-fitted".
    thresholds
        One per stage; None for fixed stages and for cross-fitted thresholds, which differ between folds.
    accuracy, cost
        The mean over questions (accuracy as a share), and the ends of its 95 % bootstrap interval.
    cost_unit
        The unit of the cost.
    """

    name: str
    thresholds: tuple[float, ...] | None
    accuracy: tuple[float, float, float]
    cost: tuple[float, float, float]
    cost_unit: str = "TFLOPs"

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def tradeoff(
    outcomes: Outcomes,
    fixed_cost: Floats,
    objective: str,
    recipe: Recipe,
    points: int = POINTS,
    cost_unit: str = "TFLOPs",
) -> list[Point]:
    """The trade-off between accuracy and cost.

    Parameters
    ----------
    outcomes
        The questions, their scores out of sample.
    fixed_cost
        (Q, T): what always answering from a stage costs.
    objective
        As for `choose_thresholds`.
    recipe
        Whose grid the thresholds are from, and how they are chosen.
    points
        The largest number of points of the frontier, taken evenly in cost.
    cost_unit
        The unit of all costs.

    Returns
    -------
    list[Point]
        The frontier (thresholds that no others beat in both accuracy and cost), every fixed stage, the thresholds
        chosen for the objective, and the same cross-fitted.

    Notes
    -----
    Choosing and measuring on the same questions makes the points look slightly better than they are. The thresholds of
    the cross-fitted one were chosen for each fifth of the questions on the other four. What `fit` chose besides (inputs
    and probe) it chose on all questions that it was given; its report has the figures that are free of that too.
    """
    frontier = _frontier(outcomes, recipe.grid, points)
    rows: list[tuple[str, tuple[float, ...] | None, Floats, Floats]] = []
    for limits in frontier:
        rows.append(("frontier", limits, *simulate(outcomes, limits)[1:]))
    for stage in range(outcomes.scores.shape[1]):
        rows.append((f"stage:{stage}", None, outcomes.correct[:, stage], fixed_cost[:, stage]))
    choose = partial(recipe.choose, objective=objective)
    chosen = choose(outcomes)
    rows.append(("chosen", chosen, *simulate(outcomes, chosen)[1:]))
    rows.append(("chosen, cross-fitted", None, *cross_fitted_outcomes(outcomes, choose, 42)))
    columns = np.stack([column for _, _, correct, cost in rows for column in (correct, cost)], axis=1)
    means = [
        (mean, *central_interval(resampled))
        for mean, resampled in zip(columns.mean(axis=0).tolist(), resampled_means(columns).T, strict=True)
    ]
    return [
        Point(name, limits, accuracy, cost, cost_unit)
        for (name, limits, _, _), accuracy, cost in zip(rows, means[::2], means[1::2], strict=True)
    ]


def _frontier(outcomes: Outcomes, grid: Sequence[float], points: int) -> list[tuple[float, ...]]:
    """Thresholds that no others beat in both accuracy and cost, at most `points` of them, evenly in cost."""
    if (len(grid) + 1) ** outcomes.scores.shape[1] > MAX_COMBINATIONS:
        return _searched_frontier(outcomes, grid, points)
    # Rounding makes combinations with equal decisions tie exactly; of those the lowest thresholds are kept.
    accuracy, cost = (without_last_bits(values) for values in evaluate_grid(outcomes, grid))
    order = np.lexsort((-accuracy.ravel(), cost.ravel()))
    best = np.maximum.accumulate(accuracy.ravel()[order])
    rises = np.concatenate([[True], best[1:] > best[:-1]])
    frontier = order[rises]
    if len(frontier) > points:
        wanted = np.linspace(cost.ravel()[frontier[0]], cost.ravel()[frontier[-1]], points)
        nearest = np.abs(cost.ravel()[frontier][:, None] - wanted).argmin(axis=0)
        frontier = frontier[np.unique([*nearest, len(frontier) - 1])]
    values = np.asarray(grid)
    return [
        tuple(float(values[i]) for i in np.unravel_index(int(combination), accuracy.shape)) for combination in frontier
    ]


def _searched_frontier(outcomes: Outcomes, grid: Sequence[float], points: int) -> list[tuple[float, ...]]:
    """The frontier of more combinations than can be compared: the most accurate found at each of some costs."""
    cheapest = best_thresholds(outcomes, Objective("accuracy@cost", 0.0), grid)
    most_accurate = best_thresholds(outcomes, Objective("accuracy", 0.0), grid)
    limits = np.linspace(cheapest.cost, most_accurate.cost, max(2, points))[1:-1]
    between = [best_thresholds(outcomes, Objective("accuracy@cost", limit), grid) for limit in limits.tolist()]
    frontier = [cheapest]
    for found in sorted((*between, most_accurate), key=lambda found: (found.cost, -found.accuracy)):
        accuracies = without_last_bits([found.accuracy, frontier[-1].accuracy])
        if accuracies[0] > accuracies[1]:
            frontier.append(found)
    return [found.thresholds for found in frontier]


def thresholds(
    paths: Sequence[Path],
    folder: Path,
    objective: str,
    points: int = POINTS,
    labels: str = "truth",
    cost: str | None = None,
) -> list[Point]:
    """The trade-off of a classifier on collected questions, each scored out of sample.

    Parameters
    ----------
    paths
        What `collect` wrote, all of the classifier's pair.
    folder
        The classifier's folder.
    objective, points
        As for `tradeoff`.
    labels
        "truth" or "mentor", as for `out_of_sample_outcomes`.
    cost
        As for `fit`.

    Raises
    ------
    ClassifierError
        Classifier and questions do not belong to the same pair, or lack what is needed.
    """
    data, description = read(*paths, cost=cost, objective=objective)
    judge = artefact.load(folder, stages=data.features.shape[1])
    pair = {role: description[role]["model"] for role in ("mentor", "intern")}
    if pair != judge.pair:
        raise ClassifierError(
            f"{folder} was fitted on the pair {judge.pair}, but the questions were collected with {pair}; "
            "give a classifier and questions of the same pair."
        )
    recipe = RECIPES.get(judge.recipe, RECIPES["default"])
    return tradeoff(*out_of_sample_outcomes(data, folder, labels), objective, recipe, points, data.cost_unit)


def format_points(points: Sequence[Point]) -> str:
    """Points as a table for a terminal; costs per question, in the unit that its head names."""
    unit = points[0].cost_unit if points else "cost"
    lines = [f"{'':24}{'thresholds':28}{'accuracy %':>24}{f'{unit} a question':>38}"]
    for point in points:
        limits = ":".join(f"{value:g}" for value in point.thresholds or ())
        accuracy = "{:.2f} [{:.2f}, {:.2f}]".format(*(100 * value for value in point.accuracy))
        cost = "{:.4g} [{:.4g}, {:.4g}]".format(*point.cost)
        lines.append(f"{point.name:24}{limits:28}{accuracy:>24}{cost:>38}")
    return "\n".join(lines)


def write_points(points: Sequence[Point], path: Path) -> None:
    """Write points as JSON."""
    path.write_text(json.dumps([point.as_dict() for point in points], indent=1) + "\n", encoding="utf-8")
