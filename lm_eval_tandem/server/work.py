"""What one request becomes: answers to be made, while they are made, and once they are."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Prompt
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
        What was done for it; None where the reader alone wrote it (`echo` with `logprobs`).
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
    """

    task: Task
    prompt_tokens: int
    echoed: str | None = None
    scored: Prompt | None = None


@dataclass
class Work:
    """The answers of one request while they are made.

    Attributes
    ----------
    asked, offer, seed
        The request, what answers it, and the seed of its sampling.
    news
        Is set when an answer has grown or ended.
    has_ended
        Whether it takes no room any more.
    jobs, listeners, running
        Of each answer: what is to be made, what it tells (None where nobody listens), and its making.
    """

    asked: Asked
    offer: Offer
    seed: int
    news: asyncio.Event = field(default_factory=asyncio.Event)
    has_ended: bool = False
    jobs: list[Job] = field(default_factory=list)
    listeners: list[Listener | None] = field(default_factory=list)
    running: list[Submitted[Answered]] = field(default_factory=list)

    async def answers(self) -> list[Answered]:
        """All answers, once all of them have ended; of those that failed, the first one's error is raised."""
        ended = await asyncio.gather(*map(self._ended, self.running), return_exceptions=True)
        failed = [one for one in ended if isinstance(one, BaseException)]
        if failed:
            raise failed[0]
        return [one for one in ended if isinstance(one, Answered)]

    @staticmethod
    async def _ended(running: Submitted[Answered]) -> Answered:
        return await asyncio.wrap_future(running.ended)

    def echoed(self, index: int) -> str:
        """The text that stands before an answer; "" for none."""
        return self.jobs[index].echoed or ""

    def cancel(self) -> None:
        """Let both engines stop working on it."""
        for running in self.running:
            running.cancel()
