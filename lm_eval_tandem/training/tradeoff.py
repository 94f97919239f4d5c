"""The command `lm-eval-tandem thresholds`: what a classifier's thresholds, and every other policy, would reach.

All from one collection; no engine runs here. `policy_comparison` says which policy is worth using.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem._paths import same_path
from lm_eval_tandem.digits import without_last_bits
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import artefact, input_schemas
from lm_eval_tandem.judge.artefact import Sufficiency
from lm_eval_tandem.training.bootstrap import central_interval, mean_interval, resampled_means
from lm_eval_tandem.training.collected_file import read
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit_folder import question_keys
from lm_eval_tandem.training.labels import answered_by_mentor, check_values
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.policy_comparison import (
    PolicyOutcome,
    advice,
    fixed_policies,
    judged_outcomes,
    judged_policies,
)
from lm_eval_tandem.training.recipes import RECIPES, Recipe
from lm_eval_tandem.training.threshold_grid import MAX_COMBINATIONS, evaluate_grid
from lm_eval_tandem.training.thresholds import Objective, best_thresholds, parse_objective

Floats = NDArray[np.float64]

POINTS = 15
"""Points of the frontier that are shown by default."""


def out_of_sample(data: Collected, folder: Path) -> tuple[Collected, Floats, Sufficiency]:
    """Score collected questions with a classifier, none by one that was fitted on it.

    Questions of the artefact's own fit have the out-of-fold scores stored with it (those without one are left out); all
    others are scored by the artefact.

    Returns
    -------
    tuple[Collected, NDArray[numpy.float64], Sufficiency]
        The questions that have scores, the scores (Q, T), and the artefact.

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
    return data.subset(rows), scores[rows], judge


@dataclass(frozen=True)
class Point:
    """One way to answer the questions, with what it reaches.

    Parameters
    ----------
    name
        "frontier", "chosen", or a policy. The thresholds of policies with a judge are cross-fitted.
    thresholds
        One per stage; None for policies.
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
    policies: Sequence[PolicyOutcome],
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
    policies
        What to compare the thresholds with, on the same questions.
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
        The frontier (thresholds that no others beat in both accuracy and cost), the thresholds chosen for the
        objective, and the policies.

    Notes
    -----
    Choosing and measuring on the same questions makes the frontier and the chosen thresholds look slightly better than
    they are. The cross-fitted thresholds of policies are free of that. What `fit` chose besides (inputs and probe) it
    chose on all questions that it was given; its report has the figures that are free of that too.
    """
    chosen = recipe.choose(outcomes, objective)
    limits = [*(("frontier", found) for found in _frontier(outcomes, recipe.grid, points)), ("chosen", chosen)]
    rows: list[tuple[str, tuple[float, ...] | None, Floats, Floats]] = [
        (name, values, *simulate(outcomes, values)[1:]) for name, values in limits
    ]
    return with_intervals([*rows, *((p.name, None, p.correct, p.cost) for p in policies)], cost_unit)


def with_intervals(rows: Sequence[tuple[str, tuple[float, ...] | None, Floats, Floats]], cost_unit: str) -> list[Point]:
    """Points from name, thresholds, grades (Q,) and costs (Q,)."""
    columns = np.stack([column for _, _, correct, cost in rows for column in (correct, cost)], axis=1)
    means, resampled = columns.mean(axis=0).tolist(), resampled_means(columns).T
    return [
        Point(
            name,
            limits,
            (means[place], *mean_interval(correct, resampled[place], 0.0, 1.0)),
            (means[place + 1], *central_interval(resampled[place + 1])),
            cost_unit,
        )
        for place, (name, limits, correct, _) in zip(range(0, len(means), 2), rows, strict=True)
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
    folder: Path | None,
    objective: str,
    points: int = POINTS,
    labels: str = "truth",
    cost: str | None = None,
) -> tuple[list[Point], str]:
    """The trade-off of a classifier on collected questions, each scored out of sample, beside every other policy.

    Parameters
    ----------
    paths
        What `collect` wrote, all of the classifier's pair.
    folder
        The classifier's folder; None to compare the policies without a judge alone.
    objective, points
        As for `tradeoff`.
    labels
        "truth" for the task's grades, "mentor" for agreement with the mentor's answers, which leaves out the mentor.
    cost
        As for `fit`.

    Returns
    -------
    tuple[list[Point], str]
        As `tradeoff` returns them, and which policy is worth using (`policy_comparison.advice`).

    Raises
    ------
    ClassifierError
        Classifier and questions do not belong to the same pair, or lack what is needed.
    """
    goal = parse_objective(objective)
    data, description = read(*paths, cost=cost, objective=objective)
    if labels == "mentor":
        data = answered_by_mentor(data)
    if folder is None:
        policies = fixed_policies(*_graded(data, labels))
        rows = [(policy.name, None, policy.correct, policy.cost) for policy in policies]
        return with_intervals(rows, data.cost_unit), advice(policies, goal, data.cost_unit)
    pair = {role: description[role]["model"] for role in ("mentor", "intern")}
    fitted_on = artefact.load(folder, stages=data.features.shape[1]).pair
    if not all(same_path(fitted_on.get(role), name) for role, name in pair.items()):
        raise ClassifierError(
            f"{folder} was fitted on the pair {' and '.join(map(str, fitted_on.values()))}, but the questions were "
            f"collected with {' and '.join(pair.values())}; "
            "give a classifier and questions of the same pair."
        )
    data, scores, judge = out_of_sample(data, folder)
    data, grades = _graded(data, labels)
    recipe = RECIPES.get(judge.recipe, RECIPES["default"])
    lengths = data.probe_lengths(judge.probe)
    outcomes = data.outcomes_with_probes(scores, lengths, grades)
    of_policies = judged_outcomes(data, outcomes, lengths)
    judged = judged_policies(of_policies, partial(recipe.choose, objective=objective))
    policies = [*fixed_policies(data, grades), *judged]
    found = tradeoff(outcomes, policies, objective, recipe, points, data.cost_unit)
    return found, advice(policies, goal, data.cost_unit)


def _graded(data: Collected, labels: str) -> tuple[Collected, Floats]:
    """The questions and the grades (Q, T) of the intern's answers; by the mentor's own nothing of it is graded."""
    if labels != "mentor":
        return data, np.asarray(data.correct, dtype=np.float64)
    assert data.agrees is not None
    return replace(data, others={}), data.agrees


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
