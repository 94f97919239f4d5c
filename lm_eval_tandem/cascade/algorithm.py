"""The method: one coroutine per question that reads like the algorithm of the paper (2.1 to 2.4).

Judge; maybe let the mentor go on; judge again; stop; let the intern answer. Nothing here knows of batches, devices,
the harness or files.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.accounting import Prices, bill, sum_known, tflops
from lm_eval_tandem.cascade.answer import PartialAnswer, Rule
from lm_eval_tandem.cascade.policies import MENTOR, Policy
from lm_eval_tandem.cascade.prompts import Prompts
from lm_eval_tandem.cascade.question_run import Insight, QuestionRun, Task
from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Engine,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
)
from lm_eval_tandem.engines.drafts import PROMPT_TAIL, common_prefix_length, strip_prompt_overlap
from lm_eval_tandem.judge.features import features, parts
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS
from lm_eval_tandem.ledger import Judgement, Record


class Judge(Protocol):
    """A fitted sufficiency classifier with one threshold per stage, stage 0 included."""

    @property
    def thresholds(self) -> Sequence[float]:
        """One threshold per stage."""
        ...

    @property
    def probe(self) -> Rule | None:
        """How far the intern begins its answer before it is judged; None for not at all, as in the paper."""
        ...

    @property
    def reads_prompt(self) -> bool:
        """Whether it sees the prompt: the 18 statistics, as in the paper, or the hidden state."""
        ...

    def look(self, features: NDArray[np.float64], begun: PartialAnswer | None) -> NDArray[np.float64]:
        """What the judge sees: the 18 statistics, the hidden state (D,) where it asks for that, or the stage alone,
        (1,), and, if it probes, the answer begun.
        """
        ...

    def score(self, features: NDArray[np.float64]) -> float:
        """s_t of Eq. 8, between 0 and 1, for one such vector."""
        ...


@dataclass(frozen=True)
class Cascade:
    """Mentor, intern and judge, ready to answer.

    efforts: mentor tokens in total at stages 1, 2, ... (rising).
    judge: needed by the policy `cascade` alone.
    record_features: also judge-read fixed stages and keep the features in the record (for fitting a classifier).
    prices: of tokens, by role, for calls of which the engine does not say what they cost. Where there are any, every
        question has its dollars, be it 0.
    view: how the judge looks at the intern's prompts; a hidden state takes the place of the statistics. With
        record_features what a view without adapter shows is kept, and the prompt's tokens.
    """

    mentor: Engine | None
    intern: Engine | None
    prompts: Prompts
    policy: Policy
    efforts: tuple[int, ...]
    judge: Judge | None = None
    record_features: bool = False
    prices: Mapping[str, Prices] = field(default_factory=dict)
    view: ScoringView = DEFAULT_VIEW

    async def answer(self, task: Task) -> tuple[str, Record]:
        """The answer (only what the answering role wrote) and the record of how it came about."""
        walk = QuestionRun(task, self.prices)
        try:
            if self.policy.budget is not None:
                return await self._mentor_forced(walk, self.policy.budget)
            if self.policy.mentor_alone:
                return await self._mentor_alone(walk)
            if self.policy.needs_judge:
                return await self._cascade(walk)
            return await self._fixed(walk, self.policy.stage or 0)
        finally:
            for engine in (self.mentor, self.intern):
                if engine is not None:
                    engine.release(task.session)

    async def _cascade(self, walk: QuestionRun) -> tuple[str, Record]:
        assert self.judge is not None
        begun: list[PartialAnswer] = []
        scores: list[float] = []
        high = len(self.efforts)
        for stage in range(high + 1):
            if stage > 0:
                if walk.insight.finish_reason == "stop":
                    break  # the mentor had nothing to add: later stages are this one
                await self._grow(walk, stage)
            stats = await self._judge_reads(walk, walk.insight.text, self.view) if self.judge.reads_prompt else None
            answer = self._intern_writes(walk, stage, begun[-1].ids if begun else ())
            if self.judge.probe is not None:
                await answer.begin(self.judge.probe)
            began = time.thread_time()  # what the engines' threads do meanwhile is not judging
            known = shown(stats, stage)
            vector = self.judge.look(known, None if self.judge.probe is None else answer)
            score = self.judge.score(vector)
            spent = time.thread_time() - began
            answer.engine.work.judge_seconds += spent
            spent += 0.0 if stats is None else stats.seconds
            look = self._look(walk, stage, answer, spent, vector, score, self.judge.thresholds[stage])
            look.probe_tokens = len(answer.ids)
            begun.append(answer)
            scores.append(score)
            if score > self.judge.thresholds[stage]:
                return await self._intern_answers(walk, stage, answer, "sufficient")
            if self.policy.name == "llm_cascade":
                return await self._fixed(walk, high, answer.ids)
        if self.policy.name == "escalate":
            return await self._mentor_alone(walk)
        best = int(np.argmax(scores))
        return await self._intern_answers(walk, best, begun[best], "best of all")

    async def _fixed(self, walk: QuestionRun, stage: int, draft: tuple[int, ...] = ()) -> tuple[str, Record]:
        for effort in range(1, stage + 1):
            if walk.insight.finish_reason != "stop":
                await self._grow(walk, effort)
        answer = self._intern_writes(walk, stage, draft)
        if not self.record_features:
            return await self._intern_answers(walk, stage, answer, "fixed" if stage else "alone")
        stats = await self._judge_reads(walk, walk.insight.text, replace(self.view, adapter=None))
        look = self._look(walk, stage, answer, stats.seconds, features(stats, stage), None, None)
        found = await self._intern_answers(walk, stage, answer, "fixed" if stage else "alone", measured=True)
        look.answer_logprob = answer.logprob[:MAX_PROBE_TOKENS].tolist()
        look.answer_entropy = answer.entropy[:MAX_PROBE_TOKENS].tolist()
        if answer.engine.reads_drafts:
            look.answer_ids = list(answer.ids[:MAX_PROBE_TOKENS])
            look.prompt_end = ([-1] * PROMPT_TAIL + answer.engine.encode(answer.prompt.text))[-PROMPT_TAIL:]
        look.parts = parts(stats, self._question_tokens(walk)).tolist()
        if stats.hidden is not None:
            look.hidden, look.prompt_ids = stats.hidden, answer.engine.encode(answer.prompt.text)
        return found

    def _question_tokens(self, walk: QuestionRun) -> int:
        """Leading tokens of the intern's prompt that it would see without insights as well."""
        assert self.intern is not None
        texts = [self.prompts.intern(self.intern, walk.task.question, told) for told in ("", walk.insight.text)]
        return common_prefix_length(*map(self.intern.encode, texts))

    async def _grow(self, walk: QuestionRun, stage: int) -> None:
        """I_t = I_{t-1} + what the mentor writes up to the stage's budget (Eq. 2)."""
        assert self.mentor is not None
        insight, task = walk.insight, walk.task
        staged = self.prompts.insights == "staged"
        text = self.prompts.mentor(self.mentor, task.question, insight.passes if staged else ())
        continued = () if staged else insight.ids
        budget = self.efforts[stage - 1] - insight.tokens
        sampling = replace(task.sampling_of("mentor", stage), max_tokens=budget, stop=())
        horizon = None if staged else self.efforts[(self.policy.stage or len(self.efforts)) - 1] - insight.tokens
        completion = await self.mentor.generate(Prompt(text, continued, task.session, horizon), sampling)
        walk.count(self.mentor, "mentor", text, continued, completion)
        ids = continued + completion.token_ids
        written = self.mentor.decode(ids)
        walk.insight = Insight(
            passes=(*insight.passes, written) if staged else (written,),
            ids=ids,
            tokens=insight.tokens + completion.new_tokens,
            # A pass of `staged` that ends by itself leaves the next, deeper one to come.
            finish_reason="length" if staged and stage < len(self.efforts) else completion.finish_reason,
            stages=stage,
        )

    async def _judge_reads(self, walk: QuestionRun, insights: str, view: ScoringView) -> TokenStats:
        """The intern reads exactly the prompt that it would answer from (Eq. 3 to 6).

        With an adapter it reads as another model: the answer starts from nothing of that.
        """
        assert self.intern is not None
        text = self.prompts.intern(self.intern, walk.task.question, insights)
        stats = await self.intern.score(Prompt(text, session=walk.task.session), view)
        reader, ids = "intern" if view.adapter is None else "judge", self.intern.encode(text)
        walk.judged(reader, ids, priced=self.policy.needs_judge)
        return stats

    def _look(
        self,
        walk: QuestionRun,
        stage: int,
        answer: PartialAnswer,
        seconds: float,
        vector: NDArray[np.float64],
        score: float | None,
        threshold: float | None,
    ) -> Judgement:
        kept = vector.tolist() if self.record_features else None
        size = len(answer.engine.encode(answer.prompt.text))
        walk.judge_seconds += seconds
        look = Judgement(stage, score, threshold, walk.insight.tokens, size, seconds, kept)
        walk.stages.append(look)
        return look

    def _mentor_stops(self, walk: QuestionRun) -> None:
        """Before anybody answers: a server that still writes insights is told to stop."""
        unused = self.mentor.release(walk.task.session) if self.mentor is not None else None
        if unused is not None:
            walk.tokens.mentor_unused += unused.tokens
            walk.dollars = sum_known(walk.dollars, unused.dollars)

    def _intern_writes(self, walk: QuestionRun, stage: int, draft: tuple[int, ...] = ()) -> PartialAnswer:
        """An answer under the insights so far, of which nothing is written yet; `draft`: one that was refused."""
        assert self.intern is not None
        intern = self.intern
        text = self.prompts.intern(intern, walk.task.question, walk.insight.text)

        def count(continued: tuple[int, ...], completion: Completion, draft: tuple[int, ...]) -> None:
            walk.count(intern, "intern", text, continued, completion, draft)

        prompt, sampling = Prompt(text, session=walk.task.session), walk.task.sampling_of("intern", stage)
        return PartialAnswer(intern, prompt, sampling, count, strip_prompt_overlap(intern.encode(text), draft))

    async def _intern_answers(
        self, walk: QuestionRun, stage: int, answer: PartialAnswer, reason: str, measured: bool = False
    ) -> tuple[str, Record]:
        self._mentor_stops(walk)
        text = await answer.finish(measured=measured)
        return text, self._record(walk, stage, reason, answer)

    async def _mentor_alone(self, walk: QuestionRun) -> tuple[str, Record]:
        self._mentor_stops(walk)
        text = self.prompts.alone(self._loaded_mentor, walk.task.question)
        completion = await self._mentor_writes(walk, Prompt(text), walk.task.sampling_of("mentor", MENTOR))
        return completion.text, self._record(walk, MENTOR, "escalated" if walk.stages else "alone", completion)

    async def _mentor_forced(self, walk: QuestionRun, budget: int) -> tuple[str, Record]:
        """Budget forcing: what the mentor has not ended within the budget is closed for it, and it has to answer."""
        text = self.prompts.alone(self._loaded_mentor, walk.task.question)
        sampling, session = walk.task.sampling_of("mentor", MENTOR), walk.task.session
        first = replace(sampling, max_tokens=min(budget, sampling.max_tokens))
        thought = await self._mentor_writes(walk, Prompt(text, session=session), first)
        left = sampling.max_tokens - thought.new_tokens
        if thought.finish_reason == "stop" or left <= 0:
            return thought.text, self._record(walk, MENTOR, "alone", thought)
        written = self._loaded_mentor.decode(thought.token_ids)
        written += self.prompts.forced(text + written)
        rest = replace(sampling, max_tokens=left)
        answer = await self._mentor_writes(walk, Prompt(text + written, session=session), rest)
        return written + answer.text, self._record(walk, MENTOR, "forced", answer)

    async def _mentor_writes(self, walk: QuestionRun, prompt: Prompt, sampling: Sampling) -> Completion:
        completion = await self._loaded_mentor.generate(prompt, sampling)
        walk.count(self._loaded_mentor, "mentor", prompt.text, (), completion)
        return completion

    @property
    def _loaded_mentor(self) -> Engine:
        assert self.mentor is not None
        return self.mentor

    def _record(self, walk: QuestionRun, stage: int, reason: str, written: Completion | PartialAnswer) -> Record:
        mentor = self.mentor.parameters if self.mentor is not None else 0
        intern = self.intern.parameters if self.intern is not None else 0
        cost = whole = None
        if mentor is not None and intern is not None:
            cost = tflops(walk.tokens, mentor, intern, read=walk.insight.tokens)
            whole = bill(walk.tokens, mentor, intern)
        return Record(
            task=walk.task.task,
            doc_id=walk.task.doc_id,
            repeat=walk.task.repeat,
            policy=str(self.policy),
            stage=stage,
            reason=reason,
            finish_reason=written.finish_reason,
            mentor_finish_reason=walk.insight.finish_reason,
            mentor_stages=walk.insight.stages,
            tokens=walk.tokens,
            tflops=cost,
            bill=whole,
            judge_seconds=walk.judge_seconds,
            generate_seconds=walk.generate_seconds,
            stages=walk.stages,
            dollars=walk.dollars,
            refused_tokens=walk.tokens.intern_new - (len(written.ids) if isinstance(written, PartialAnswer) else 0),
        )


def shown(stats: TokenStats | None, stage: int) -> NDArray[np.float64]:
    """What a judge's look starts from: the hidden state where that was asked for, the statistics, or the stage."""
    if stats is None:
        return np.array([float(stage)])
    return features(stats, stage) if stats.hidden is None else stats.hidden.astype(np.float64)
