"""A text that grows stage by stage in one request of vLLM, open in between, so that no token of it is read again.

vLLM's prefix cache holds whole blocks; an open request keeps what it has computed to the last token. It keeps the
memory for that too, and one of the engine's places, so only so many are open as can all grow to their ends in half of
both: every other text goes on from the prefix cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.engine.protocol import StreamingInput
from vllm.sampling_params import RequestOutputKind

from lm_eval_tandem.engines.vllm.async_llm import Served, translated_errors
from lm_eval_tandem.errors import EngineError


@dataclass(frozen=True)
class Written:
    """What a call wrote, under the names of vLLM's `CompletionOutput`."""

    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: None = None


@dataclass(frozen=True)
class ContinuedOutput:
    """A call's result, under the names of vLLM's `RequestOutput`."""

    outputs: tuple[Written]
    num_cached_tokens: int


@dataclass
class OpenRequest:
    """One open request: its text so far, and what it may still become."""

    end: int
    """Tokens that it may have in all."""
    ids: list[int] = field(default_factory=list)
    asked: asyncio.Queue[StreamingInput] = field(default_factory=asyncio.Queue)
    outputs: AsyncGenerator[Any, None] | None = None
    """What vLLM writes."""

    async def asks(self) -> AsyncGenerator[StreamingInput, None]:
        """What vLLM reads from."""
        while True:
            yield await self.asked.get()


class OpenRequests:
    """The open requests of an engine.

    Parameters
    ----------
    served
        The model.
    tokens
        How many the engine's memory holds.
    places
        How many requests it works on at once.
    """

    def __init__(self, served: Served, tokens: int, places: int) -> None:
        self._served, self._tokens, self._max_concurrency = served, tokens // 2, places // 2
        self._open: dict[str, OpenRequest] = {}

    async def goes_on(
        self, session: str, ids: list[int], new: int, params: SamplingParams, options: Mapping[str, Any]
    ) -> ContinuedOutput | None:
        """Let the session's text grow; None where that takes a request of its own.

        ids: the whole text so far. new: tokens that this call and later ones may ask for. params: how to generate,
            greedy and without stop strings, which open requests cannot have.
        """
        text = self._open.get(session)
        if text is not None and text.ids != ids:
            self.end(session)
            text = None
        if text is None:
            taken = sum(other.end for other in self._open.values())
            if (
                new <= params.max_tokens
                or len(self._open) >= self._max_concurrency
                or taken + len(ids) + new > self._tokens
            ):
                return None
            text = self._open[session] = OpenRequest(len(ids) + new)
        known = max(0, len(text.ids) - 1)  # the last token was written, but never read
        try:
            written, cached = await self._served.run(self._more(text, ids[known:], params, options))
        except BaseException:
            self._open.pop(session, None)  # vLLM has ended it
            raise
        text.ids = [*ids, *written.token_ids]
        return ContinuedOutput((written,), known or cached)

    async def _more(
        self, text: OpenRequest, new: list[int], params: SamplingParams, options: Mapping[str, Any]
    ) -> tuple[Written, int]:
        """What vLLM writes after these tokens, and how many of the prompt's it found in its prefix cache."""
        params = params.clone()
        params.output_kind = RequestOutputKind.DELTA
        text.asked.put_nowait(StreamingInput({"prompt_token_ids": new}, params))  # type: ignore[arg-type]
        if text.outputs is None:
            text.outputs = self._served.llm.generate(text.asks(), params, self._served.new_name(), **options)
        ids: list[int] = []
        cached = 0
        with translated_errors():
            async for output in text.outputs:
                (piece,) = output.outputs
                ids += piece.token_ids
                cached = cached or output.num_cached_tokens or 0
                if piece.finish_reason in ("stop", "length"):
                    return Written(tuple(ids), piece.finish_reason), cached
        raise EngineError("vLLM ended a request between two of its stages; its log, above, may say why.")

    def end(self, session: str) -> None:
        """Close the session's request, where one is open; its blocks stay in the prefix cache for now."""
        text = self._open.pop(session, None)
        if text is not None and text.outputs is not None:
            self._served.start(text.outputs.aclose())
