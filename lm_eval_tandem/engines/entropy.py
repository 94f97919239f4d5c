"""Entropies of tokens where an engine does not see the logits.

vLLM's workers put exact entropies among the log-probabilities that vLLM returns (`vllm.worker_extension`); from other
servers an entropy can only be estimated from the K most likely tokens. All values are in nats.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ArgumentError

Values = NDArray[np.float32]
LOGPROB_COLUMNS = 2
"""Number of logprobs to request where entropies are exact: the entropy takes the place of the second most likely."""
ENTROPY_TOKEN_ID = -1
"""The token id that marks a column as holding an entropy."""


@dataclass(frozen=True)
class EntropyMethod:
    """How a token's entropy is obtained: exactly in vLLM's workers, or estimated from the most likely tokens.

    Attributes
    ----------
    top
        Number K of most likely tokens that an estimate uses; None for exact entropies.
    """

    top: int | None = None

    @classmethod
    def parse(cls, text: str) -> EntropyMethod:
        """The method that the argument `entropy=` names: "exact" or "topk:K".

        Raises
        ------
        ArgumentError
            It is neither.
        """
        name, _, number = text.partition(":")
        if name == "exact" and not number:
            return cls()
        if name == "topk" and number.isdecimal() and int(number) > 0:
            return cls(int(number))
        raise ArgumentError(f"entropy={text} is not known; use exact, or topk:K, as in topk:20, for an estimate.")

    def __str__(self) -> str:
        return "exact" if self.top is None else f"topk:{self.top}"

    @property
    def columns(self) -> int:
        """Number of logprobs to request for each token."""
        return LOGPROB_COLUMNS if self.top is None else self.top

    def read(self, flat: Any, vocabulary: int) -> tuple[Values, Values, NDArray[np.bool_]]:
        """Statistics of n tokens from vLLM's `FlatLogprobs`.

        Returns
        -------
        logprob, entropy : float32 of shape (n,)
        valid : bool of shape (n,)
            False where vLLM has left a row unwritten, so that its values mean nothing.
        """
        shape = (-1, self.columns + 1)
        values = np.array(flat.logprobs, dtype=np.float32).reshape(shape)
        if self.top is None:
            marks = np.array(flat.token_ids, dtype=np.int64).reshape(shape)[:, LOGPROB_COLUMNS]
            return values[:, 0], values[:, LOGPROB_COLUMNS], marks == ENTROPY_TOKEN_ID
        return values[:, 0], estimate_entropy(values[:, 1:], vocabulary), np.ones(len(values), dtype=bool)


def estimate_entropy(top: Values, vocabulary: int) -> Values:
    """Entropies (n,) from the logprobs (n, K) of the K most likely tokens: the middle of `entropy_bounds`."""
    least, most = entropy_bounds(top, vocabulary)
    return np.asarray((least + most) / 2, dtype=np.float32)


def entropy_bounds(top: Values, vocabulary: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The least and the largest entropy (n,) of any distribution with these K most likely tokens, in nats.

    Parameters
    ----------
    top
        Logprobs of shape (n, K), the most likely token first.
    vocabulary
        Number V of tokens of the vocabulary.

    Notes
    -----
    Let m be the probability mass of the V - K other tokens. They add at most m log((V - K) / m), where all of them are
    equally likely, and at least m log(1 / p_K), because none of them is more likely than the K-th.
    """
    logprobs = top.astype(np.float64)
    p = np.exp(logprobs)
    known = -np.where(p > 0, p * logprobs, 0.0).sum(-1)
    rest = np.clip(1.0 - p.sum(-1), 1e-12, 1.0)
    most = np.maximum(rest * np.log(max(vocabulary - top.shape[-1], 1) / rest), 0.0)
    return known + np.minimum(-rest * logprobs[:, -1], most), known + most


def len_until(entropy: Values, limit: float | None) -> int:
    """Number of tokens up to and including the first whose entropy (n,) exceeds the limit; n where none does."""
    above = np.flatnonzero(entropy > (np.inf if limit is None else limit))
    return int(above[0]) + 1 if len(above) else len(entropy)
