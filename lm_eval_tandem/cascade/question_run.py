"""One question on its way through the cascade: what was said, read and spent."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from lm_eval_tandem.accounting import Prices, Tokens, sum_known
from lm_eval_tandem.cascade.prompts import Question, without_think_marks
from lm_eval_tandem.engines import Completion, Engine, Sampling
from lm_eval_tandem.engines.drafts import accepted_draft_tokens, common_prefix_length
from lm_eval_tandem.ledger import Judgement


@dataclass(frozen=True)
class Task:
    """One question to answer: what is asked, how to generate, and what makes it unique within a run."""

    question: Question
    sampling: Sampling
    task: str = ""
    doc_id: int = 0
    repeat: int = 0

    @property
    def session(self) -> str:
        """The name under which engines keep what they computed for this question."""
        return f"{self.task}/{self.doc_id}/{self.repeat}"

    def sampling_of(self, role: str, stage: int) -> Sampling:
        """The same settings with a random stream of its own; a greedy generation has no stream."""
        if self.sampling.temperature == 0:
            return replace(self.sampling, seed=0)
        name = f"{self.sampling.seed}/{self.session}/{role}/{stage}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big")
        return replace(self.sampling, seed=seed)


@dataclass
class Insight:
    """What the mentor has written so far: I_t."""

    passes: tuple[str, ...] = ()
    ids: tuple[int, ...] = ()
    tokens: int = 0
    finish_reason: str | None = None
    stages: int = 0

    @property
    def text(self) -> str:
        """I_t as the intern reads it."""
        return without_think_marks("".join(self.passes))


@dataclass
class QuestionRun:
    """One question on its way: what was said, read and spent.

    prices: of tokens, by role, for calls of which the engine does not say what they cost.
    read: what a prefix cache would hold, by role. paid: the same of what was paid for: a prompt that is read only to be
    measured is no part of what the question costs.
    """

    task: Task
    prices: Mapping[str, Prices] = field(default_factory=dict)
    insight: Insight = field(default_factory=Insight)
    tokens: Tokens = field(default_factory=Tokens)
    stages: list[Judgement] = field(default_factory=list)
    judge_seconds: float = 0.0
    generate_seconds: float = 0.0
    dollars: float | None = None
    """0 before the first call where there are prices, None where nobody knows any."""
    read: dict[str, list[int]] = field(default_factory=dict)
    paid: dict[str, list[int]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.prices and self.dollars is None:
            self.dollars = 0.0

    def new_tokens(self, role: str, ids: list[int]) -> int:
        """How many of a prompt's tokens the role has not read yet; from now on it has."""
        new = len(ids) - common_prefix_length(self.read.get(role, []), ids)
        self.read[role] = ids
        return new

    def judged(self, reader: str, ids: list[int], priced: bool) -> None:
        """Count a judge's pass over a prompt, as "intern" or, with weights of its own, as "judge"."""
        self.tokens.judge_prefill += self.new_tokens(reader, ids)
        if priced:
            self.dollars = sum_known(self.dollars, self._dollars(reader, ids))

    def count(
        self,
        engine: Engine,
        role: str,
        text: str,
        continued: tuple[int, ...],
        completion: Completion,
        draft: tuple[int, ...] = (),
    ) -> None:
        """Count a call. What a draft spared was read and not generated.

        Found out here and not told by the engine: a store's completion may have been made with another draft.
        """
        ids = engine.encode(text) + list(continued)
        new = self.new_tokens(role, ids)
        if completion.counted is not None:
            new = completion.prompt_tokens - completion.cached_tokens  # as the server billed it
        self.dollars = sum_known(self.dollars, self._dollars(role, ids, completion, draft))
        self.read[role] = ids + list(completion.token_ids)
        self.generate_seconds += completion.seconds
        if role == "mentor":
            self.tokens.mentor_prefill += new
            self.tokens.mentor_new += completion.new_tokens
        else:
            self.tokens.intern_prefill += new + len(draft)
            self.tokens.intern_new += completion.new_tokens - accepted_draft_tokens(draft, completion.token_ids)

    def _dollars(
        self,
        role: str,
        ids: list[int],
        completion: Completion | None = None,
        draft: tuple[int, ...] = (),
    ) -> float | None:
        """What a call cost, or would at the role's prices; what an earlier one had read or written is cached."""
        cached = common_prefix_length(self.paid.get(role, []), ids)
        self.paid[role] = ids if completion is None else ids + list(completion.token_ids)
        prices = self.prices.get("intern" if role == "judge" else role)
        if prices is None or completion is None:
            return None if prices is None else prices.dollars(len(ids), cached, 0)
        if completion.dollars is not None:
            return completion.dollars
        if completion.counted is not None:
            return prices.dollars(completion.prompt_tokens, completion.cached_tokens, completion.counted)
        written = completion.new_tokens - accepted_draft_tokens(draft, completion.token_ids)
        return prices.dollars(len(ids) + len(draft), cached, written)
