"""Uvicorn's server, which lets accepted requests end when it is told to stop, though not for ever."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Callable

import uvicorn

LAST_SECONDS = 5
"""Seconds that replies may take to arrive after their requests were broken off."""


class DrainingServer(uvicorn.Server):
    """The server.

    Parameters
    ----------
    config
        Of uvicorn; its limit for the end is set here.
    drain_timeout
        Seconds that accepted requests may take after a signal to stop.
    break_off
        Lets those fail that are left then; returns how many they are.
    """

    def __init__(self, config: uvicorn.Config, drain_timeout: float, break_off: Callable[[], int]) -> None:
        config.timeout_graceful_shutdown = drain_timeout + LAST_SECONDS  # type: ignore[assignment]
        super().__init__(config)
        self._drain_timeout, self._break_off = drain_timeout, break_off

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept nothing new, and wait for what was accepted."""
        timer = asyncio.get_running_loop().call_later(self._drain_timeout, self._end_the_rest)
        try:
            await super().shutdown(sockets)
        finally:
            timer.cancel()

    def _end_the_rest(self) -> None:
        left = self._break_off()
        if not left:
            return
        what = "1 request was" if left == 1 else f"{left} requests were"
        print(
            f"serve: {what} not complete {self._drain_timeout:g} seconds after the signal (--drain-timeout), and "
            "ended with status 503.",
            file=sys.stderr,
            flush=True,
        )
