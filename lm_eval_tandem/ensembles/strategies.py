"""The strategies of an ensemble: how its models are selected for a question, and how their outputs become one answer.

`SELECTIONS` and `AGGREGATIONS` have one row per strategy: its name, what it does, and which options it takes. The
documentation, the checks of the model arguments and the messages about them are made from the same rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["response", "segment", "token"]


@dataclass(frozen=True)
class Strategy:
    """One way of selecting models or of combining what they write.

    Parameters
    ----------
    name
        As it is written in `selection=…` or `aggregation=…`.
    description
        What it does, in one or two sentences, with its source where it has one.
    options
        The model arguments that it takes.
    required
        Those of them that it needs.
    level
        Of an aggregation: whether whole answers, segments or tokens are combined.
    tokens
        Of an aggregation by segments: the tokens of a segment where none are given.
    """

    name: str
    description: str
    options: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    level: Level = "response"
    tokens: int = 0


SELECTIONS = {
    one.name: one
    for one in (
        Strategy("all", "Every model."),
        Strategy(
            "random",
            "`count` models (1), drawn for each question without replacement, from `seed` alone.",
            ("count",),
        ),
        Strategy(
            "zscore",
            "The `count` models that read the question best, compared with how they read others: lower perplexity and "
            "higher confidence, standardised by the statistics of `reference`. Without `count` 3 models where at least "
            "90 % of them have a higher perplexity than their mean, else 2.",
            ("count", "reference"),
            ("reference",),
        ),
        Strategy(
            "self_assessment",
            "The one model that is most confident of solving the question when it is asked: P(Yes) - P(No), less its "
            "mean in `reference` where that is given.",
            ("reference",),
        ),
    )
}
"""Every selection by its name, in the order of the documentation."""

AGGREGATIONS = {
    one.name: one
    for one in (
        Strategy("one", "The first of the selected models answers alone; for a selection of one model."),
        Strategy(
            "vote",
            "Every model answers; the answer that most give is taken, in the words of the first model that gave it. "
            "`extract` finds the answer in a response. Of equally frequent ones, that of the first model counts.",
            ("extract",),
        ),
        Strategy(
            "best_of",
            "Every model answers; the response with the highest score of `scorer` is taken, of equals the first.",
            ("scorer",),
            ("scorer",),
        ),
        Strategy(
            "loop",
            "The models write segments in turn, each going on with the text so far.",
            ("segment_tokens", "segment_end", "max_rounds"),
            level="segment",
            tokens=500,
        ),
        Strategy(
            "random",
            "A model drawn for each segment, from `seed` alone, goes on with the text so far.",
            ("segment_tokens", "segment_end", "max_rounds"),
            level="segment",
            tokens=32,
        ),
        Strategy(
            "reward_based",
            "Every model proposes the next segment; the one with the highest score of `scorer` is taken, of equals the "
            "first. The answer ends where no score reaches `score_threshold`.",
            ("segment_tokens", "segment_end", "max_rounds", "scorer", "score_threshold"),
            ("scorer",),
            level="segment",
            tokens=256,
        ),
        Strategy(
            "average",
            "The mean of the models' next-token probabilities decides each token. They have one vocabulary.",
            level="token",
        ),
        Strategy(
            "distribution",
            "As `average`, each model's probabilities multiplied by its weight.",
            ("weights",),
            ("weights",),
            level="token",
        ),
        Strategy(
            "gac",
            "The mean of the next-token probabilities over the union of the models' vocabularies decides each token "
            "(GaC, Yu et al. 2024, arXiv 2406.12585). With `threshold` the first model decides alone where its top "
            "probability is at least that.",
            ("weights", "threshold"),
            level="token",
        ),
    )
}
"""Every aggregation by its name, in the order of the documentation."""
