"""An engine whose finished work is kept in a store, and found there again by a later run or another policy."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from dataclasses import asdict
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
    Unused,
)
from lm_eval_tandem.store import Store, key_of

MEASURED_ARRAYS = ("logprob", "entropy")
SCORED_ARRAYS = (*MEASURED_ARRAYS, "hidden")
SAMPLING_KEYS = {"max_entropy": "doubt"}
"""Fields of `Sampling` that keys call by the name of version 0.1, so that the stores of that version stay valid."""


class CachedEngine:
    """The same contract as the engine inside; equal calls that run at the same time are made once."""

    def __init__(self, engine: Engine, store: Store) -> None:
        self.engine = engine
        self.store = store
        self.name, self.parameters, self.window = engine.name, engine.parameters, engine.window
        self.lm, self.max_concurrency, self.drafts = engine.lm, engine.max_concurrency, engine.drafts
        self.identity, self.work = engine.identity, engine.work
        self.found = 0
        """Calls answered from the store."""
        self._model = key_of(dict(engine.identity))
        self._under_way: dict[str, asyncio.Future[dict[str, Any]]] = {}

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""

        async def fresh() -> dict[str, Any]:
            value = asdict(await self.engine.generate(prompt, sampling))
            return value | {name: packed(value[name]) for name in MEASURED_ARRAYS if value[name] is not None}

        call = {SAMPLING_KEYS.get(name, name): value for name, value in asdict(sampling).items()}
        value = await self._once({"generate": call}, prompt, fresh)
        arrays = {name: unpacked(value[name]) for name in MEASURED_ARRAYS if value[name] is not None}
        return Completion(**{**value, **arrays, "token_ids": tuple(value["token_ids"])})

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. Each view has entries of its own."""

        async def fresh() -> dict[str, Any]:
            value = asdict(await self.engine.score(prompt, view))
            return value | {name: packed(value[name]) for name in SCORED_ARRAYS if value[name] is not None}

        viewed = {} if view == DEFAULT_VIEW else {"view": asdict(view)}
        value = await self._once({"score": "float32", **viewed}, prompt, fresh)
        arrays = {name: unpacked(value[name]) for name in SCORED_ARRAYS if value.get(name) is not None}
        return TokenStats(**{**value, **arrays})

    async def _once(
        self, call: dict[str, Any], prompt: Prompt, fresh: Callable[[], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        key = key_of({"model": self._model, "text": prompt.text, "continued": list(prompt.continued), **call})
        found = self.store.get(key)
        if found is not None:
            self.found += 1
            return found
        if key in self._under_way:
            return await asyncio.shield(self._under_way[key])
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._under_way[key] = future
        try:
            value = await fresh()
            self.store.put(key, value)
            future.set_result(value)
            return value
        except BaseException as error:
            future.set_exception(error)
            future.exception()  # whoever waits beside us sees it; nobody waiting is no fault
            raise
        finally:
            del self._under_way[key]

    def release(self, session: str) -> Unused | None:
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

    def text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.text`."""
        return self.engine.text(token_ids, stop)

    def close(self) -> None:
        """Close the engine; the store belongs to whoever opened it."""
        self.engine.close()


def packed(array: np.ndarray[Any, Any]) -> str:
    """float32 values as base64 text, little endian."""
    return base64.b64encode(array.astype("<f4").tobytes()).decode()


def unpacked(text: str) -> np.ndarray[Any, Any]:
    """The float32 array that `packed` wrote."""
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
