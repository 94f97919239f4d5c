"""Bootstrap over questions: the intervals of reports and of `lm-eval-tandem thresholds`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

RESAMPLES = 10_000
"""Bootstrap resamples behind every interval."""
_BATCH = 500
"""Resamples drawn at a time, which bounds the memory that drawing takes."""


def resampled_means(columns: Floats, seed: int = 0) -> Floats:
    """Return the means of several per-question figures over bootstrap resamples of the questions.

    Parameters
    ----------
    columns
        Float64 (Q, K): K figures of the same Q questions.
    seed
        Seed of the resampling. The resamples depend on Q and the seed alone, so results of several calls on the same
        questions are paired with each other.

    Returns
    -------
    ndarray
        Float64 (`RESAMPLES`, K).
    """
    counts = _resample_counts(len(columns), seed)
    means = np.empty((RESAMPLES, columns.shape[1]))
    for start in range(0, RESAMPLES, _BATCH):
        means[start : start + _BATCH] = counts[start : start + _BATCH].astype(np.float64) @ columns
    return means / len(columns)


@lru_cache(maxsize=2)
def _resample_counts(n: int, seed: int) -> NDArray[np.uint8]:
    """Return how many times each resample draws each of n questions: (`RESAMPLES`, n)."""
    rng = np.random.default_rng(seed)
    # uint8 suffices: that one question is drawn more than 255 times in a resample does not happen
    counts = np.empty((RESAMPLES, n), dtype=np.uint8)
    row_offsets = n * np.arange(_BATCH)[:, None]
    for start in range(0, RESAMPLES, _BATCH):
        drawn = rng.integers(0, n, (_BATCH, n)) + row_offsets
        counts[start : start + _BATCH] = np.bincount(drawn.ravel(), minlength=n * _BATCH).reshape(_BATCH, n)
    return counts


def central_interval(values: Floats) -> Interval:
    """Return the central 95 % of some values: their quantiles at 2.5 % and 97.5 %."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
