"""The events of an answer that is taken back: what was sent stays sent, so the stream ends with an error."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.server.errors import RequestError
from lm_eval_tandem.server.listener import Listener
from lm_eval_tandem.server.protocol import read_chat
from lm_eval_tandem.server.replies import Replies
from lm_eval_tandem.server.streaming import AnswerStream
from lm_eval_tandem.server.work import Answered, Job, Work

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
    work = Work(read_chat(BODY), offer, seed=0)
    listener = Listener(lambda: None)

    async def end() -> Answered:
        listener.answer_grew(told)
        return Answered(answer, "stop", None, "tandem", 3, 2)

    async def collect() -> list[bytes]:
        work.jobs.append(Job(task, prompt_tokens=3))
        work.listeners.append(listener)
        work.running.append(loop.submit(end()))
        await asyncio.wrap_future(work.running[0].ended)
        work.news.set()
        return [chunk async for chunk in AnswerStream(work, Replies(True, "tandem", "fp")).chunks()]

    return asyncio.run(collect())


def test_an_answer_that_goes_on_from_what_was_sent_ends_well(loop: EventLoopThread) -> None:
    *events, done = chunks(loop, "It is s", "It is six.")
    assert done == b"data: [DONE]\n\n"
    assert b'"It is s"' in b"".join(events)
    assert b'"ix."' in b"".join(events)


def test_an_answer_that_takes_back_what_was_sent_fails(loop: EventLoopThread) -> None:
    with pytest.raises(RequestError, match="taken back a part of its answer") as refused:
        chunks(loop, "It is s", "Seven.")
    assert refused.value.status == 502
