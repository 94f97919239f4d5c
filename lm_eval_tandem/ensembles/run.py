"""The state of one question while an ensemble answers it: what each model generated and read, and what that cost."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from lm_eval_tandem.accounting import Prices, Spent, Tokens, sum_all, sum_known
from lm_eval_tandem.cascade.growing_answer import GrowingAnswer
from lm_eval_tandem.cascade.live_text import LiveAnswer
from lm_eval_tandem.cascade.meter import Meter
from lm_eval_tandem.cascade.prompts import prompt_of
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import SILENT, Watcher
from lm_eval_tandem.engines import Completion, Engine, OnTokens, Prompt, Sampling
from lm_eval_tandem.engines.rating import Candidate, Score, Scorer
from lm_eval_tandem.ledger import Record, Segment

SCORER = "scorer"
"""Name under which a scorer that is no member of the ensemble stands in records."""


@dataclass(frozen=True)
class Member:
    """One model of an ensemble.

    Parameters
    ----------
    name
        In arguments and records; no two members share it.
    engine
        Its engine.
    label
        Its name in reference files and results.
    prices
        Of its tokens; None where they are not known.
    """

    name: str
    engine: Engine
    label: str
    prices: Prices | None = None


@dataclass
class Writing:
    """A text that a member generated, with what it went on with."""

    member: Member
    completion: Completion

    @property
    def tokens(self) -> int:
        """Its tokens, as the engine counts them."""
        return self.completion.new_tokens


@dataclass
class EnsembleRun:
    """What has happened to one question so far, and what it has cost.

    Parameters
    ----------
    task
        The question.
    members
        All models of the ensemble by name.
    policy
        The strategies, as records name them.
    watcher
        Who watches while it is answered.

    Attributes
    ----------
    live
        What the watcher is told of the answer.
    selected
        The members that answer.
    selection_scores, response_scores
        By what members were selected, and a response was taken; see `ledger.Record`.
    spent
        What each model did.
    growing
        The answer.
    refused
        Tokens of the responses and segments so far that were not made a part of the answer.
    judge_seconds, generate_seconds
        Seconds of selecting and scoring, and of generating.
    """

    task: Task
    members: Mapping[str, Member]
    policy: str
    watcher: Watcher = SILENT
    live: LiveAnswer = field(init=False)
    selected: list[Member] = field(default_factory=list)
    selection_scores: dict[str, float] = field(default_factory=dict)
    response_scores: dict[str, float | None] = field(default_factory=dict)
    spent: dict[str, Spent] = field(default_factory=dict)
    growing: GrowingAnswer = field(init=False)
    refused: int = 0
    judge_seconds: float = 0.0
    generate_seconds: float = 0.0
    _meters: dict[str, Meter] = field(default_factory=dict)
    _prompts: dict[str, str] = field(default_factory=dict)
    _parts_read: dict[str, int] = field(default_factory=dict)
    """By member, how many parts of the answer it has read or written."""

    def __post_init__(self) -> None:
        self.growing = GrowingAnswer(self.task.sampling)
        self.live = LiveAnswer(self.watcher, self.task.sampling.stop)
        for member in self.members.values():
            self.spent[member.name] = Spent(dollars=None if member.prices is None else 0.0)

    def prompt(self, member: Member) -> str:
        """The question as this member answers it, rendered once."""
        if member.name not in self._prompts:
            self._prompts[member.name] = prompt_of(member.engine, self.task.question)
        return self._prompts[member.name]

    async def generate(
        self, member: Member, number: int, sampling: Sampling, on_tokens: OnTokens | None = None
    ) -> Writing:
        """Let a member go on with the answer so far.

        Parameters
        ----------
        member
            Who writes.
        number
            Of the call, by which sampled calls differ.
        sampling
            How; its seed is replaced by one for question, member and number.
        on_tokens
            Of the call (`Prompt.on_tokens`).
        """
        sampling = replace(sampling, seed=self.task.sampling_for(member.name, number).seed)
        text = self.prompt(member) + self.growing.text
        prompt = Prompt(text, session=self.task.session, on_tokens=on_tokens)
        completion = await member.engine.generate(prompt, sampling)
        ids = member.engine.encode(text)
        parts = self.growing.segments[self._parts_read.get(member.name, 0) :]
        self.count(
            member,
            Spent(
                new=completion.new_tokens,
                read=sum(part.tokens for part in parts if part.writer != member.name),
                prefill=self._meter(member).read(ids, completion),
                dollars=self._meter(member).dollars(ids, completion),
            ),
        )
        self._parts_read[member.name] = len(self.growing.segments)
        self.generate_seconds += completion.seconds
        self.refused += completion.new_tokens  # until it is taken
        return Writing(member, completion)

    def take(self, writing: Writing, score: float | None = None) -> str:
        """Make what a member wrote the next part of the answer, and return its text."""
        completion, member = writing.completion, writing.member
        self.refused -= writing.tokens
        written = self.growing.take(
            member.name, member.engine, completion.token_ids, writing.tokens, completion.finish_reason, finite(score)
        )
        self._parts_read[member.name] = len(self.growing.segments)
        self.live.show_parts(self.growing.text)
        return written

    def answer_with(self, writing: Writing, score: float | None = None) -> str:
        """Make a whole response the answer, as the engine cut it, and return it."""
        text = writing.completion.text
        self.refused -= writing.tokens
        self.live.begin(writing.member.name, 0)
        self.growing.text, self.growing.finish_reason = text, writing.completion.finish_reason
        self.growing.segments = [Segment(writing.member.name, writing.tokens, len(text), finite(score))]
        return text

    async def rate(self, scorer: Scorer, candidates: Sequence[Candidate], reader: Member | None) -> list[float]:
        """Score candidates, and count what was read for it.

        Parameters
        ----------
        scorer
            What scores.
        candidates
            The texts.
        reader
            The member that reads them, where the scorer is one.
        """
        started = time.perf_counter()
        scores: list[Score] = await scorer.score(candidates)
        self.judge_seconds += time.perf_counter() - started
        if reader is not None:
            for candidate in candidates:
                whole = candidate.prompts[reader.name] + candidate.begun + candidate.text
                self.count_judged(reader, whole)
        else:
            before = self.spent.get(SCORER, Spent())
            dollars = sum_known(*(score.dollars for score in scores))
            read = Spent(judged=sum(score.tokens for score in scores), dollars=dollars)
            # A server of unknown size is billed in dollars alone.
            self.spent[SCORER] = before + (read if scorer.parameters is None else read.priced(scorer.parameters))
        return [score.value for score in scores]

    def candidate(self, text: str) -> Candidate:
        """A text that may be the next part of the answer, as scorers get it."""
        question = self.task.question
        messages = question.messages
        plain = question.text if messages is None else "\n".join(f"{role}: {content}" for role, content in messages)
        prompts = {member.name: self.prompt(member) for member in self.members.values()}
        return Candidate(plain, messages, self.growing.text, text, prompts, self.task.session)

    def count_judged(self, member: Member, text: str) -> None:
        """Count a pass of a member over a text, to select or to score."""
        ids, meter = member.engine.encode(text), self._meter(member)
        self.count(member, Spent(judged=meter.read(ids), dollars=meter.dollars(ids)))

    def count(self, member: Member, spent: Spent) -> None:
        """Add what a member did."""
        self.spent[member.name] += spent.priced(member.engine.parameters)

    def _meter(self, member: Member) -> Meter:
        return self._meters.setdefault(member.name, Meter(member.prices))

    def record(self, reason: str) -> Record:
        """The record of the question."""
        growing = self.growing
        return Record(
            task=self.task.task,
            doc_id=self.task.doc_id,
            repeat=self.task.repeat,
            policy=self.policy,
            stage=0,
            reason=reason,
            finish_reason=growing.finish_reason,
            mentor_finish_reason=None,
            mentor_stages=0,
            tokens=Tokens(),
            tflops=sum_all(*(spent.tflops for spent in self.spent.values())),
            bill=sum_all(*(spent.bill for spent in self.spent.values())),
            judge_seconds=self.judge_seconds,
            generate_seconds=self.generate_seconds,
            dollars=sum_known(*(spent.dollars for spent in self.spent.values())),
            refused_tokens=self.refused,
            segments=growing.segments,
            spent=self.spent,
            selected=[member.name for member in self.selected],
            selection_scores=self.selection_scores,
            response_scores=self.response_scores,
            cached={member: meter.found for member, meter in self._meters.items()},
        )


def finite(score: float | None) -> float | None:
    """A score as records keep it; None for one of a text in which there is nothing to rate."""
    return score if score is not None and math.isfinite(score) else None
