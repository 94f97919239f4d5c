"""Entropies of generated tokens: from the log-probabilities that vLLM hands on, and what is too small to be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ArgumentError

Values = NDArray[np.float32]
COLUMNS = 2
"""Logprobs to ask for where entropies are exact: the most likely token's, and the entropy in place of the second's."""
MARK = -1
"""The token id in the column that holds an entropy."""
SMALL = 2**12
"""Tokens of a vocabulary that is looked through faster than a softmax of it is taken; no model of use has so few."""
CERTAIN = 0.2
"""Nats: over a SMALL vocabulary a generated token of less entropy counts as certain, so few have to be measured."""


def told(logprob: Values, entropy: Values, vocabulary: int) -> tuple[Values, Values]:
    """Log-probabilities and entropies [n] of generated tokens as every engine tells them; 0 and 0 for certain ones."""
    if vocabulary > SMALL:
        return logprob, entropy
    certain = entropy < CERTAIN
    return np.where(certain, np.float32(0), logprob), np.where(certain, np.float32(0), entropy)


@dataclass(frozen=True)
class Entropy:
    """How the entropy of a token is found: exactly in vLLM's workers, or from the `top` most likely tokens."""

    top: int | None = None

    @classmethod
    def parse(cls, text: str) -> Entropy:
        """From "exact" or "topk:K".

        Raises
        ------
        ArgumentError
            It is neither.
        """
        name, _, number = text.partition(":")
        if name == "exact" and not number:
            return cls()
        if name == "topk" and number.isdigit() and int(number) > 0:
            return cls(int(number))
        raise ArgumentError(f"entropy={text} is not known; use exact, or topk:K, as in topk:20, for an estimate.")

    def __str__(self) -> str:
        return "exact" if self.top is None else f"topk:{self.top}"

    @property
    def columns(self) -> int:
        """Logprobs to ask vLLM for."""
        return COLUMNS if self.top is None else self.top

    def read(self, flat: Any, vocabulary: int) -> tuple[Values, Values, NDArray[np.bool_]]:
        """Log-probabilities, entropies and whether they were measured, each [n], from vLLM's `FlatLogprobs`."""
        shape = (-1, self.columns + 1)
        values = np.array(flat.logprobs, dtype=np.float32).reshape(shape)
        if self.top is None:
            marks = np.array(flat.token_ids, dtype=np.int64).reshape(shape)[:, COLUMNS]
            return values[:, 0], values[:, COLUMNS], marks == MARK
        return values[:, 0], estimate(values[:, 1:], vocabulary), np.ones(len(values), dtype=bool)


def estimate(top: Values, vocabulary: int) -> Values:
    """Entropies [n] from the logprobs [n, K] of the K most likely tokens: the middle of what they leave possible."""
    least, most = bounds(top, vocabulary)
    return np.asarray((least + most) / 2, dtype=np.float32)


def bounds(top: Values, vocabulary: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest entropy [n], in nats, that distributions with these K most likely tokens can have.

    The mass m of the others adds at most m log((V - K) / m), where all of them are alike, and at least
    m log(1 / p_K), since none is more likely than the K-th.
    """
    logprobs = top.astype(np.float64)
    p = np.exp(logprobs)
    known = -np.where(p > 0, p * logprobs, 0.0).sum(-1)
    rest = np.clip(1.0 - p.sum(-1), 1e-12, 1.0)
    most = np.maximum(rest * np.log(max(vocabulary - top.shape[-1], 1) / rest), 0.0)
    return known + np.minimum(-rest * logprobs[:, -1], most), known + most
