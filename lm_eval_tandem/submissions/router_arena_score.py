"""RouterArena's figures of a router: score from accuracy and dollars, robustness, and the costs of its evaluator.

The formulas are those of the paper (arXiv 2510.00202), and of `llm_evaluation/run.py` and `global_utils/robustness.py`
in the repository RouteWorks/RouterArena.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_tandem.accounting import MILLION
from lm_eval_tandem.digits import mean, total

BETA = 0.1
"""Weight of cost against accuracy."""
CHEAPEST, DEAREST = 0.0044, 200.0
"""Dollars per 1,000 prompts between which costs are compared; others count as the nearer of the two."""

Row = Mapping[str, Any]
"""A row of a predictions file."""


def score(accuracy: float, dollars_per_1000: float) -> float:
    """The score S of a router, in [0, 1].

    Parameters
    ----------
    accuracy
        The mean over all prompts, in [0, 1].
    dollars_per_1000
        The mean cost of 1,000 prompts, more than 0.

    Examples
    --------
    GPT-5 alone on the leaderboard of July 2026: 73.96 % for 10.02 dollars are 64.32 points.

    >>> round(100 * score(0.7396, 10.02), 2)
    64.32
    """
    cost = min(max(dollars_per_1000, CHEAPEST), DEAREST)
    cheapness = math.log2(DEAREST / cost) / math.log2(DEAREST / CHEAPEST)
    if not accuracy:
        return 0.0
    return (1 + BETA) * accuracy * cheapness / (BETA * accuracy + cheapness)


def dollars_per_1000(rows: Sequence[Row]) -> float:
    """The mean cost of 1,000 prompts, by the rows' own costs."""
    return 1000 * total([row["cost"] for row in rows]) / len(rows)


def accuracy(rows: Sequence[Row]) -> float | None:
    """The mean accuracy; a row without an answer counts as wrong. None where answers were not graded."""
    if any(row["accuracy"] is None for row in rows):
        return None
    return mean([row["accuracy"] if row["generated_result"]["success"] else 0.0 for row in rows])


def robustness(rows: Sequence[Row], rephrased: Sequence[Row]) -> float | None:
    """The share of rephrased prompts for which the same model is named as for the original; None without any."""
    chosen = {row["global index"]: row["prediction"] for row in rows}
    same = [
        float(chosen[row["global index"]] == row["prediction"]) for row in rephrased if row["global index"] in chosen
    ]
    return mean(same) if same else None


def recomputed(row: Row, prices: Mapping[str, tuple[float, float]]) -> float:
    """The dollars that RouterArena's evaluator computes of a row: all its tokens at the price of its `prediction`.

    Parameters
    ----------
    row
        The row.
    prices
        Dollars per million prompt tokens and generated tokens, by model.
    """
    usage = row["generated_result"]["token_usage"]
    prompt, generated = prices[row["prediction"]]
    return float(usage["input_tokens"] * prompt + usage["output_tokens"] * generated) / MILLION
