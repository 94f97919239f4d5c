"""Streams without a server: who waits for news, who does not read, and what happens where an answer is taken back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.server import guard
from lm_eval_tandem.server.connections import ABORT
from lm_eval_tandem.server.errors import RequestError
from lm_eval_tandem.server.listener import Listener
from lm_eval_tandem.server.protocol import read_chat
from lm_eval_tandem.server.replies import Replies
from lm_eval_tandem.server.request_log import CLIENT_GONE, Entry
from lm_eval_tandem.server.streaming import AnswerStream
from lm_eval_tandem.server.work import Answered, Job, News, Work

BODY = b'{"model": "tandem", "stream": true, "messages": [{"role": "user", "content": "Six?"}]}'


@pytest.fixture
def loop() -> Iterator[EventLoopThread]:
    found = EventLoopThread()
    yield found
    found.close()


def chunks(loop: EventLoopThread, told: str, answer: str) -> list[bytes]:
    """The events of a question that tells a text and then has an answer."""
    offer: Any = None
    task: Any = None
    listener = Listener(lambda: None)

    async def end() -> Answered:
        listener.answer_grew(told)
        return Answered(answer, "stop", None, "tandem", 3, 2)

    async def collect() -> list[bytes]:
        work = Work(read_chat(BODY), offer, seed=0)
        work.jobs.append(Job(task, prompt_tokens=3))
        work.listeners.append(listener)
        work.running.append(loop.submit(end()))
        await asyncio.wrap_future(work.running[0].ended)
        work.news.tell()
        return [chunk async for chunk in AnswerStream(work, Replies(True, "tandem", "fp")).chunks()]

    return asyncio.run(collect())


def test_news_from_another_thread_wake_who_waits() -> None:
    async def wait_for_news() -> list[bool]:
        news = News()
        found = [await news.wait(0)]
        for _ in range(100):
            threads = [threading.Thread(target=news.tell) for _ in range(4)]
            for thread in threads:
                thread.start()
            found.append(await news.wait(3600))
            for thread in threads:
                thread.join()
            news.tell()  # before anybody waits
            found.append(await news.wait(3600))
        return found

    silent, *told = asyncio.run(wait_for_news())
    assert not silent
    assert all(told)


def test_a_client_that_reads_no_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn's `send` waits until the client reads, or its connection has ended."""
    monkeypatch.setattr(guard, "WRITE_SECONDS", 0.05)
    entries: list[Entry] = []

    async def ask() -> None:
        ended = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200})
            raise AssertionError("the reply went on")

        async def send(message: Message) -> None:
            await ended.wait()

        headers = [(b"host", b"localhost")]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "state": {ABORT: ended.set}}
        await guard.Guard(app, guard.GuardOptions(), entries.append)(scope, no_receive, send)

    asyncio.run(ask())
    assert [entry.status for entry in entries] == [CLIENT_GONE]


async def no_receive() -> Message:
    raise AssertionError("a body was read")


def test_an_answer_that_goes_on_from_what_was_sent_ends_well(loop: EventLoopThread) -> None:
    *events, done = chunks(loop, "It is s", "It is six.")
    assert done == b"data: [DONE]\n\n"
    assert b'"It is s"' in b"".join(events)
    assert b'"ix."' in b"".join(events)


def test_an_answer_that_takes_back_what_was_sent_fails(loop: EventLoopThread) -> None:
    with pytest.raises(RequestError, match="taken back a part of its answer") as refused:
        chunks(loop, "It is s", "Seven.")
    assert refused.value.status == 502
