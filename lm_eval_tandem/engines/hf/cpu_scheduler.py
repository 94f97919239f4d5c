"""Scheduler for engines on the same CPU cores: one forward pass at a time, the fullest batch first.

A pass over few rows costs nearly as much as one over many. If two engines took turns, each would run with the few rows
that the other has just sent to it; here the engine with the emptier batch waits while its rows gather. The order of
passes changes no result.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FillLevel = Callable[[], float]
"""How full an engine's next batch would be: 0 for nothing to do, up to 1."""


class CpuScheduler:
    """Lets registered engines compute one at a time. Each engine is identified by its function `FillLevel`.

    An engine whose fill level is above 0 is expected to wait for a turn soon, if it does not wait already.

    Examples
    --------
    >>> with scheduler.registered(fill):
    ...     with scheduler.turn(fill):
    ...         model(**batch)
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._engines: list[FillLevel] = []
        """The least recently served first; it is preferred among equally full ones."""
        self._waiting: list[FillLevel] = []
        self._served: FillLevel | None = None

    @contextmanager
    def registered(self, fill: FillLevel) -> Iterator[None]:
        """Within the block, other engines wait for this one while its batch is fuller."""
        with self._changed:
            self._engines.append(fill)
        try:
            yield
        finally:
            with self._changed:
                self._engines.remove(fill)
                self._serve()

    @contextmanager
    def turn(self, fill: FillLevel) -> Iterator[None]:
        """Wait until this engine may compute; its turn lasts until the block ends."""
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
        """Give the turn to the fullest engine, if it waits. If it does not, it soon will, and that calls this again."""
        if self._served is None and self._engines:
            fullest = max(self._engines, key=lambda fill: fill())
            if fullest in self._waiting:
                self._waiting.remove(fullest)
                self._engines.remove(fullest)
                self._engines.append(fullest)
                self._served = fullest
                self._changed.notify_all()
