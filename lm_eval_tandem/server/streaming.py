"""Server-sent events: the answers of a request while they are made, and what happens besides."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

from lm_eval_tandem.server.errors import RequestError
from lm_eval_tandem.server.listener import Event
from lm_eval_tandem.server.replies import Replies, event_entries, usage
from lm_eval_tandem.server.work import Answered, Work

HEARTBEAT = 15.0
"""Seconds without news after which a comment is sent, so that proxies do not take the connection for dead."""
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""Of the reply; the last one keeps nginx from collecting it."""
DONE = b"data: [DONE]\n\n"
COMMENT = b": still working\n\n"


def event(data: dict[str, Any]) -> bytes:
    """One event."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"


class AnswerStream:
    """The events of one request.

    Parameters
    ----------
    work
        The answers.
    replies
        Writes chunks.

    Attributes
    ----------
    answered
        The answers that have ended.
    """

    def __init__(self, work: Work, replies: Replies) -> None:
        self.answered: dict[int, Answered] = {}
        self._work, self._replies = work, replies
        self._sent: dict[int, str] = {}
        """Of each answer that has begun, its text so far."""

    async def chunks(self) -> AsyncIterator[bytes]:
        """The events, until the last answer has ended or one has failed."""
        asked, replies = self._work.asked, self._replies
        more: dict[str, Any] = {"usage": None} if asked.include_usage else {}
        while len(self.answered) < len(self._work.running):
            if not await self._work.news.wait(HEARTBEAT):
                yield COMMENT
                continue
            for index, running in enumerate(self._work.running):
                if index in self.answered:
                    continue
                ended = running.ended.done()  # asked first: what came before its end is among the events
                listener = self._work.listeners[index]
                for happened in listener.take() if listener is not None else ():
                    for chunk in self._chunks_of(index, happened):
                        yield event(chunk | more)
                if ended:
                    answered = await self._work.answer(index)
                    for choice in self._end(index, answered):
                        yield event(replies.chunk([choice]) | more)
        if asked.include_usage:
            answers = [self.answered[index] for index in sorted(self.answered)]
            yield event(replies.chunk([], usage=usage(self._work, answers)))
        yield DONE

    def _chunks_of(self, index: int, happened: Event) -> list[dict[str, Any]]:
        asked, replies = self._work.asked, self._replies
        if happened.kind == "text":
            return [replies.chunk([choice]) for choice in self._grow(index, happened.text)]
        chunks = []
        if happened.kind == "insight" and asked.insights:
            choices = [*self._begin(index), replies.insight(index, happened.text)]
            chunks = [replies.chunk([choice]) for choice in choices]
        entries = event_entries(happened) if asked.events else None
        return chunks if entries is None else [*chunks, replies.chunk([], tandem=entries)]

    def _begin(self, index: int) -> list[dict[str, Any]]:
        if index in self._sent:
            return []
        self._sent[index] = ""
        echoed = self._work.echoed(index)
        return [self._replies.first(index, echoed)] if echoed or self._replies.is_chat else []

    def _grow(self, index: int, text: str) -> list[dict[str, Any]]:
        begun = self._begin(index)
        self._sent[index] += text
        return [*begun, self._replies.text(index, text)] if text else begun

    def _end(self, index: int, answered: Answered) -> list[dict[str, Any]]:
        """The rest of an answer, and its end.

        Raises
        ------
        RequestError
            The answer does not begin with what was sent of it (see `Watcher.answer_grew`).
        """
        whole, sent = answered.text[len(self._work.echoed(index)) :], self._sent.get(index, "")
        if not whole.startswith(sent):
            raise RequestError(
                502,
                "the model has taken back a part of its answer that was sent already; ask again, or without stream.",
                "server_error",
                "answer_changed",
            )
        self.answered[index] = answered
        rest = self._grow(index, whole[len(sent) :])
        return [*rest, self._replies.last(index, answered)]


def error_event(told: RequestError) -> bytes:
    """The event that ends a stream whose answer failed."""
    return event(told.body)
