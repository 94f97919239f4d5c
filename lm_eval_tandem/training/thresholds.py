"""Choosing the thresholds: one per stage, on scores of questions that the classifier was not fitted on (section 3.1).

Warning: thresholds chosen on the fitting data look better than they are, because the scores there are too confident.
Give this module scores from `cross_fitting.out_of_fold` or from a held-out part, and never test questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.decision import fallback_stage, passes

Floats = NDArray[np.float64]

GRID: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The values that a threshold may take: 0.05, 0.10, ..., 0.95 (paper, section 3.1)."""

MAX_COMBINATIONS = 20_000_000
"""Combinations of thresholds that `evaluate_grid` may hold at once: a table of float64 then takes 160 MB."""

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
_OBJECTIVES = {
    "accuracy": re.compile(r"accuracy"),
    "accuracy@cost": re.compile(rf"accuracy@cost<={_NUMBER}"),
    "cost@accuracy": re.compile(rf"cost@accuracy>=always_high(?:-{_NUMBER})?"),
}
_TIE = 1e-9
"""Relative difference up to which two means count as equal."""


@dataclass(frozen=True)
class Outcomes:
    """What happens to Q questions at each of T stages, stage 0 (the question alone) included; float64 (Q, T) each.

    Parameters
    ----------
    scores
        s_t in [0, 1].
    correct
        The grade in [0, 1] of the intern's answer under the insight of stage t.
    cost
        What the question costs when the cascade stops at stage t, everything up to there, in any one unit.
    fallback_cost
        What it costs when no stage passed and stage t is answered from, every mentor stage included.

    Raises
    ------
    ClassifierError
        The arrays differ in shape, or hold values that are not finite or out of range.
    """

    scores: Floats
    correct: Floats
    cost: Floats
    fallback_cost: Floats

    def __post_init__(self) -> None:
        for name in ("scores", "correct", "cost", "fallback_cost"):
            values = np.asarray(getattr(self, name), dtype=np.float64)
            object.__setattr__(self, name, values)
            if values.ndim != 2 or values.shape != np.shape(self.scores) or not values.size:
                raise ClassifierError(
                    f"Outcomes got `{name}` of shape {values.shape} beside scores of shape {np.shape(self.scores)}; "
                    "all four must be (questions, stages), one of each at least; collect all stages of all questions."
                )
            if not np.isfinite(values).all():
                raise ClassifierError(f"Outcomes got a NaN or infinite `{name}`; every entry must be a finite number.")
            if name in ("scores", "correct") and (values.min() < 0 or values.max() > 1):
                raise ClassifierError(
                    f"Outcomes got `{name}` from {values.min():g} to {values.max():g}; pass values from 0 to 1."
                )


def simulate(outcomes: Outcomes, thresholds: Sequence[float]) -> tuple[NDArray[np.int64], Floats, Floats]:
    """The decisions of the cascade (paper, Algorithm 1): stop at the first stage that passes, else at the fallback.

    Parameters
    ----------
    outcomes
        The questions.
    thresholds
        One per stage, stage 0 first.

    Returns
    -------
    tuple[NDArray[numpy.int64], NDArray[numpy.float64], NDArray[numpy.float64]]
        For each question the stage that answers, the grade, and the cost; shape (Q,) each.

    Raises
    ------
    ClassifierError
        There is not one threshold per stage.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != outcomes.scores.shape[1:]:
        raise ClassifierError(
            f"{limits.size} threshold(s) were given for {outcomes.scores.shape[1]} stages (stage 0 included); "
            "give one each."
        )
    passed = passes(outcomes.scores, limits)
    stopped = passed.any(axis=1)
    stage = np.where(stopped, passed.argmax(axis=1), fallback_stage(outcomes.scores))
    rows = np.arange(len(stage))
    cost = np.where(stopped, outcomes.cost[rows, stage], outcomes.fallback_cost[rows, stage])
    return stage, outcomes.correct[rows, stage], cost


def evaluate_grid(outcomes: Outcomes, grid: Sequence[float] = GRID) -> tuple[Floats, Floats]:
    """Mean accuracy and mean cost under every combination of thresholds from a grid.

    Parameters
    ----------
    outcomes
        The questions.
    grid
        G strictly increasing values in [0, 1].

    Returns
    -------
    tuple[NDArray[numpy.float64], NDArray[numpy.float64]]
        Accuracy and cost, shape (G,) * T each; entry [i, j, ...] is the mean of what `simulate` returns for the
        thresholds (grid[i], grid[j], ...).

    Raises
    ------
    ClassifierError
        The grid is not increasing, or makes too many combinations.

    Notes
    -----
    A question passes a stage exactly under the grid values below its score. So one histogram per stage, and cumulative
    sums over it, replace G**T simulations, and the time hardly depends on the number of questions.
    """
    values = _checked_grid(grid)
    questions, stages = outcomes.scores.shape
    if (len(values) + 1) ** stages > MAX_COMBINATIONS:
        raise ClassifierError(
            f"A grid of {len(values)} values for {stages} stages makes more than {MAX_COMBINATIONS:,} combinations; "
            f"give a coarser grid of at most {int(MAX_COMBINATIONS ** (1 / stages)) - 1} values."
        )
    # A score passes only above its threshold (`decision.passes`): "left" leaves out a grid value equal to the score.
    levels = np.searchsorted(values, outcomes.scores, side="left")
    best = fallback_stage(outcomes.scores)
    rows = np.arange(questions)

    def mean(per_stage: Floats, fallback: Floats) -> Floats:
        table = _summed_weights(levels, fallback[rows, best], len(values), stops=False)
        for stage in range(stages):
            stopped = _summed_weights(levels[:, : stage + 1], per_stage[:, stage], len(values), stops=True)
            table += stopped.reshape(stopped.shape + (1,) * (stages - stage - 1))
        return table / questions

    return mean(outcomes.correct, outcomes.correct), mean(outcomes.cost, outcomes.fallback_cost)


def _summed_weights(levels: NDArray[np.int64], weights: Floats, size: int, stops: bool) -> Floats:
    """Per combination of thresholds, the summed weight of the questions that it stops, or leaves unstopped.

    Parameters
    ----------
    levels
        (Q, t): the number of grid values below each score of the first t stages.
    weights
        (Q,).
    size
        The number of grid values.
    stops
        True: sum questions that fail every stage but the last, and pass that. False: those that fail every stage.

    Returns
    -------
    NDArray[numpy.float64]
        Shape (size,) * t.
    """
    shape = (size + 1,) * levels.shape[1]
    bins = np.ravel_multi_index(tuple(levels.T), shape)
    table: Floats = np.bincount(bins, weights=weights, minlength=(size + 1) ** levels.shape[1]).reshape(shape)
    for axis in range(table.ndim):
        if stops and axis == table.ndim - 1:
            table = np.flip(np.flip(table, axis).cumsum(axis), axis).take(range(1, size + 1), axis)
        else:
            table = table.cumsum(axis).take(range(size), axis)
    return table


def choose_thresholds(outcomes: Outcomes, objective: str, grid: Sequence[float] = GRID) -> tuple[float, ...]:
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

    Returns
    -------
    tuple[float, ...]
        One threshold per stage. Ties go to the lower cost, then to the higher accuracy, then to the lower thresholds,
        the first stage first.

    Raises
    ------
    ClassifierError
        The objective is unknown, or no combination reaches it.

    Examples
    --------
    One question, answered correctly at both stages, the first of which is cheaper:

    >>> outcomes = Outcomes(*(np.array([row]) for row in ([0.7, 0.8], [1, 1], [1, 2], [3, 3])))
    >>> choose_thresholds(outcomes, "accuracy")
    (0.05, 0.05)
    """
    kind, number = parse_objective(objective)
    accuracy, cost = evaluate_grid(outcomes, grid)
    allowed = np.ones(accuracy.shape, dtype=bool)
    if kind == "accuracy@cost":
        allowed = cost <= number + _TIE * max(1.0, abs(number))
        if not allowed.any():
            raise ClassifierError(
                f"No thresholds reach a mean cost of {number:g} or less; the cheapest cost {cost.min():.6g}, "
                "so raise it."
            )
    elif kind == "cost@accuracy":
        target = outcomes.correct[:, -1].mean() - number
        allowed = accuracy >= target - _TIE
        if not allowed.any():
            needed = math.ceil((target + number - accuracy.max()) * 10_000) / 10_000
            raise ClassifierError(
                f"No thresholds reach an accuracy of {target:.4f} (always_high-{number:g}); the nearest reach "
                f"{accuracy.max():.4f}, so allow always_high-{needed:.4f} or more."
            )
    keys = [-accuracy, cost] if kind.startswith("accuracy") else [cost, -accuracy]
    for key in keys:
        lowest = key[allowed].min()
        allowed &= key <= lowest + _TIE * max(1.0, abs(lowest))
    first = np.unravel_index(int(np.flatnonzero(allowed)[0]), allowed.shape)
    values = _checked_grid(grid)
    return tuple(float(values[index]) for index in first)


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
    values, chosen = _checked_grid(grid), list(thresholds)
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


def _checked_grid(grid: Sequence[float]) -> Floats:
    """The grid as an array; refused unless it is strictly increasing within [0, 1]."""
    values = np.asarray(grid, dtype=np.float64)
    if values.ndim != 1 or not values.size or not (values[0] >= 0 and values[-1] <= 1 and (np.diff(values) > 0).all()):
        raise ClassifierError(
            f"The grid {list(grid)} cannot be searched; give strictly increasing values in [0, 1], e.g. 0.05 to 0.95."
        )
    return values


def parse_objective(objective: str) -> tuple[str, float]:
    """Split an objective into its kind and its number, which is 0 if it has none.

    Raises
    ------
    ClassifierError
        The objective is unknown.

    Examples
    --------
    >>> parse_objective("cost@accuracy>=always_high-0.005")
    ('cost@accuracy', 0.005)
    """
    for kind, pattern in _OBJECTIVES.items():
        if match := pattern.fullmatch(re.sub(r"\s+", "", objective)):
            return kind, float(match.group(1) or 0) if match.groups() else 0.0
    raise ClassifierError(
        f"The objective {objective!r} is unknown; give accuracy, accuracy@cost<=NUMBER or "
        "cost@accuracy>=always_high-NUMBER."
    )
