"""Replies of a llama-server to requests for token ids, and the statistics of tokens in them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_tandem.engines.entropy import Values, entropy_bounds
from lm_eval_tandem.engines.http.failures import Failure
from lm_eval_tandem.errors import one_line

FIELDS = ("tokens", "stop_type", "timings", "completion_probabilities")
"""What of a reply is read; a server sends far more, the prompt's text among it."""


@dataclass(frozen=True)
class Reply:
    """A server's reply.

    Attributes
    ----------
    tokens
        The generated token ids, end token and stop string included.
    stop_type
        Why it ended: "eos", "limit" or "word".
    cached, read
        Tokens of the prompt that it had computed before, and that it read.
    distributions
        For each generated token the likeliest tokens, where they were requested. The server leaves out tokens after
        which its text ends within a character.
    """

    tokens: list[int]
    stop_type: str
    cached: int
    read: int
    distributions: list[Distribution]

    @classmethod
    def of(cls, reply: Any) -> Reply:
        """Read a reply.

        Raises
        ------
        Failure
            It is none.
        """
        try:
            timings = reply["timings"]
            return cls(
                tokens=[int(token) for token in reply["tokens"]],
                stop_type=str(reply["stop_type"]),
                cached=int(timings["cache_n"]),
                read=int(timings["prompt_n"]),
                distributions=[Distribution.of(entry) for entry in reply.get("completion_probabilities") or ()],
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            shown = one_line(f"{type(error).__name__}: {error}", 200)
            raise Failure(f"the reply is none of a llama-server's /completion ({shown})", retryable=False) from error


@dataclass(frozen=True)
class Distribution:
    """What a model expects at one place: a token with its log-probability, and the likeliest tokens.

    Attributes
    ----------
    token, logprob
        The token that was generated.
    ids
        The likeliest tokens, int64 of shape (K,).
    logprobs
        Theirs, float32 of shape (K,).
    """

    token: int
    logprob: float
    ids: np.ndarray[Any, Any]
    logprobs: Values

    @classmethod
    def of(cls, entry: Mapping[str, Any]) -> Distribution:
        """Read one entry of `completion_probabilities`; null, which stands for NaN, becomes NaN."""
        top = entry["top_logprobs"]
        return cls(
            int(entry["id"]),
            float(entry["logprob"] if entry["logprob"] is not None else math.nan),
            np.array([one["id"] for one in top], dtype=np.int64),
            np.array([one["logprob"] for one in top], dtype=np.float32),
        )

    def logprob_of(self, token: int) -> float | None:
        """The log-probability of a token; None where it is not known."""
        if token == self.token:
            return self.logprob
        place = np.flatnonzero(self.ids == token)
        return float(self.logprobs[place[0]]) if len(place) else None

    def entropy(self, vocabulary: int) -> tuple[float, float]:
        """The entropy in nats over so many tokens, and by how much it may be wrong: 0 where all of them are known."""
        if len(self.ids) < vocabulary:
            least, most = entropy_bounds(self.logprobs[None], vocabulary)
            return float(least[0] + most[0]) / 2, float(most[0] - least[0]) / 2
        logprobs = self.logprobs.astype(np.float64)
        p = np.exp(logprobs)
        return float(-np.where(p > 0, p * logprobs, 0.0).sum()), 0.0
