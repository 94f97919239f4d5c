"""A joint engine: several transformers models that decode one text in step and choose each token together.

At each step the members' distributions of the next token are averaged, over their vocabulary where it is the same, and
otherwise over the union of their vocabularies (GaC: Yu et al., Findings of EMNLP 2024; `union_vocabulary`). Each member
reads the chosen token in its own tokens. With a threshold, the first member is the gate: where it is sure of a token,
it writes it alone. `joint_batch` and `joint_cache` do that for a batch of texts.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

from lm_eval_tandem.engines import DEFAULT_VIEW, Completion, Messages, Prompt, Sampling, ScoringView, TokenStats
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.joint_batch import JointBatch, JointJob
from lm_eval_tandem.engines.hf.joint_cache import Combination, Member
from lm_eval_tandem.engines.hf.union_vocabulary import END, MemberVocabulary, SharedVocabulary, UnionVocabulary
from lm_eval_tandem.engines.hf.worker import Submissions, Worker
from lm_eval_tandem.engines.limits import check_window
from lm_eval_tandem.engines.settled import settled_text
from lm_eval_tandem.engines.stopping import StopRule, after_token, answer_text
from lm_eval_tandem.engines.turns import turns_of
from lm_eval_tandem.errors import ArgumentError, EngineError

SEPARATOR = "\x1d"
"""Stands between the members' renderings of a conversation where they differ (U+001D, the group separator)."""


class JointEngine:
    """Several models as one engine (see `engines.Engine`), which averages their distributions at each step.

    `Completion.token_ids` are entries of the vocabulary that the members share, or of the union of theirs. Sampling is
    from the averaged distribution, with the first member's generation defaults.

    Parameters
    ----------
    members
        Loaded models; they are closed with this engine. The first is the gate.
    union
        Whether the members may have different vocabularies, over whose union the average is taken then.
    weights
        Of the members, from 0 on; they are divided by their sum. None for equal ones.
    threshold
        Probability, from 0 to 1, of the gate's most likely token from which on the gate takes it alone; None: all
        members choose every token.

    Attributes
    ----------
    vocabulary
        Of `Completion.token_ids`.

    Raises
    ------
    ArgumentError
        The weights or the threshold mean nothing.
    EngineError
        The members have different vocabularies and `union` is False, or one of them cannot join a batch row by row.

    Examples
    --------
    >>> engine = JointEngine([HFEngine({"pretrained": name}) for name in names], union=True, weights=[2, 1])
    >>> asyncio.run(engine.generate(Prompt("1 + 1 ="), Sampling(max_tokens=4))).text
    """

    reads_drafts = False
    cannot_measure = ""
    separator = SEPARATOR

    def __init__(
        self,
        members: Sequence[HFEngine],
        *,
        union: bool,
        weights: Sequence[float] | None = None,
        threshold: float | None = None,
    ) -> None:
        shares = normalised(weights, len(members))
        if threshold is not None and not 0 <= threshold <= 1:
            raise ArgumentError(f"threshold={threshold} has to be a probability, from 0 to 1; leave it out for none.")
        for member in members:
            require_rows(member)
        self.members, self._first = list(members), members[0]
        self.vocabulary = vocabulary_of(members, union)
        self.name = "+".join(member.name for member in members)
        numbers = [member.parameters for member in members]
        self.parameters = None if None in numbers else sum(numbers)
        self.lm = self._first.lm
        self.window = min(member.window for member in members)
        self.max_concurrency = min(member.max_concurrency for member in members)
        self.cannot_score = (
            f"the models {self.name} decode together and do not score prompts as one; let one of them alone score."
        )
        self.identity: dict[str, Any] = {
            "engine": "joint",
            "union": union,
            "weights": shares,
            "threshold": threshold,
            "members": [dict(member.identity) for member in members],
        }
        think_end = self.lm.think_end_token
        self._think_end = self.vocabulary.entry(0, think_end) if isinstance(think_end, int) else think_end
        self._end_texts = tuple(dict.fromkeys(member.end_text for member in members))
        self._stop_rule = StopRule(self._special_text, self._think_end)
        parts = [Member(one.name, one.network, one.mixed_precision, one.window) for one in members]
        self._worker = Worker(
            self.name,
            self._first.network,
            self.vocabulary.ends,
            self.max_concurrency,
            None,
            self.window,
            partial(JointBatch, Combination(parts, self.vocabulary, shares, threshold)),
        )
        self.work = self._worker.work
        self._submissions = Submissions(self._worker)
        weakref.finalize(self, self._worker.stop).atexit = False  # `worker.end_threads` does more

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`. A text with `SEPARATOR` has one part for each member.

        Raises
        ------
        EngineError
            The text has another number of parts, or a repetition penalty is requested.
        """
        if sampling.repetition_penalty not in (None, 1):
            raise EngineError(
                f"repetition_penalty={sampling.repetition_penalty} cannot be applied to the joint distribution of "
                f"{self.name}, whose models read different tokens; leave it out."
            )
        texts, continued = self.member_prompts(prompt.text), self.member_ids(prompt.continued)
        ids = [before + after for before, after in zip(texts, continued, strict=True)]
        for member, own in zip(self.members, ids, strict=True):
            check_window(member.name, member.window, len(own), sampling.max_tokens)
        future = asyncio.get_running_loop().create_future()
        job = JointJob(prompt, ids[0], future, time.perf_counter(), sampling, member_ids=ids)
        job.search_stops = partial(self._stop_rule.search, (*sampling.stop, *self._end_texts), prompt.continued)
        await self._submissions.result(job)
        return job.completion(self.answer_text(tuple(job.new), sampling.stop), turns_of(job.joint))

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`; always refused."""
        raise EngineError(self.cannot_score)

    def stop(self, session: str) -> None:
        """See `Engine.stop`. Nothing is generated between calls."""

    def release(self, session: str) -> None:
        """See `Engine.release`."""
        self._worker.release(session)

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`: the members' own renderings, joined by `SEPARATOR` where they differ.

        Raises
        ------
        EngineError
            A member cannot render the conversation, or a text in it contains `SEPARATOR`.
        """
        rendered = [member.render(messages, generation_prompt) for member in self.members]
        if any(SEPARATOR in text for text in rendered):
            raise EngineError(
                "a conversation contains the character U+001D, which stands between the prompts of models that decode "
                "together; remove it from the question."
            )
        return rendered[0] if len(set(rendered)) == 1 else SEPARATOR.join(rendered)

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`: the first member's token ids of its part of the text."""
        return self._first.encode(self._parts(text)[0])

    def member_prompts(self, text: str) -> list[list[int]]:
        """Each member's token ids of its part of a prompt."""
        return [member.encode(part) for member, part in zip(self.members, self._parts(text), strict=True)]

    def member_ids(self, token_ids: tuple[int, ...]) -> list[list[int]]:
        """What each member reads of generated tokens, as its own token ids."""
        tokens_of = self.vocabulary.tokens_of
        return [[own for entry in token_ids for own in tokens_of(m, entry)] for m in range(len(self.members))]

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        if isinstance(self.vocabulary, SharedVocabulary):
            return self._first.decode(token_ids)
        return self.vocabulary.text(token_ids).rstrip("\N{REPLACEMENT CHARACTER}")

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`."""
        if isinstance(self.vocabulary, SharedVocabulary):
            return self._first.answer_text(token_ids, (*stop, *self._end_texts))
        text = self.vocabulary.text(after_token(token_ids, self._think_end))
        return answer_text(text, (*stop, *self._end_texts), self._think_end)[0]

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`."""
        stop = (*stop, *self._end_texts)
        if isinstance(self.vocabulary, SharedVocabulary):
            return self._first.settled_text(token_ids, stop)
        if isinstance(self._think_end, int) and self._think_end not in token_ids:
            return ""
        new = after_token(token_ids, self._think_end)
        return settled_text(self.vocabulary.text, new, stop=stop, think_end=self._think_end)

    def close(self) -> None:
        """See `Engine.close`. The members are closed, too."""
        self._worker.close()
        for member in self.members:
            member.close()

    def _parts(self, text: str) -> list[str]:
        parts = text.split(SEPARATOR)
        if len(parts) == 1:
            return parts * len(self.members)
        if len(parts) != len(self.members):
            raise EngineError(
                f"a prompt contains the character U+001D {len(parts) - 1} times, which stands between the prompts of "
                f"the {len(self.members)} models {self.name}; remove it from the question."
            )
        return parts

    def _special_text(self, token_ids: Sequence[int]) -> str:
        if isinstance(self.vocabulary, SharedVocabulary):
            return str(self.lm.tokenizer.decode(token_ids))
        return self.vocabulary.text(token_ids, {END: self._first.end_text})


def normalised(weights: Sequence[float] | None, members: int) -> list[float]:
    """The members' weights, divided by their sum; equal ones for None.

    Raises
    ------
    ArgumentError
        They are not one for each member, or no weights.
    """
    given = [1.0] * members if weights is None else [float(weight) for weight in weights]
    total = sum(given)
    if len(given) != members or not 0 < total < float("inf") or min(given) < 0:
        raise ArgumentError(
            f"weights={given} have to be {members} numbers from 0 on, one for each model, of which one at least is "
            "above 0; leave them out for equal weights."
        )
    return [weight / total for weight in given]


def require_rows(member: HFEngine) -> None:
    """Refuse a model whose rows cannot be taken out of a batch and put into another one.

    Raises
    ------
    EngineError
        It is one.
    """
    if not member.network.stackable:
        raise EngineError(
            f"{member.name} keeps its cache in windows or states from which no single text can be taken, so it cannot "
            "decode together with other models; name another model, or combine finished answers instead."
        )


def vocabulary_of(members: Sequence[HFEngine], union: bool) -> SharedVocabulary | UnionVocabulary:
    """The vocabulary that the members share; otherwise, where that is wanted, the union of theirs.

    Raises
    ------
    EngineError
        The vocabularies differ and no union is wanted.
    """
    first, *others = members
    table = first.lm.tokenizer.get_vocab()
    other = next((member for member in others if member.lm.tokenizer.get_vocab() != table), None)
    if other is None:
        size = min(1 + max(table.values()), *(member.network.vocabulary for member in members))
        return SharedVocabulary(size, frozenset().union(*(member.end_tokens for member in members)))
    if not union:
        raise EngineError(
            f"{first.name} and {other.name} have different vocabularies, so the probabilities of their tokens cannot "
            "be averaged one by one; use aggregation=gac, which averages them over the union of both."
        )
    return UnionVocabulary(
        [
            MemberVocabulary(member.lm.tokenizer, member.network.vocabulary, member.end_tokens, member.encode_part)
            for member in members
        ]
    )
