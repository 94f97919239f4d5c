"""Which questions go into which part: stratified by how hard they are, and always whole questions."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lm_eval_tandem.errors import ClassifierError


def stratified_order(positives: ArrayLike, seed: int) -> NDArray[np.int64]:
    """An order of questions, by their number of positive labels (Q,) and random within it.

    Taking every n-th of it makes parts that are alike in how hard their questions are.
    """
    counts = np.asarray(positives)
    return np.lexsort((np.random.default_rng(seed).random(len(counts)), counts))


def validation_rows(
    labels: ArrayLike, groups: ArrayLike | None, fraction: float = 0.3, seed: int = 42
) -> NDArray[np.bool_]:
    """Which of N rows belong to the validation part: stratified, and whole questions only.

    labels: 0 or 1, shape (N,); groups: the question of each row, or None for rows that stand alone.
    Returns bool of shape (N,); about `fraction` of the questions are True.
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
