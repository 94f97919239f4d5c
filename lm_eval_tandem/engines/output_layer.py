"""Output layers that are the input layer once more: some files hold one matrix twice, rounded in two ways."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SAMPLED_ROWS = 32
SAME_CORRELATION = 0.9
"""Two roundings of one layer correlate by more than this, two different layers by far less."""


def sampled_rows(rows: int) -> NDArray[np.int64]:
    """The numbers of the rows of a matrix by which `is_repeated` can tell, spread over all of them."""
    return np.linspace(0, rows - 1, min(SAMPLED_ROWS, rows)).astype(np.int64)


def is_repeated(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    """Whether two layers are the same but for rounding, by the same rows of both.

    Examples
    --------
    >>> rows = np.array([[0.25, -1.5], [2.0, 0.125]], np.float32)
    >>> is_repeated(rows, rows.round(1)), is_repeated(rows, rows[::-1])
    (True, False)
    """
    norms = float(np.linalg.norm(one) * np.linalg.norm(other))
    return norms > 0 and float((one * other).sum()) / norms > SAME_CORRELATION
