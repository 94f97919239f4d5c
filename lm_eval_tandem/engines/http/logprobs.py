"""Log-probabilities of generated tokens in what servers reply, and the entropies that follow from them.

The chat endpoint has a list with one object per token (`content`), the completions endpoint four lists side by side
(`tokens`, `token_logprobs`, `top_logprobs`, `text_offset`); llama.cpp sends the first form at both. Servers differ in
more than the form, so every value is checked: what is read here belongs to the tokens of the text, or is a `Failure`.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_eval_tandem.engines.entropy import Values, entropy_bounds
from lm_eval_tandem.engines.http.failures import Failure
from lm_eval_tandem.engines.http.options import COMPLETIONS_PATH

FLOOR = -9999.0
"""What OpenAI and vLLM send in place of a log-probability that is minus infinity or, of a sampled token, not known."""
MISTAKE = 0.01
"""By how much probabilities may exceed 1 and each other because of rounding."""
UNREADABLE = ("\N{REPLACEMENT CHARACTER}", "bytes:")
"""Parts of the text of a token that holds only some bytes of a character, where the server does not send the bytes."""


@dataclass(frozen=True)
class TokenLogprob:
    """One generated token.

    Attributes
    ----------
    text
        Its bytes; None where the server does not tell them.
    logprob
        In nats.
    top
        Log-probabilities of the most likely tokens, float32 of shape (K,), the most likely one first.
    id
        The server's id of the token; None where it does not tell it.
    """

    text: bytes | None
    logprob: float
    top: Values
    id: int | None = None


def token_logprobs(choice: Mapping[str, Any], columns: int) -> list[TokenLogprob]:
    """The tokens in a choice of a reply or of a chunk; an empty list where it has none.

    Parameters
    ----------
    choice
        The JSON object.
    columns
        Number K of most likely tokens that were requested. Some servers add the token that was sampled.

    Raises
    ------
    Failure
        The values are no log-probabilities.
    """
    found = choice.get("logprobs")
    if found is None:
        return []
    try:
        if found.get("content") is not None:
            return [_of_chat(entry, columns) for entry in found["content"]]
        return _of_completion(found, columns)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise wrong(f"{type(error).__name__}: {error}") from error


def _of_chat(entry: Mapping[str, Any], columns: int) -> TokenLogprob:
    number = entry.get("id")
    text = _bytes_of(str(entry["token"])) if entry.get("bytes") is None else bytes(entry["bytes"])
    if text is not None and UNREADABLE[0].encode() in text:  # vLLM and SGLang encode the token's text, not its bytes
        text = None
    top = [one["logprob"] for one in entry["top_logprobs"]]
    return _checked(text, entry["logprob"], top, columns, number if type(number) is int else None)


def _of_completion(found: Mapping[str, Any], columns: int) -> list[TokenLogprob]:
    tokens, own, top = (found.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    if not len(tokens) == len(own) == len(top):
        raise wrong(f"{len(tokens)} tokens, {len(own)} token_logprobs and {len(top)} top_logprobs")
    return [
        _checked(_bytes_of(str(token)), one, list(likely.values()), columns)
        for token, one, likely in zip(tokens, own, top, strict=True)
    ]


def _bytes_of(token: str) -> bytes | None:
    return None if any(part in token for part in UNREADABLE) else token.encode("utf-8", "replace")


def _checked(
    text: bytes | None, own: Any, likely: Sequence[Any], columns: int, number: int | None = None
) -> TokenLogprob:
    logprob = _number(own)
    top = np.array(sorted(map(_number, likely), reverse=True)[:columns], dtype=np.float32)
    if not len(top):
        raise wrong("no most likely tokens (top_logprobs) with a token")
    mass = float(np.exp(top.astype(np.float64)).sum())
    if mass > 1 + MISTAKE or math.exp(logprob) > math.exp(float(top[0])) + MISTAKE:
        raise wrong(f"the probabilities of {len(top)} tokens are {mass:.3g} in all, that of the token written {own}")
    if logprob <= FLOOR:  # not known: at most as likely as the least of those that are known, and as what they leave
        logprob = min(float(top[-1]), math.log(max(1 - mass, 1e-12)))
    return TokenLogprob(text, logprob, top, number)


def _number(value: Any) -> float:
    """A log-probability; `FLOOR` for everything below, such as the lowest of all numbers or minus infinity."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value <= MISTAKE:  # NaN is not, either
        raise wrong(f"a log-probability is {value!r}")
    return min(max(float(value), FLOOR), 0.0)


def wrong(what: str) -> Failure:
    """The failure that unusable log-probabilities are."""
    return Failure(f"the server's log-probabilities cannot be used: {what}", retryable=False, billed=True)


@dataclass(frozen=True)
class Measured:
    """Statistics of the tokens of a piece of an answer, in nats; tuples of equal length.

    Attributes
    ----------
    logprob, entropy
        Of each token.
    error
        By how much each entropy may be wrong.
    """

    logprob: tuple[float, ...] = ()
    entropy: tuple[float, ...] = ()
    error: tuple[float, ...] = ()

    @classmethod
    def of(cls, tokens: Sequence[TokenLogprob], vocabulary: int) -> Measured:
        """The statistics of tokens over a vocabulary of this size."""
        bounds = [entropy_bounds(token.top[None], vocabulary) for token in tokens]
        return cls(
            tuple(token.logprob for token in tokens),
            tuple(float(least[0] + most[0]) / 2 for least, most in bounds),
            tuple(float(most[0] - least[0]) / 2 for least, most in bounds),
        )

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """The statistics of all parts."""
        return cls(*(tuple(value for part in parts for value in getattr(part, name)) for name in STATISTICS))

    def __len__(self) -> int:
        return len(self.entropy)

    def first_above(self, limit: float | None) -> int | None:
        """Index of the first token whose entropy exceeds the limit; None where there is none."""
        if limit is None:
            return None
        return next((i for i, entropy in enumerate(self.entropy) if entropy > limit), None)

    def split(self, n: int) -> tuple[Measured, Measured]:
        """The statistics of the first n tokens, and of the others."""
        parts = (self.logprob, self.entropy, self.error)
        return Measured(*(part[:n] for part in parts)), Measured(*(part[n:] for part in parts))


STATISTICS = ("logprob", "entropy", "error")
NOT_MEASURED = Measured()
"""The statistics of tokens for which none were requested."""


@dataclass(frozen=True)
class LogprobRequest:
    """Which log-probabilities are asked for.

    Attributes
    ----------
    columns
        Number K of most likely tokens with each token.
    vocabulary
        Number of tokens of the vocabulary, or an upper bound.
    refused
        For endpoints that report none: why, as the sentence of an error.
    """

    columns: int
    vocabulary: int
    refused: Mapping[str, str] = field(default_factory=dict)

    def fields(self, path: str) -> dict[str, Any]:
        """The fields of a request to this endpoint."""
        if path == COMPLETIONS_PATH:
            return {"logprobs": self.columns}
        return {"logprobs": True, "top_logprobs": self.columns}


class Coverage:
    """Checks that each character of a streamed text belongs to a token whose log-probability was sent.

    Some servers hold text back until characters or stop strings are complete, and some then leave out the
    log-probabilities of all but the last token. Others send tokens that have no text (marks, end tokens). White space
    is not compared: many tokenizers decode a single token without it.
    """

    def __init__(self) -> None:
        self._ahead = ""  # of the tokens so far, what has not come as text yet
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._comparable = True

    def add(self, text: str, tokens: Sequence[TokenLogprob]) -> None:
        """Add the text and the tokens of a chunk.

        Raises
        ------
        Failure
            Log-probabilities are missing.
        """
        for token in tokens:
            self._comparable &= token.text is not None
            self._ahead += self._decoder.decode(token.text or b"")
        if not self._comparable:
            return
        for character in text:
            if character.isspace() or character == "\N{REPLACEMENT CHARACTER}":
                continue
            _, found, self._ahead = self._ahead.partition(character)
            if not found:
                raise wrong(
                    "there are none for a part of the answer's text. Some servers leave them out where a character has "
                    "several tokens; for llama.cpp use intern_backend=llamacpp with intern_base_url, which finds them"
                )
