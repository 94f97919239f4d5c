"""A call that blocks, awaited: it runs in a thread that no process waits for when it ends.

Threads of `concurrent.futures` are joined when the interpreter exits, so an interrupted process would stay until a
whole batch is generated. These threads are interrupted instead: at the next line of Python that they run, SystemExit is
raised in them. One that is inside a library for longer ends with the process.
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")

PATIENCE = 5.0
"""Seconds that an interrupted thread may take to end."""
RUNNING: set[DaemonThread] = set()
"""Threads that run a call."""


class DaemonThread(threading.Thread):
    """Runs one call.

    Parameters
    ----------
    name
        Of the thread.
    function
        Called without arguments.
    """

    def __init__(self, name: str, function: Callable[[], T]) -> None:
        super().__init__(name=name, daemon=True)
        self._function = function
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[T] = self._loop.create_future()

    def run(self) -> None:
        """See `threading.Thread`."""
        result: Any = None
        failure: Exception | None = None
        try:
            result = self._function()
        except Exception as error:  # the caller's, who gets it from `result`
            failure = error
        finally:
            RUNNING.discard(self)
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle, result, failure)

    def _settle(self, result: Any, failure: Exception | None) -> None:
        if self._future.done():
            return
        if failure is None:
            self._future.set_result(result)
        else:
            self._future.set_exception(failure)

    async def result(self) -> Any:
        """Start the thread; what the function returns, or its exception."""
        RUNNING.add(self)
        self.start()
        return await self._future

    def interrupt(self) -> None:
        """Raise SystemExit in the thread, which ends it without a word."""
        if self.is_alive():
            ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(self.ident or 0), ctypes.py_object(SystemExit))


@atexit.register
def interrupt_all() -> None:
    """Interrupt all calls, and wait a moment for their threads."""
    threads = list(RUNNING)
    for thread in threads:
        thread.interrupt()
    for thread in threads:
        thread.join(PATIENCE)
