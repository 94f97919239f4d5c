"""Choosing the thresholds: one per stage, on scores of questions that the classifier was not fitted on (section 3.1).

Warning: thresholds chosen on the fitting data look better than they are, because the scores there are too confident.
Give this module scores from `cross_fitting.out_of_fold` or from a held-out part, and never test questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.threshold_grid import GRID, MAX_COMBINATIONS, Grids, checked_grid, combinations, evaluate

Floats = NDArray[np.float64]

SEARCH_COMBINATIONS = 1_000_000
"""Combinations for each step of the search that takes the place of all combinations where those are too many."""
SEARCH_ROUNDS = 20
"""Rounds after which that search ends at the latest; two or three are usual."""

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
_OBJECTIVES = {
    "accuracy": re.compile(r"accuracy"),
    "accuracy@cost": re.compile(rf"accuracy@cost<={_NUMBER}"),
    "cost@accuracy": re.compile(rf"cost@accuracy>=always_high(?:-{_NUMBER})?"),
}
_TIE = 1e-9
"""Relative difference up to which two means count as equal."""


def choose_thresholds(
    outcomes: Outcomes,
    objective: str,
    grid: Sequence[float] = GRID,
    max_combinations: int = MAX_COMBINATIONS,
    must_reach: bool = True,
) -> tuple[float, ...]:
    """The thresholds of the grid that serve an objective best.

    Parameters
    ----------
    outcomes
        The questions.
    objective
        One of:

        - "accuracy": the highest mean accuracy;
        - "accuracy@cost<=X": the same among combinations of mean cost at most X, in the unit of the costs;
        - "cost@accuracy>=always_high-D": the lowest mean cost among combinations at most D below the accuracy of always
          answering from the last stage, D being a fraction (0.005 is half a percentage point) or left out.
    grid
        The allowed values, strictly increasing in [0, 1].
    max_combinations
        Up to this many combinations all are compared; of more the best is searched for (see `best_thresholds`).
    must_reach
        Whether the objective has to be reached; if not, the thresholds that lack least will do.

    Returns
    -------
    tuple[float, ...]
        One threshold per stage. Ties go to the lower cost, then to the higher accuracy, then to the lower thresholds,
        the first stage first.

    Raises
    ------
    ClassifierError
        The objective is unknown, or has to be reached and no combination does.

    Examples
    --------
    One question, answered correctly at both stages, the first of which is cheaper:

    >>> outcomes = Outcomes(*(np.array([row]) for row in ([0.7, 0.8], [1, 1], [1, 2], [3, 3])))
    >>> choose_thresholds(outcomes, "accuracy")
    (0.05, 0.05)
    """
    goal = parse_objective(objective)
    best = best_thresholds(outcomes, goal, grid, max_combinations)
    if best.lack > 0 and must_reach and goal.kind == "accuracy@cost":
        raise ClassifierError(
            f"No thresholds reach a mean cost of {goal.number:g} or less; the cheapest cost {best.cost:.6g}, "
            "so raise it."
        )
    if best.lack > 0 and must_reach:
        always_high = outcomes.always_high
        needed = math.ceil((always_high - best.accuracy - _TIE) * 10_000) / 10_000
        raise ClassifierError(
            f"No thresholds reach an accuracy of {always_high - goal.number:.4f} (always_high-{goal.number:g}); the "
            f"nearest reach {best.accuracy:.4f}, so allow always_high-{needed:.4f} or more."
        )
    return best.thresholds


class Best(NamedTuple):
    """The thresholds that serve an objective best, their mean accuracy and cost, and what they lack of the target."""

    thresholds: tuple[float, ...]
    accuracy: float
    cost: float
    lack: float
    """By how much the cost is above its limit, or the accuracy below its target; 0 where the objective is reached."""


def best_thresholds(
    outcomes: Outcomes, goal: Objective, grid: Sequence[float], max_combinations: int = MAX_COMBINATIONS
) -> Best:
    """As `choose_thresholds`; where no thresholds reach the objective, those that lack least.

    Notes
    -----
    Of more combinations than `max_combinations` the best is searched for: from the best of a coarser grid, the
    thresholds of a few consecutive stages at a time are replaced by the best of all their values, until none changes.
    No other value of these few stages is then better, but others of all stages together may be.
    """
    values = checked_grid(grid)
    stages = outcomes.scores.shape[1]
    grids = _grids(outcomes, values)
    if combinations(grids) <= max_combinations:
        return _best(outcomes, grids, goal)
    most = min(max_combinations, SEARCH_COMBINATIONS)
    size = max(2, int(most ** (1 / stages)) - 1)
    coarse = values[np.unique(np.linspace(0, len(values) - 1, size).round().astype(int))]
    best = _best(outcomes, _grids(outcomes, coarse), goal)
    width = 1
    while width < stages and (len(values) + 1) ** (width + 1) * 2 ** (stages - width - 1) <= most:
        width += 1
    for _ in range(SEARCH_ROUNDS):
        before = best.thresholds
        for first in range(stages - width + 1):
            tried = [np.array([threshold]) for threshold in best.thresholds]
            tried[first : first + width] = grids[first : first + width]
            best = _best(outcomes, tried, goal)
        if best.thresholds == before:
            break
    return best


def _grids(outcomes: Outcomes, values: Floats) -> list[Floats]:
    """The values to try at each stage: one where every question ends whatever the threshold."""
    if outcomes.finished is None:
        return [values] * outcomes.scores.shape[1]
    return [values[:1] if ended else values for ended in np.all(outcomes.finished, axis=0).tolist()]


def _best(outcomes: Outcomes, grids: Grids, goal: Objective) -> Best:
    """The best of all combinations of the grids' values."""
    accuracy, cost = evaluate(outcomes, grids)
    index, lack = best_index(goal, accuracy, cost, outcomes.always_high)
    first = np.unravel_index(index, accuracy.shape)
    thresholds = tuple(float(values[i]) for values, i in zip(grids, first, strict=True))
    return Best(thresholds, float(accuracy[first]), float(cost[first]), lack)


def best_index(goal: Objective, accuracy: Floats, cost: Floats, always_high: float) -> tuple[int, float]:
    """Which of some rules serves an objective best, and what it lacks of the target (see `Best.lack`).

    Parameters
    ----------
    goal
        The objective.
    accuracy, cost
        Of each rule, arrays of one shape.
    always_high
        The accuracy of always answering from the last stage.

    Returns
    -------
    tuple[int, float]
        The first of the best, as an index of the flattened arrays; and 0 if it reaches the objective.
    """
    lack = np.zeros(accuracy.shape)
    if goal.kind == "accuracy@cost":
        lack = np.where(cost <= goal.number + _TIE * max(1.0, abs(goal.number)), 0.0, cost - goal.number)
    elif goal.kind == "cost@accuracy":
        target = always_high - goal.number
        lack = np.where(accuracy >= target - _TIE, 0.0, target - accuracy)
    allowed = np.ones(accuracy.shape, dtype=bool)
    for key in [lack, *([-accuracy, cost] if goal.kind.startswith("accuracy") else [cost, -accuracy])]:
        lowest = key[allowed].min()
        allowed &= key <= lowest + _TIE * max(1.0, abs(lowest))
    first = int(np.flatnonzero(allowed)[0])
    return first, float(lack.ravel()[first])


def centre_thresholds(
    outcomes: Outcomes, thresholds: Sequence[float], grid: Sequence[float] = GRID
) -> tuple[float, ...]:
    """Move each threshold to the middle of the grid values that make the same decisions on these questions.

    Scores of other questions scatter, so a threshold at the edge of the gap between right and wrong answers would
    decide some of them differently. The last stage's threshold stays: nothing is saved by passing there.

    Parameters
    ----------
    outcomes
        The questions.
    thresholds
        One per stage, from the grid.
    grid
        The allowed values.
    """
    values, chosen = checked_grid(grid), list(thresholds)
    for stage in range(len(chosen) - 1):
        stages, _, costs = simulate(outcomes, chosen)
        here = int(np.abs(values - chosen[stage]).argmin())
        tied = [here]
        for step in (-1, 1):
            index = here + step
            while 0 <= index < len(values):
                other = [*chosen[:stage], float(values[index]), *chosen[stage + 1 :]]
                other_stages, _, other_costs = simulate(outcomes, other)
                if not (np.array_equal(other_stages, stages) and np.array_equal(other_costs, costs)):
                    break
                tied.append(index)
                index += step
        chosen[stage] = float(values[(min(tied) + max(tied)) // 2])
    return tuple(chosen)


class Objective(NamedTuple):
    """What thresholds are chosen for: "accuracy", "accuracy@cost" or "cost@accuracy", and its number, 0 without one."""

    kind: str
    number: float


def parse_objective(objective: str) -> Objective:
    """Split an objective into its kind and its number, which is 0 if it has none.

    Raises
    ------
    ClassifierError
        The objective is unknown.

    Examples
    --------
    >>> parse_objective("cost@accuracy>=always_high-0.005")
    Objective(kind='cost@accuracy', number=0.005)
    """
    for kind, pattern in _OBJECTIVES.items():
        if match := pattern.fullmatch(re.sub(r"\s+", "", objective)):
            return Objective(kind, float(match.group(1) or 0) if match.groups() else 0.0)
    raise ClassifierError(
        f"The objective {objective!r} is unknown; give accuracy, accuracy@cost<=NUMBER or "
        "cost@accuracy>=always_high-NUMBER."
    )
