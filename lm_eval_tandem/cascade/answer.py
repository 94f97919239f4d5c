"""An answer that is begun as a probe for the judge, and finished later from the same tokens, or never."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines import Completion, Engine, Prompt, Sampling
from lm_eval_tandem.errors import EngineError

Floats = NDArray[np.float32]

PIECE = 8
"""Tokens a call while a stop string stands half written at the end."""


class Rule(Protocol):
    """How far an answer is begun (`sufficiency.probe.Probe`)."""

    @property
    def tokens(self) -> int:
        """At most so many."""
        ...

    @property
    def max_entropy(self) -> float:
        """Nats: the first token with a higher entropy is the last; infinite for none."""
        ...


@dataclass
class PartialAnswer:
    """One answer to a prompt. Greedy, its text is that of a single call; sampled, each call has a seed of its own.

    count: told of every call: the tokens it continued from, what came, and the draft that was read for it.
    draft: an answer to another prompt, refused; what this one has in common with it need not be written again.
    finish_reason: "stop" or "length" once the answer is whole, "" before.
    logprob, entropy: of the tokens written so far, as long as they were measured.
    """

    engine: Engine
    prompt: Prompt
    sampling: Sampling
    count: Callable[[tuple[int, ...], Completion, tuple[int, ...]], None]
    draft: tuple[int, ...] = ()
    ids: tuple[int, ...] = ()
    finish_reason: str = ""
    logprob: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    entropy: Floats = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    _whole: str | None = None

    async def begin(self, rule: Rule) -> None:
        """Write until the rule has seen enough.

        Raises
        ------
        EngineError
            The engine cannot measure what it generates.
        """
        completion = await self._write(rule.tokens, measured=True, max_entropy=rule.max_entropy)
        if completion.logprob is None or completion.entropy is None:
            raise EngineError(
                f"{self.engine.name} does not say how sure it is of the tokens that it generates, which this "
                "classifier asks for; use one fitted with --inputs statistics, or another backend for the intern."
            )
        self.logprob, self.entropy = completion.logprob, completion.entropy

    async def finish(self, measured: bool = False) -> str:
        """The whole answer's text; `measured` has an effect only where nothing was begun."""
        # An engine looks for stop strings in what it writes in one call, so none may be left half written between two.
        while not self.finish_reason and self._half_written():
            await self._write(PIECE, measured=False)
        if not self.finish_reason:
            begun = bool(self.ids)
            completion = await self._write(self.sampling.max_tokens, measured and not begun)
            if not begun:
                self._whole = completion.text
                if completion.logprob is not None and completion.entropy is not None:
                    self.logprob, self.entropy = completion.logprob, completion.entropy
        return self.engine.answer_text(self.ids, self.sampling.stop) if self._whole is None else self._whole

    async def _write(self, tokens: int, measured: bool, max_entropy: float = math.inf) -> Completion:
        left = self.sampling.max_tokens - len(self.ids)
        sampling = replace(
            self.sampling,
            max_tokens=min(tokens, left),
            seed=self.sampling.seed + len(self.ids) if self.sampling.temperature else self.sampling.seed,
            return_token_stats=measured,
            max_entropy=max_entropy if math.isfinite(max_entropy) else None,
        )
        draft: tuple[int, ...] = ()
        if self.engine.reads_drafts and self.draft[: len(self.ids)] == self.ids:
            draft = self.draft[len(self.ids) :][: sampling.max_tokens - 1]
        completion = await self.engine.generate(replace(self.prompt, continued=self.ids, draft=draft), sampling)
        self.count(self.ids, completion, draft)
        self.ids += completion.token_ids
        stopped = completion.finish_reason == "stop" or any(
            s in self.engine.decode(self.ids) for s in self.sampling.stop
        )
        if stopped or len(self.ids) >= self.sampling.max_tokens:
            self.finish_reason = "stop" if stopped else "length"
        return completion

    def _half_written(self) -> bool:
        text = self.engine.decode(self.ids) if self.ids else ""
        return any(text.endswith(stop[:n]) for stop in self.sampling.stop for n in range(1, len(stop)))
