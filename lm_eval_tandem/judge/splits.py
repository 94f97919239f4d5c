"""Splitting questions into parts: stratified by difficulty, all rows of a question in the same part."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_tandem.errors import ClassifierError


def stratified_order(positives: ArrayLike, seed: int) -> NDArray[np.int64]:
    """The questions ordered by difficulty, at random among equals; taking every n-th makes parts of like difficulty.

    Parameters
    ----------
    positives
        The number of positive labels of each question, shape (Q,).
    seed
        Of the random order among questions with equally many.

    Returns
    -------
    NDArray[numpy.int64]
        A permutation of 0..Q-1.
    """
    counts = np.asarray(positives)
    return np.lexsort((np.random.default_rng(seed).random(len(counts)), counts))


def stratified_folds(positives: ArrayLike, folds: int, seed: int) -> NDArray[np.int64]:
    """The fold of each question, from 0 to folds - 1; all folds are alike in difficulty and of like size.

    Parameters
    ----------
    positives, seed
        As for `stratified_order`.
    folds
        The number of folds.
    """
    order = stratified_order(positives, seed)
    fold = np.empty(len(order), dtype=np.int64)
    fold[order] = np.arange(len(order)) % folds
    return fold


def validation_rows(
    labels: ArrayLike, groups: ArrayLike | None, fraction: float = 0.3, seed: int = 42
) -> NDArray[np.bool_]:
    """Choose the validation part of N rows: stratified, and whole questions only.

    Parameters
    ----------
    labels
        0 or 1, shape (N,).
    groups
        The question of each row, shape (N,); None if every row is a question of its own.
    fraction
        The share of the questions to choose, in (0, 1).
    seed
        Of the random order among questions of like difficulty.

    Returns
    -------
    NDArray[numpy.bool_]
        Shape (N,), True for the rows of the validation part.

    Raises
    ------
    ClassifierError
        `groups` does not have one entry per row.
    """
    positive = np.asarray(labels, dtype=np.int64)
    row_groups = np.arange(len(positive)) if groups is None else np.asarray(groups)
    if row_groups.shape != positive.shape:
        raise ClassifierError(f"{row_groups.shape} groups were given for {positive.shape} labels; give one per row.")
    names, question = np.unique(row_groups, return_inverse=True)
    order = stratified_order(np.bincount(question, weights=positive), seed)
    steps = np.floor((np.arange(len(names) + 1) + 0.5) * fraction)
    held_out = np.zeros(len(names), dtype=bool)
    held_out[order] = np.diff(steps) > 0
    return held_out[question]
