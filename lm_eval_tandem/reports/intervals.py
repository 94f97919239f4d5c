"""95 % intervals: Wilson's for a share, paired bootstrap over questions for differences and ratios."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

Z = 1.959963984540054
RESAMPLES = 10_000


def wilson(right: float, n: int) -> Interval:
    """The interval of a share of `right` out of n, both ends in [0, 1]."""
    share = right / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def resampled_means(columns: Floats, seed: int = 0) -> Floats:
    """Means of the columns (Q, K) over bootstrap resamples of the Q questions: (resamples, K)."""
    rng = np.random.default_rng(seed)
    n = len(columns)
    means = np.empty((RESAMPLES, columns.shape[1]))
    for i in range(RESAMPLES):
        means[i] = columns[rng.integers(0, n, n)].mean(axis=0)
    return means


def difference(a: Floats, b: Floats) -> Interval:
    """Of mean(a) - mean(b), for two figures of the same questions."""
    return span(resampled_means((a - b)[:, None])[:, 0])


def ratio(a: Floats, b: Floats) -> Interval:
    """Of mean(a) / mean(b), for two figures of the same questions."""
    means = resampled_means(np.stack([a, b], axis=1))
    return span(means[:, 0] / means[:, 1])


def span(values: Floats) -> Interval:
    """The middle 95 %."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
