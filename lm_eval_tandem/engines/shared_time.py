"""The time of calls that an engine works on at once, divided among them."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class SharedTime:
    """Divides an engine's time among the calls that run: at each moment, all running calls get the same share."""

    def __init__(self) -> None:
        self._running, self._since, self._passed = 0, 0.0, 0.0

    def _advance(self) -> float:
        now = time.perf_counter()
        if self._running:
            self._passed += (now - self._since) / self._running
        self._since = now
        return self._passed

    @contextmanager
    def share(self) -> Iterator[list[float]]:
        """Within the block a call runs; afterwards the list holds its seconds."""
        seconds: list[float] = []
        before = self._advance()
        self._running += 1
        try:
            yield seconds
        finally:
            seconds.append(self._advance() - before)
            self._running -= 1
