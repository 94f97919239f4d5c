"""The decision rule of the cascade: when a stage passes, and which stage answers when none does (paper, Algorithm 1).

`cascade.algorithm` applies it to one question at a time, `training.outcomes.simulate` to arrays of collected
questions; both call the two functions below, so the package has the rule here and nowhere else.
(`threshold_grid.evaluate` counts which scores pass in histograms, for speed, and calls `fallback_stage`.) The tests
repeat the rule in words of their own: `tests/judge/test_decision.py`, `tests/cascade/test_algorithm.py`,
`tests/training/test_thresholds.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike


def passes(score: ArrayLike, threshold: ArrayLike) -> Any:
    """Whether the insight of a stage is sufficient: "if s_t > tau_t, the mentor stops and the intern answers".

    The comparison is strict: a score equal to its threshold does not pass.

    Parameters
    ----------
    score
        s_t of Eq. 8 in [0, 1]; one number, or an array of any shape.
    threshold
        tau_t in [0, 1], of a shape that broadcasts against `score`.

    Returns
    -------
    numpy.bool_ or NDArray[numpy.bool_]
        True where the stage passes, of the broadcast shape.

    Examples
    --------
    >>> bool(passes(0.7, 0.5)), bool(passes(0.5, 0.5))
    (True, False)
    """
    return np.greater(score, threshold)


def fallback_stage(scores: ArrayLike) -> Any:
    """The stage that answers when no stage passed: "t* = argmax_t s_t".

    Equal scores go to the earliest stage, which cost the fewest mentor tokens.

    Parameters
    ----------
    scores
        The scores of the judged stages from stage 0 on, along the last axis: shape (T,) for one question, (Q, T) for
        several.

    Returns
    -------
    numpy.int64 or NDArray[numpy.int64]
        The index of the highest score, without the last axis: one number, or shape (Q,).

    Examples
    --------
    >>> int(fallback_stage([0.1, 0.4, 0.4, 0.2]))
    1
    """
    return np.argmax(scores, axis=-1)
