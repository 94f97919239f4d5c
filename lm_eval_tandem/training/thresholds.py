"""Choosing when a score is high enough: one threshold per stage, found on questions the classifier never saw.

Chosen on the fitting data, thresholds look better than they are, because scores there are too sure of themselves:
give this module scores from `out_of_fold` or from a held-out part. Test labels have no business here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.splits import stratified_order

Floats = NDArray[np.float64]

GRID: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
"""0.05, 0.10, ..., 0.95: the values that a threshold may take (paper, section 3.1)."""

MAX_CELLS = 20_000_000
"""Combinations that `curve` may hold at once; a table of float64 then takes 160 MB."""

_NUMBER = r"([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)"
_OBJECTIVES = {
    "accuracy": re.compile(r"accuracy"),
    "accuracy@cost": re.compile(rf"accuracy@cost<={_NUMBER}"),
    "cost@accuracy": re.compile(rf"cost@accuracy>=always_high(?:-{_NUMBER})?"),
}
_TIE = 1e-9


@dataclass(frozen=True)
class Outcomes:
    """What would happen to Q questions at each of T stages (stage 0, the question alone, included); float64 (Q, T).

    scores: s_t in [0, 1].
    correct: the grade, in [0, 1], of the intern's answer under the insight of stage t.
    cost: what the question costs when the cascade stops at stage t (everything up to there), in any one unit.
    fallback_cost: what it costs when no stage passed and stage t is answered from (every mentor stage was run).
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
    """The cascade's decisions (paper, Algorithm 1): stop at the first t with s_t > tau_t, else at the first argmax s_t.

    Returns (stage answered from, grade, cost), each of shape (Q,).
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    if limits.shape != outcomes.scores.shape[1:]:
        raise ClassifierError(
            f"{limits.size} threshold(s) were given for {outcomes.scores.shape[1]} stages (stage 0 included); "
            "give one each."
        )
    passes = outcomes.scores > limits
    stopped = passes.any(axis=1)
    stage = np.where(stopped, passes.argmax(axis=1), outcomes.scores.argmax(axis=1))
    rows = np.arange(len(stage))
    cost = np.where(stopped, outcomes.cost[rows, stage], outcomes.fallback_cost[rows, stage])
    return stage, outcomes.correct[rows, stage], cost


def curve(outcomes: Outcomes, grid: Sequence[float] = GRID) -> tuple[Floats, Floats]:
    """Mean accuracy and mean cost of every combination of thresholds from a grid of G values.

    Returns two float64 arrays of shape (G,) * T; entry [i, j, ...] is `simulate` with thresholds (grid[i], grid[j],
    ...), averaged over questions. The work is one histogram per stage and cumulative sums over it, so it hardly
    depends on the number of questions: a question passes stage t exactly under the thresholds below its level.
    """
    values = _checked_grid(grid)
    questions, stages = outcomes.scores.shape
    if (len(values) + 1) ** stages > MAX_CELLS:
        raise ClassifierError(
            f"A grid of {len(values)} values for {stages} stages makes more than {MAX_CELLS:,} combinations; "
            f"give a coarser grid of at most {int(MAX_CELLS ** (1 / stages)) - 1} values."
        )
    levels = np.searchsorted(values, outcomes.scores, side="left")
    best = outcomes.scores.argmax(axis=1)
    rows = np.arange(questions)

    def total(per_stage: Floats, fallback: Floats) -> Floats:
        table = _sums(levels, fallback[rows, best], len(values), stops=False)
        for stage in range(stages):
            stopped = _sums(levels[:, : stage + 1], per_stage[:, stage], len(values), stops=True)
            table += stopped.reshape(stopped.shape + (1,) * (stages - stage - 1))
        return table / questions

    return total(outcomes.correct, outcomes.correct), total(outcomes.cost, outcomes.fallback_cost)


def _sums(levels: NDArray[np.int64], weights: Floats, size: int, stops: bool) -> Floats:
    """Per combination, the summed weight of questions that fail every stage in `levels`, or (stops) all but the last.

    levels: (Q, t), the number of grid values below each score. Returns shape (size,) * t.
    """
    shape = (size + 1,) * levels.shape[1]
    cells = np.ravel_multi_index(tuple(levels.T), shape)
    table: Floats = np.bincount(cells, weights=weights, minlength=(size + 1) ** levels.shape[1]).reshape(shape)
    for axis in range(table.ndim):
        if stops and axis == table.ndim - 1:
            table = np.flip(np.flip(table, axis).cumsum(axis), axis).take(range(1, size + 1), axis)
        else:
            table = table.cumsum(axis).take(range(size), axis)
    return table


def choose(outcomes: Outcomes, objective: str, grid: Sequence[float] = GRID) -> tuple[float, ...]:
    """The best thresholds of the grid, one per stage.

    objective:
        "accuracy": the highest mean accuracy;
        "accuracy@cost<=x": the same among combinations of mean cost at most x (absolute, in the unit of the costs);
        "cost@accuracy>=always_high-d": the lowest mean cost among combinations at most d below the accuracy of always
            answering from the last stage (d as a fraction: 0.005 is half a percentage point; "-d" may be left out).
    Ties go to the lower cost, then to the higher accuracy, then to the lower thresholds, the first stage first.
    """
    kind, number = parse_objective(objective)
    accuracy, cost = curve(outcomes, grid)
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


def centred(outcomes: Outcomes, thresholds: Sequence[float], grid: Sequence[float] = GRID) -> tuple[float, ...]:
    """The same decisions on these outcomes, with room on both sides: each threshold in the middle of those that tie.

    Scores of other questions scatter, so a threshold at the edge of a gap between right and wrong answers is no
    choice. The last stage's stays: it has nothing to save.
    """
    values, chosen = _checked_grid(grid), list(thresholds)
    for stage in range(len(chosen) - 1):
        stages, _, costs = simulate(outcomes, chosen)
        here = int(np.abs(values - chosen[stage]).argmin())
        tied = [here]
        for step in (-1, 1):
            place = here + step
            while 0 <= place < len(values):
                other = [*chosen[:stage], float(values[place]), *chosen[stage + 1 :]]
                others, _, spent = simulate(outcomes, other)
                if not (np.array_equal(others, stages) and np.array_equal(spent, costs)):
                    break
                tied.append(place)
                place += step
        chosen[stage] = float(values[(min(tied) + max(tied)) // 2])
    return tuple(chosen)


def out_of_fold(
    make_classifier: Callable[[], Any], X: ArrayLike, y: ArrayLike, folds: int = 5, seed: int = 42
) -> Floats:
    """Scores for every question from a classifier that was fitted on the other folds' questions only.

    make_classifier: returns a fresh scikit-learn style classifier; question numbers are passed to its `fit` as
        `groups` where it takes them.
    X: (Q, T, F) features; y: (Q, T) labels, 0 or 1. Folds hold whole questions and are alike in their share of 1.

    Returns float64 of shape (Q, T): the probability of label 1.
    """
    from sklearn.utils.validation import has_fit_parameter

    inputs, labels = np.asarray(X, dtype=np.float64), np.asarray(y).astype(np.int64)
    if inputs.ndim != 3 or labels.shape != inputs.shape[:2]:
        raise ClassifierError(
            f"out_of_fold got X of shape {inputs.shape} and y of shape {labels.shape}; give (questions, stages, "
            "features) and (questions, stages)."
        )
    questions, stages = labels.shape
    if not 2 <= folds <= questions:
        raise ClassifierError(f"{folds} folds were asked for {questions} questions; give from 2 to {questions}.")
    fold = np.empty(questions, dtype=np.int64)
    fold[stratified_order(labels.sum(axis=1), seed)] = np.arange(questions) % folds
    scores = np.empty((questions, stages))
    for held_out in range(folds):
        train, test = np.flatnonzero(fold != held_out), np.flatnonzero(fold == held_out)
        classifier = make_classifier()
        extra = {"groups": np.repeat(train, stages)} if has_fit_parameter(classifier, "groups") else {}
        classifier.fit(inputs[train].reshape(-1, inputs.shape[2]), labels[train].ravel(), **extra)
        sufficient = list(classifier.classes_).index(1)
        found = classifier.predict_proba(inputs[test].reshape(-1, inputs.shape[2]))[:, sufficient]
        scores[test] = found.reshape(len(test), stages)
    return scores


def _checked_grid(grid: Sequence[float]) -> Floats:
    """The grid as an array, if it is strictly increasing within [0, 1]."""
    values = np.asarray(grid, dtype=np.float64)
    if values.ndim != 1 or not values.size or not (values[0] >= 0 and values[-1] <= 1 and (np.diff(values) > 0).all()):
        raise ClassifierError(
            f"The grid {list(grid)} cannot be searched; give strictly increasing values in [0, 1], e.g. 0.05 to 0.95."
        )
    return values


def parse_objective(objective: str) -> tuple[str, float]:
    """The kind of an objective and its number (0 where it has none)."""
    for kind, pattern in _OBJECTIVES.items():
        if match := pattern.fullmatch(re.sub(r"\s+", "", objective)):
            return kind, float(match.group(1) or 0) if match.groups() else 0.0
    raise ClassifierError(
        f"The objective {objective!r} is unknown; give accuracy, accuracy@cost<=NUMBER or "
        "cost@accuracy>=always_high-NUMBER."
    )
