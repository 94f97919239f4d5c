"""Choosing the inputs of a classifier, and its probe, by a quick comparison out of fold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.splits import stratified_order
from lm_eval_tandem.training.cross_fitting import FOLDS, out_of_fold
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.recipes import INPUTS, PROBES
from lm_eval_tandem.training.thresholds import best_thresholds, choose_thresholds, parse_objective

COARSE_GRID = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Thresholds for the comparison: enough to tell probes apart, and quick."""
MIN_GAIN = 0.01
"""Relative gain in cost, or in accuracy, that richer inputs must bring to be preferred."""
MAX_QUESTIONS = 2000
"""Questions that the comparison uses; more of them would not change the choice noticeably."""
MAX_COMBINATIONS = 250_000
"""Combinations of thresholds up to which all are compared."""

Floats = NDArray[np.float64]
Choice = tuple[str, Probe | None]
"""The inputs, a key of `INPUTS`, and the probe."""
Value = tuple[float, float]
"""What is minimised: cost and negative accuracy, the objective's one first."""


@dataclass
class InputChoice:
    """Chooses the inputs and the probe with which an objective comes out best, judged by a logistic regression.

    Parameters
    ----------
    data, labels
        The questions, and their labels (Q, T).
    allowed
        Keys of `INPUTS`, the preferred ones first: those named later have to be better by `MIN_GAIN`. Or one of
        `HIDDEN_INPUTS` alone, beside which there is nothing to choose.
    objective
        As for `choose_thresholds`.
    seed
        Of the splits.

    Notes
    -----
    Two probes tie if they differ only beyond the longest answer, or in a limit that no entropy exceeds. Of those the
    one that comes first in `PROBES` is taken, which is cheaper where answers are longer.
    """

    data: Collected
    labels: NDArray[np.int64]
    allowed: Sequence[str]
    objective: str
    seed: int
    _probes: dict[Probe | None, tuple[Floats, NDArray[np.int64]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.data = replace(self.data, hidden=None, prompts=None, parts=None)

    @property
    def is_fixed(self) -> bool:
        """Whether there is nothing to choose."""
        return len(self.allowed) == 1 and not _uses_probe(self.allowed[0])

    def best(self, rows: NDArray[np.bool_], must_reach: bool = True) -> Choice:
        """The best choice for the questions of a mask (Q,); no label of another question has a part in it.

        Parameters
        ----------
        rows
            The questions, of which at most `MAX_QUESTIONS` are used, taken evenly over their difficulty.
        must_reach
            Whether the objective has to be reached on them; if not, the choice that lacks least will do.

        Raises
        ------
        ClassifierError
            The objective is reached with none of them, or a probe needs what was not collected.
        """
        if self.is_fixed:
            return self.allowed[0], None
        given = np.flatnonzero(rows)
        step = -(-len(given) // MAX_QUESTIONS)
        few = given[np.sort(stratified_order(self.labels[given].sum(axis=1), self.seed)[::step])]
        best: tuple[Value, Choice] | None = None
        nearest: tuple[float, Value, Choice] | None = None
        for inputs in self.allowed:
            to_beat = None if best is None else (best[0][0] - MIN_GAIN * abs(best[0][0]), best[0][1])
            compared: set[bytes] = set()
            for probe in _probes_of(inputs):
                probed = self._probed(probe)[0][few].tobytes()
                if probed in compared:  # It ties with an earlier one.
                    continue
                compared.add(probed)
                outcomes = self._outcomes((inputs, probe), few)
                lack, value = self._value(outcomes)
                if nearest is None or (lack, value) < nearest[:2]:
                    nearest = lack, value, (inputs, probe)
                if lack == 0 and (to_beat is None or value < to_beat) and (best is None or value < best[0]):
                    best = value, (inputs, probe)
        if best is not None:
            return best[1]
        if must_reach:
            choose_thresholds(outcomes, self.objective, COARSE_GRID, MAX_COMBINATIONS)  # It says what is out of reach.
        assert nearest is not None
        return nearest[2]

    def _outcomes(self, choice: Choice, rows: NDArray[np.int64]) -> Outcomes:
        """The outcomes of some questions, each scored out of fold."""
        inputs, probe = choice
        features, lengths = self._probed(probe)
        vectors = input_schemas.vectors(INPUTS[inputs], self.data.features[rows], features[rows])
        scores = out_of_fold(LogisticJudge, vectors, self.labels[rows], FOLDS, self.seed, self.data.to_fit[rows])
        data = replace(self.data, logprob=None, entropy=None).subset(rows)
        return data.outcomes_with_probes(scores, lengths[rows])

    def _value(self, outcomes: Outcomes) -> tuple[float, Value]:
        """What they lack of the objective, and what they reach; rounded, so that equal decisions tie exactly."""
        goal = parse_objective(self.objective)
        found = best_thresholds(outcomes, goal, COARSE_GRID, MAX_COMBINATIONS)
        _, correct, cost = simulate(outcomes, found.thresholds)
        negative_accuracy, mean_cost = round(-float(correct.mean()), 9), float(np.float32(cost.mean()))
        by_accuracy = goal.kind.startswith("accuracy")
        return found.lack, (negative_accuracy, mean_cost) if by_accuracy else (mean_cost, negative_accuracy)

    def _probed(self, probe: Probe | None) -> tuple[Floats, NDArray[np.int64]]:
        """The probe's features (Q, T, 13) and lengths (Q, T) of all questions; none of either for no probe."""
        if probe not in self._probes:
            features, lengths = np.zeros((*self.labels.shape, 0)), np.zeros(self.labels.shape)
            if probe is not None:
                features, lengths = self.data.probe_all(probe)
            self._probes[probe] = features, lengths.astype(np.int64)
        return self._probes[probe]


def _probes_of(inputs: str) -> Iterator[Probe | None]:
    yield from (PROBES if _uses_probe(inputs) else (None,))


def _uses_probe(inputs: str) -> bool:
    return inputs in INPUTS and input_schemas.uses_probe(INPUTS[inputs])
