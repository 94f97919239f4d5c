"""Coroutines that run in another thread's loop: they end when nothing of them runs any more, and not before."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Iterator

import pytest

from lm_eval_tandem.event_loop import EventLoopThread


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    found = EventLoopThread()
    yield found
    found.close()


def test_a_result_and_an_exception_arrive(loop: EventLoopThread) -> None:
    async def fail() -> None:
        raise ValueError("as it should")

    assert loop.submit(asyncio.sleep(0, "done")).ended.result() == "done"
    with pytest.raises(ValueError, match="as it should"):
        loop.submit(fail()).ended.result()


def test_what_is_cancelled_ends_after_it_has_cleaned_up(loop: EventLoopThread) -> None:
    begun, cleaned = threading.Event(), threading.Event()

    async def work() -> None:
        begun.set()
        try:
            await asyncio.sleep(3600)
        finally:
            await asyncio.sleep(0.05)
            cleaned.set()

    running = loop.submit(work())
    begun.wait()
    running.cancel()
    with pytest.raises(concurrent.futures.CancelledError):
        running.ended.result()
    assert cleaned.is_set()
    running.cancel()  # again, after its end


def test_what_is_cancelled_at_once_ends_too(loop: EventLoopThread) -> None:
    for _ in range(100):
        running = loop.submit(asyncio.sleep(3600))
        running.cancel()
        with pytest.raises(concurrent.futures.CancelledError):
            running.ended.result(timeout=600)


def test_who_stops_waiting_changes_nothing(loop: EventLoopThread) -> None:
    async def ask() -> str:
        running = loop.submit(asyncio.sleep(0.2, "done"))
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(running.ended), 0.01)
        return await asyncio.wrap_future(running.ended)

    assert asyncio.run(ask()) == "done"
