"""95 % intervals and paired tests: Wilson for shares, bootstrap over questions for the rest, and McNemar."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.digits import apart, settled

Floats = NDArray[np.float64]
Interval = tuple[float, float]

Z = 1.959963984540054
RESAMPLES = 10_000
_AT_ONCE = 500


def wilson(right: float, n: int) -> Interval:
    """The interval of a share of `right` out of n, both ends in [0, 1]."""
    share = right / n
    middle = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return max(0.0, float(apart(middle, half))), min(1.0, middle + half)


def resampled_means(columns: Floats, seed: int = 0) -> Floats:
    """Means of the columns (Q, K) over bootstrap resamples of the Q questions: (resamples, K).

    The resamples depend on Q and the seed alone: columns of the same questions may be given in several calls, and
    figures made of their means are paired all the same.
    """
    drawn = _drawn(len(columns), seed)
    means = np.empty((RESAMPLES, columns.shape[1]))
    for start in range(0, RESAMPLES, _AT_ONCE):
        means[start : start + _AT_ONCE] = drawn[start : start + _AT_ONCE].astype(np.float64) @ columns
    return means / len(columns)


@lru_cache(maxsize=2)
def _drawn(n: int, seed: int) -> NDArray[np.uint8]:
    """How often each of n questions is drawn in each resample: (resamples, n). More than 255 times never happens."""
    rng = np.random.default_rng(seed)
    counts = np.empty((RESAMPLES, n), dtype=np.uint8)
    rows = n * np.arange(_AT_ONCE)[:, None]
    for start in range(0, RESAMPLES, _AT_ONCE):
        places = rng.integers(0, n, (_AT_ONCE, n)) + rows
        counts[start : start + _AT_ONCE] = np.bincount(places.ravel(), minlength=n * _AT_ONCE).reshape(_AT_ONCE, n)
    return counts


def difference(a: Floats, b: Floats) -> Interval:
    """Of mean(a) - mean(b), for two figures of the same questions."""
    means = resampled_means(np.stack([a, b], axis=1))
    return span(apart(means[:, 0], means[:, 1]))


def ratio(a: Floats, b: Floats) -> Interval:
    """Of mean(a) / mean(b), for two figures of the same questions."""
    means = resampled_means(np.stack([a, b], axis=1))
    return span(means[:, 0] / means[:, 1])


def span(values: Floats) -> Interval:
    """The middle 95 %."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)


def mcnemar(a: Floats, b: Floats) -> float | None:
    """The exact two-sided p of McNemar's test: are a and b, 0 or 1 for the same questions, right equally often?

    None where a grade is neither 0 nor 1.
    """
    a, b = settled(a), settled(b)
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        return None
    only_a, only_b = int(np.sum((a == 1) & (b == 0))), int(np.sum((a == 0) & (b == 1)))
    n = only_a + only_b
    logs = [math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(min(only_a, only_b) + 1)]
    tail = math.fsum(math.exp(value - n * math.log(2)) for value in logs)
    return min(1.0, 2 * tail)


def auc(truth: Floats, scores: Floats) -> float | None:
    """Area under the ROC curve: how often a right answer scores higher than a wrong one. None if all are alike."""
    # ties count half, so scores that differ in their last bits alone have to tie on every machine
    positive, scores = settled(truth) >= 0.5, settled(scores)
    n, m = int(positive.sum()), int((~positive).sum())
    if not n or not m:
        return None
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(count) - (count - 1) / 2)[place]
    return float((ranks[positive].sum() - n * (n + 1) / 2) / (n * m))
