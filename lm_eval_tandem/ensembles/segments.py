"""Aggregation by segment: the models go on with one text by turns, and something decides who writes each segment.

A segment ends after a number of tokens, or with a text that ends segments. The answer ends where the writer of a
segment ends it, with a stop string, at the longest answer, after `max_rounds` segments, or where the same segment was
written three times running.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from typing import Literal

from lm_eval_tandem.engines.rating import Scorer
from lm_eval_tandem.ensembles.responses import highest
from lm_eval_tandem.ensembles.run import EnsembleRun, Member, Writing
from lm_eval_tandem.ensembles.selection import select_random

BELOW = "below score_threshold"
"""Reason of an answer that ends because no proposal has reached `score_threshold`."""
REPEATED = 3
"""Equal segments in a row after which an answer ends."""


@dataclass(frozen=True)
class Segments:
    """An answer of segments.

    Parameters
    ----------
    turns
        Who writes the next segment: "loop" (in turn), "random" (drawn), or "reward_based" (all propose one, and the
        highest score decides).
    tokens
        Largest number of tokens of a segment.
    end
        Text that ends a segment; "" for none.
    max_rounds
        Largest number of segments.
    scorer, reader
        For "reward_based": what rates the proposals, and the member that does, where it is one.
    score_threshold
        For "reward_based": the score that a segment has to reach; None for none.
    """

    turns: Literal["loop", "random", "reward_based"]
    tokens: int
    end: str = ""
    max_rounds: int = 500
    scorer: Scorer | None = None
    reader: Member | None = None
    score_threshold: float | None = None

    async def write(self, run: EnsembleRun) -> tuple[str, str]:
        """The graded answer, and the reason why it ended."""
        growing, texts = run.growing, list[str]()
        growing.part_end = self.end
        run.live.begin("", 0)
        for number in range(self.max_rounds):
            writing, score = await self._next(run, number)
            if score is not None and self.score_threshold is not None and score < self.score_threshold:
                return self._cut(run, BELOW)
            texts.append(run.take(writing, score))
            if growing.finish_reason:
                return growing.graded, "ended" if growing.finish_reason == "stop" else "length"
            if texts[-REPEATED:] == [texts[-1]] * REPEATED:
                return self._cut(run, "repeats itself")
        return self._cut(run, "max_rounds")

    def _cut(self, run: EnsembleRun, reason: str) -> tuple[str, str]:
        """End an answer that no model has ended."""
        run.growing.finish_reason = "length"
        return run.growing.graded, reason

    async def _next(self, run: EnsembleRun, number: int) -> tuple[Writing, float | None]:
        """The next segment, and its score if it has one."""
        if self.turns == "loop":
            return await self._segment(run, run.selected[number % len(run.selected)], number, sure=True), None
        if self.turns == "random":
            return await self._segment(run, drawn(run, number), number, sure=True), None
        assert self.scorer is not None
        proposed = await asyncio.gather(*(self._segment(run, member, number) for member in run.selected))
        texts = [one.member.engine.decode(one.completion.token_ids) for one in proposed]
        scores = await run.rate(self.scorer, [run.candidate(text) for text in texts], self.reader)
        best = highest(scores)
        return proposed[best], scores[best]

    async def _segment(self, run: EnsembleRun, member: Member, number: int, sure: bool = False) -> Writing:
        """A segment by a member; one that is sure to be in the answer is shown while it is written."""
        sampling = run.task.sampling
        stop = (*sampling.stop, self.end) if self.end else sampling.stop
        sampling = replace(sampling, max_tokens=min(self.tokens, run.growing.left), stop=stop)
        on_tokens = run.live.part(member.engine, run.growing.text) if sure else None
        return await run.generate(member, number, sampling, on_tokens)


def drawn(run: EnsembleRun, number: int) -> Member:
    """The member that writes a segment, drawn from seed, question and the segment's number."""
    task, doc_id, repeat = run.task.key
    names = [member.name for member in run.selected]
    (name,) = select_random(names, 1, run.task.sampling.seed, (f"{task}/{number}", doc_id, repeat))
    return run.members[name]
