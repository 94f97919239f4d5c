"""What one request becomes: answers to be made, while they are made, and once they are."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from contextlib import suppress
from dataclasses import dataclass, field

from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Prompt
from lm_eval_tandem.errors import TandemError
from lm_eval_tandem.event_loop import Submitted
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.server.listener import Listener
from lm_eval_tandem.server.measuring import MeasuredToken
from lm_eval_tandem.server.offers import Offer
from lm_eval_tandem.server.protocol import Asked


@dataclass(frozen=True)
class Limits:
    """What requests may ask for.

    Attributes
    ----------
    max_tokens
        The longest answer in tokens; None for what fits into the models' windows.
    max_requests
        Number of answers under way at once.
    """

    max_tokens: int | None
    max_requests: int


@dataclass(frozen=True)
class Answered:
    """One answer.

    Attributes
    ----------
    text
        The answer; with `echo` it stands after the prompt.
    finish_reason
        "stop" or "length".
    record
        What was done for it; None where the reader alone wrote it (`echo` with `logprobs`), or nothing was written.
    policy
        What answered, as in `Offer.kind`.
    prompt_tokens, completion_tokens
        Of the question, and of the answer.
    insight
        What the mentor wrote for the intern; "" where nobody asked for it.
    tokens
        The measured tokens, where they were asked for.
    is_fallback
        Whether the intern answered alone because the mentor could not.
    """

    text: str
    finish_reason: str
    record: Record | None
    policy: str
    prompt_tokens: int
    completion_tokens: int
    insight: str = ""
    tokens: list[MeasuredToken] | None = None
    is_fallback: bool = False


@dataclass(frozen=True)
class Job:
    """One answer to be made.

    Attributes
    ----------
    task
        The question.
    prompt_tokens
        Its size.
    echoed
        The prompt's text, to stand before the answer; None for none.
    scored
        What the reader has to score; None for nothing.
    is_answered
        Whether anything is to be written after the prompt.
    """

    task: Task
    prompt_tokens: int
    echoed: str | None = None
    scored: Prompt | None = None
    is_answered: bool = True


class News:
    """Wakes the one coroutine that waits for something to happen in other threads.

    What happens several times before the coroutine looks wakes it once. Made in the event loop of that coroutine.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[bool] | None = None
        self._lock = threading.Lock()
        self._told = False

    def tell(self) -> None:
        """Something has happened; may be called from any thread."""
        with self._lock:
            if self._told:
                return
            self._told = True
        with suppress(RuntimeError):  # the loop is closed, because the server was stopped at once
            self._loop.call_soon_threadsafe(self._settle, True)

    def _settle(self, happened: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(happened)

    async def wait(self, seconds: float) -> bool:
        """Whether anything has happened since the last call; False after so many seconds without."""
        if not self._told:
            self._waiter = self._loop.create_future()
            timer = self._loop.call_later(seconds, self._settle, False)
            try:
                if not await self._waiter:
                    return False
            finally:
                timer.cancel()
                self._waiter = None
        with self._lock:
            self._told = False
        return True


@dataclass(eq=False)
class Work:
    """The answers of one request while they are made.

    Attributes
    ----------
    asked, offer, seed
        The request, what answers it, and the seed of its sampling.
    news
        Is told when an answer that is streamed has grown or ended.
    has_ended
        Whether it takes no room any more.
    broken_off
        Why the server itself has ended it; None where it has not.
    jobs, listeners, running
        Of each answer: what is to be made, what it tells (None where nobody listens), and its making.
    """

    asked: Asked
    offer: Offer
    seed: int
    news: News = field(default_factory=News)
    has_ended: bool = False
    broken_off: TandemError | None = None
    jobs: list[Job] = field(default_factory=list)
    listeners: list[Listener | None] = field(default_factory=list)
    running: list[Submitted[Answered]] = field(default_factory=list)

    async def answers(self) -> list[Answered]:
        """All answers, once all of them have ended; of those that failed, the first one's error is raised."""
        ended = await asyncio.gather(*map(self.answer, range(len(self.running))), return_exceptions=True)
        failed = [one for one in ended if isinstance(one, BaseException)]
        if failed:
            raise failed[0]
        return [one for one in ended if isinstance(one, Answered)]

    async def answer(self, index: int) -> Answered:
        """One answer, once it has ended; raises its error, or `broken_off`."""
        ended = self.running[index].ended
        try:
            return await asyncio.wrap_future(ended)
        except asyncio.CancelledError:
            if self.broken_off is None or not ended.done():
                raise
            raise self.broken_off from None

    def break_off(self, why: TandemError) -> None:
        """End it: answers that are not complete fail for this reason."""
        self.broken_off = why
        self.cancel()

    def echoed(self, index: int) -> str:
        """The text that stands before an answer; "" for none."""
        return self.jobs[index].echoed or ""

    def cancel(self) -> list[concurrent.futures.Future[Answered]]:
        """Let both engines stop working on it; returns what ends only once they have."""
        left = [running for running in self.running if not running.ended.done()]
        for running in left:
            running.cancel()
        return [running.ended for running in left]
