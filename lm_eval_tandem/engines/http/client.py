"""The connections to the servers of one model: which server a call goes to, and which parameters it understands."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from contextlib import aclosing, nullcontext
from dataclasses import dataclass
from typing import Any, TypeVar

import openai

from lm_eval_tandem.engines import EngineWork
from lm_eval_tandem.engines.http.failures import ErrorReader, Failure, error_in
from lm_eval_tandem.engines.http.options import CHAT_PATH, COMPLETIONS_PATH, Options, is_public
from lm_eval_tandem.engines.http.replies import ModelEntry
from lm_eval_tandem.engines.http.retries import Reachability, Retries
from lm_eval_tandem.event_loop import EventLoopThread

T = TypeVar("T")
log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 10.0
"""Seconds within which a connection has to be established."""
DROPPABLE = ("temperature", "seed", "stop", "top_p", "stream_options", "return_token_ids", "max_tokens")
"""Parameters that some models refuse. A refused one is left out of all further requests; max_tokens is sent as
max_completion_tokens instead."""
DROPPED_SILENTLY = ("stream_options", "return_token_ids", "max_tokens", "stop")
"""Those of them without which no output changes (stop strings are applied to the reply as well), so that leaving one
out needs no warning."""
PUBLIC_HEADERS = ("OpenAI-Organization", "OpenAI-Project")
"""Headers that the client library takes from the environment; only OpenAI's own servers get them, as with the key."""
REFUSAL_WORDS = (
    *("unsupported", "not support", "unrecognized", "not recognized", "unknown", "not known", "not permitted"),
    *("not allowed", "unexpected"),
)
"""Words by which a server's error is recognised as the refusal of a parameter."""


@dataclass
class ServerWork(EngineWork):
    """Totals of an engine behind a server.

    Attributes
    ----------
    calls
        Requests sent.
    failed_calls
        Attempts that failed.
    dollars
        Charged so far, where prices are known.
    estimated_entropies
        Number of entropies that are estimates.
    entropy_error
        Sum, over these, of the largest possible error in nats.
    """

    calls: int = 0
    failed_calls: int = 0
    dollars: float = 0.0
    estimated_entropies: int = 0
    entropy_error: float = 0.0


class ServerPool:
    """The servers of one model.

    Connections belong to the event loop that is running; when the pool is used from another loop, it connects anew.

    Parameters
    ----------
    options
        Of the model; `options.urls` are the servers.
    key
        The API key, "" for none; it is sent to the servers that `options.takes_key` names.
    work
        Totals that the pool adds its calls to.

    Attributes
    ----------
    unsupported
        Parameters that a server has refused and that are no longer sent.
    has_completions
        Whether the servers continue plain text (`COMPLETIONS_PATH`); otherwise it is sent as a user's message.
    separates_thoughts
        Whether a stream has brought thinking apart from the content so far.
    reachability, errors
        Shared by all calls.
    """

    def __init__(self, options: Options, key: str, work: ServerWork) -> None:
        self.options, self.work = options, work
        self.unsupported: set[str] = set()
        self.has_completions = True
        self.separates_thoughts = False
        self.reachability = Reachability(options.model, options.give_up)
        self.errors = ErrorReader(options, key, self.reachability.report_reply)
        self._key = key
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: list[openai.AsyncOpenAI] = []
        self._slots = asyncio.Semaphore(options.concurrency)

    def twin(self) -> ServerPool:
        """Further connections to the same servers, for another event loop, with what has been found out about them."""
        other = ServerPool(self.options, self._key, self.work)
        other.unsupported, other.has_completions = self.unsupported, self.has_completions
        return other

    def retries(self, name: str, options: Options | None = None) -> Retries:
        """The attempts of a call of this name, within the limits of `options` (those of the model by default)."""
        return Retries(options or self.options, self.reachability, name, self.errors.without_key)

    async def model_entry(self, attempt: int) -> ModelEntry:
        """The server's entry for the model in its list of models; an empty one where it has none."""
        try:
            models: Any = await self._client("", attempt).get("/models", cast_to=object)
            error = error_in(models)
            if error is not None:
                raise self.errors.reported(error)
            return ModelEntry.of(models, self.options.model)
        except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
            failure = self.errors.failure(error)
            if failure.retryable:
                raise failure from error
            return ModelEntry()  # not every server lists its models

    async def retry(self, attempt: Callable[[int], Awaitable[T]], retries: Retries, takes_connection: bool = True) -> T:
        """The result of the first successful attempt; `retries` holds the failed ones.

        Parameters
        ----------
        attempt
            Gets the number of failed attempts before it, and raises `Failure` where it fails.
        retries
            Of this call.
        takes_connection
            Whether an attempt counts towards `options.concurrency`; not where it opens a stream, which counts itself,
            or where its caller holds a `slot` over several requests.

        Raises
        ------
        CallError
            The last attempt has failed.
        UnreachableError
            No server has been reached for `options.give_up` seconds.
        """
        while True:
            try:
                async with self.slot() if takes_connection else nullcontext():
                    retries.start()
                    return await attempt(len(retries.failures))
            except Failure as failure:
                self.work.failed_calls += 1
                await retries.wait_after(failure)

    async def post(self, path: str, body: dict[str, Any], session: str, attempt: int) -> Any:
        """A server's JSON reply to one request; parameters that it refuses are left out if it works without them.

        Raises
        ------
        Failure
            No reply.
        EngineError
            No call can succeed.
        """
        while True:
            path, body = self._offered(path, body)
            sent = self.supported(body)
            self.work.calls += 1
            try:
                # `asyncio.wait_for` would lose a cancellation that arrives together with the reply (Python < 3.12).
                async with asyncio.timeout(self.options.timeout):
                    reply = await self._client(session, attempt).post(path, body=sent, cast_to=object)
            except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
                if self._drop_refused(error, sent):
                    continue
                if path == COMPLETIONS_PATH and self._lacks_completions(error, body):
                    continue
                raise self.errors.failure(error) from error
            self.reachability.report_reply()
            reported = error_in(reply)
            if reported is not None:
                raise self.errors.reported(reported)
            return reply

    async def stream(
        self, started: asyncio.Event, path: str, body: dict[str, Any], session: str, retries: Retries
    ) -> AsyncGenerator[Any, None]:
        """The chunks of a streamed completion as JSON objects.

        The stream occupies one connection until its end; `started` is set once it has one. Exceptions are those of the
        client library.
        """
        async with self.slot():
            retries.start()
            started.set()
            async with aclosing(self.chunks(path, body, session, len(retries.failures))) as chunks:
                async for chunk in chunks:
                    yield chunk

    async def chunks(
        self, path: str, body: dict[str, Any], session: str, attempt: int, may_be_whole: bool = False
    ) -> AsyncGenerator[Any, None]:
        """The chunks of a streamed completion, for a caller who holds a `slot`; exceptions as those of `stream`.

        A server may send a whole reply in place of a stream: where that is allowed it is the only chunk.
        """
        while True:
            path, body = self._offered(path, body)
            sent = self.supported(body)
            self.work.calls += 1
            try:
                opened: Any = await self._client(session, attempt).post(
                    path, body=sent, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
                )
                break
            except openai.APIStatusError as error:
                lacking = path == COMPLETIONS_PATH and self._lacks_completions(error, body)
                if not lacking and not self._drop_refused(error, sent):
                    raise
        self.reachability.report_reply()
        try:
            headers = opened.response.headers
            if "json" in headers.get("content-type", "") and "content-length" in headers:
                whole = json.loads(await opened.response.aread())
                if may_be_whole and error_in(whole) is None:
                    yield whole
                    return
                raise self.errors.reported(error_in(whole) or "a whole reply came in place of a stream")
            async for chunk in opened:
                reported = error_in(chunk)
                if reported is not None:
                    raise self.errors.reported(reported)
                yield chunk
        finally:
            await opened.close()

    def _client(self, session: str, attempt: int) -> openai.AsyncOpenAI:
        """The same server for all calls of a session, because it has their prefix cached; another one at a retry."""
        self._bind_to_loop()
        return self._clients[(zlib.crc32(session.encode()) + attempt) % len(self._clients)]

    def slot(self) -> asyncio.Semaphore:
        """What a call holds that counts towards `options.concurrency`; `retry` and `stream` hold it themselves."""
        self._bind_to_loop()
        return self._slots

    def _bind_to_loop(self) -> None:
        """Make the clients for the running event loop, unless they are there."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        self._slots = asyncio.Semaphore(self.options.concurrency)
        timeout = openai.Timeout(self.options.timeout, connect=CONNECT_TIMEOUT)
        self._clients = [
            openai.AsyncOpenAI(
                base_url=url,
                api_key=self._key if self._key and self.options.takes_key(url) else "none",
                max_retries=0,
                timeout=timeout,
                default_headers={} if is_public(url) else dict.fromkeys(PUBLIC_HEADERS, openai.Omit()),
            )
            for url in self.options.urls
        ]

    def close(self) -> None:
        """Close the connections, from any thread."""
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self.disconnect(), self._loop).result(timeout=CONNECT_TIMEOUT)

    async def disconnect(self) -> None:
        """Close the connections, in the event loop that opened them."""
        for client in self._clients:
            await client.close()

    def _offered(self, path: str, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """A request to continue plain text, as one of a chat where the servers offer nothing else."""
        if path == COMPLETIONS_PATH and not self.has_completions and isinstance(body["prompt"], str):
            return CHAT_PATH, as_chat(body)
        return path, body

    def supported(self, body: dict[str, Any]) -> dict[str, Any]:
        """The request without the parameters that have been refused."""
        sent = {name: value for name, value in body.items() if name not in self.unsupported}
        if "max_tokens" in self.unsupported:
            sent["max_completion_tokens"] = body["max_tokens"]
        return sent

    def _drop_refused(self, error: Exception, sent: Mapping[str, Any]) -> bool:
        """Whether the error refuses a parameter that can be left out; it is left out from now on."""
        if not isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError)):
            return False
        message = self.errors.message(error)
        if not any(word in message.lower() for word in REFUSAL_WORDS):
            return False
        droppable = [name for name in DROPPABLE if name in sent]
        if error.param in droppable:
            named = [error.param]
        else:
            named = [name for name in droppable if re.search(rf"\b{name}\b", message)]
        if not named:
            return False
        self.unsupported.add(named[0])
        if named[0] not in DROPPED_SILENTLY:
            log.warning(
                "%s does not accept %s; the server's default is used (its reply: %s)",
                self.options.model,
                named[0],
                message,
            )
        return True

    def _lacks_completions(self, error: Exception, body: Mapping[str, Any]) -> bool:
        """Whether the servers offer chat alone, so that plain text is sent as a user's message from now on."""
        missing = isinstance(error, openai.APIStatusError) and error.status_code in (404, 405, 501)
        if missing and isinstance(body["prompt"], str):
            self.has_completions = False
            return True
        return False


def run_apart(servers: ServerPool, work: Coroutine[Any, Any, T]) -> T:
    """The result of calls that go through `servers` alone, from any thread; the connections are closed again."""
    loop = EventLoopThread()
    try:
        return loop.run(work)
    finally:
        try:
            loop.run(servers.disconnect())
        finally:
            loop.close()


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request to continue plain text, rewritten as a chat request with the text as the user's message."""
    others = {name: value for name, value in body.items() if name != "prompt"}
    if "logprobs" in others:
        others |= {"logprobs": True, "top_logprobs": others["logprobs"]}
    return {**others, "messages": [{"role": "user", "content": body["prompt"]}]}
