"""Whose pass is next where several engines share the same cores: that of the fullest batch.

A pass over few rows costs nearly as much as one over many. If two engines simply took turns, each would go on with the
few rows that the other has just sent it; here the emptier one waits while rows gather. No answer depends on it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Fill = Callable[[], float]


class CpuScheduler:
    """Engines that compute one at a time. Each is known by its function that says how full its next batch would be.

    A fill of 0 says that the engine has nothing to do; any other, that it is about to ask for a turn.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._members: list[Fill] = []
        """The least recently served first, which goes first among equals."""
        self._waiting: list[Fill] = []
        self._served: Fill | None = None

    @contextmanager
    def member(self, fill: Fill) -> Iterator[None]:
        """While it lasts, others wait for this engine when its batch is fuller."""
        with self._changed:
            self._members.append(fill)
        try:
            yield
        finally:
            with self._changed:
                self._members.remove(fill)
                self._serve()

    @contextmanager
    def turn(self, fill: Fill) -> Iterator[None]:
        """Wait for this member's turn; it lasts until the block ends."""
        with self._changed:
            self._waiting.append(fill)
            self._serve()
            while self._served != fill:
                self._changed.wait()
        try:
            yield
        finally:
            with self._changed:
                self._served = None
                self._serve()

    def _serve(self) -> None:
        """Let the fullest go. Where it has not asked yet it soon will, and whoever is the fullest then is served."""
        if self._served is None and self._members:
            fullest = max(self._members, key=lambda fill: fill())
            if fullest in self._waiting:
                self._waiting.remove(fullest)
                self._members.remove(fullest)
                self._members.append(fullest)
                self._served = fullest
                self._changed.notify_all()
