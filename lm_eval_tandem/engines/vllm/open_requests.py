"""Open requests: a text that grows stage by stage in one request of vLLM, so that no token of it is read twice.

vLLM's prefix cache holds whole blocks; an open request keeps what it has computed to the last token. In exchange it
occupies its part of the KV cache, and one of the scheduler's slots, between the stages. So open requests are limited
such that all of them could reach full length within half the KV cache and half the scheduler's slots; every other text
is continued from the prefix cache.

Releases of vLLM before 0.31 hold every call of an open request to the first one's `max_tokens`. Where the length of a
result shows this, it is generated again in a request of its own, and no further request is opened.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass, field
from typing import Any

from vllm import SamplingParams
from vllm.engine.protocol import StreamingInput
from vllm.sampling_params import RequestOutputKind

from lm_eval_tandem.engines.token_reports import RemoteReports
from lm_eval_tandem.engines.vllm.async_llm import VERSION, AsyncLLMThread, translated_errors
from lm_eval_tandem.errors import EngineError

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class StageCompletion:
    """What one call generated, with the field names of vLLM's `CompletionOutput`."""

    token_ids: tuple[int, ...]
    finish_reason: str
    logprobs: None = None


@dataclass(frozen=True)
class StageOutput:
    """The result of one call, with the field names of vLLM's `RequestOutput`."""

    outputs: tuple[StageCompletion]
    num_cached_tokens: int


@dataclass
class OpenRequest:
    """One open request.

    Attributes
    ----------
    max_length
        Number of tokens that its text may reach, the prompt included.
    ids
        The text so far.
    inputs
        What vLLM is to read next.
    outputs
        What vLLM generates; None before the first call.
    """

    max_length: int
    ids: list[int] = field(default_factory=list)
    inputs: asyncio.Queue[StreamingInput] = field(default_factory=asyncio.Queue)
    outputs: AsyncGenerator[Any, None] | None = None

    async def input_stream(self) -> AsyncGenerator[StreamingInput, None]:
        """The inputs as vLLM reads them, call by call."""
        while True:
            yield await self.inputs.get()


class OpenRequests:
    """The open requests of an engine, one for each session.

    Parameters
    ----------
    async_llm
        The model.
    kv_cache_tokens
        Number of tokens that its KV cache holds.
    scheduler_slots
        Number of requests that it works on at the same time.
    """

    def __init__(self, async_llm: AsyncLLMThread, kv_cache_tokens: int, scheduler_slots: int) -> None:
        self._async_llm = async_llm
        self._max_tokens, self._max_open = kv_cache_tokens // 2, scheduler_slots // 2
        self._open: dict[str, OpenRequest] = {}

    async def generate(
        self,
        session: str,
        ids: list[int],
        horizon: int,
        params: SamplingParams,
        options: Mapping[str, Any],
        reports: RemoteReports | None = None,
    ) -> StageOutput | None:
        """Continue the session's text in its open request; opens one where the limits allow it.

        Parameters
        ----------
        session
            Name of the question.
        ids
            The whole text so far, the prompt included.
        horizon
            Upper bound on new tokens over this and all later calls.
        params
            Greedy and without stop strings, which open requests cannot have.
        options
            Further arguments of `AsyncLLM.generate`.
        reports
            Gets new tokens as they come.

        Returns
        -------
        StageOutput or None
            None where the call has to be a separate request: it is the last one of its text, the limits are reached,
            or vLLM has not kept to its `max_tokens`.
        """
        request = self._open.get(session)
        if request is not None and request.ids != ids:
            self.end(session)
            request = None
        if request is None:
            reserved = sum(other.max_length for other in self._open.values())
            is_last_call = horizon <= params.max_tokens
            if is_last_call or len(self._open) >= self._max_open or reserved + len(ids) + horizon > self._max_tokens:
                return None
            request = self._open[session] = OpenRequest(len(ids) + horizon)
        computed = max(0, len(request.ids) - 1)  # the last token was generated, but never read
        try:
            generation = self._generate(request, ids[computed:], params, options, reports)
            completion, cached = await self._async_llm.run(generation)
        except BaseException:
            self._open.pop(session, None)  # vLLM has ended the request
            raise
        new = len(completion.token_ids)
        if new > params.max_tokens or (new < params.max_tokens and completion.finish_reason == "length"):
            self.end(session)
            self._stop_opening()
            return None
        request.ids = [*ids, *completion.token_ids]
        return StageOutput((completion,), computed or cached)

    def _stop_opening(self) -> None:
        if self._max_open:
            log.warning(
                "vLLM %s holds all calls of an open request to the first one's max_tokens (releases from 0.31 on do "
                "not); texts that grow by stages are continued from its prefix cache instead.",
                VERSION,
            )
        self._max_open = 0

    async def _generate(
        self,
        request: OpenRequest,
        new: list[int],
        params: SamplingParams,
        options: Mapping[str, Any],
        reports: RemoteReports | None,
    ) -> tuple[StageCompletion, int]:
        """What vLLM generates after these new tokens, and how many of them it found in its prefix cache."""
        params = params.clone()
        params.output_kind = RequestOutputKind.DELTA
        request.inputs.put_nowait(StreamingInput({"prompt_token_ids": new}, params))  # type: ignore[arg-type]
        if request.outputs is None:
            request_id = self._async_llm.new_request_id()
            request.outputs = self._async_llm.llm.generate(request.input_stream(), params, request_id, **options)
        ids: list[int] = []
        cached = 0
        with translated_errors():
            async for output in request.outputs:
                (piece,) = output.outputs
                if reports is not None:
                    reports.add(len(ids), piece.token_ids)
                ids += piece.token_ids
                cached = cached or output.num_cached_tokens or 0
                if piece.finish_reason in ("stop", "length"):
                    return StageCompletion(tuple(ids), piece.finish_reason), cached
        raise EngineError("vLLM ended a request between two of its stages; its log, above, may give the reason.")

    def end(self, session: str) -> None:
        """Close the session's request, where one is open; its blocks stay in the prefix cache for now."""
        request = self._open.pop(session, None)
        if request is not None and request.outputs is not None:
            self._async_llm.start(request.outputs.aclose())
