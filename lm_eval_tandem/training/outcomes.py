"""What happens to collected questions at each stage, and what the cascade makes of it under some thresholds."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.decision import fallback_stage, passes

Floats = NDArray[np.float64]


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
    finished
        bool (Q, T): where the mentor had finished the answer itself, so that the cascade ends at the first such stage
        whatever the thresholds; None for nowhere.
    highest
        The column of the highest stage: -1, or -2 where the last is the mentor that takes over (`with_last_resort`).

    Raises
    ------
    ClassifierError
        The arrays differ in shape, or hold values that are not finite or out of range.
    """

    scores: Floats
    correct: Floats
    cost: Floats
    fallback_cost: Floats
    finished: NDArray[np.bool_] | None = None
    highest: int = -1

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

    def passed(self, thresholds: ArrayLike) -> NDArray[np.bool_]:
        """Where (Q, T) a question does not go beyond a stage, under thresholds of shape (T,) or (Q, T)."""
        passed: NDArray[np.bool_] = passes(self.scores, np.asarray(thresholds, dtype=np.float64))
        return passed if self.finished is None else passed | self.finished

    def subset(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Outcomes:
        """Some of the questions, by a mask (Q,) or by their indices."""
        finished = None if self.finished is None else self.finished[rows]
        arrays = self.scores[rows], self.correct[rows], self.cost[rows], self.fallback_cost[rows]
        return Outcomes(*arrays, finished, self.highest)

    @property
    def always_high(self) -> float:
        """The mean grade of always answering from the highest stage."""
        return float(self.correct[:, self.highest].mean())

    def with_last_resort(self, correct: Floats, cost: Floats, highest: int) -> Outcomes:
        """The same with one stage more, which ends every question that got so far: nobody judges it.

        So a policy that answers in another way when nothing passed is a cascade too, with a threshold more that no
        question is compared with.

        Parameters
        ----------
        correct, cost
            Grade and cost (Q,) of a question that ends there.
        highest
            As above, of what is returned.
        """
        questions, stages = self.scores.shape
        finished = np.zeros((questions, stages), dtype=np.bool_) if self.finished is None else self.finished
        return Outcomes(
            np.column_stack((self.scores, np.zeros(questions))),
            np.column_stack((self.correct, correct)),
            np.column_stack((self.cost, cost)),
            np.column_stack((self.fallback_cost, cost)),
            np.column_stack((finished, np.ones(questions, dtype=np.bool_))),
            highest,
        )


def simulate(outcomes: Outcomes, thresholds: ArrayLike) -> tuple[NDArray[np.int64], Floats, Floats]:
    """The decisions of the cascade (paper, Algorithm 1): stop at the first stage that passes, else at the fallback.

    Parameters
    ----------
    outcomes
        The questions.
    thresholds
        One per stage, stage 0 first: (T,), or (Q, T) where questions have thresholds of their own.

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
    if limits.shape not in (outcomes.scores.shape, outcomes.scores.shape[1:]):
        raise ClassifierError(
            f"{limits.size} threshold(s) were given for {outcomes.scores.shape[1]} stages (stage 0 included); "
            "give one each."
        )
    passed = outcomes.passed(limits)
    stopped = passed.any(axis=1)
    stage = np.where(stopped, passed.argmax(axis=1), fallback_stage(outcomes.scores))
    rows = np.arange(len(stage))
    cost = np.where(stopped, outcomes.cost[rows, stage], outcomes.fallback_cost[rows, stage])
    return stage, outcomes.correct[rows, stage], cost
