"""An answer that several models write by turns: the text so far, who wrote which part, and when it is complete."""

from __future__ import annotations

from dataclasses import dataclass, field

from lm_eval_tandem.engines import Engine, Sampling
from lm_eval_tandem.ledger import Segment


@dataclass
class GrowingAnswer:
    """One answer, written part by part.

    Parameters
    ----------
    sampling
        How the whole answer is generated; `max_tokens` counts the tokens of all writers.
    part_end
        A text that ends a part and not the answer; "" for none.

    Attributes
    ----------
    text
        What was written so far.
    segments
        Its parts: who wrote each, and by what score the writer was chosen.
    finish_reason
        "stop" or "length" once the answer is complete, "" before.
    """

    sampling: Sampling
    part_end: str = ""
    text: str = ""
    segments: list[Segment] = field(default_factory=list)
    finish_reason: str = ""

    def take(
        self, writer: str, engine: Engine, ids: tuple[int, ...], tokens: int, reason: str, score: float | None = None
    ) -> str:
        """Add a part, and return its text.

        Parameters
        ----------
        writer, engine
            Who wrote it, and with what.
        ids
            Its tokens as the engine gave them.
        tokens
            Their number, as the engine counts them.
        reason
            The finish reason of the last call for it.
        score
            By what the writer was chosen.
        """
        written = engine.decode(ids)
        self.text += written
        self.segments.append(Segment(writer, tokens, len(written), score))
        # An end within a thought, in which engines look for none, is not what ended this part.
        part_ended = bool(self.part_end) and self.part_end in written and self.part_end not in engine.decode(ids[:-1])
        if self.end < len(self.text) or (reason == "stop" and not part_ended):
            self.finish_reason = "stop"
        elif self.left <= 0:
            self.finish_reason = "length"
        return written

    @property
    def left(self) -> int:
        """Tokens that the answer may still have."""
        return self.sampling.max_tokens - sum(segment.tokens for segment in self.segments)

    @property
    def end(self) -> int:
        """Where the text's first stop string begins, else its length."""
        found = [self.text.find(stop) for stop in self.sampling.stop if stop]
        return min((at for at in found if at >= 0), default=len(self.text))

    @property
    def graded(self) -> str:
        """The text, cut before the first stop string."""
        return self.text[: self.end]

    def tokens_of(self, writer: str) -> int:
        """Tokens of one writer in the answer."""
        return sum(segment.tokens for segment in self.segments if segment.writer == writer)
