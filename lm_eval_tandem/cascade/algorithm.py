"""The algorithm of the paper (sections 2.1 to 2.4): one coroutine per question, read from top to bottom.

Judge; let the mentor continue; judge again; stop; let the intern answer: `Cascade._run_stages`. When a stage passes,
and which one answers when none does, is decided in `judge.decision`. Nothing here knows of batches, devices, the
harness or files. Read next: `policies` (who answers), `question_run` (what a question costs), `answer` (partial
answers).
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.accounting import Prices, bill, sum_known, tflops
from lm_eval_tandem.cascade.answer import PartialAnswer, ProbeLimit
from lm_eval_tandem.cascade.policies import MENTOR_STAGE, Policy
from lm_eval_tandem.cascade.prompts import Prompts
from lm_eval_tandem.cascade.question_run import Insight, QuestionRun, Task
from lm_eval_tandem.cascade.steps import STEP_END, SteppedAnswer
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Engine,
    OnTokens,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
)
from lm_eval_tandem.engines.drafts import PROMPT_TAIL, common_prefix_length, strip_prompt_overlap
from lm_eval_tandem.errors import CallError
from lm_eval_tandem.judge.decision import fallback_stage, passes
from lm_eval_tandem.judge.features import features, segment_statistics
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS
from lm_eval_tandem.ledger import MENTOR_FINISHED, STEP_BY_STEP, Judgement, Record, Segment


class Judge(Protocol):
    """A fitted sufficiency classifier with one threshold per stage (`judge.sufficiency.Sufficiency` is one)."""

    @property
    def thresholds(self) -> Sequence[float]:
        """tau_t in [0, 1], one per stage, stage 0 first."""
        ...

    @property
    def probe(self) -> ProbeLimit | None:
        """How much of its answer the intern generates before it is judged; None for nothing, as in the paper."""
        ...

    @property
    def reads_prompt(self) -> bool:
        """Whether it needs the intern's pass over the prompt: for the 18 statistics, or for the hidden state."""
        ...

    def inputs(self, features: NDArray[np.float64], answer: PartialAnswer | None) -> NDArray[np.float64]:
        """The input vector of one judgement.

        Parameters
        ----------
        features
            As `prompt_features` returns them.
        answer
            The partial answer of a judge with a probe; None for one without.
        """
        ...

    def score(self, features: NDArray[np.float64]) -> float:
        """s_t of Eq. 8 in [0, 1], for one vector of `inputs`."""
        ...


@dataclass(frozen=True)
class Cascade:
    """Mentor, intern and judge, ready to answer questions.

    Parameters
    ----------
    mentor, intern
        The engines of the two models; None for one that the policy does not need.
    prompts
        How each role's prompt is written.
    policy
        Who answers, and what decides it.
    efforts
        Mentor tokens in total after stages 1, 2, ..., rising; the paper has (100, 500, 1000).
    judge
        The sufficiency classifier, which only some policies need.
    record_features
        Also measure fixed stages, and keep the judge's features in the record: classifiers are fitted on them.
    record_prompts
        Whether that includes the intern's pass over each prompt. Without it the stage alone is kept, and of the answer
        its first tokens' log-probabilities and entropies.
    record_insights
        Keep what the intern reads of the mentor at each stage in the record, at fixed stages too.
    prices
        Dollars per million tokens, by role, for calls whose price the engine does not report. With any price given,
        every record has its dollars, even if they are 0.
    view
        Which measurements the intern makes of a prompt. With a hidden state, that replaces the statistics as the
        judge's input. Under `record_features` its adapter is ignored, and the prompt's tokens are recorded too.
    step_end
        What ends a step, for policies that go step by step.
    """

    mentor: Engine | None
    intern: Engine | None
    prompts: Prompts
    policy: Policy
    efforts: tuple[int, ...]
    judge: Judge | None = None
    record_features: bool = False
    record_prompts: bool = True
    record_insights: bool = False
    prices: Mapping[str, Prices] = field(default_factory=dict)
    view: ScoringView = DEFAULT_VIEW
    step_end: str = STEP_END

    async def answer(self, task: Task, watcher: Watcher = SILENT) -> tuple[str, Record]:
        """Answer one question under the policy.

        Parameters
        ----------
        task
            The question.
        watcher
            Is told what happens meanwhile.

        Returns
        -------
        tuple[str, Record]
            The graded text, which is only what the answering role wrote, and the record of what was judged and spent.
        """
        run = QuestionRun(task, self.prices, watcher)
        try:
            text, record = await self._answer(run)
            run.live.show(text)
            return text, record
        finally:
            for engine in (self.mentor, self.intern):
                if engine is not None:
                    engine.release(task.session)

    async def _answer(self, run: QuestionRun) -> tuple[str, Record]:
        if self.policy.is_stepwise:
            return await self._answer_in_steps(run)
        if self.policy.budget is not None:
            return await self._force_budget(run, self.policy.budget)
        if self.policy.mentor_alone:
            return await self._answer_as_mentor(run)
        if self.policy.needs_judge:
            return await self._run_stages(run)
        return await self._answer_at_fixed_stage(run, self.policy.fixed_stage or 0)

    async def _run_stages(self, run: QuestionRun) -> tuple[str, Record]:
        """The cascade (Algorithm 1): stop at the first stage that passes, else answer from the best-scored one."""
        assert self.judge is not None
        answers: list[PartialAnswer] = []
        scores: list[float] = []
        highest = len(self.efforts)
        for stage in range(highest + 1):
            if stage > 0:
                if run.insight.finish_reason == "stop":
                    break  # The mentor has finished, so further stages would judge the same insight again.
                await self._extend_insight(run, stage)
            if self._mentor_has_answered(run):
                begun = self._prepare_answer(run, stage, ())
                self._record_unjudged(run, stage, begun)
                return await self._finish_answer(run, stage, begun, MENTOR_FINISHED)
            answer, score = await self._judge_stage(run, stage, draft=answers[-1].ids if answers else ())
            answers.append(answer)
            scores.append(score)
            if passes(score, self.judge.thresholds[stage]):
                return await self._finish_answer(run, stage, answer, "sufficient")
            if self.policy.kind.decides_once:
                return await self._answer_at_fixed_stage(run, highest, draft=answer.ids)
        if self.policy.kind.mentor_answers == "last":
            return await self._answer_as_mentor(run)
        best = int(fallback_stage(scores))
        return await self._finish_answer(run, best, answers[best], "best of all")

    async def _judge_stage(self, run: QuestionRun, stage: int, draft: tuple[int, ...]) -> tuple[PartialAnswer, float]:
        """Judge one stage: the intern reads its prompt, starts its answer if there is a probe, and C scores both.

        Returns the partial answer, to be finished if the stage is chosen, and the score s_t = C(f_t) (Eq. 8). `draft`
        is the partial answer of the stage before, which did not pass.
        """
        assert self.judge is not None
        stats = await self._score_prompt(run, self.view) if self.judge.reads_prompt else None
        answer = self._prepare_answer(run, stage, draft)
        if self.judge.probe is not None:
            await answer.start(self.judge.probe)
        # Time of this thread alone: the engines' threads work for other questions meanwhile.
        started = time.thread_time()
        vector = self.judge.inputs(prompt_features(stats, stage), None if self.judge.probe is None else answer)
        score = self.judge.score(vector)
        seconds = time.thread_time() - started
        answer.engine.work.judge_seconds += seconds
        seconds += 0.0 if stats is None else stats.seconds
        judgement = self._record_judgement(run, stage, answer, seconds, vector, score)
        judgement.probe_tokens = answer.tokens
        run.watcher.stage_judged(judgement, passes(score, self.judge.thresholds[stage]))
        return answer, score

    async def _answer_at_fixed_stage(
        self, run: QuestionRun, stage: int, draft: tuple[int, ...] = ()
    ) -> tuple[str, Record]:
        """Let the intern answer at a stage that was chosen beforehand; features may be recorded, nothing is judged."""
        if self.prompts.hands_off and stage:
            run.live.begin("", stage)  # whatever the mentor writes now is the answer's beginning
        for effort in range(1, stage + 1):
            if run.insight.finish_reason != "stop" and not self._mentor_has_answered(run):
                await self._extend_insight(run, effort)
        answer, reason = self._prepare_answer(run, stage, draft), "fixed" if stage else "alone"
        reason = MENTOR_FINISHED if self._mentor_has_answered(run) else reason
        if not self.record_features:
            self._record_unjudged(run, stage, answer)
            return await self._finish_answer(run, stage, answer, reason)
        stats = await self._score_prompt(run, replace(self.view, adapter=None)) if self.record_prompts else None
        vector = prompt_features(None, stage) if stats is None else features(stats, stage)
        seconds = 0.0 if stats is None else stats.seconds
        judgement = self._record_judgement(run, stage, answer, seconds, vector, None)
        result = await self._finish_answer(run, stage, answer, reason, record_stats=True)
        self._record_measurements(judgement, run, stats, answer)
        return result

    async def _extend_insight(self, run: QuestionRun, stage: int) -> None:
        """I_t = I_{t-1} + what the mentor writes up to the stage's budget (Eq. 2).

        A mentor that begins the answer itself writes as it would alone, so that both are one text, computed once.
        """
        self._stop_intern(run)  # the judge has refused what it wrote
        mentor, insight, task = self._loaded_mentor, run.insight, run.task
        staged, hands_off = self.prompts.insights == "staged", self.prompts.hands_off
        text = self.prompts.mentor(mentor, task.question, insight.passes if staged else ())
        continued = () if staged else insight.ids
        effort, longest = self.efforts[stage - 1], self.efforts[(self.policy.stage or len(self.efforts)) - 1]
        stop: tuple[str, ...] = ()
        if hands_off:
            stop, longest = task.sampling.stop, task.sampling.max_tokens
        budget = min(effort, longest) - insight.tokens
        sampling = replace(task.sampling_for("mentor", stage), max_tokens=budget, stop=stop)
        horizon = None if staged else longest - insight.tokens
        on_tokens = self._watch_mentor(run, stage, continued)
        prompt = Prompt(text, continued, task.session, horizon, on_tokens=on_tokens)
        completion = await mentor.generate(prompt, sampling)
        run.count_generation(mentor, "mentor", text, continued, completion)
        ids = continued + completion.token_ids
        has_answered = hands_off and completion.finish_reason == "stop"
        written = mentor.answer_text(ids, stop) if has_answered else mentor.decode(ids)
        run.insight = Insight(
            passes=(*insight.passes, written) if staged else (written,),
            ids=ids,
            tokens=insight.tokens + completion.new_tokens,
            # A pass of `staged` that ends by itself is no end of the insight: a deeper pass follows.
            finish_reason="length" if staged and stage < len(self.efforts) else completion.finish_reason,
            stages=stage,
        )
        if not run.live.begun:
            run.live_insight.show_written(run.insight.written)

    def _watch_mentor(self, run: QuestionRun, stage: int, continued: tuple[int, ...]) -> OnTokens | None:
        """What the mentor's call tells the watcher: of the answer where it has begun, otherwise of the insight."""
        if run.live.begun:
            return run.live.beginning(self._loaded_mentor, continued)
        run.live_insight.stage = stage
        before = "" if continued else run.insight.written
        return run.live_insight.by(self._loaded_mentor, continued, before)

    async def _score_prompt(self, run: QuestionRun, view: ScoringView) -> TokenStats:
        """The intern reads exactly the prompt that it would answer from (Eq. 3 to 6).

        With an adapter the intern reads as another model, so none of that work is reused for the answer.
        """
        text = self._intern_prompt(run)
        stats = await self._loaded_intern.score(Prompt(text, session=run.task.session), view)
        reader, ids = "intern" if view.adapter is None else "judge", self._loaded_intern.encode(text)
        run.count_judge_pass(reader, ids, priced=self.policy.needs_judge)
        return stats

    def _prepare_answer(self, run: QuestionRun, stage: int, draft: tuple[int, ...]) -> PartialAnswer:
        """The intern's answer under the insight so far, nothing of it generated yet."""
        intern, text = self._loaded_intern, self._intern_prompt(run)

        def record_call(continued: tuple[int, ...], completion: Completion, draft: tuple[int, ...]) -> None:
            run.count_generation(intern, "intern", text, continued, completion, draft)

        prompt, sampling = Prompt(text, session=run.task.session), run.task.sampling_for("intern", stage)
        unread = strip_prompt_overlap(intern.encode(text), draft)
        answer = PartialAnswer(intern, prompt, sampling, record_call, unread)
        if self.prompts.hands_off and run.insight.stages:
            answer.beginning, answer.beginning_tokens = run.insight.written, run.insight.tokens
            answer.sampling = replace(sampling, max_tokens=sampling.max_tokens - run.insight.tokens)
            if self._mentor_has_answered(run):
                answer.finish_reason = run.insight.finish_reason or ""
                return answer
        run.read = run.insight.tokens
        return answer

    def _mentor_has_answered(self, run: QuestionRun) -> bool:
        """Whether the mentor, which begins the answer itself, has come to its end: nothing is left to the intern."""
        insight = run.insight
        ended = insight.finish_reason == "stop" or insight.tokens >= run.task.sampling.max_tokens
        return self.prompts.hands_off and insight.stages > 0 and ended

    async def _finish_answer(
        self, run: QuestionRun, stage: int, answer: PartialAnswer, reason: str, record_stats: bool = False
    ) -> tuple[str, Record]:
        """The mentor stops, and the intern generates the rest of the answer of the chosen stage."""
        self._stop_mentor(run)
        writers = "intern" if not answer.beginning else "mentor" if answer.finish_reason and not answer.ids else ""
        run.live.begin(writers, stage)
        answer.on_tokens = run.live.by(answer.engine, answer.ids, answer.beginning)
        text = await answer.finish(return_token_stats=record_stats)
        record = self._record(run, stage, reason, answer.finish_reason, answer.tokens)
        if answer.beginning:
            begun = min(len(answer.beginning), len(text))
            record.segments = [
                Segment("mentor", answer.beginning_tokens, begun),
                Segment("intern", answer.tokens, len(text) - begun),
            ]
        return text, record

    def _stop_mentor(self, run: QuestionRun) -> None:
        """Tell a server that may still write insights to stop, and count what it wrote beyond the last stage."""
        unused = self.mentor.release(run.task.session) if self.mentor is not None else None
        if unused is not None:
            run.tokens.mentor_unused += unused.tokens
            run.dollars = sum_known(run.dollars, unused.dollars)

    def _stop_intern(self, run: QuestionRun) -> None:
        """Tell a server that may still write a refused answer to stop; count what it wrote after the judged part."""
        unused = self.intern.stop(run.task.session) if self.intern is not None else None
        if unused is not None:
            run.tokens.intern_unused += unused.tokens
            run.dollars = sum_known(run.dollars, unused.dollars)

    async def _answer_as_mentor(self, run: QuestionRun) -> tuple[str, Record]:
        """The mentor answers the bare question, as a model alone or as the last resort of `escalate`.

        What it has begun itself it finishes.
        """
        self._stop_intern(run)
        mentor, sampling = self._loaded_mentor, run.task.sampling_for("mentor", MENTOR_STAGE)
        text, reason = self.prompts.alone(mentor, run.task.question), "escalated" if run.judgements else "alone"
        begun = run.insight.ids if self.prompts.hands_off else ()
        run.live.begin("mentor", MENTOR_STAGE)
        on_tokens = run.live.by(mentor, begun)
        if begun:
            sampling = replace(sampling, max_tokens=sampling.max_tokens - run.insight.tokens)
            prompt = Prompt(text, begun, run.task.session, on_tokens=on_tokens)
            completion = await self._generate_as_mentor(run, prompt, sampling)
            answer = mentor.answer_text(begun + completion.token_ids, sampling.stop)
            return answer, self._record(run, MENTOR_STAGE, reason, completion.finish_reason)
        self._stop_mentor(run)
        completion = await self._generate_as_mentor(run, Prompt(text, on_tokens=on_tokens), sampling)
        return completion.text, self._record(run, MENTOR_STAGE, reason, completion.finish_reason)

    async def _force_budget(self, run: QuestionRun, budget: int) -> tuple[str, Record]:
        """Budget forcing: thinking that exceeds the budget is cut and closed, and the mentor has to answer."""
        mentor, live = self._loaded_mentor, run.live
        text = self.prompts.alone(mentor, run.task.question)
        sampling, session = run.task.sampling_for("mentor", MENTOR_STAGE), run.task.session
        first = replace(sampling, max_tokens=min(budget, sampling.max_tokens))
        live.begin("mentor", MENTOR_STAGE)
        prompt = Prompt(text, session=session, on_tokens=live.beginning(mentor))
        thought = await self._generate_as_mentor(run, prompt, first)
        left = sampling.max_tokens - thought.new_tokens
        if thought.finish_reason == "stop" or left <= 0:
            return thought.text, self._record(run, MENTOR_STAGE, "alone", thought.finish_reason)
        written = mentor.decode(thought.token_ids)
        written += self.prompts.end_of_thinking(text + written)
        live.show(written)
        rest = replace(sampling, max_tokens=left)
        prompt = Prompt(text + written, session=session, on_tokens=live.after(written, mentor))
        answer = await self._generate_as_mentor(run, prompt, rest)
        return written + answer.text, self._record(run, MENTOR_STAGE, "forced", answer.finish_reason)

    async def _answer_in_steps(self, run: QuestionRun) -> tuple[str, Record]:
        """Both models write the answer (`steps`)."""
        engines = self._loaded_mentor, self._loaded_intern
        answer = SteppedAnswer(*engines, self.prompts, run, self.policy.entropy, self.policy.rating, self.step_end)
        text = await answer.write()
        self._stop_mentor(run)
        growing = answer.growing
        stage, in_answer = int(growing.tokens_of("mentor") > 0), growing.tokens_of("intern")
        record = self._record(run, stage, STEP_BY_STEP, growing.finish_reason, in_answer)
        record.segments = growing.segments
        return text, record

    async def _generate_as_mentor(self, run: QuestionRun, prompt: Prompt, sampling: Sampling) -> Completion:
        completion = await self._loaded_mentor.generate(prompt, sampling)
        run.count_generation(self._loaded_mentor, "mentor", prompt.text, prompt.continued, completion)
        return completion

    def _intern_prompt(self, run: QuestionRun) -> str:
        """x_t = Q + I_t: what the judge's pass reads and the answer is generated from.

        Raises
        ------
        CallError
            The mentor has been asked and has written nothing: an answer to the bare question would count as guided.
        """
        insight = run.insight
        if insight.stages and not insight.text.strip():
            raise CallError(
                f"{self._loaded_mentor.name} has written no readable insight up to stage {insight.stages} "
                f"({insight.tokens} of its tokens, finish reason {insight.finish_reason}); "
                "check its logits for NaN (dtype=) and its chat template, or raise the efforts"
            )
        return self.prompts.intern(self._loaded_intern, run.task.question, self._read_insight(run))

    def _read_insight(self, run: QuestionRun) -> str:
        """What the intern reads of I_t."""
        if self.prompts.hands_off:
            return run.insight.written
        return self.prompts.as_read(run.insight.text, cut_off=run.insight.finish_reason == "length")

    @property
    def _loaded_mentor(self) -> Engine:
        assert self.mentor is not None
        return self.mentor

    @property
    def _loaded_intern(self) -> Engine:
        assert self.intern is not None
        return self.intern

    def _record_judgement(
        self,
        run: QuestionRun,
        stage: int,
        answer: PartialAnswer,
        seconds: float,
        vector: NDArray[np.float64] | None,
        score: float | None,
    ) -> Judgement:
        """Add an entry to the run's judgements; without a score it decided nothing."""
        run.judge_seconds += seconds
        judgement = Judgement(
            stage=stage,
            score=score,
            threshold=None if score is None or self.judge is None else self.judge.thresholds[stage],
            mentor_tokens=run.insight.tokens,
            prompt_tokens=len(answer.engine.encode(answer.prompt.text)),
            seconds=seconds,
            features=vector.tolist() if self.record_features and vector is not None else None,
            insight=self._read_insight(run) if self.record_insights else None,
        )
        run.judgements.append(judgement)
        return judgement

    def _record_unjudged(self, run: QuestionRun, stage: int, answer: PartialAnswer) -> None:
        """Add an entry for a stage that is neither judged nor measured, if it has an insight to keep."""
        if self.record_insights and stage:
            self._record_judgement(run, stage, answer, 0.0, None, None)

    def _record_measurements(
        self, judgement: Judgement, run: QuestionRun, stats: TokenStats | None, answer: PartialAnswer
    ) -> None:
        """Add what fitting a classifier needs beside the features: the answer's tokens and the parts of the prompt."""
        judgement.answer_logprob = answer.logprob[:MAX_PROBE_TOKENS].tolist()
        judgement.answer_entropy = answer.entropy[:MAX_PROBE_TOKENS].tolist()
        prompt_ids = answer.engine.encode(answer.prompt.text)
        if answer.engine.reads_drafts:
            judgement.answer_ids = list(answer.ids[:MAX_PROBE_TOKENS])
            judgement.prompt_end = ([-1] * PROMPT_TAIL + prompt_ids)[-PROMPT_TAIL:]
        if stats is None:
            return
        judgement.parts = segment_statistics(stats, self._question_tokens(run)).tolist()
        if stats.hidden is not None:
            judgement.hidden, judgement.prompt_ids = stats.hidden, prompt_ids

    def _question_tokens(self, run: QuestionRun) -> int:
        """Leading tokens of the intern's prompt that belong to the question: those it has without insights as well."""
        without = self.prompts.intern(self._loaded_intern, run.task.question, "")
        return common_prefix_length(*map(self._loaded_intern.encode, (without, self._intern_prompt(run))))

    def _record(self, run: QuestionRun, stage: int, reason: str, finish_reason: str, intern_tokens: int = 0) -> Record:
        """The record of a question; `intern_tokens` are those of the intern in the answer."""
        mentor = self.mentor.parameters if self.mentor is not None else 0
        intern = self.intern.parameters if self.intern is not None else 0
        cost = whole = None
        if mentor is not None and intern is not None:
            cost = tflops(run.tokens, mentor, intern, read=run.read)
            whole = bill(run.tokens, mentor, intern)
        return Record(
            task=run.task.task,
            doc_id=run.task.doc_id,
            repeat=run.task.repeat,
            policy=str(self.policy),
            stage=stage,
            reason=reason,
            finish_reason=finish_reason,
            mentor_finish_reason=run.insight.finish_reason,
            mentor_stages=run.insight.stages,
            tokens=run.tokens,
            tflops=cost,
            bill=whole,
            judge_seconds=run.judge_seconds,
            generate_seconds=run.generate_seconds,
            stages=run.judgements,
            dollars=run.dollars,
            refused_tokens=run.tokens.intern_new - intern_tokens,
            cached={reader: meter.found for reader, meter in run.meters.items()},
        )


def prompt_features(stats: TokenStats | None, stage: int) -> NDArray[np.float64]:
    """f_t: what a judge knows before any probe.

    Parameters
    ----------
    stats
        The intern's measurements of the prompt; None for a judge that does not read the prompt.
    stage
        The effort level t, 0 for the question alone.

    Returns
    -------
    NDArray[numpy.float64]
        The hidden state (D,) where it was requested, otherwise the 18 statistics (18,), or the stage alone (1,) without
        measurements.
    """
    if stats is None:
        return np.array([float(stage)])
    return features(stats, stage) if stats.hidden is None else stats.hidden.astype(np.float64)
