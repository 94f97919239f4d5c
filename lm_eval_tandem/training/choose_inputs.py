"""Choosing the inputs of a classifier, and its probe, by a quick comparison out of fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.splits import stratified_order
from lm_eval_tandem.training.cross_fitting import FOLDS, out_of_fold
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.recipes import INPUTS, PROBES
from lm_eval_tandem.training.thresholds import Outcomes, choose_thresholds, parse_objective, simulate

COARSE_GRID = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Thresholds for the comparison: enough to tell probes apart, and quick."""
MIN_GAIN = 0.01
"""Relative gain in cost, or in accuracy, that richer inputs must bring to be preferred."""
MAX_QUESTIONS = 2000
"""Questions that the comparison uses; more of them would not change the choice noticeably."""

Value = tuple[float, float]
"""What is minimised: cost and negative accuracy, the objective's one first."""


def choose_inputs(
    data: Collected, labels: NDArray[np.int64], allowed: Sequence[str], objective: str, seed: int
) -> tuple[str, Probe | None]:
    """The inputs and the probe with which the objective comes out best, judged by a logistic regression.

    Parameters
    ----------
    data, labels
        The questions, and their labels (Q, T).
    allowed
        Keys of `INPUTS`, the preferred ones first: those named later have to be better by `MIN_GAIN`.
    objective
        As for `choose_thresholds`.
    seed
        Of the splits.

    Raises
    ------
    ClassifierError
        The objective is reached with none of them, or a probe needs what was not collected.

    Notes
    -----
    Two probes tie if they differ only beyond the longest answer, or in a limit that no entropy exceeds. Of those the
    one that comes first in `PROBES` is taken, which is cheaper where answers are longer.
    """
    if tuple(allowed) == ("statistics",):
        return "statistics", None
    step = -(-len(labels) // MAX_QUESTIONS)
    few = np.sort(stratified_order(labels.sum(axis=1), seed)[::step])
    data, labels = data.subset(few), labels[few]
    best: tuple[Value, tuple[str, Probe | None]] | None = None
    refusal: ClassifierError | None = None
    for inputs in allowed:
        to_beat = None if best is None else (best[0][0] - MIN_GAIN * abs(best[0][0]), best[0][1])
        for probe in _probes_of(inputs):
            scores = out_of_fold(LogisticJudge, data.inputs(INPUTS[inputs], probe), labels, FOLDS, seed)
            outcomes = data.outcomes(scores, probe)
            try:
                thresholds = choose_thresholds(outcomes, objective, COARSE_GRID)
            except ClassifierError as error:
                refusal = error
                continue
            value = _value(outcomes, thresholds, objective)
            if (to_beat is None or value < to_beat) and (best is None or value < best[0]):
                best = value, (inputs, probe)
    if best is None:
        assert refusal is not None
        raise refusal
    return best[1]


def _probes_of(inputs: str) -> Iterator[Probe | None]:
    yield from ((None,) if inputs == "statistics" else PROBES)


def _value(outcomes: Outcomes, thresholds: Sequence[float], objective: str) -> Value:
    """What the thresholds reach; rounded, so that probes with equal decisions tie exactly."""
    _, correct, cost = simulate(outcomes, thresholds)
    negative_accuracy, mean_cost = round(-float(correct.mean()), 9), float(np.float32(cost.mean()))
    by_accuracy = parse_objective(objective)[0].startswith("accuracy")
    return (negative_accuracy, mean_cost) if by_accuracy else (mean_cost, negative_accuracy)
