"""Uvicorn's connections, with what it leaves open: a time limit for headers, and errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lm_eval_tandem.server.errors import RequestError

LINGER = 1.0
"""Seconds for which a connection that is refused is still read: closed at once, it would be reset, and a client that
still sends would never see why."""
ABORT = "abort"
"""Name in a request's ASGI state of what ends its connection at once, whatever is still to be sent."""


class Connection(H11Protocol):
    """One connection.

    Parameters
    ----------
    read_seconds
        Within which the headers of a request have to be complete.
    arguments
        Of uvicorn's protocol.
    """

    def __init__(self, read_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._read_seconds = read_seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._is_refused = False
        self.app_state = {**self.app_state, ABORT: self._abort}

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client has connected: its first request is awaited."""
        super().connection_made(transport)
        self._await_headers()

    def data_received(self, data: bytes) -> None:
        """The client has sent something, which is not read once its connection is refused."""
        if not self._is_refused:
            super().data_received(data)

    def handle_events(self) -> None:
        """Handle what has been received."""
        super().handle_events()
        begun = bool(self.conn.trailing_data[0])
        if self.conn.their_state is h11.IDLE and begun and not self._is_refused:
            self._await_headers()
        else:
            self._stop_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection has ended."""
        self._stop_timer()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP."""
        self._refuse(RequestError(400, "this is no valid HTTP request.", code="invalid_http"))

    def _await_headers(self) -> None:
        if self._header_timer is None:
            self._header_timer = self.loop.call_later(self._read_seconds, self._too_slow)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._header_timer = None
        if self.conn.our_state is h11.IDLE and not self._is_refused:
            seconds = f"{self._read_seconds:g}"
            self._refuse(RequestError(408, f"the request did not arrive within {seconds} seconds.", code="too_slow"))

    def _refuse(self, error: RequestError) -> None:
        body = json.dumps(error.body).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        response = h11.Response(status_code=error.status, headers=headers)
        for event in (response, h11.Data(data=body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event))
        self._is_refused = True
        self.loop.call_later(LINGER, self.transport.close)

    def _abort(self) -> None:
        self.transport.abort()
