"""An event loop in its own thread, so that synchronous code can run coroutines.

The harness calls a model synchronously, from scripts, notebooks and servers; some of these already run an event loop,
in which `asyncio.run` is not allowed.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
import weakref
from collections.abc import Coroutine
from typing import Any, Generic, TypeVar

T = TypeVar("T")

SHUTDOWN_TIMEOUT = 30.0
"""Seconds that cancelled tasks may take to end."""


class Submitted(Generic[T]):
    """A coroutine that runs in the loop of another thread.

    Attributes
    ----------
    ended
        Gets the result, the exception, or a `concurrent.futures.CancelledError`, and only once nothing of the coroutine
        runs any more: what it does to clean up after `cancel` is done by then.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop) -> None:
        self.ended: concurrent.futures.Future[T] = concurrent.futures.Future()
        self.ended.set_running_or_notify_cancel()  # a caller that stops waiting for it changes nothing
        self._loop = loop
        self._task: asyncio.Task[T] | None = None
        loop.call_soon_threadsafe(self._begin, coroutine)

    def _begin(self, coroutine: Coroutine[Any, Any, T]) -> None:
        self._task = self._loop.create_task(coroutine)
        self._task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[T]) -> None:
        if task.cancelled():
            self.ended.set_exception(concurrent.futures.CancelledError())
            return
        error = task.exception()
        if error is not None:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(task.result())

    def cancel(self) -> None:
        """Cancel the coroutine; may be called from any thread, and after its end."""
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        assert self._task is not None  # `_begin` came first
        self._task.cancel()


class EventLoopThread:
    """Runs coroutines for synchronous callers, and for other event loops.

    Examples
    --------
    >>> loop = EventLoopThread()
    >>> loop.run(asyncio.sleep(0.1, "done"))
    'done'
    >>> loop.close()
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="tandem", daemon=True)
        self._thread.start()
        # The thread of an object that nobody uses any more ends. At exit it is left alone: a daemon holds up nothing.
        self._stop_unused = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)
        self._stop_unused.atexit = False

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """The coroutine's result, or its exception.

        An interrupt of the caller (Ctrl-C) cancels all tasks of the loop, waits for their end, though no longer than
        `SHUTDOWN_TIMEOUT`, and is raised again.
        """
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        try:
            return future.result()
        except BaseException:
            if not future.done():
                future.cancel()
                ended = asyncio.run_coroutine_threadsafe(self._cancel_tasks(), self._loop)
                concurrent.futures.wait([ended], timeout=SHUTDOWN_TIMEOUT)
            raise

    def submit(self, coroutine: Coroutine[Any, Any, T]) -> Submitted[T]:
        """Start the coroutine without waiting for it."""
        return Submitted(coroutine, self._loop)

    async def _cancel_tasks(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _shut_down(self) -> None:
        await self._cancel_tasks()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()

    def close(self) -> None:
        """Cancel all tasks and end the thread."""
        self._stop_unused.detach()
        asyncio.run_coroutine_threadsafe(self._shut_down(), self._loop).result(timeout=SHUTDOWN_TIMEOUT)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=SHUTDOWN_TIMEOUT)
        self._loop.close()
