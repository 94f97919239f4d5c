"""An engine with a store in front of it: finished calls are read from the store by later runs and other policies."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Engine,
    Messages,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
    UnreadOutput,
)
from lm_eval_tandem.engines.entropy import len_until
from lm_eval_tandem.engines.turns import part_of_turns
from lm_eval_tandem.store import Store, key_of

COMPLETION_ARRAYS = ("logprob", "entropy")
SCORE_ARRAYS = (*COMPLETION_ARRAYS, "hidden", "confidence")
SAMPLING_KEYS = {"return_token_stats": "measured", "max_entropy": "doubt"}
"""Fields of `Sampling` whose name in a key is that of version 0.1, so that stores of that version stay valid."""
LATER_FIELDS = ("confidence", "since")
"""Fields of `ScoringView` that came after stores had been written without them."""

Result = tuple[dict[str, Any], bool]
"""The value of a call, and whether it came from the store."""


class CachedEngine:
    """An engine (see `engines.Engine`) that answers a call from the store where it can.

    Equal calls that run at the same time are computed once. What of them is computed is reported to the first one's
    `Prompt.on_tokens` alone; values of the store are reported to none.

    Parameters
    ----------
    engine
        Computes what the store does not have.
    store
        Of finished calls; it is shared and stays open when this engine is closed.

    Attributes
    ----------
    hits
        Number of calls answered from the store.
    """

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine = engine
        self.store = store
        self.name, self.parameters, self.window = engine.name, engine.parameters, engine.window
        self.lm, self.max_concurrency, self.reads_drafts = engine.lm, engine.max_concurrency, engine.reads_drafts
        self.identity, self.work = engine.identity, engine.work
        self.hits = 0
        self._model_key = key_of(dict(engine.identity))
        self._in_flight: dict[str, asyncio.Future[Result | None]] = {}

    @property
    def cannot_score(self) -> str:
        """See `Engine.cannot_score`, which some engines find out only where a run needs scores."""
        return self.engine.cannot_score

    @property
    def cannot_measure(self) -> str:
        """See `Engine.cannot_measure`."""
        return self.engine.cannot_measure

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""

        async def compute() -> dict[str, Any]:
            completion = await self._part_of_a_whole(prompt, sampling) or await self.engine.generate(prompt, sampling)
            value = asdict(completion)
            if not completion.turns:  # as in stores of versions that did not know the field, which they can still read
                del value["turns"]
            return value | {name: to_base64(value[name]) for name in COMPLETION_ARRAYS if value[name] is not None}

        return completion_of(await self._once(call_of(sampling), prompt, compute))

    async def _part_of_a_whole(self, prompt: Prompt, sampling: Sampling) -> Completion | None:
        """A call for a part of an answer, from a finished call for the whole of it; None where the store has none.

        So a cascade over stages that have been answered before, with their statistics, computes nothing. That needs
        greedy decoding, under which the parts of an answer are the same in whatever calls they come.
        """
        if sampling.temperature > 0:
            return None
        start = len(prompt.continued)
        whole_length = start + (prompt.horizon or sampling.max_tokens)
        for measured in dict.fromkeys((True, sampling.return_token_stats)):
            whole = replace(sampling, max_tokens=whole_length, return_token_stats=measured, max_entropy=None)
            if whole == sampling and not start:  # the call itself
                continue
            key = self._key(call_of(whole), replace(prompt, continued=()))
            value = await asyncio.to_thread(self.store.get, key)
            if value is not None and value["counted"] is None and value["dollars"] is None:
                found = part_of(completion_of(value), prompt.continued, sampling)
                if found is not None:
                    self.hits += 1
                    return replace(found, text=self.engine.answer_text(found.token_ids, sampling.stop))
        return None

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. Each view has separate entries in the store."""

        async def compute() -> dict[str, Any]:
            value = asdict(await self.engine.score(prompt, view))
            return value | {name: to_base64(value[name]) for name in SCORE_ARRAYS if value[name] is not None}

        value = await self._once({"score": "float32", **view_key(view)}, prompt, compute)
        arrays = {name: from_base64(value[name]) for name in SCORE_ARRAYS if value.get(name) is not None}
        return TokenStats(**{**value, **arrays})

    def _key(self, call: dict[str, Any], prompt: Prompt) -> str:
        return key_of({"model": self._model_key, "text": prompt.text, "continued": list(prompt.continued), **call})

    async def _once(
        self, call: dict[str, Any], prompt: Prompt, compute: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """The stored value of the call; otherwise that of an equal call in flight, or a new one, which is stored."""
        key = self._key(call, prompt)
        while key in self._in_flight:
            found_by_other = await asyncio.shield(self._in_flight[key])
            if found_by_other is not None:  # otherwise its caller was cancelled, and one of those who wait computes it
                value, stored = found_by_other
                self.hits += stored
                return value
        future: asyncio.Future[Result | None] = asyncio.get_running_loop().create_future()
        self._in_flight[key] = future
        try:
            # In a thread: a slow disk, or another process that writes, must not hold up every other question.
            found = await asyncio.to_thread(self.store.get, key)
            value = await compute() if found is None else found
            if found is None:
                await asyncio.to_thread(self.store.put, key, value)
            self.hits += found is not None
            future.set_result((value, found is not None))
            return value
        except asyncio.CancelledError:
            future.set_result(None)
            raise
        except BaseException as error:
            future.set_exception(error)
            # Equal calls that wait for the future get the error. Reading it here keeps asyncio from warning about an
            # error that was never retrieved where no equal call waits.
            future.exception()
            raise
        finally:
            del self._in_flight[key]

    def stop(self, session: str) -> UnreadOutput | None:
        """See `Engine.stop`."""
        return self.engine.stop(session)

    def release(self, session: str) -> UnreadOutput | None:
        """See `Engine.release`."""
        return self.engine.release(session)

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`."""
        return self.engine.render(messages, generation_prompt)

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`."""
        return self.engine.encode(text)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return self.engine.decode(token_ids)

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`."""
        return self.engine.answer_text(token_ids, stop)

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`."""
        return self.engine.settled_text(token_ids, stop)

    def close(self) -> None:
        """Close the engine. The store stays open: it belongs to the caller."""
        self.engine.close()


def call_of(sampling: Sampling) -> dict[str, Any]:
    """The part of a key that says what is generated, and how."""
    return {"generate": {SAMPLING_KEYS.get(name, name): value for name, value in asdict(sampling).items()}}


def view_key(view: ScoringView) -> dict[str, Any]:
    """The part of a key that says what is read of a prompt; `LATER_FIELDS` are in it only where they are set.

    So stores of versions that did not know them stay valid.
    """
    if view == DEFAULT_VIEW:
        return {}
    return {"view": {name: value for name, value in asdict(view).items() if value or name not in LATER_FIELDS}}


def completion_of(value: dict[str, Any]) -> Completion:
    """The completion that a store holds."""
    arrays = {name: from_base64(value[name]) for name in COMPLETION_ARRAYS if value[name] is not None}
    tuples = {name: tuple(value.get(name, ())) for name in ("token_ids", "turns")}
    return Completion(**{**value, **arrays, **tuples})


def part_of(whole: Completion, continued: tuple[int, ...], sampling: Sampling) -> Completion | None:
    """What a greedy call that continues after some tokens returns, given the whole answer; None if it is another one.

    Its seconds are those of the whole in proportion to its tokens. The text is left empty.
    """
    start, ids = len(continued), whole.token_ids
    if ids[:start] != continued or start >= len(ids):
        return None
    end = min(len(ids), start + sampling.max_tokens)
    reason = "length"
    if sampling.return_token_stats or sampling.max_entropy is not None:
        if whole.entropy is None or len(whole.entropy) < len(ids):
            return None
        if sampling.max_entropy is not None:
            until = start + len_until(whole.entropy[start:end], sampling.max_entropy)
            if until < end:
                end, reason = until, "max_entropy"
    if end == len(ids) and whole.finish_reason == "stop":
        reason = "stop"
    measured = sampling.return_token_stats
    return replace(
        whole,
        text="",
        token_ids=ids[start:end],
        finish_reason=reason,
        prompt_tokens=whole.prompt_tokens + start,
        cached_tokens=whole.cached_tokens if start == 0 else whole.prompt_tokens + start - 1,
        seconds=whole.seconds * (end - start) / len(ids),
        logprob=whole.logprob[start:end] if measured and whole.logprob is not None else None,
        entropy=whole.entropy[start:end] if measured and whole.entropy is not None else None,
        turns=part_of_turns(whole.turns, start, end),
    )


def to_base64(array: np.ndarray[Any, Any]) -> str:
    """float32 values as base64 text, little-endian."""
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def from_base64(text: str) -> np.ndarray[Any, Any]:
    """The float32 array that `to_base64` encoded."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
