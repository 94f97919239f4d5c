"""Calls to servers of the OpenAI protocol: which server, what it does without, what its errors mean."""

from __future__ import annotations

import asyncio
import logging
import re
import time
import zlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

import openai

from lm_eval_tandem.engines import Work
from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.engines.http.retries import Failure, Reachability, Retries
from lm_eval_tandem.errors import EngineError

T = TypeVar("T")
log = logging.getLogger(__name__)

CHAT, TEXT = "/chat/completions", "/completions"
CONNECT = 10.0
"""Seconds until a connection has to stand."""
AGAIN = (408, 409, 425, 429)
OPTIONAL = ("temperature", "seed", "stop", "top_p", "stream_options", "return_token_ids", "max_tokens")
"""Parameters that some models refuse; they do without, max_tokens becomes max_completion_tokens."""
SILENT = ("stream_options", "return_token_ids", "max_tokens", "stop")
"""Those of them whose lack changes no output: stop strings are cut at here."""
REFUSED = ("unsupported", "not support", "unrecognized", "unknown", "not permitted", "not allowed", "unexpected")
TRANSPORT = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio")
"""Packages whose errors mean that a connection broke."""


@dataclass
class CallWork(Work):
    """What was asked of servers: calls, those of them that failed, and dollars (where prices are known)."""

    calls: int = 0
    failed_calls: int = 0
    dollars: float = 0.0


class ServerPool:
    """The servers of one model. Connections are made in the event loop that is running, anew in another one.

    left_out: parameters that they turned out not to know. can_complete: they take plain texts, not conversations alone.
    """

    def __init__(self, options: Options, key: str, work: CallWork) -> None:
        self.options, self.work = options, work
        self.left_out: set[str] = set()
        self.line = Reachability(options.model, options.give_up)
        self._key = key
        self.can_complete = True
        self._loop: asyncio.AbstractEventLoop | None = None
        self._clients: list[openai.AsyncOpenAI] = []
        self._slots = asyncio.Semaphore(options.concurrency)

    async def listed(self, attempt: int) -> dict[str, Any]:
        """The server's entry for the model, with vLLM its window; {} where it lists none."""
        try:
            models: Any = await self._client("", attempt).get("/models", cast_to=object)
            return next((entry for entry in models["data"] if entry.get("id") == self.options.model), {})
        except (KeyError, TypeError, AttributeError) as error:
            raise Failure("the list of models cannot be read") from error
        except Exception as error:  # as in posted
            failure = self.failure(error)
            if failure.again:
                raise failure from error
            return {}  # not every server lists its models

    async def persist(
        self, attempt: Callable[[int], Awaitable[T]], tries: Retries, lost: list[Failure], place: bool = True
    ) -> T:
        """The result of the first attempt that has one; those that failed are added to `lost`.

        place: each attempt takes a place among the connections.

        Raises
        ------
        CallError
            There shall be no other attempt.
        UnreachableError
            No server has been reached for long.
        """
        while True:
            try:
                async with self._place() if place else nullcontext():
                    tries.begin()
                    return await attempt(len(tries.failures))
            except Failure as failure:
                self.work.failed_calls += 1
                lost.append(failure)
                await tries.after(failure)

    async def posted(self, path: str, body: dict[str, Any], session: str, attempt: int) -> Any:
        """What a server replies; parameters that it refuses but can do without are left out."""
        while True:
            if path == TEXT and not self.can_complete:
                path, body = CHAT, as_question(body)
            sent = self._accepted(body)
            self.work.calls += 1
            try:
                posted = self._client(session, attempt).post(path, body=sent, cast_to=object)
                reply = await asyncio.wait_for(posted, self.options.timeout)
            except Exception as error:  # what the client raises is told apart in failure
                if self._does_without(error, sent):
                    continue
                if path == TEXT and self._has_no_completions(error, body):
                    continue
                raise self.failure(error) from error
            self.line.reached()
            return reply

    async def chunks(
        self, started: asyncio.Event, body: dict[str, Any], session: str, tries: Retries
    ) -> AsyncGenerator[Any, None]:
        """The pieces of a stream, which keeps its place until its end; `started` is set when it has one."""
        async with self._place():
            tries.begin()
            started.set()
            while True:
                sent = self._accepted(body)
                self.work.calls += 1
                client = self._client(session, len(tries.failures))
                try:
                    opened: Any = await client.post(
                        CHAT, body=sent, cast_to=object, stream=True, stream_cls=openai.AsyncStream[object]
                    )
                    break
                except openai.APIStatusError as error:
                    if not self._does_without(error, sent):
                        raise
            self.line.reached()
            try:
                async for chunk in opened:
                    yield chunk
            finally:
                await opened.close()

    def _client(self, session: str, attempt: int) -> openai.AsyncOpenAI:
        """The server of a session, where its prefix is cached; another one with each attempt."""
        self._settle_in()
        return self._clients[(zlib.crc32(session.encode()) + attempt) % len(self._clients)]

    def _place(self) -> asyncio.Semaphore:
        self._settle_in()
        return self._slots

    def _settle_in(self) -> None:
        """Connections belong to an event loop; the engine may be used from another one later."""
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        self._loop = loop
        self._slots = asyncio.Semaphore(self.options.concurrency)
        limit = openai.Timeout(self.options.timeout, connect=CONNECT)
        self._clients = [
            openai.AsyncOpenAI(base_url=url, api_key=self._key or "none", max_retries=0, timeout=limit)
            for url in self.options.urls
        ]

    def close(self) -> None:
        """End the connections."""
        if self._loop is not None and self._loop.is_running():
            asyncio.run_coroutine_threadsafe(self.hang_up(), self._loop).result(timeout=CONNECT)

    async def hang_up(self) -> None:
        """End the connections, in the loop that made them."""
        for client in self._clients:
            await client.close()

    def _accepted(self, body: dict[str, Any]) -> dict[str, Any]:
        sent = {name: value for name, value in body.items() if name not in self.left_out}
        if "max_tokens" in self.left_out:
            sent["max_completion_tokens"] = body["max_tokens"]
        return sent

    def _does_without(self, error: Exception, sent: Mapping[str, Any]) -> bool:
        """Whether the server refused a parameter that it can do without; it is left out from now on."""
        if not isinstance(error, (openai.BadRequestError, openai.UnprocessableEntityError)):
            return False
        said = self._said(error)
        if not any(word in said.lower() for word in REFUSED):
            return False
        here = [name for name in OPTIONAL if name in sent]
        found = [error.param] if error.param in here else [name for name in here if re.search(rf"\b{name}\b", said)]
        if not found:
            return False
        self.left_out.add(found[0])
        if found[0] not in SILENT:
            log.warning(
                "%s takes no %s; its own default is used (the server says: %s)", self.options.model, found[0], said
            )
        return True

    def _has_no_completions(self, error: Exception, body: Mapping[str, Any]) -> bool:
        """Whether the server has chat alone; then a plain text is asked as a question from now on."""
        missing = isinstance(error, openai.APIStatusError) and error.status_code in (404, 405, 501)
        if missing and isinstance(body["prompt"], str):
            self.can_complete = False
        return not self.can_complete

    def failure(self, error: Exception) -> Failure:
        """What an error of the client means. Raises EngineError where no call can succeed."""
        if isinstance(error, Failure):
            return error
        if isinstance(error, EngineError):
            raise error
        seconds = self.options.timeout
        if isinstance(error, (TimeoutError, asyncio.TimeoutError, openai.APITimeoutError)):
            connected = "Connect" not in type(error.__cause__).__name__
            return Failure(f"no reply within {seconds:g} seconds", billed=connected, lost=not connected)
        if isinstance(error, openai.APIConnectionError):
            return Failure(f"the connection failed: {self._clean(error.__cause__ or error)}", lost=True)
        if type(error).__module__.partition(".")[0] in TRANSPORT:
            return Failure(f"the connection broke: {self._clean(error)}", billed=True)
        if isinstance(error, openai.APIStatusError):
            self.line.reached()
            return self._status(error)
        if isinstance(error, (openai.APIError, ValueError)):
            return Failure(f"the reply cannot be read: {self._clean(error)}", billed=True)
        raise error

    def _status(self, error: openai.APIStatusError) -> Failure:
        status, said = error.status_code, self._said(error)
        if status == 401:
            raise EngineError(
                f"{self.options.urls[0]} refuses the key in {self.options.api_key_env} (401): {said}; "
                "set the environment variable to a valid one."
            )
        if error.code == "insufficient_quota" or status == 402:
            raise EngineError(f"the account at {self.options.urls[0]} is used up ({status}): {said}")
        again = status in AGAIN or status >= 500
        return Failure(f"the server says {status}: {said}", again=again, wait=wait_of(error) if again else None)

    def _said(self, error: openai.APIStatusError) -> str:
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return self._clean(message or error.message)

    def _clean(self, words: object) -> str:
        """A message as one line, never with the key in it."""
        text = " ".join(str(words).split())
        return (text.replace(self._key, "…") if self._key else text)[:300]


def as_question(body: Mapping[str, Any]) -> dict[str, Any]:
    """A request for a text's continuation, made to a server that knows conversations only."""
    asked = {name: value for name, value in body.items() if name != "prompt"}
    return {**asked, "messages": [{"role": "user", "content": body["prompt"]}]}


def wait_of(error: openai.APIStatusError) -> float | None:
    """Seconds that the server asks to wait."""
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        said = headers.get("retry-after")
        if said is None:
            return None
        if said.replace(".", "", 1).isdigit():
            return float(said)
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (TypeError, ValueError):  # a header that is neither: our own wait
        return None
