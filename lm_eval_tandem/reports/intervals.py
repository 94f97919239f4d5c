"""Statistics of a report: 95 % confidence intervals (Wilson, DeLong, bootstrap), McNemar's test and the area under ROC.

Every comparison of two runs is paired: both answered the same questions. Inputs that are compared or ranked are rounded
first (`digits.without_last_bits`), so that the last bits of a float, which differ between processors, decide nothing.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest, norm
from sklearn.metrics import roc_auc_score

from lm_eval_tandem.digits import mean, subtract, without_last_bits
from lm_eval_tandem.training.bootstrap import Interval, central_interval, difference_interval, resampled_means

Floats = NDArray[np.float64]

Z = float(norm.ppf(0.975))
"""Half the width of a normal 95 % interval, in standard deviations: 1.96."""


def wilson(correct: float, n: int) -> Interval:
    """Return Wilson's 95 % interval of a proportion.

    Parameters
    ----------
    correct
        Sum of the grades, in [0, n]; fractional where grades are partial credit.
    n
        Number of questions.

    Returns
    -------
    tuple of float
        Both ends, in [0, 1].

    Notes
    -----
    For whole counts this is `scipy.stats.binomtest(correct, n).proportion_ci(method="wilson")`. It is computed
    here because SciPy accepts whole counts only, while a task's grades may lie between 0 and 1.

    Examples
    --------
    >>> low, high = wilson(50, 100)
    >>> round(low, 3), round(high, 3)
    (0.404, 0.596)
    """
    if correct == n:
        return n / (n + Z**2), 1.0  # what the formula below is then, without the last bits of its sum
    proportion = correct / n
    centre = (proportion + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(proportion * (1 - proportion) / n + Z**2 / (4 * n**2))
    return max(0.0, float(subtract(centre, half))), min(1.0, centre + half)


def difference(a: Floats, b: Floats) -> Interval:
    """Return the 95 % interval of mean(a) - mean(b), for two grades (Q,) of the same questions."""
    means = resampled_means(np.stack([a, b], axis=1))
    return difference_interval(a, b, subtract(means[:, 0], means[:, 1]))


def ratio(a: Floats, b: Floats) -> Interval:
    """Return the 95 % interval of mean(a) / mean(b), for two figures (Q,) of the same questions."""
    means = resampled_means(np.stack([a, b], axis=1))
    return central_interval(means[:, 0] / means[:, 1])


def mcnemar(a: Floats, b: Floats) -> float | None:
    """Return the two-sided p value of McNemar's exact test that two runs are correct equally often.

    Parameters
    ----------
    a, b
        Grades (Q,) of two runs on the same questions, 0 or 1 each.

    Returns
    -------
    float or None
        None if some grade is neither 0 nor 1.
    """
    a, b = without_last_bits(a), without_last_bits(b)
    if not np.isin(np.concatenate([a, b]), (0.0, 1.0)).all():
        return None
    only_a, only_b = int(np.sum((a == 1) & (b == 0))), int(np.sum((a == 0) & (b == 1)))
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b).pvalue)


def auc(correct: Floats, scores: Floats) -> float | None:
    """Return the area under the ROC curve: the chance that a correct answer scores higher than a wrong one.

    Parameters
    ----------
    correct
        Grades (Q,) in [0, 1]; from 0.5 on an answer counts as correct.
    scores
        Scores (Q,). Scores that differ in their last bits only count as ties, and a tie counts half.

    Returns
    -------
    float or None
        None if all answers are correct or all are wrong.
    """
    positive = without_last_bits(correct) >= 0.5
    if positive.all() or not positive.any():
        return None
    return float(roc_auc_score(positive, without_last_bits(scores)))


def auc_interval(correct: Floats, scores: Floats) -> Interval:
    """Return the 95 % interval of `auc` by DeLong's variance, clipped to [0, 1]; takes what `auc` takes."""
    positive, scores = without_last_bits(correct) >= 0.5, without_last_bits(scores)
    # for each correct answer the share of wrong ones that score lower, and for each wrong one the share of correct ones
    # that score higher: the two sets of components of DeLong, DeLong and Clarke-Pearson (1988)
    below = share_below(scores[positive], scores[~positive])
    above = 1 - share_below(scores[~positive], scores[positive])
    variance = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.0 for part in (below, above))
    centre, half = mean(below), Z * math.sqrt(variance)
    return max(0.0, float(subtract(centre, half))), min(1.0, centre + half)


def share_below(values: Floats, others: Floats) -> Floats:
    """Return for each value the share of the others that are lower, ties counting half."""
    ordered = np.sort(others)
    lower, not_higher = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return np.asarray((lower + not_higher) / 2 / len(others), dtype=np.float64)
