"""The intern's answer in pieces: a probe starts it for the judge, and it is finished later, or never.

It is finished from the same tokens, so an accepted probe costs nothing. One that was refused is passed to the next
stage's answer as a draft, of which only what differs is generated again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines import Completion, Engine, OnTokens, Prompt, Sampling
from lm_eval_tandem.errors import EngineError

Floats = NDArray[np.float32]


class ProbeLimit(Protocol):
    """How much of an answer a probe generates (`judge.probe.Probe` is one)."""

    @property
    def tokens(self) -> int:
        """The largest number of tokens."""
        ...

    @property
    def max_entropy(self) -> float:
        """In nats: generation ends with the first token of higher entropy; infinite for no such limit."""
        ...


@dataclass
class PartialAnswer:
    """One answer to one prompt, generated in one or several calls.

    Under greedy decoding its text is that of a single call; under sampling each call has another seed.

    Parameters
    ----------
    engine
        The engine of the intern.
    prompt
        The prompt, without continued tokens.
    sampling
        How the whole answer is generated; `max_tokens` counts all of its tokens.
    record_call
        Called after each call with the tokens that it continued from, its completion, and the draft that it read.
    draft
        Tokens of a refused answer to another prompt; the tokens that both share are read instead of generated.
    beginning, beginning_tokens
        What the mentor has written of the answer, which the prompt ends with, and its tokens; no part of the counts
        here.
    on_tokens
        Of the calls of `finish` (`Prompt.on_tokens`); what `start` generates may be refused.

    Attributes
    ----------
    ids
        The tokens generated so far.
    tokens
        Their number, as the engine counts them.
    finish_reason
        "stop" or "length" once the answer is complete, "" before.
    logprob, entropy
        float32 (n,), in nats: of the first n tokens, those whose statistics were requested and reported.
    """

    engine: Engine
    prompt: Prompt
    sampling: Sampling
    record_call: Callable[[tuple[int, ...], Completion, tuple[int, ...]], None]
    draft: tuple[int, ...] = ()
    beginning: str = ""
    beginning_tokens: int = 0
    on_tokens: OnTokens | None = None
    ids: tuple[int, ...] = ()
    tokens: int = 0
    finish_reason: str = ""
    logprob: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    entropy: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    _single_call_text: str | None = None

    async def start(self, limit: ProbeLimit) -> None:
        """Generate and measure the first tokens, as far as the limit allows.

        Raises
        ------
        EngineError
            The engine cannot measure what it generates.
        """
        completion = await self._generate(limit.tokens, return_token_stats=True, max_entropy=limit.max_entropy)
        if completion.logprob is None or completion.entropy is None:
            raise EngineError(
                f"{self.engine.name} does not report the entropies of the tokens that it generates, which this "
                "classifier needs; use one fitted with --inputs statistics, or another backend for the intern."
            )
        self.logprob, self.entropy = completion.logprob, completion.entropy

    async def finish(self, return_token_stats: bool = False) -> str:
        """Generate the rest.

        Parameters
        ----------
        return_token_stats
            Also measure the tokens, if none has been generated yet; without effect on a started answer.

        Returns
        -------
        str
            The text of the whole answer, its beginning included, cut before the first stop string.
        """
        if not self.finish_reason:
            started = self.tokens > 0
            measured = return_token_stats and not started
            completion = await self._generate(self.sampling.max_tokens, measured, on_tokens=self.on_tokens)
            if not started:
                self._single_call_text = completion.text
                if completion.logprob is not None and completion.entropy is not None:
                    self.logprob, self.entropy = completion.logprob, completion.entropy
        text = self._single_call_text
        if text is None:
            text = self.engine.answer_text(self.ids, self.sampling.stop)
        return join(self.beginning, text, self.sampling.stop)

    async def _generate(
        self,
        tokens: int,
        return_token_stats: bool,
        max_entropy: float = math.inf,
        on_tokens: OnTokens | None = None,
    ) -> Completion:
        """One call for at most `tokens` more tokens."""
        left = self.sampling.max_tokens - self.tokens
        sampling = replace(
            self.sampling,
            max_tokens=min(tokens, left),
            seed=self.sampling.seed + self.tokens if self.sampling.temperature else self.sampling.seed,
            return_token_stats=return_token_stats,
            max_entropy=max_entropy if math.isfinite(max_entropy) else None,
        )
        draft: tuple[int, ...] = ()
        if self.engine.reads_drafts and self.draft[: len(self.ids)] == self.ids:
            draft = self.draft[len(self.ids) :][: sampling.max_tokens - 1]
        horizon = left if sampling.max_tokens < left else None
        prompt = replace(self.prompt, continued=self.ids, draft=draft, horizon=horizon, on_tokens=on_tokens)
        completion = await self.engine.generate(prompt, sampling)
        self.record_call(self.ids, completion, draft)
        self.ids += completion.token_ids
        self.tokens += completion.new_tokens
        if completion.finish_reason == "stop":
            self.finish_reason = "stop"
        elif self.tokens >= self.sampling.max_tokens:
            self.finish_reason = "length"
        return completion


def join(beginning: str, rest: str, stop: tuple[str, ...]) -> str:
    r"""An answer of two writers, cut before a stop string that begins in the first part and ends in the second.

    Examples
    --------
    >>> join("Six.\n", "\nNext", stop=("\n\n",))
    'Six.'
    """
    whole, boundary = beginning + rest, len(beginning)
    found = [whole.find(text, max(0, boundary - len(text) + 1), boundary + len(text) - 1) for text in stop if text]
    return whole[: min((at for at in found if at >= 0), default=len(whole))]
