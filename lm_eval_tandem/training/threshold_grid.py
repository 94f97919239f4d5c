"""Mean accuracy and cost of the cascade under every combination of thresholds from a grid (section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.decision import fallback_stage
from lm_eval_tandem.training.outcomes import Outcomes

Floats = NDArray[np.float64]
Grids = Sequence[Floats]
"""Values that thresholds may take, of each stage."""

GRID: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""The values that a threshold may take: 0.05, 0.10, ..., 0.95 (paper, section 3.1)."""
MAX_COMBINATIONS = 20_000_000
"""Combinations of thresholds that are evaluated at once: a table of float64 then takes 160 MB."""


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
    stages = outcomes.scores.shape[1]
    grids = [checked_grid(grid)] * stages
    if combinations(grids) > MAX_COMBINATIONS:
        raise ClassifierError(
            f"A grid of {len(grids[0])} values for {stages} stages makes more than {MAX_COMBINATIONS:,} combinations; "
            f"give a coarser grid of at most {int(MAX_COMBINATIONS ** (1 / stages)) - 1} values."
        )
    return evaluate(outcomes, grids)


def combinations(grids: Grids) -> int:
    """Cells of the histogram that `evaluate` makes."""
    return math.prod(len(values) + 1 for values in grids)


def evaluate(outcomes: Outcomes, grids: Grids) -> tuple[Floats, Floats]:
    """As `evaluate_grid`, with a grid of its own for each stage."""
    questions, stages = outcomes.scores.shape
    sizes = tuple(map(len, grids))
    # A score passes only above its threshold (`decision.passes`): "left" leaves out a grid value equal to the score.
    levels = np.stack(
        [np.searchsorted(values, outcomes.scores[:, stage], side="left") for stage, values in enumerate(grids)], axis=1
    )
    if outcomes.finished is not None:  # such a stage passes under every threshold
        levels = np.where(outcomes.finished, sizes, levels)
    best = fallback_stage(outcomes.scores)
    rows = np.arange(questions)

    def mean(per_stage: Floats, fallback: Floats) -> Floats:
        table = _summed_weights(levels, fallback[rows, best], sizes, stops=False)
        for stage in range(stages):
            stopped = _summed_weights(levels[:, : stage + 1], per_stage[:, stage], sizes[: stage + 1], stops=True)
            table += stopped.reshape(stopped.shape + (1,) * (stages - stage - 1))
        return table / questions

    return mean(outcomes.correct, outcomes.correct), mean(outcomes.cost, outcomes.fallback_cost)


def _summed_weights(levels: NDArray[np.int64], weights: Floats, sizes: tuple[int, ...], stops: bool) -> Floats:
    """Per combination of thresholds, the summed weight of the questions that it stops, or leaves unstopped.

    Parameters
    ----------
    levels
        (Q, t): the number of grid values below each score of the first t stages.
    weights
        (Q,).
    sizes
        The number of grid values of each of these stages.
    stops
        True: sum questions that fail every stage but the last, and pass that. False: those that fail every stage.

    Returns
    -------
    NDArray[numpy.float64]
        Of shape `sizes`.
    """
    shape = tuple(size + 1 for size in sizes)
    bins = np.ravel_multi_index(tuple(levels.T), shape)
    sums = np.bincount(bins, weights=weights, minlength=math.prod(shape))
    table: Floats = sums.astype(np.float64, copy=False).reshape(shape)
    for axis, size in enumerate(sizes):
        if stops and axis == table.ndim - 1:
            table = np.flip(np.flip(table, axis).cumsum(axis), axis).take(range(1, size + 1), axis)
        else:
            table = table.cumsum(axis).take(range(size), axis)
    return table


def checked_grid(grid: Sequence[float]) -> Floats:
    """The grid as an array; refused unless it is strictly increasing within [0, 1]."""
    values = np.asarray(grid, dtype=np.float64)
    if values.ndim != 1 or not values.size or not (values[0] >= 0 and values[-1] <= 1 and (np.diff(values) > 0).all()):
        raise ClassifierError(
            f"The grid {list(grid)} cannot be searched; give strictly increasing values in [0, 1], e.g. 0.05 to 0.95."
        )
    return values
