"""Figures free of optimism: scores and thresholds, each of them learned on other questions than it is applied to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import has_fit_parameter

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.splits import stratified_folds
from lm_eval_tandem.training.outcomes import Outcomes, simulate

Floats = NDArray[np.float64]
Choose = Callable[[Outcomes], Sequence[float]]
"""Chooses thresholds, one per stage."""
Judge = Callable[[NDArray[np.bool_]], Outcomes]
"""The outcomes of all questions, under a judge that was chosen without those of the mask (Q,)."""

FOLDS = 5


def fit_by_question(classifier: Any, X: Floats, y: NDArray[np.int64], groups: NDArray[np.int64]) -> Any:
    """Fit a classifier, telling it the question of each row if its `fit` takes `groups`."""
    return classifier.fit(X, y, **({"groups": groups} if has_fit_parameter(classifier, "groups") else {}))


def out_of_fold(
    make_classifier: Callable[[], Any],
    X: ArrayLike,
    y: ArrayLike,
    folds: int = FOLDS,
    seed: int = 42,
    fitted_on: NDArray[np.bool_] | None = None,
) -> Floats:
    """Scores for every question, from a classifier fitted on the questions of the other folds only.

    Parameters
    ----------
    make_classifier
        Returns a new classifier with scikit-learn's interface. The question of each row is passed to its `fit` as
        `groups` if it takes them.
    X
        Features, (Q, T, F).
    y
        Labels 0 or 1, (Q, T).
    folds
        The number of folds, from 2 to Q. They hold whole questions, and are alike in their share of label 1.
    seed
        Of the split.
    fitted_on
        bool (Q, T): the questions and stages that classifiers may be fitted on; None for all.

    Returns
    -------
    NDArray[numpy.float64]
        Shape (Q, T): the probability of label 1.

    Raises
    ------
    ClassifierError
        The shapes do not fit together, or there are fewer questions than folds.
    """
    inputs, labels = np.asarray(X, dtype=np.float64), np.asarray(y).astype(np.int64)
    if inputs.ndim != 3 or labels.shape != inputs.shape[:2]:
        raise ClassifierError(
            f"out_of_fold got X of shape {inputs.shape} and y of shape {labels.shape}; give (questions, stages, "
            "features) and (questions, stages)."
        )
    questions, stages = labels.shape
    if not 2 <= folds <= questions:
        raise ClassifierError(f"{folds} folds were requested for {questions} questions; give from 2 to {questions}.")
    fold = stratified_folds(labels.sum(axis=1), folds, seed)
    scores = np.empty((questions, stages))
    for held_out in range(folds):
        test = np.flatnonzero(fold == held_out)
        train = np.repeat((fold != held_out)[:, None], stages, axis=1)
        if fitted_on is not None:
            train &= fitted_on
        classifier = make_classifier()
        fit_by_question(classifier, inputs[train], labels[train], np.nonzero(train)[0])
        sufficient = list(classifier.classes_).index(1)
        probabilities = classifier.predict_proba(inputs[test].reshape(-1, inputs.shape[2]))[:, sufficient]
        scores[test] = probabilities.reshape(len(test), stages)
    return scores


def cross_fitted_thresholds(outcomes: Outcomes, choose: Choose, fold: NDArray[np.int64]) -> Floats:
    """For each question, thresholds (Q, T) that were chosen on the questions of the other folds.

    Parameters
    ----------
    outcomes, choose
        As for `cross_fitted_outcomes`.
    fold
        The fold (Q,) of each question, from `folds`.

    Raises
    ------
    ClassifierError
        No thresholds reach the objective on some of the folds.
    """
    limits = np.empty(outcomes.scores.shape)
    for number in range(FOLDS):
        limits[fold == number] = choose(outcomes.subset(fold != number))
    return limits


def cross_fitted_outcomes(
    outcomes: Outcomes, choose: Choose, seed: int, judge_without: Judge | None = None
) -> tuple[Floats, Floats]:
    """Grade and cost of each question, under thresholds chosen on the questions of the other folds.

    Parameters
    ----------
    outcomes
        The questions, their scores out of sample.
    choose
        Chooses the thresholds (`Recipe.choose` for some objective).
    seed
        Of the split; with that of `out_of_fold` the folds are the same.
    judge_without
        Gives the outcomes under what else is chosen without a fold; None if nothing is, and `outcomes` hold everywhere.

    Returns
    -------
    tuple[NDArray[numpy.float64], NDArray[numpy.float64]]
        Shape (Q,) each.

    Raises
    ------
    ClassifierError
        No thresholds reach the objective on some of the folds.
    """
    questions = len(outcomes.scores)
    fold = folds(outcomes, seed)
    correct, cost = np.empty(questions), np.empty(questions)
    for number in range(FOLDS):
        held_out = fold == number
        judged = outcomes if judge_without is None else judge_without(held_out)
        thresholds = choose(judged.subset(~held_out))
        _, correct[held_out], cost[held_out] = simulate(judged.subset(held_out), thresholds)
    return correct, cost


def folds(outcomes: Outcomes, seed: int) -> NDArray[np.int64]:
    """The fold (Q,) of each question; with the seed of `out_of_fold` those that its scores were made in."""
    return stratified_folds((outcomes.correct >= 0.5).sum(axis=1), FOLDS, seed)
