"""Pipes between this process and a sandbox, and a reader that waits on two of them with a time limit."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from contextlib import ExitStack

MAX_VERDICT_BYTES = 16 << 10
"""Bytes of a verdict that are read; a longer one has no last line and counts as no verdict."""


class Pipe:
    """An operating-system pipe whose two ends are closed exactly once each.

    Parameters
    ----------
    stack
        Closes both ends when it is closed, if they have not been closed before.

    Attributes
    ----------
    reading, writing : int
        File descriptors of the two ends.
    close_reading, close_writing : callable
        Close one end; a second call does nothing.
    """

    def __init__(self, stack: ExitStack) -> None:
        self.reading, self.writing = os.pipe()
        self.close_reading = _closer(self.reading)
        self.close_writing = _closer(self.writing)
        stack.callback(self.close_writing)
        stack.callback(self.close_reading)


def _closer(descriptor: int) -> Callable[[], None]:
    """A function that closes the descriptor at its first call and does nothing at later ones."""
    still_open = [descriptor]

    def close() -> None:
        if still_open:
            os.close(still_open.pop())

    return close


class Reader:
    """Reads a run's verdict and its printed output as they arrive.

    Parameters
    ----------
    verdict, output
        File descriptors to read from.
    max_output
        Bytes of output that are kept; the rest is read and dropped, so that the program never blocks on it.

    Attributes
    ----------
    verdict : bytes
        What has arrived of the verdict.
    closed : bool
        Whether the verdict's pipe has reached its end.
    """

    def __init__(self, verdict: int, output: int, max_output: int) -> None:
        self.verdict = b""
        self.closed = False
        self._output = b""
        self._max_output = max_output
        self._verdict_pipe = verdict
        self._selector = selectors.DefaultSelector()
        self._selector.register(verdict, selectors.EVENT_READ)
        self._selector.register(output, selectors.EVENT_READ)

    @property
    def lines(self) -> int:
        """Number of complete lines of the verdict that have arrived."""
        return self.verdict.count(b"\n")

    @property
    def output(self) -> str:
        """The start of what the program printed."""
        return self._output.decode(errors="replace")

    @property
    def unread(self) -> bool:
        """Whether something has arrived that is not read yet; the program may be waiting for that."""
        return bool(self._selector.select(0))

    def wait(self, done: Callable[[], bool], seconds: float, step: float = 60.0) -> bool:
        """Read until `done()` is true or the time is over; return `done()`, which is asked at least every `step`."""
        end = time.monotonic() + seconds
        while not done() and (left := end - time.monotonic()) > 0:
            self._read(min(left, step))
        return done()

    def drain(self, seconds: float) -> None:
        """Read until both pipes end, which is when every process of the run is gone, or the time is over."""
        end = time.monotonic() + seconds
        while self._selector.get_map() and (left := end - time.monotonic()) > 0:
            self._read(left)
        self._selector.close()

    def _read(self, seconds: float) -> None:
        for key, _ in self._selector.select(seconds):
            data = os.read(key.fd, 1 << 16)
            if not data:
                self._selector.unregister(key.fd)
                self.closed = self.closed or key.fd == self._verdict_pipe
            elif key.fd == self._verdict_pipe:
                self.verdict = (self.verdict + data)[:MAX_VERDICT_BYTES]
            else:
                self._output += data[: self._max_output - len(self._output)]
