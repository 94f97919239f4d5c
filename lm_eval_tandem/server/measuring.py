"""Log-probabilities of tokens: of an answer, from the calls that an engine answers for it, and of a prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lm_eval_tandem.engines import Completion, Engine, Prompt, Sampling
from lm_eval_tandem.errors import EngineError

IMPOSSIBLE = -9999.0
"""What stands for minus infinity, which JSON does not have; OpenAI's servers do the same."""
REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
CONTEXT = 8
"""Tokens before a token with which it is decoded: alone, some lose their leading space, and some are no character."""


@dataclass(frozen=True)
class MeasuredToken:
    """One token of a prompt or an answer.

    Attributes
    ----------
    text
        What it adds to the text before it; "" where it is the beginning of a character.
    logprob
        In nats; None for a prompt's first token, before which nothing stands.
    best
        Log-probability of the likeliest token in its place.
    """

    text: str
    logprob: float | None
    best: float | None


def measured_tokens(
    decode: Callable[[tuple[int, ...]], str],
    ids: Sequence[int],
    logprobs: Sequence[float],
    best: Sequence[float] | None = None,
) -> list[MeasuredToken]:
    """Tokens with what is known of them.

    Parameters
    ----------
    decode
        The text of token ids.
    ids, logprobs
        The tokens, and the log-probability of each.
    best
        That of the likeliest token in the place of each; by default each is the likeliest itself.
    """
    known = zip(ids, logprobs, logprobs if best is None else best, strict=True)
    return [
        MeasuredToken(added_text(decode, ids[max(0, place - CONTEXT) : place + 1]), finite(logprob), finite(other))
        for place, (_, logprob, other) in enumerate(known)
    ]


def added_text(decode: Callable[[tuple[int, ...]], str], ids: Sequence[int]) -> str:
    """What the last of some tokens adds to the text of the others."""
    before, whole = (decode(tuple(part)).rstrip(REPLACEMENT) for part in (ids[:-1], ids))
    return whole[len(before) :] if whole.startswith(before) else decode(tuple(ids[-1:])).rstrip(REPLACEMENT)


def finite(logprob: float) -> float | None:
    """A log-probability as JSON can hold it; None for NaN."""
    return None if math.isnan(logprob) else max(float(logprob), IMPOSSIBLE)


class MeasuringEngine:
    """An engine (see `engines.Engine`) that also measures what it generates, for one question.

    Everything but `generate` is the engine's own, and what is generated is the same as without it.

    Parameters
    ----------
    engine
        Of the model that writes the answer.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._known: dict[str, tuple[tuple[int, ...], list[float]]] = {}
        """By prompt, in the order of the last calls: what was generated after it so far, and its log-probabilities."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        completion = await self._engine.generate(prompt, replace(sampling, return_token_stats=True))
        _, before = self._known.pop(prompt.text, ((), []))
        new = [] if completion.logprob is None else completion.logprob.astype(float).tolist()
        self._known[prompt.text] = prompt.continued + completion.token_ids, before[: len(prompt.continued)] + new
        return completion

    def answer(self, text: str) -> list[MeasuredToken]:
        """The tokens of an answer's text, which is that of the last call, or of an earlier one that was chosen.

        What is no part of the text is left out: the end token, a stop string, a thought that was removed.

        Raises
        ------
        EngineError
            A part of the answer was not measured.
        """
        for ids, logprobs in reversed(self._known.values()):
            if len(logprobs) != len(ids):
                continue
            tokens = measured_tokens(self._engine.decode, ids, logprobs)
            begin = "".join(token.text for token in tokens).find(text)
            if begin >= 0:
                break
        else:
            raise EngineError(f"{self._engine.name} reported log-probabilities of only a part of its answer.")
        kept, at = [], 0
        for token in tokens:
            if begin <= at < begin + len(text):
                kept.append(token)
            at += len(token.text)
        return kept
