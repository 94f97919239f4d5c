"""Bootstrap over questions: the intervals of reports and of `lm-eval-tandem thresholds`."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.digits import subtract, without_last_bits

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


def mean_interval(values: Floats, resampled: Floats, low: float, high: float) -> Interval:
    """Return the 95 % interval of the mean of a figure that has bounds, such as a grade or a difference of two.

    It is that of the bootstrap, unless all values are equal: then every resample has the same mean, and the bootstrap
    would claim that there is no doubt, even of five questions.

    Parameters
    ----------
    values
        Float64 (Q,), the figure per question.
    resampled
        Float64 (`RESAMPLES`,), its means over resamples (`resampled_means`).
    low, high
        What the figure can be: 0 and 1 for grades, -1 and 1 for differences of grades.

    Notes
    -----
    Of Q questions none had another value v. So at most a share u = 1 - 0.025^(1/Q) of all such questions has another
    one: the upper end of the exact binomial interval for 0 of Q (Clopper and Pearson, Biometrika 26, 1934). At the
    worst these have the lowest or the highest value, which makes the interval from v - u (v - low) to v + u (high - v).

    Examples
    --------
    Ten questions of which each was answered alike by both of two policies:

    >>> same = np.zeros(10)
    >>> [round(end, 3) for end in mean_interval(same, resampled_means(same[:, None])[:, 0], -1, 1)]
    [-0.308, 0.308]
    """
    rounded = without_last_bits(values)
    value = float(rounded[0])
    if not (rounded == value).all() or not low <= value <= high:
        return central_interval(resampled)
    others = 1 - 0.025 ** (1 / len(values))
    return value - others * (value - low), value + others * (high - value)


def difference_interval(a: Floats, b: Floats, resampled: Floats) -> Interval:
    """Return the 95 % interval of mean(a) - mean(b), for two grades (Q,) of the same questions.

    Parameters
    ----------
    a, b
        The grades. Where some lie outside of 0 to 1, the interval is that of the bootstrap alone.
    resampled
        Float64 (`RESAMPLES`,), the differences of both means over the same resamples.
    """
    grades = without_last_bits(np.concatenate([a, b]))
    if grades.min() < 0 or grades.max() > 1:
        return central_interval(resampled)
    return mean_interval(subtract(a, b), resampled, -1.0, 1.0)


def central_interval(values: Floats) -> Interval:
    """Return the central 95 % of some values: their quantiles at 2.5 % and 97.5 %."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
