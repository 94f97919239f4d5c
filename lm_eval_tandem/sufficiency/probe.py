"""The probe: the judge also sees how sure the intern is while it begins its answer. Beyond the paper. Numpy only.

An accepted probe costs nothing, because the answer goes on from its tokens; a refused one costs its tokens.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError

PROBE_NAMES: tuple[str, ...] = (
    "probe_tokens",
    "probe_ended",
    "probe_doubted",
    "probe_first_entropy",
    "probe_mean_entropy",
    "probe_last_entropy",
    "probe_max_entropy",
    "probe_second_entropy",
    "probe_max_position",
    "probe_unsure_tokens",
    "probe_first_logprob",
    "probe_mean_logprob",
    "probe_min_logprob",
)
"""What `statistics` returns, in order."""

KEPT = 512
"""Tokens of an answer whose log-probabilities and entropies are collected: no probe is longer."""

UNSURE = 0.5
"""Nats of entropy from which on a token counts as unsure; a coin's toss has 0.69."""


@dataclass(frozen=True)
class Probe:
    """How far the intern begins its answer before it is judged.

    tokens: at most so many. doubt: nats; after the first token with a higher entropy no further piece is begun
    (infinite: never). piece: tokens generated at once, between which it is looked for doubt.
    """

    tokens: int
    doubt: float = math.inf
    piece: int = 8

    def __post_init__(self) -> None:
        for name in ("tokens", "piece"):
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= KEPT:
                raise ClassifierError(f"A probe's {name} must be a whole number from 1 to {KEPT}, not {value!r}.")
        if not isinstance(self.doubt, (int, float)) or not self.doubt > 0:
            raise ClassifierError(f"A probe's doubt must be a positive number of nats, not {self.doubt!r}.")

    @classmethod
    def read(cls, given: dict[str, Any]) -> Probe:
        """A probe from the JSON that `spelled` makes; raises ClassifierError for anything else."""
        if not isinstance(given, dict) or set(given) != {"tokens", "doubt", "piece"}:
            raise ClassifierError(f"A probe is described by tokens, doubt and piece, not by {given!r}.")
        return cls(given["tokens"], math.inf if given["doubt"] is None else given["doubt"], given["piece"])

    def spelled(self) -> dict[str, Any]:
        """As JSON, where infinity is null."""
        return asdict(self) | {"doubt": self.doubt if math.isfinite(self.doubt) else None}

    def length(self, entropy: NDArray[np.floating[Any]]) -> int:
        """How many tokens of an answer with these entropies (nats, float (n,)) the probe sees: what a refusal costs."""
        shown = np.asarray(entropy)[: self.tokens]
        doubts = np.flatnonzero(shown > self.doubt)
        if not len(doubts):
            return len(shown)
        pieces = -(-(int(doubts[0]) + 1) // self.piece)
        return min(pieces * self.piece, len(shown))

    def next_piece(self, entropy: NDArray[np.floating[Any]]) -> int:
        """Tokens to generate after some of these entropies, float (n,); 0 where the probe has seen enough."""
        if bool((np.asarray(entropy) > self.doubt).any()):
            return 0
        return max(0, min(self.piece, self.tokens - len(entropy)))


def statistics(
    logprob: NDArray[np.floating[Any]], entropy: NDArray[np.floating[Any]], ended: bool, probe: Probe
) -> NDArray[np.float64]:
    """What a probe says, float64 (13,), all finite, in the order of `PROBE_NAMES`.

    logprob, entropy: natural logarithms, float (n,), n >= 1, of the answer's first tokens; those that the probe does
        not see are left out here. ended: whether the answer is finished with the n-th.
    """
    n = probe.length(entropy)
    if n < 1 or np.shape(logprob) != np.shape(entropy):
        raise ValueError(
            f"A probe needs the log-probability and entropy of at least one token, not arrays of shapes "
            f"{np.shape(logprob)} and {np.shape(entropy)}, so mend the engine's measured generate()."
        )
    seen = np.asarray(entropy, dtype=np.float64)[:n]
    said = np.maximum(np.asarray(logprob, dtype=np.float64)[:n], -80.0)
    falling = np.sort(seen)[::-1]
    return np.array(
        [
            n,
            float(ended and n == len(entropy)),
            float((seen > probe.doubt).any()),
            seen[0],
            seen.mean(),
            seen[-1],
            falling[0],
            falling[1] if n > 1 else 0.0,
            float(seen.argmax()),
            float((seen > UNSURE).sum()),
            said[0],
            said.mean(),
            said.min(),
        ]
    )
