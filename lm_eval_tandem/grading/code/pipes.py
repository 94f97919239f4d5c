"""Pipes between this process and a sandbox, and reading from two of them at once within a time limit."""

from __future__ import annotations

import os
import selectors
import time
from collections.abc import Callable
from contextlib import ExitStack

VERDICT_BYTES = 16 << 10
"""At most this much of a verdict is read; what is longer has no end and counts as none."""


class Pipe:
    """A pipe whose ends are closed once, by hand or with the run."""

    def __init__(self, stack: ExitStack) -> None:
        self.reading, self.writing = os.pipe()
        self.close_reading = _once(self.reading)
        self.close_writing = _once(self.writing)
        stack.callback(self.close_writing)
        stack.callback(self.close_reading)


def _once(descriptor: int) -> Callable[[], None]:
    left = [descriptor]

    def close() -> None:
        if left:
            os.close(left.pop())

    return close


class Reader:
    """Reads verdict and output as they come; of the output, only the start is kept."""

    def __init__(self, verdict: int, output: int, keep: int) -> None:
        self.verdict = b""
        self.closed = False
        self._output = b""
        self._keep = keep
        self._verdict_pipe = verdict
        self._selector = selectors.DefaultSelector()
        self._selector.register(verdict, selectors.EVENT_READ)
        self._selector.register(output, selectors.EVENT_READ)

    @property
    def lines(self) -> int:
        """Whole lines of the verdict so far."""
        return self.verdict.count(b"\n")

    @property
    def output(self) -> str:
        """The start of what was printed."""
        return self._output.decode(errors="replace")

    def wait(self, done: Callable[[], bool], seconds: float) -> bool:
        """Read until `done`, the end of the verdict's pipe, or the time is over; whether it is done."""
        end = time.monotonic() + seconds
        while not done() and not self.closed and (left := end - time.monotonic()) > 0:
            self._read(left)
        return done()

    def drain(self, seconds: float) -> None:
        """Read until nobody is left who could write, which is when every process of the run is gone."""
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
                self.verdict = (self.verdict + data)[:VERDICT_BYTES]
            else:
                self._output += data[: self._keep - len(self._output)]
