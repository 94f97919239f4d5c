"""What stands before every route: who may ask, how much may be sent, and errors in OpenAI's shape.

The checks run in this order: the host that a browser believes to talk to, pages of other sites, the key, the body's
type, size and speed. The body is read here, so that no route ever sees one that is too large.
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lm_eval_tandem.server.connections import ABORT
from lm_eval_tandem.server.errors import RequestError, request_error_of
from lm_eval_tandem.server.request_log import CLIENT_GONE, ENTRY, Entry

OPEN_ROUTES = ("/", "/health")
"""Paths that need no key: the page, which holds nothing and asks for it, and what load balancers ask."""
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
WRITE_SECONDS = 60.0
"""Seconds that a client may leave a piece of the reply unread before it counts as gone."""


class ClientGone(Exception):
    """The client hung up, or reads no more."""


@dataclass(frozen=True)
class GuardOptions:
    """What the guard lets through.

    Attributes
    ----------
    key
        What clients have to send as a bearer token; "" for none.
    only_loopback_hosts
        Whether `Host` has to name this machine itself: without a key, a page that another host's name leads here
        (DNS rebinding) must get nothing.
    max_body_bytes
        Size of the largest body.
    read_seconds
        Seconds within which a body has to arrive.
    """

    key: str = field(default="", repr=False)
    only_loopback_hosts: bool = True
    max_body_bytes: int = 1_000_000
    read_seconds: float = 30.0


class Guard:
    """ASGI middleware around the whole application.

    Parameters
    ----------
    app
        The application.
    options
        What is let through.
    report
        Called with the entry of each request that has ended.
    """

    def __init__(self, app: ASGIApp, options: GuardOptions, report: Callable[[Entry], None]) -> None:
        self._app, self._options, self._report = app, options, report

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection's request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        entry = scope[ENTRY] = Entry(scope["method"] if scope["method"] in METHODS else "other")

        async def send_watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", entry.id.encode())]
            is_late = False

            def give_up() -> None:
                nonlocal is_late
                is_late = True
                scope["state"][ABORT]()  # which ends the waiting; otherwise it would last until the client reads

            # Not asyncio.wait_for: before Python 3.12 that makes a task for each piece.
            timer = asyncio.get_running_loop().call_later(WRITE_SECONDS, give_up)
            try:
                await send(message)
            finally:
                timer.cancel()
            if is_late:
                raise ClientGone

        try:
            self._check(scope)
            read = await self._read_body(scope, receive)
            await self._app(scope, read, send_watched)
        except ClientGone:
            entry.status = CLIENT_GONE
        except Exception as error:
            await self._fail(error, entry, send_watched)
        finally:
            self._report(entry)

    async def _fail(self, error: Exception, entry: Entry, send: Send) -> None:
        told = request_error_of(error, entry.id)
        entry.error = told.code or told.kind
        if entry.status or not isinstance(error, RequestError):  # uvicorn logs it, and ends the connection
            raise error
        await send_error(told, send)

    def _check(self, scope: Scope) -> None:
        """Refuse who may not ask.

        Raises
        ------
        RequestError
            403 for another host's name or another site's page, 401 for a key that is missing or wrong.
        """
        headers = headers_of(scope)
        # A load balancer may ask in HTTP/1.0, which has no Host; a browser always sends one.
        asks_for_health = scope["path"] == "/health" and "host" not in headers
        is_local = asks_for_health or is_loopback(host_of(headers.get("host", "")))
        if self._options.only_loopback_hosts and not is_local:
            raise RequestError(
                403,
                "without a key the server answers only to the names of this machine itself (localhost, 127.0.0.1); "
                "start it with --api-key-env to use another name.",
                code="host_not_allowed",
            )
        if scope["method"] not in ("GET", "HEAD") and is_of_another_site(headers):
            raise RequestError(403, "pages of other sites may not use this server.", code="cross_site")
        if self._options.key and scope["path"] not in OPEN_ROUTES and not self._has_key(headers):
            raise RequestError(
                401,
                "the key is missing or wrong; send the server's key as Authorization: Bearer KEY.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )

    def _has_key(self, headers: Mapping[str, str]) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        # Always one comparison, in a time that does not depend on how much of the key is right.
        is_right = hmac.compare_digest(given.strip().encode("latin-1"), self._options.key.encode())
        return is_right and scheme.lower() == "bearer"

    async def _read_body(self, scope: Scope, receive: Receive) -> Receive:
        """Read a body, and return what gives it to the application and then tells it whether the client is there.

        Raises
        ------
        RequestError
            413 for one that is too large, 408 for one that is too slow, 415 for one that is no JSON.
        ClientGone
            The client hung up within it.
        """
        if scope["method"] != "POST":  # no route of another method reads a body
            return receive
        headers = headers_of(scope)
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise RequestError(
                415, "the body has to be JSON; send it with Content-Type: application/json.", code="not_json"
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "the body has to be sent as it is, without Content-Encoding.", code="encoded")
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._options.max_body_bytes:
            raise self._too_large()
        parts, size, deadline = list[bytes](), 0, time.monotonic() + self._options.read_seconds
        while True:
            try:
                async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                    message = await receive()
            except TimeoutError:
                raise RequestError(
                    408,
                    f"the body did not arrive within {self._options.read_seconds:g} seconds.",
                    code="too_slow",
                    headers={"Connection": "close"},
                ) from None
            if message["type"] == "http.disconnect":
                raise ClientGone
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > self._options.max_body_bytes:
                raise self._too_large()
            if not message.get("more_body"):
                return replayed(b"".join(parts), receive)

    def _too_large(self) -> RequestError:
        most = self._options.max_body_bytes
        return RequestError(413, f"the body has more than {most:,} bytes; send less.", code="too_large")


def replayed(body: bytes, receive: Receive) -> Receive:
    """What gives a body that was read already, and then whatever comes after it."""
    waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_replayed() -> Message:
        return waiting.pop() if waiting else await receive()

    return receive_replayed


async def send_error(error: RequestError, send: Send) -> None:
    """Send an error as a whole reply."""
    body = json.dumps(error.body).encode()
    headers = {"Content-Type": "application/json", "Content-Length": str(len(body)), **error.headers}
    raw = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def headers_of(scope: Scope) -> dict[str, str]:
    """The headers by their names in small letters; of several of one name the last."""
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}


def host_of(header: str) -> str:
    """The host of a `Host` header, without its port.

    Examples
    --------
    >>> host_of("[::1]:8000"), host_of("localhost:8000"), host_of("127.0.0.1")
    ('::1', 'localhost', '127.0.0.1')
    """
    if header.startswith("["):
        return header[1:].partition("]")[0]
    return header.rpartition(":")[0] if header.count(":") == 1 else header


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own, and no other machine can reach it."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_of_another_site(headers: Mapping[str, Any]) -> bool:
    """Whether a browser sent the request for a page of another site."""
    if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        return True
    origin = headers.get("origin")
    return origin is not None and origin.partition("://")[2] != headers.get("host", "")
