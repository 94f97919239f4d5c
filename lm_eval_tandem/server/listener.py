"""What a question tells while it is answered, taken from the engines' event loop to the server's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from lm_eval_tandem.cascade.watcher import Watcher
from lm_eval_tandem.ledger import Judgement


@dataclass(frozen=True)
class Event:
    """One thing that happened.

    Attributes
    ----------
    kind
        "insight" and "text" (the answer) grow, "judged" and "answer" (it has begun) happen.
    stage
        As in `Watcher`.
    text
        Of "insight" and "text": what is new. Of "answer": the writer.
    judgement, passed
        Of "judged".
    """

    kind: Literal["insight", "judged", "answer", "text"]
    stage: int = 0
    text: str = ""
    judgement: Judgement | None = None
    passed: bool = False


class Listener(Watcher):
    """Collects what happens until somebody takes it; texts that grow meanwhile become one event.

    Parameters
    ----------
    wake
        Called from the engines' event loop after something has happened.
    watches_insights
        Whether insights are wanted.
    watches_stages
        Whether judgements and the beginning of the answer are wanted; then insights are, too.

    Attributes
    ----------
    insight, answer
        The texts so far.
    """

    def __init__(self, wake: Callable[[], None], watches_insights: bool = True, watches_stages: bool = True) -> None:
        self.insight = self.answer = ""
        self.watches_insights = watches_insights or watches_stages
        self._wake, self._watches_stages = wake, watches_stages
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def take(self) -> list[Event]:
        """What has happened since the last call."""
        with self._lock:
            taken, self._events = self._events, []
        return taken

    def insight_grew(self, stage: int, text: str) -> None:
        """See `Watcher`."""
        new, self.insight = text[len(self.insight) :], text
        self._add(Event("insight", stage, new))

    def stage_judged(self, judgement: Judgement, passed: bool) -> None:
        """See `Watcher`."""
        if self._watches_stages:
            self._add(Event("judged", judgement.stage, judgement=judgement, passed=bool(passed)))

    def answer_begun(self, writer: str, stage: int) -> None:
        """See `Watcher`."""
        if self._watches_stages:
            self._add(Event("answer", stage, writer))

    def answer_grew(self, text: str) -> None:
        """See `Watcher`."""
        new, self.answer = text[len(self.answer) :], text
        self._add(Event("text", text=new))

    def _add(self, event: Event) -> None:
        with self._lock:
            last = self._events[-1] if self._events else None
            grows = event.kind in ("insight", "text")
            if last is not None and grows and (last.kind, last.stage) == (event.kind, event.stage):
                self._events[-1] = Event(event.kind, event.stage, last.text + event.text)
            else:
                self._events.append(event)
        self._wake()
