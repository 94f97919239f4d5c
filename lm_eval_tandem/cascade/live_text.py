"""Tells a watcher the texts of a question while they grow: only what no later token changes, and not at every token.

`LiveText` is one growing text, `LiveAnswer` the answer of a question, `LiveInsight` what the mentor writes before it.
Where nobody watches, they hand nothing to the engines, and nothing is decoded.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from lm_eval_tandem.cascade.answer import join
from lm_eval_tandem.cascade.prompts import END_OF_THINK, THINK, strip_think_tags
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.engines import Engine, OnTokens
from lm_eval_tandem.engines.settled import held_back, incomplete_character, settled_text

INTERVAL = 0.1
"""Seconds between two reports of a text, at least: reports of many texts at once take time from the models."""
DECODING_SHARE = 0.05
"""Largest share of the time that decoding takes: of a text that takes longer to decode, reports are rarer."""

TextOf = Callable[[tuple[int, ...]], str]
"""What is sure of a text, from the tokens so far."""


class LiveText:
    """Reports a text while it grows; what is not longer than before, or does not begin with it, is not reported.

    Parameters
    ----------
    report
        Gets the text; None where nobody watches.

    Attributes
    ----------
    shown
        What was reported last.
    """

    def __init__(self, report: Callable[[str], None] | None) -> None:
        self.shown = ""
        self._report = report
        self._due = 0.0

    @property
    def watched(self) -> bool:
        """Whether anybody watches."""
        return self._report is not None

    def show(self, text: str) -> None:
        """Report a text that is sure."""
        if self._report is not None and len(text) > len(self.shown) and text.startswith(self.shown):
            self.shown = text
            self._report(text)

    def growing(self, text_of: TextOf, begun: Sequence[int] = ()) -> OnTokens | None:
        """What a call is given as `Prompt.on_tokens`; None where nobody watches.

        Parameters
        ----------
        text_of
            What is sure of the text.
        begun
            Tokens before those of the call.
        """
        if self._report is None:
            return None
        ids = list(begun)

        def grew(new: tuple[int, ...]) -> None:
            ids.extend(new)
            started = time.perf_counter()
            if started < self._due:
                return
            self.show(text_of(tuple(ids)))
            now = time.perf_counter()
            # What begins is shown at once, also where the first tokens of a text are not sure yet.
            self._due = now + max(INTERVAL if self.shown else 0.0, (now - started) / DECODING_SHARE)

        return grew


class LiveAnswer(LiveText):
    """The answer of a question.

    Parameters
    ----------
    watcher
        Who watches.
    stop
        The answer's stop strings.

    Attributes
    ----------
    begun
        Whether it has begun: what is shown before is no part of it.
    """

    def __init__(self, watcher: Watcher = SILENT, stop: tuple[str, ...] = ()) -> None:
        super().__init__(None if watcher is SILENT else watcher.answer_grew)
        self.begun = False
        self._watcher, self._stop = watcher, stop

    def begin(self, writer: str, stage: int) -> None:
        """The answer begins, unless it has begun."""
        if not self.begun:
            self.begun = True
            self._watcher.answer_begun(writer, stage)

    def by(self, engine: Engine, begun: tuple[int, ...] = (), before: str = "") -> OnTokens | None:
        """`Prompt.on_tokens` of a call that writes the answer.

        Parameters
        ----------
        engine
            Whose call it is.
        begun
            Tokens of the answer that it goes on with; their text is shown at once.
        before
            Text of the answer before these, of another writer.
        """

        def text_of(ids: tuple[int, ...]) -> str:
            rest = engine.settled_text(ids, self._stop)
            return held_back(join(before, rest, self._stop), self._stop) if before else rest

        return self._begun_with(text_of, begun)

    def beginning(self, engine: Engine, begun: tuple[int, ...] = ()) -> OnTokens | None:
        """The same for a call whose text is either a whole answer, or as it was written the beginning of one.

        The first has lost its thought, the second has not; what is shown is the beginning of both.
        """

        def text_of(ids: tuple[int, ...]) -> str:
            text = engine.settled_text(ids, self._stop)
            return text if engine.decode(ids).startswith(text) else ""

        return self._begun_with(text_of, begun)

    def after(self, written: str, engine: Engine) -> OnTokens | None:
        """The same for a call after a text that is in the answer as it is, whatever the call writes."""
        return self.growing(lambda ids: written + engine.settled_text(ids, self._stop))

    def part(self, engine: Engine, before: str, begun: tuple[int, ...] = ()) -> OnTokens | None:
        """The same for a call that writes a part of an answer of several writers, after the parts `before`."""

        def text_of(ids: tuple[int, ...]) -> str:
            return self.cut(before + settled_part(engine, ids))

        return self._begun_with(text_of, begun)

    def show_parts(self, text: str) -> None:
        """Show the parts of an answer of several writers so far."""
        self.show(self.cut(text))

    def cut(self, text: str) -> str:
        """What is sure of an answer of several writers, which ends before the first stop string in all of its text."""
        found = [text.find(word) for word in self._stop if word]
        return held_back(text[: min((at for at in found if at >= 0), default=len(text))], self._stop)

    def _begun_with(self, text_of: TextOf, begun: tuple[int, ...]) -> OnTokens | None:
        if self.watched:
            self.show(text_of(begun))
        return self.growing(text_of, begun)


class LiveInsight(LiveText):
    """What the mentor writes before the answer, up to the stage `stage`, without the tags around thoughts."""

    def __init__(self, watcher: Watcher = SILENT) -> None:
        is_watched = watcher is not SILENT and watcher.watches_insights
        super().__init__((lambda text: watcher.insight_grew(self.stage, text)) if is_watched else None)
        self.stage = 0

    def by(self, engine: Engine, begun: tuple[int, ...], before: str) -> OnTokens | None:
        """`Prompt.on_tokens` of a call that goes on with `begun`, after the passes `before`."""
        return self.growing(lambda ids: without_tags(before + settled_part(engine, ids)), begun)

    def show_written(self, text: str) -> None:
        """Show what was written up to the end of a stage."""
        if self.watched:
            self.show(without_tags(text))


def without_tags(text: str) -> str:
    """A text that grows, without its think tags, and without an end that may be the beginning of one."""
    return strip_think_tags(held_back(text, (THINK, END_OF_THINK)))


def settled_part(engine: Engine, ids: tuple[int, ...]) -> str:
    """What `Engine.decode` of these tokens and of any that follow them begins with; thoughts are part of it."""
    return settled_text(engine.decode, ids, incomplete_character(engine.encode))
