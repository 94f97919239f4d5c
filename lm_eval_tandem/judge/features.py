"""The paper's 18 features of a prompt: statistics of perplexity and entropy (section 2.4, Eq. 3 to 5). Numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines import TokenStats

SCHEMA = "statistics-18/1"
"""Name and version of what `features` returns; a classifier fitted on one schema refuses to judge another."""

_STATISTICS = ("mean", "std", "median", "max", "min", "p25", "p75")

FEATURE_NAMES: tuple[str, ...] = (
    *(f"{statistic}_ppl" for statistic in _STATISTICS),
    *(f"{statistic}_entropy" for statistic in _STATISTICS),
    "trend_ppl",
    "trend_entropy",
    "tokens",
    "stage",
)
"""The 18 entries of a feature vector, in order."""

TREND_TOKENS = 20
"""Tokens at each end of the prompt that the trend compares (fewer where the prompt is shorter)."""

_MAX_EXPONENT = 80.0
"""A token's perplexity is capped at exp(80) = 5.5e34, so that means and deviations stay finite, in float32 too."""


def features(stats: TokenStats, stage: int) -> NDArray[np.float64]:
    """The feature vector f_t of a prompt x_t, from the intern's pass over it.

    Parameters
    ----------
    stats
        Natural log-probability and entropy (nats) of each of the n tokens. Entry 0 may be NaN, because no token stands
        before it; it is then left out of every statistic, but the token count includes it.
    stage
        The effort level t, 0 for the question alone.

    Returns
    -------
    NDArray[numpy.float64]
        Shape (18,), all finite, in the order of `FEATURE_NAMES`.

    Raises
    ------
    ValueError
        The prompt has fewer than two tokens, the arrays differ in length, a later token is NaN, an entropy is infinite,
        or the stage is negative.

    Notes
    -----
    Seven statistics of PPL_i = exp(-logprob_i), the same seven of the entropies H_i, the trend of both, n, and t.
    Standard deviations are those of the population, percentiles interpolate linearly. A trend is the mean of the last k
    minus the mean of the first k defined tokens, k = min(20, number of defined tokens). A log-probability below -80,
    -inf included, counts as -80.
    """
    logprob = np.asarray(stats.logprob, dtype=np.float64)
    entropy = np.asarray(stats.entropy, dtype=np.float64)
    if stage < 0:
        raise ValueError(f"Stage {stage} was given; stages count from 0 (the question alone), so pass 0 or more.")
    if logprob.ndim != 1 or logprob.shape != entropy.shape:
        raise ValueError(
            f"Token statistics have shapes {logprob.shape} (logprob) and {entropy.shape} (entropy); both must be (n,), "
            "one entry per token, so correct the engine's score()."
        )
    tokens = len(logprob)
    if tokens < 2:
        raise ValueError(
            f"A prompt of {tokens} token(s) was given to the judge; it needs at least 2, because the first has nothing "
            "before it, so check that the rendered prompt is not empty."
        )
    first = int(np.isnan(logprob[0]) or np.isnan(entropy[0]))
    logprob, entropy = logprob[first:], entropy[first:]
    broken = ~(logprob < np.inf) | ~np.isfinite(entropy)
    if broken.any():
        raise ValueError(
            f"Token {first + int(broken.argmax())} of {tokens} has no finite statistics; only token 0 "
            "may be undefined, so check the intern's logits for NaN (often a dtype that overflows)."
        )
    perplexity = np.exp(np.minimum(-logprob, _MAX_EXPONENT))
    return np.array(
        [*_summary(perplexity), *_summary(entropy), _trend(perplexity), _trend(entropy), tokens, stage],
        dtype=np.float64,
    )


def segment_statistics(stats: TokenStats, question: int) -> NDArray[np.float64]:
    """Statistics of question and insights apart, and means by position; recorded for ablations only.

    Parameters
    ----------
    stats
        As for `features`.
    question
        The number of leading tokens that belong to the question.

    Returns
    -------
    NDArray[numpy.float64]
        Shape (36,), all finite: the seven statistics of PPL and of H for the question (14), the same for what follows
        it (14, zeros if nothing does), then the means of PPL and of H over each quarter of the prompt (8).
    """
    known = ~(np.isnan(stats.logprob) | np.isnan(stats.entropy))
    perplexity = np.exp(np.minimum(-np.asarray(stats.logprob, dtype=np.float64)[known], _MAX_EXPONENT))
    entropy = np.asarray(stats.entropy, dtype=np.float64)[known]
    border = max(1, question - int((~known).sum()))
    result: list[float] = []
    for segment in (slice(0, border), slice(border, None)):
        for values in (perplexity[segment], entropy[segment]):
            result += _summary(values) if len(values) else [0.0] * len(_STATISTICS)
    for values in (perplexity, entropy):
        result += [float(quarter.mean()) if len(quarter) else 0.0 for quarter in np.array_split(values, 4)]
    return np.array(result)


def _summary(values: NDArray[np.float64]) -> list[float]:
    """Mean, population standard deviation, median, max, min, 25th and 75th percentile."""
    p25, median, p75 = np.percentile(values, (25, 50, 75))
    return [values.mean(), values.std(), median, values.max(), values.min(), p25, p75]


def _trend(values: NDArray[np.float64]) -> float:
    """Mean of the last k minus mean of the first k values, k = min(20, len(values))."""
    k = min(TREND_TOKENS, len(values))
    return float(values[-k:].mean() - values[:k].mean())
