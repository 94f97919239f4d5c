"""From collected questions to a classifier, thresholds and an honest report (paper, section 3.1). No engine in here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.sufficiency.features import FEATURE_NAMES
from lm_eval_tandem.sufficiency.mlp import SufficiencyClassifier
from lm_eval_tandem.sufficiency.thresholds import (
    GRID,
    Outcomes,
    choose,
    out_of_fold,
    parse_objective,
    simulate,
    stratified_order,
    validation_rows,
)

Floats = NDArray[np.float64]

RECIPES: dict[str, dict[str, Any]] = {
    "paper": {"hidden": (64, 32), "dropout": 0.3, "lr": 1e-4, "epochs": 3, "patience": 1},
    "default": {
        "hidden": (64, 32),
        "dropout": 0.1,
        "lr": 3e-3,
        "epochs": 150,
        "patience": 25,
        "batch_size": 128,
        "log_features": True,
    },
}
"""Parameters of `SufficiencyClassifier` per recipe; what is not named keeps its default."""

FINE_GRID = (*GRID, 0.96, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999)
"""The paper's grid, finer where a confident classifier's scores lie."""
GRIDS = {"paper": GRID, "default": FINE_GRID}
MIN_QUESTIONS = 20
FOLDS = 5


@dataclass(frozen=True)
class Collected:
    """What collecting found for Q questions at T stages, stage 0 (the question alone) included.

    ids: one per question, no two alike.
    features: float (Q, T, 18), as `features(stats, stage)` returns them.
    correct: (Q, T), the grade of the intern's answer under the insight of each stage, in [0, 1]; from 0.5 on it counts
        as label 1.
    cost: (Q, T), what the question costs when the cascade stops at a stage, everything up to there.
    fallback_cost: (Q, T), what it costs when no stage passed and a stage is answered from, in the same unit.
    judged: bool (Q, T), False where the cascade would not look again because the mentor had already ended; None for
        everywhere. Such a stage can neither pass nor be the best of all.
    """

    ids: list[str]
    features: Floats
    correct: Floats | NDArray[np.bool_]
    cost: Floats
    fallback_cost: Floats
    judged: NDArray[np.bool_] | None = None


def fit_sufficiency(
    data: Collected, recipe: str = "default", objective: str = "accuracy", seed: int = 42
) -> tuple[SufficiencyClassifier, tuple[float, ...], dict[str, Any]]:
    """Fit a classifier, choose its thresholds out of sample, and report how well both do there.

    recipe:
        "paper": the paper's MLP (64-32, dropout 0.3, Adam 1e-4, up to 3 epochs) on 70 % of the questions; thresholds on
            the other 30 %. The paper searches them on the training set; here they never see a score of a question the
            classifier was fitted on (that part does choose the epoch).
        "default": the same network on log features, dropout 0.1, Adam 3e-3, batches of 128, up to 150 epochs with
            patience 25; thresholds on
            out-of-fold scores of all questions (5 folds by question), on a grid that is finer near 1; then one fit on
            all questions, of which 30 % only decide when to stop.
    objective: see `choose`.
    seed: of splits, weights, dropout and batch order.

    Returns (classifier, thresholds of length T, report). The report holds plain JSON values, measured on out-of-sample
    scores, costs in the unit of `data`: recipe, objective, seed, questions, questions_out_of_sample, thresholds;
    `stages`: per stage share_correct, precision, recall, f1 (score above 0.5), auc (None where all answers are alike)
        and share_answered (of questions, from that stage);
    `cascade`: accuracy and mean cost of the thresholds; the same cross-fitted, i.e. chosen on four fifths of the
        questions and applied to the rest, which is free of the optimism of choosing and measuring on the same questions
        (None where the objective cannot be met on four fifths);
    `fixed`: accuracy and mean cost of always stopping at each stage; `always_high`: the last of those.

    Raises ClassifierError for an unknown recipe or objective, fewer than 20 questions, missing stages, labels of one
    class only, and targets that no thresholds reach.
    """
    if recipe not in RECIPES:
        raise ClassifierError(f"The recipe {recipe!r} is unknown; give one of {', '.join(RECIPES)}.")
    parse_objective(objective)
    labels = _checked(data)
    questions, stages = labels.shape
    make = partial(SufficiencyClassifier, **RECIPES[recipe], seed=seed)
    groups = np.repeat(np.arange(questions), stages)
    rows = data.features.reshape(-1, len(FEATURE_NAMES))
    if recipe == "paper":
        classifier = make().fit(rows, labels.ravel(), groups)
        held_out = validation_rows(labels.ravel(), groups, classifier.validation_fraction, seed)
        kept = held_out.reshape(labels.shape)[:, 0]
        scores = classifier.predict_proba(rows[held_out])[:, 1].reshape(-1, stages)
    else:
        kept = np.ones(questions, dtype=bool)
        scores = out_of_fold(make, data.features, labels, FOLDS, seed)
        classifier = make().fit(rows, labels.ravel(), groups)
    if data.judged is not None:
        scores = np.where(data.judged[kept], scores, 0.0)
    outcomes = Outcomes(scores, data.correct[kept].astype(np.float64), data.cost[kept], data.fallback_cost[kept])
    grid = GRIDS[recipe]
    thresholds = choose(outcomes, objective, grid)
    report = {
        "recipe": recipe,
        "objective": objective,
        "seed": seed,
        "questions": questions,
        "questions_out_of_sample": int(kept.sum()),
        "thresholds": list(thresholds),
        **_report(outcomes, labels[kept], thresholds),
    }
    report["cascade"] |= _cross_fitted(outcomes, objective, grid, seed)
    return classifier, thresholds, report


def _checked(data: Collected) -> NDArray[np.int64]:
    """The labels (Q, T) of data that can be fitted on."""
    questions = len(data.ids)
    if questions < MIN_QUESTIONS:
        raise ClassifierError(
            f"{questions} question(s) were collected, but fitting needs at least {MIN_QUESTIONS}; collect more of them."
        )
    if len(set(data.ids)) != questions:
        twice = next(name for name in data.ids if data.ids.count(name) > 1)
        raise ClassifierError(f"The question {twice!r} was collected twice; keep one record per question.")
    shape = np.shape(data.correct)
    if (
        len(shape) != 2
        or shape[0] != questions
        or shape[1] < 2
        or np.shape(data.features) != (*shape, len(FEATURE_NAMES))
    ):
        raise ClassifierError(
            f"{questions} questions came with features of shape {np.shape(data.features)} and grades of shape {shape}; "
            f"collect (questions, stages, {len(FEATURE_NAMES)}) and (questions, stages), stage 0 and at least one more."
        )
    for name in ("features", "correct", "cost", "fallback_cost"):
        values = np.asarray(getattr(data, name), dtype=np.float64)
        if values.shape[:2] != shape:
            raise ClassifierError(
                f"`{name}` has shape {values.shape}, but the grades have {shape}; collect all stages."
            )
        missing = np.count_nonzero(~np.isfinite(values.reshape(*shape, -1)), axis=2) > 0
        if missing.any():
            question, stage = np.argwhere(missing)[0]
            lacking = int(np.count_nonzero(missing.any(axis=1)))
            raise ClassifierError(
                f"Question {data.ids[question]!r} has no finite `{name}` at stage {stage} ({lacking} question(s) "
                "lack one); collect every stage of every question, or leave those questions out."
            )
    labels = (np.asarray(data.correct, dtype=np.float64) >= 0.5).astype(np.int64)
    if labels.min() == labels.max():
        raise ClassifierError(
            f"All {labels.size} answers are {'right' if labels.max() else 'wrong'}, so there is nothing to tell apart; "
            f"collect {'harder' if labels.max() else 'easier'} questions."
        )
    return labels


def _report(outcomes: Outcomes, labels: NDArray[np.int64], thresholds: Sequence[float]) -> dict[str, Any]:
    """Per-stage metrics, and accuracy and mean cost of the cascade and of every fixed stage."""
    answered, correct, cost = simulate(outcomes, thresholds)
    stages, fixed = [], []
    for stage in range(labels.shape[1]):
        truth, scores = labels[:, stage], outcomes.scores[:, stage]
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, scores > 0.5, average="binary", zero_division=0.0
        )
        stages.append(
            {
                "stage": stage,
                "share_correct": float(truth.mean()),
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "auc": float(roc_auc_score(truth, scores)) if truth.min() != truth.max() else None,
                "share_answered": float((answered == stage).mean()),
            }
        )
        fixed.append({"stage": stage, **_means(outcomes.correct[:, stage], outcomes.cost[:, stage])})
    return {"stages": stages, "cascade": _means(correct, cost), "fixed": fixed, "always_high": dict(fixed[-1])}


def _means(correct: Floats, cost: Floats) -> dict[str, Any]:
    return {"accuracy": float(correct.mean()), "cost": float(cost.mean())}


def _cross_fitted(outcomes: Outcomes, objective: str, grid: Sequence[float], seed: int) -> dict[str, float | None]:
    """Accuracy and mean cost of thresholds that were each time chosen on the other folds' questions."""
    questions = len(outcomes.scores)
    fold = np.empty(questions, dtype=np.int64)
    fold[stratified_order(outcomes.correct.sum(axis=1), seed)] = np.arange(questions) % FOLDS
    correct, cost = np.empty(questions), np.empty(questions)
    try:
        for held_out in range(FOLDS):
            rest, test = (_part(outcomes, fold != held_out), fold == held_out)
            _, correct[test], cost[test] = simulate(_part(outcomes, test), choose(rest, objective, grid))
    except ClassifierError:
        return {"accuracy_cross_fitted": None, "cost_cross_fitted": None}
    return {"accuracy_cross_fitted": float(correct.mean()), "cost_cross_fitted": float(cost.mean())}


def _part(outcomes: Outcomes, rows: NDArray[np.bool_]) -> Outcomes:
    return Outcomes(outcomes.scores[rows], outcomes.correct[rows], outcomes.cost[rows], outcomes.fallback_cost[rows])
