"""The state of one question while the cascade answers it: its insight, its judgements, and its token and dollar counts.

`Task` is the question as it comes in, `Insight` what the mentor has written, `QuestionRun` all of it together. What a
question costs is counted here, from the calls themselves; the formulas are in `accounting`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lm_eval_tandem.accounting import Prices, Tokens, sum_known
from lm_eval_tandem.cascade.live_text import LiveAnswer, LiveInsight
from lm_eval_tandem.cascade.meter import Meter
from lm_eval_tandem.cascade.prompts import Question, strip_think_tags
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.engines import Completion, Engine, Sampling
from lm_eval_tandem.engines.drafts import accepted_draft_tokens
from lm_eval_tandem.ledger import Judgement


@dataclass(frozen=True)
class Task:
    """One question to answer, with what identifies it within a run.

    Parameters
    ----------
    question
        The text or conversation.
    sampling
        How the answer is generated.
    task, doc_id, repeat
        The harness's task, the document's number in it, and the number of the repetition.
    copy
        Number of this task among those of a run that are equal to it, as where the harness fills up a process's share.
    place
        Where the question comes from, for messages; "" where task and doc_id say it.
    """

    question: Question
    sampling: Sampling
    task: str = ""
    doc_id: int = 0
    repeat: int = 0
    copy: int = 0
    place: str = ""

    @property
    def called(self) -> str:
        """How messages call the question: by its place, or as "gsm8k #3"."""
        return self.place or f"{self.task or 'request'} #{self.doc_id}"

    @property
    def key(self) -> tuple[str, int, int]:
        """Task, document and repetition, which identify the question and its record within a run."""
        return self.task, self.doc_id, self.repeat

    @property
    def session(self) -> str:
        """The name under which engines cache the prefixes of this question: no two questions share it."""
        return f"{self.task}/{self.doc_id}/{self.repeat}" + (f"/{self.copy}" if self.copy else "")

    def sampling_for(self, role: str, stage: int) -> Sampling:
        """The same settings, with a seed derived from question, role and stage; 0 under greedy decoding."""
        if self.sampling.temperature == 0:
            return replace(self.sampling, seed=0)
        name = f"{self.sampling.seed}/{self.task}/{self.doc_id}/{self.repeat}/{role}/{stage}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        return replace(self.sampling, seed=seed)


@dataclass
class Insight:
    """I_t: what the mentor has written so far.

    Attributes
    ----------
    passes
        The texts: a single growing one for `insights=cutoff`, one per stage for `insights=staged`.
    ids
        The token ids of the text that the next call continues.
    tokens
        Mentor tokens in total.
    finish_reason
        "length" if the budget cut the text, "stop" if the mentor ended by itself, None before its first call.
    stages
        The last stage at which the mentor wrote.
    """

    passes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    tokens: int = 0
    finish_reason: str | None = None
    stages: int = 0

    @property
    def text(self) -> str:
        """I_t as the intern reads it."""
        return strip_think_tags(self.written)

    @property
    def written(self) -> str:
        """I_t as the mentor wrote it."""
        return "".join(self.passes)


@dataclass
class QuestionRun:
    """What has happened to one question so far, and what it has cost.

    Parameters
    ----------
    task
        The question.
    prices
        Dollars per million tokens, by role, for calls whose price the engine does not report.
    watcher
        Who watches while it is answered.

    Attributes
    ----------
    live, live_insight
        What the watcher is told of the answer, and of the insight.
    insight, judgements, tokens, judge_seconds, generate_seconds
        See `ledger.Record`, which they end up in.
    read
        How many of the mentor's tokens the intern has read.
    dollars
        What the calls so far cost; 0 before the first one if there are prices, None while nothing is known.
    meters
        What each role has read ("judge" for an intern with an adapter), so that no token is counted twice.
    """

    task: Task
    prices: Mapping[str, Prices] = field(default_factory=dict)
    watcher: Watcher = SILENT
    live: LiveAnswer = field(init=False)
    live_insight: LiveInsight = field(init=False)
    insight: Insight = field(default_factory=Insight)
    tokens: Tokens = field(default_factory=Tokens)
    judgements: list[Judgement] = field(default_factory=list)
    read: int = 0
    judge_seconds: float = 0.0
    generate_seconds: float = 0.0
    dollars: float | None = None
    meters: dict[str, Meter] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.live = LiveAnswer(self.watcher, self.task.sampling.stop)
        self.live_insight = LiveInsight(self.watcher)
        if self.prices and self.dollars is None:
            self.dollars = 0.0

    def count_judge_pass(self, reader: str, ids: list[int], priced: bool) -> None:
        """Count a pass over a prompt that judges or measures it.

        Parameters
        ----------
        reader
            "intern", or "judge" if the intern reads with an adapter.
        ids
            The prompt's tokens.
        priced
            Whether the pass is part of what the question costs in dollars.
        """
        meter = self._meter(reader)
        self.tokens.judge_prefill += meter.read(ids)
        if priced:
            self.dollars = sum_known(self.dollars, meter.dollars(ids))

    def count_generation(
        self,
        engine: Engine,
        role: str,
        text: str,
        continued: tuple[int, ...],
        completion: Completion,
        draft: tuple[int, ...] = (),
    ) -> None:
        """Count a call of `Engine.generate`.

        Draft tokens that the engine accepted count as read, not as generated. How many those are is computed here, not
        reported by the engine, because a stored completion may have been generated with another draft.

        Parameters
        ----------
        engine, role
            The engine, and "mentor" or "intern".
        text, continued, draft
            The parts of the call's `Prompt`.
        completion
            What it returned.
        """
        ids = engine.encode(text) + list(continued)
        meter = self._meter(role)
        new = meter.read(ids, completion)
        self.dollars = sum_known(self.dollars, meter.dollars(ids, completion, draft))
        self.generate_seconds += completion.seconds
        if role == "mentor":
            self.tokens.mentor_prefill += new
            self.tokens.mentor_new += completion.new_tokens
        else:
            self.tokens.intern_prefill += new + len(draft)
            self.tokens.intern_new += completion.new_tokens - accepted_draft_tokens(draft, completion.token_ids)

    def _meter(self, role: str) -> Meter:
        return self.meters.setdefault(role, Meter(self.prices.get("intern" if role == "judge" else role)))
