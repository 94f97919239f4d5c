"""The routes of the server: OpenAI's three, the page and what it asks, health and metrics."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from lm_eval_tandem import __version__
from lm_eval_tandem.errors import TandemError
from lm_eval_tandem.server.disclosure import Disclosure, without_keys
from lm_eval_tandem.server.errors import RequestError, request_error_of
from lm_eval_tandem.server.guard import ClientGone, Guard, GuardOptions, send_error
from lm_eval_tandem.server.metrics import Metrics
from lm_eval_tandem.server.page import add_page
from lm_eval_tandem.server.protocol import Asked, read_chat, read_completion
from lm_eval_tandem.server.replies import Replies
from lm_eval_tandem.server.request_log import CLIENT_GONE, ENTRY, Entry, RequestLog
from lm_eval_tandem.server.service import Service
from lm_eval_tandem.server.streaming import HEADERS, AnswerStream, error_event
from lm_eval_tandem.server.work import Work

log = logging.getLogger(__name__)
T = TypeVar("T")

Told = Callable[[Exception, Entry], RequestError]
"""What a client is told of an error."""
HEADERS_AFTER = 2.0
"""Seconds after which a stream's status is sent although nothing has happened; until then an error has its own."""


def make_app(service: Service, options: GuardOptions, request_log: RequestLog) -> ASGIApp:
    """The whole application.

    Parameters
    ----------
    service
        The loaded models.
    options
        Who may ask, and how much may be sent.
    request_log
        Gets a line for each request.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    metrics = Metrics(service)
    routes = Routes(service, metrics)
    app.add_exception_handler(HTTPException, on_http_exception)
    for method, path, endpoint in routes.table():
        app.add_api_route(path, named(path, endpoint, routes.told), methods=[method], response_model=None)
    add_page(app, key_needed=bool(options.key))

    def report(entry: Entry) -> None:
        metrics.count(entry)
        request_log.write(entry)

    return Guard(app, options, report)


def named(
    path: str, endpoint: Callable[[Request], Awaitable[Response]], told: Told
) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a path: the request's entry gets the path's name, and errors become replies."""

    async def answer(request: Request) -> Response:
        entry: Entry = request.scope[ENTRY]
        entry.route = path
        try:
            return await endpoint(request)
        except ClientGone:
            return Response(status_code=CLIENT_GONE)  # nobody gets it
        except Exception as error:
            reply = told(error, entry)
            return json_response(reply.body, reply.status, reply.headers)

    return answer


async def on_http_exception(request: Request, error: Exception) -> Response:
    """A path that does not exist, or not with this method, in OpenAI's shape."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        told = RequestError(404, "there is nothing at this path; the API is at /v1.", code="not_found")
    else:
        allowed = (error.headers or {}).get("Allow", "another method")
        told = RequestError(
            error.status_code, f"this path does not take this method; use {allowed}.", code="method_not_allowed"
        )
    request.scope[ENTRY].error = told.code or ""
    return json_response(told.body, told.status, dict(error.headers or {}))


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A reply of JSON."""
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(body, status, headers, "application/json")


class Routes:
    """What each route does."""

    def __init__(self, service: Service, metrics: Metrics) -> None:
        self._service, self._metrics = service, metrics
        self._disclosure = Disclosure(service.lm.engines)
        described = json.dumps(service.lm.description, sort_keys=True, default=str)
        self._fingerprint = "fp_" + hashlib.sha256(described.encode()).hexdigest()[:10]

    def table(self) -> Iterator[tuple[str, str, Callable[[Request], Coroutine[Any, Any, Response]]]]:
        """Method, path and function of each route."""
        yield "POST", "/v1/chat/completions", self.chat
        yield "POST", "/v1/completions", self.completion
        yield "GET", "/v1/models", self.models
        yield "GET", "/v1/models/{name:path}", self.model
        yield "GET", "/v1/tandem/info", self.info
        yield "GET", "/health", self.health
        yield "GET", "/metrics", self.figures

    def told(self, error: Exception, entry: Entry) -> RequestError:
        """What the client is told of an error; what is no fault of the request is in the server's own log, too."""
        found = request_error_of(error, entry.id)
        entry.error = found.code or found.kind
        if not isinstance(error, TandemError):
            trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
            log.error("Request %s failed.\n%s", entry.id, without_keys(trace))
        elif found.status >= 500:
            log.warning("Request %s failed: %s", entry.id, without_keys(str(error)))
        return found.in_words(self._disclosure.sentence(str(found)))

    async def models(self, request: Request) -> Response:
        """The names that the server answers under."""
        return json_response({"object": "list", "data": [model_entry(name) for name in self._service.offers.names]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        self._service.offers.find(name)
        return json_response(model_entry(name))

    async def info(self, request: Request) -> Response:
        """What is loaded, for the page."""
        service = self._service
        described = self._disclosure.content(service.lm.description)
        known = {**described, "default": service.offers.default, "policies": service.offers.descriptions}
        limits = {"max_tokens": service.limits.max_tokens, "max_requests": service.limits.max_requests}
        return json_response(known | limits)

    async def health(self, request: Request) -> Response:
        """That the server answers."""
        return json_response({"status": "ok", "version": __version__})

    async def figures(self, request: Request) -> Response:
        """The figures for Prometheus."""
        return Response(self._metrics.text(), media_type=CONTENT_TYPE_LATEST)

    async def chat(self, request: Request) -> Response:
        """A chat completion."""
        return await self._answer(request, read_chat(await request.body()))

    async def completion(self, request: Request) -> Response:
        """A completion of plain text."""
        return await self._answer(request, read_completion(await request.body()))

    async def _answer(self, request: Request, asked: Asked) -> Response:
        entry: Entry = request.scope[ENTRY]
        entry.stream = asked.stream
        self._service.offers.find(asked.model)
        entry.model = asked.model
        replies = Replies(asked.is_chat, asked.model, self._fingerprint)
        work = await self._service.begin(asked)
        if asked.stream:
            return StreamedReply(self._service, work, replies, entry, self.told)
        try:
            answers = await while_connected(work.answers(), request.receive)
        finally:
            await self._service.end(work)
        entry.answered = answers
        return json_response(replies.whole(work, answers))


def model_entry(name: str) -> dict[str, Any]:
    """A model as OpenAI lists it."""
    return {"id": name, "object": "model", "created": 0, "owned_by": "lm-eval-tandem"}


async def while_connected(working: Coroutine[Any, Any, T], receive: Receive) -> T:
    """The result of a coroutine, which is cancelled when the client hangs up.

    Raises
    ------
    ClientGone
        The client hung up.
    """
    task, gone = asyncio.ensure_future(working), asyncio.ensure_future(client_gone(receive))
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def client_gone(receive: Receive) -> None:
    """Return when the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        continue


class StreamedReply(Response):
    """A reply of server-sent events.

    Until the first event the status is open, so that an error gets its own; after that an error is the last event.
    """

    def __init__(self, service: Service, work: Work, replies: Replies, entry: Entry, told: Told) -> None:
        super().__init__()
        self._service, self._work, self._entry, self._told = service, work, entry, told
        self._stream = AnswerStream(work, replies)
        self._is_complete = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the answers have ended, or the client has gone."""
        try:
            await while_connected(self._send_all(send), receive)
        except ClientGone:
            if not self._is_complete:  # uvicorn tells of a reply's end and of a client that hangs up in the same way
                self._entry.status = CLIENT_GONE
        finally:
            await self._service.end(self._work)

    async def _send_all(self, send: Send) -> None:
        begun = False
        try:
            async for chunk in soon(self._stream.chunks(), HEADERS_AFTER):
                if len(self._stream.answered) == len(self._work.running):
                    await self._service.end(self._work)  # before the client knows, who may ask the next question
                if not begun:
                    begun = True
                    await begin_stream(send)
                if chunk and self._entry.first_text is None:
                    self._entry.first_text = self._entry.seconds
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        except ClientGone:
            raise
        except Exception as error:
            told = self._told(error, self._entry)
            if not begun:
                self._is_complete = True
                await send_error(told, send)
                return
            await send({"type": "http.response.body", "body": error_event(told), "more_body": True})
        answered = self._stream.answered
        self._entry.answered = [answered[index] for index in sorted(answered)]
        self._is_complete = True
        await send({"type": "http.response.body", "body": b""})


async def begin_stream(send: Send) -> None:
    """Send the status and the headers of a stream."""
    headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    await send({"type": "http.response.start", "status": 200, "headers": headers})


async def soon(chunks: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """The same, after an empty piece where the first one takes longer than some seconds."""
    iterator = chunks.__aiter__()
    first = asyncio.ensure_future(iterator.__anext__())  # type: ignore[arg-type]
    try:
        await asyncio.wait((first,), timeout=seconds)
        if not first.done():
            yield b""
        yield await first
    finally:
        first.cancel()
    async for chunk in iterator:
        yield chunk
