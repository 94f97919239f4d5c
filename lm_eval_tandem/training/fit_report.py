"""The report of a fit: how well classifier and thresholds do on questions out of sample, as plain JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.training.cross_fitting import Choose, Judge, cross_fitted_outcomes
from lm_eval_tandem.training.outcomes import Outcomes, simulate

Floats = NDArray[np.float64]

BINS = 10
"""Bins of equal width that `calibration` sorts scores into."""


def performance(
    outcomes: Outcomes, labels: NDArray[np.int64], thresholds: Sequence[float], fixed_cost: Floats
) -> dict[str, Any]:
    """The figures of the scores at each stage, and of the cascade and every fixed stage.

    Parameters
    ----------
    outcomes
        The questions, their scores out of sample.
    labels
        0 or 1, (Q, T).
    thresholds
        One per stage.
    fixed_cost
        (Q, T): what always answering from a stage costs, which takes no probe.

    Returns
    -------
    dict
        The entries stages, cascade, fixed and always_high of the report (see `fit_sufficiency`).
    """
    answered, correct, cost = simulate(outcomes, thresholds)
    stages, fixed = [], []
    for stage in range(labels.shape[1]):
        judged = slice(None) if outcomes.finished is None else ~outcomes.finished[:, stage]
        stages.append(
            {
                "stage": stage,
                **_discrimination(labels[judged, stage], outcomes.scores[judged, stage]),
                "share_answered": float((answered == stage).mean()),
            }
        )
        fixed.append({"stage": stage, **_means(outcomes.correct[:, stage], fixed_cost[:, stage])})
    return {"stages": stages, "cascade": _means(correct, cost), "fixed": fixed, "always_high": dict(fixed[-1])}


def _discrimination(labels: NDArray[np.int64], scores: Floats) -> dict[str, Any]:
    """How well scores tell the two labels apart; precision, recall and F1 at 0.5; nothing where nothing is judged."""
    if not labels.size:
        return dict.fromkeys(("share_correct", "precision", "recall", "f1", "auc"))
    precision, recall, f1, _ = precision_recall_fscore_support(
        labels, scores > 0.5, average="binary", zero_division=0.0
    )
    return {
        "share_correct": float(labels.mean()),
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "auc": float(roc_auc_score(labels, scores)) if labels.min() != labels.max() else None,
    }


def _means(correct: Floats, cost: Floats) -> dict[str, Any]:
    return {"accuracy": float(correct.mean()), "cost": float(cost.mean())}


def calibration(scores: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    """How far scores can be read as probabilities, over all questions and stages.

    Parameters
    ----------
    scores, labels
        Of one shape; scores in [0, 1], labels 0 or 1.

    Returns
    -------
    dict
        brier, the mean squared error; ece, the mean gap between score and share of label 1 over `BINS` bins; and the
        bins that hold any score (from, to, count, mean_score, share_correct).
    """
    flat_scores, flat_labels = scores.ravel(), labels.ravel()
    bin_of = np.minimum((flat_scores * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for number in range(BINS):
        inside = bin_of == number
        if inside.any():
            mean, share = float(flat_scores[inside].mean()), float(flat_labels[inside].mean())
            gap += abs(mean - share) * float(inside.mean())
            bounds = {"from": number / BINS, "to": (number + 1) / BINS}
            bins.append({**bounds, "count": int(inside.sum()), "mean_score": mean, "share_correct": share})
    return {"brier": float(((flat_scores - flat_labels) ** 2).mean()), "ece": gap, "bins": bins}


def cross_fitted(outcomes: Outcomes, choose: Choose, seed: int, judge_without: Judge | None) -> dict[str, float | None]:
    """Accuracy and mean cost of `cross_fitted_outcomes`; None where four fifths cannot be fitted on, or not so well."""
    try:
        correct, cost = cross_fitted_outcomes(outcomes, choose, seed, judge_without)
    except ClassifierError:
        return {"accuracy_cross_fitted": None, "cost_cross_fitted": None}
    return {"accuracy_cross_fitted": float(correct.mean()), "cost_cross_fitted": float(cost.mean())}
