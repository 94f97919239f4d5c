"""The batch of a joint engine: texts whose next tokens several networks choose together (`joint_cache`)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import GenerationConfig

from lm_eval_tandem.engines import EngineWork
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.hf.batch import DecodingBatch, Job, TokenPair, resolve
from lm_eval_tandem.engines.hf.joint_cache import Combination, JointCache, MemberRow
from lm_eval_tandem.engines.hf.kv_cache import Network, PrefixCache, PrefixEntry
from lm_eval_tandem.engines.hf.sampling import TokenSampler
from lm_eval_tandem.engines.hf.token_stats import likeliest_tokens
from lm_eval_tandem.errors import ContextError


@dataclass(eq=False)
class JointJob(Job):
    """A call of a joint engine. `ids` are the first member's tokens; `new` are entries of the vocabulary.

    Attributes
    ----------
    member_ids
        Token ids of the text and of what follows it, for each member.
    joint
        For each new token, whether all members chose it together.
    lengths
        For each member, tokens of the text, of what follows it, and of the new entries that have been read.
    """

    member_ids: list[list[int]] = field(default_factory=list)
    joint: list[bool] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)

    def start(self) -> None:
        """See `Job.start`."""
        super().start()
        self.joint, self.lengths = [], list(map(len, self.member_ids))


@dataclass
class JointPrefix(PrefixEntry):
    """What all members have computed of one text; `ids` and `layers` are those of all of them, one after the other.

    Attributes
    ----------
    members
        The same for each member.
    """

    members: list[PrefixEntry] = field(default_factory=list)


class JointBatch(DecodingBatch):
    """The generations of a joint engine that are running.

    Parameters
    ----------
    combination
        The members, and how their distributions become one.
    network, end_tokens, prefixes, work
        As for `DecodingBatch`; the network is the first member's, and its generation defaults are those of sampling.
    """

    cache: JointCache

    def __init__(
        self,
        combination: Combination,
        network: Network,
        end_tokens: Collection[int],
        prefixes: PrefixCache,
        work: EngineWork,
    ) -> None:
        self.combination = combination
        defaults: dict[str, Any] = network.model.generation_config.to_dict()
        self._defaults = GenerationConfig.from_dict({**defaults, "repetition_penalty": None})
        super().__init__(network, end_tokens, prefixes, work)
        self.name = "+".join(member.name for member in combination.members)

    def _empty_cache(self) -> JointCache:
        return JointCache(self.combination)

    def _prefill(self, jobs: list[Job]) -> tuple[JointCache, list[TokenSampler]]:
        cache = self._empty_cache()
        rows, samplers = [], []
        for job in jobs:
            assert isinstance(job, JointJob)
            assert job.sampling is not None
            job.start()
            entry = self.prefixes.get(job.prompt.session)
            known = entry.members if isinstance(entry, JointPrefix) else []
            rows.append(_known_rows(job, known))
            job.cached = rows[-1][0].read
            if known:
                self.work.recomputed_tokens += common_prefix_length(known[0].ids, job.ids) - job.cached
            self.work.prefill_tokens += len(job.ids) - job.cached
            samplers.append(TokenSampler(job.sampling, self._defaults, self.network.device))
        cache.stack(rows)
        self._extend(cache, jobs, samplers, cache.read([[]] * len(jobs))[:, 0])
        return cache, samplers

    def _step(self) -> None:
        self._end_rows_beyond_a_window()
        probabilities = self.cache.read([[] if job is None else [job.new[-1]] for job in self.slots])[:, 0]
        self.work.decode_tokens += len(self.running)
        self._extend(self.cache, self.slots, self._samplers, probabilities)

    def _extend(
        self,
        cache: JointCache,
        slots: Sequence[Job | None],
        samplers: Sequence[TokenSampler],
        probabilities: torch.Tensor,
    ) -> None:
        """Choose each row's next token from the probabilities (B, U) and append it to its job."""
        tokens, finite = likeliest_tokens(probabilities)
        for row, (job, sampler) in enumerate(zip(slots, samplers, strict=True)):
            if cache.alone[row]:
                tokens[row] = cache.gate_entries[row]
            elif job is not None and finite[row] and not sampler.takes_argmax:
                tokens[row], finite[row] = sampler.choose(job.new, probabilities[row].log())
        self._add_tokens(slots, probabilities, tokens, finite)
        for row, job in enumerate(slots):
            if isinstance(job, JointJob):
                job.joint.append(not cache.alone[row])

    def _token_stats(
        self, logits: torch.Tensor, tokens: Sequence[int], rows: Sequence[int] | None = None
    ) -> list[TokenPair]:
        return super()._token_stats(logits.log(), tokens, rows)  # they are probabilities

    def _end_rows_beyond_a_window(self) -> None:
        """Fail the calls whose text has become longer than a member's window, in that member's tokens.

        One entry may be several tokens of a member, so that cannot be known before.
        """
        vocabulary = self.combination.vocabulary
        if vocabulary.places is None:
            return
        for row, job in enumerate(self.slots):
            if not isinstance(job, JointJob):
                continue
            for m, member in enumerate(self.combination.members):
                job.lengths[m] += len(vocabulary.tokens_of(m, job.new[-1]))
                if job.lengths[m] > member.window:
                    refused = ContextError(
                        f"a prompt and {len(job.new)} new tokens are {job.lengths[m]} tokens of {member.name}, whose "
                        f"window has {member.window}; lower max_gen_toks, or use a model with a longer window."
                    )
                    resolve([(job, refused)])
                    self.slots[row] = None
                    break

    def _keep_prefix(self, row: int, job: Job) -> None:
        assert isinstance(job, JointJob)
        assert job.prompt.session is not None
        members = []
        for m, kept in enumerate(self.cache.copy_row(row)):
            new = (self.combination.vocabulary.tokens_of(m, entry) for entry in job.new[:-1])
            ids = [*job.member_ids[m], *(token for tokens in new for token in tokens)]
            members.append(PrefixEntry(ids[: kept.read], kept.layers))
        ids = [token for member in members for token in member.ids]
        layers = [pair for member in members for pair in member.layers]
        self.prefixes.put(job.prompt.session, JointPrefix(ids, layers, members=members))


def _known_rows(job: JointJob, known: Sequence[PrefixEntry]) -> list[MemberRow]:
    """A row of what each member knows of a job's text; the last token is always read again, for what comes after it."""
    rows = []
    for m, ids in enumerate(job.member_ids):
        shared = min(common_prefix_length(known[m].ids, ids), len(ids) - 1) if known else 0
        rows.append(MemberRow(known[m].prefix(shared) if known else [], ids[shared:]))
    return rows
