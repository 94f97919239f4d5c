"""The 18 statistics by which the judge sees a prompt (paper, section 2.4 and Eq. 3-5). Numpy only."""

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
"""exp(80) = 5.5e34: a token's perplexity stops there, so that means and deviations stay finite, in float32 too."""


def features(stats: TokenStats, stage: int) -> NDArray[np.float64]:
    """The feature vector f_t of a prompt x_t of n tokens, read by the intern.

    stats: natural log-probability and entropy (nats) per token, arrays of length n. Entry 0 may be NaN (no token
        before it) and is then left out of every statistic; the token count still includes it.
    stage: the effort level t >= 0 (0 = the question alone).

    Returns float64 of shape (18,), all finite, in the order of `FEATURE_NAMES`: seven statistics of PPL_i =
    exp(-logprob_i), the same seven of H_i in nats (standard deviations are those of the population, percentiles
    interpolate linearly), the trends (mean of the last k minus mean of the first k defined tokens, k = min(20, number
    of defined tokens)), n, and t. A log-probability below -80, -inf included, counts as -80.

    Raises ValueError for a prompt of fewer than two tokens, arrays of unequal length, a NaN after the first token, an
    infinite entropy, or a negative stage.
    """
    logprob = np.asarray(stats.logprob, dtype=np.float64)
    entropy = np.asarray(stats.entropy, dtype=np.float64)
    if stage < 0:
        raise ValueError(f"Stage {stage} was given; stages count from 0 (the question alone), so pass 0 or more.")
    if logprob.ndim != 1 or logprob.shape != entropy.shape:
        raise ValueError(
            f"Token statistics have shapes {logprob.shape} (logprob) and {entropy.shape} (entropy); both must be (n,), "
            "one entry per token, so mend the engine's score()."
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


def parts(stats: TokenStats, question: int) -> NDArray[np.float64]:
    """Statistics of question and insights apart, and by position: float64 (36,), all finite. For ablations only.

    question: leading tokens of the prompt that belong to the question. The seven statistics of PPL and of H (as in
    `features`) of the question and then of what follows (zeros where nothing does), then the means of both over each
    quarter of the prompt.
    """
    known = ~(np.isnan(stats.logprob) | np.isnan(stats.entropy))
    perplexity = np.exp(np.minimum(-np.asarray(stats.logprob, dtype=np.float64)[known], _MAX_EXPONENT))
    entropy = np.asarray(stats.entropy, dtype=np.float64)[known]
    border = max(1, question - int((~known).sum()))
    found: list[float] = []
    for part in (slice(0, border), slice(border, None)):
        for values in (perplexity[part], entropy[part]):
            found += _summary(values) if len(values) else [0.0] * len(_STATISTICS)
    for values in (perplexity, entropy):
        found += [float(quarter.mean()) if len(quarter) else 0.0 for quarter in np.array_split(values, 4)]
    return np.array(found)


def _summary(values: NDArray[np.float64]) -> list[float]:
    """Mean, population standard deviation, median, max, min, 25th and 75th percentile."""
    p25, median, p75 = np.percentile(values, (25, 50, 75))
    return [values.mean(), values.std(), median, values.max(), values.min(), p25, p75]


def _trend(values: NDArray[np.float64]) -> float:
    """Mean of the last k minus mean of the first k values, k = min(20, len(values))."""
    k = min(TREND_TOKENS, len(values))
    return float(values[-k:].mean() - values[:k].mean())
