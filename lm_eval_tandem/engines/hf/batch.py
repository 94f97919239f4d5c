"""The batch that is being generated: rows join and leave between two steps."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lm_eval_tandem.engines import DEFAULT_VIEW, Prompt, Sampling, ScoringView, Work, common_prefix
from lm_eval_tandem.engines.hf.kv_cache import BatchedCache, Network, PrefixCache, PrefixEntry, best_of, measured
from lm_eval_tandem.engines.hf.sampling import TokenSampler, choose


@dataclass(eq=False)
class GenerationJob:
    """One call of an engine that waits or runs: the prompt's tokens and, for a generation, what it wrote so far; for a
    judge's look at a prompt its view.
    """

    prompt: Prompt
    ids: list[int]
    future: asyncio.Future[Any]
    since: float
    sampling: Sampling | None = None
    new: list[int] = field(default_factory=list)
    measures: list[tuple[float, float]] = field(default_factory=list)
    """Log-probability and entropy of each new token, for `Sampling.measured`."""
    draft: tuple[int, ...] = ()
    """Tokens that the row may begin with, read together with its prompt."""
    cached: int = 0
    finish_reason: str = ""
    view: ScoringView = DEFAULT_VIEW

    def add(self, token: int, measured: tuple[float, float] | None) -> None:
        """Write a token, with its log-probability and entropy where they are asked for."""
        self.new.append(token)
        if measured is not None:
            self.measures.append(measured)


def wants_measures(job: GenerationJob | None) -> bool:
    """Whether the job asks what the model thinks of each token that it writes."""
    return job is not None and job.sampling is not None and job.sampling.measured


class StopChecker:
    """Says when a row has ended: an end token, a stop string in its text, or its limit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.ends = frozenset(ends)
        self._pieces: dict[int, str] = {}

    def reason(self, job: GenerationJob) -> str:
        """ "stop", "length", "max_entropy", or "" while the row goes on. Looks at the newest token alone."""
        assert job.sampling is not None
        token = job.new[-1]
        if token in self.ends:
            return "stop"
        stops = job.sampling.stop
        if stops and any(stop[-1] in self._piece(token) for stop in stops):
            tail = job.new[-(max(map(len, stops)) + 2) :]
            text = self.tokenizer.decode(tail)
            if any(stop in text for stop in stops):
                return "stop"
        if len(job.new) >= job.sampling.max_tokens:
            return "length"
        limit = job.sampling.max_entropy
        return "max_entropy" if limit is not None and job.measures and job.measures[-1][1] > limit else ""

    def _piece(self, token: int) -> str:
        """All characters that the token may add to a text: a lone piece may be shown without its space or byte."""
        if token not in self._pieces:
            raw = self.tokenizer.convert_ids_to_tokens(token) or ""
            text = str(self.tokenizer.decode([token]))
            hidden = " " if raw[:1] in ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ") else ""
            self._pieces[token] = raw + text + hidden
        return self._pieces[token]


class DecodingBatch:
    """Rows that are being generated, in one cache, each with its own stops, limit and random stream."""

    def __init__(self, network: Network, stops: StopChecker, prefixes: PrefixCache, work: Work) -> None:
        self.network = network
        self.stops = stops
        self.prefixes = prefixes
        self.work = work
        self.measuring_seconds = 0.0
        """What went into measuring tokens; `work.judge_seconds` grows in other threads too."""
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.rows = BatchedCache(self.network)
        self.slots: list[GenerationJob | None] = []
        """The job of each row of the cache; None where it has ended and its cells are still there."""
        self._choosers: list[TokenSampler] = []

    @property
    def live(self) -> list[GenerationJob]:
        """The jobs that go on."""
        return [job for job in self.slots if job is not None]

    @property
    def sparse(self) -> bool:
        """Half of the cells or more belong to rows that have ended, and may be let go."""
        live = len(self.live)
        return not live or (self.network.stackable and len(self.slots) >= 2 * live)

    def admit(self, jobs: list[GenerationJob]) -> None:
        """Let the cells of ended rows go and take new rows in; reads their prompts and writes their first token."""
        live = [row for row, job in enumerate(self.slots) if job is not None]
        old = [self.rows.take(row) for row in live]
        slots: list[GenerationJob | None] = [self.slots[row] for row in live]
        choosers = [self._choosers[row] for row in live]
        fresh = BatchedCache(self.network)
        if jobs:
            new_choosers = self._read(fresh, jobs)
            slots += jobs
            choosers += new_choosers
        if old:
            self.rows.stack(old + [fresh.take(row) for row in range(len(jobs))])
        else:
            self.rows = fresh
        self.slots, self._choosers = slots, choosers

    def _read(self, rows: BatchedCache, jobs: list[GenerationJob]) -> list[TokenSampler]:
        layers, choosers = [], []
        for job in jobs:
            assert job.sampling is not None
            kept = self.prefixes.get(job.prompt.session)
            shared = common_prefix(kept.ids, job.ids) if kept is not None else 0
            job.cached = min(shared, len(job.ids) - 1)
            self.work.recomputed_tokens += shared - job.cached
            self.work.prefill_tokens += len(job.ids) - job.cached + len(job.draft)
            layers.append(kept.cut(job.cached) if kept is not None else [])
            choosers.append(TokenSampler(job.sampling, self.network.model.generation_config, self.network.device))
        rows.stack(layers)
        unread = [[*job.ids[job.cached :], *job.draft] for job in jobs]
        logits = rows.read(unread, last=1 + max(len(job.draft) for job in jobs))
        self._begin(jobs, choosers, logits)
        for row, job in enumerate(jobs):
            rows.forget(row, len(job.draft) - (len(job.new) - 1))
        return choosers

    def _begin(self, jobs: list[GenerationJob], choosers: list[TokenSampler], logits: torch.Tensor) -> None:
        """Each row's first tokens: of its draft those that it writes itself, and the one after them.

        logits [B, K, V]: the last of a row is that after all it has read, its draft included.
        """
        starts = [logits.shape[1] - 1 - len(job.draft) for job in jobs]
        begun: list[list[int]] = []
        for row, (job, chooser) in enumerate(zip(jobs, choosers, strict=True)):
            own = logits[row, starts[row] :]
            best, written, ids = best_of(own), [], list(job.ids)
            for place, expected in enumerate((*job.draft, None)):
                token = best[place] if chooser.plain else chooser.choose(ids, own[place])
                written.append(token)
                ids.append(token)
                if token != expected:
                    break
            begun.append(written)
        pairs: dict[int, list[tuple[float, float]]] = {}
        asked = [row for row, job in enumerate(jobs) if wants_measures(job)]
        single = [row for row in asked if len(begun[row]) == 1]
        if single:
            places = [row * logits.shape[1] + starts[row] for row in single]
            thought = self._thought(logits.flatten(0, 1), [begun[row][0] for row in single], places)
            pairs = {row: [pair] for row, pair in zip(single, thought, strict=True)}
        for row in asked:
            if row not in pairs:
                own = logits[row, starts[row] : starts[row] + len(begun[row])]
                pairs[row] = self._thought(own, begun[row])
        for row, job in enumerate(jobs):
            for place, token in enumerate(begun[row]):
                job.add(token, pairs[row][place] if row in pairs else None)
                if self.stops.reason(job):  # what follows in a draft is not written any more
                    break

    def step(self) -> None:
        """One more token for every row."""
        last = [[job.new[-1]] if job is not None else [self.network.pad] for job in self.slots]
        logits = self.rows.read(last)[:, 0]
        self.work.decode_tokens += len(self.live)
        written = [job.ids + job.new if job is not None else [] for job in self.slots] if self._picky else []
        tokens = choose(self._choosers, written, logits)
        asked = [row for row, job in enumerate(self.slots) if wants_measures(job)]
        pairs: dict[int, tuple[float, float]] = {}
        if asked:
            # Picking rows out costs more than the others would, unless these are many.
            if 2 * len(asked) > len(logits):
                pairs = dict(enumerate(self._thought(logits, tokens)))
            else:
                pairs = dict(zip(asked, self._thought(logits, [tokens[row] for row in asked], asked), strict=True))
        for row, job in enumerate(self.slots):
            if job is not None:
                job.add(tokens[row], pairs.get(row))

    def _thought(
        self, logits: torch.Tensor, tokens: Sequence[int], rows: Sequence[int] | None = None
    ) -> list[tuple[float, float]]:
        """Log-probability and entropy of each token [N], a pair each, of these rows of logits [B, V] or of all.

        What it takes is judging time. The logits may be overwritten.
        """
        clock = time.thread_time if logits.device.type == "cpu" else time.perf_counter  # others' turns are not judging
        began = clock()
        if rows is not None:
            logits = logits.index_select(0, torch.tensor(rows, device=logits.device))
        pairs = measured(logits, tokens)
        self.measuring_seconds += clock() - began
        return pairs

    @property
    def _picky(self) -> bool:
        return any(not chooser.plain for chooser in self._choosers)

    def _keep(self, row: int, job: GenerationJob) -> None:
        """Keep what was computed for the job's session, with the statistics of what was scored of its prompt."""
        session = job.prompt.session
        assert session is not None
        before = self.prefixes.get(session)
        kept = PrefixEntry(job.ids + job.new[:-1], self.rows.take(row))
        if before is not None and before.logprob is not None and before.entropy is not None:
            shared = min(common_prefix(before.ids, job.ids), len(before.logprob))
            kept = replace(kept, logprob=before.logprob[:shared], entropy=before.entropy[:shared])
        self.prefixes.put(session, kept)

    def settle(self) -> list[GenerationJob]:
        """The jobs that have just ended; what was computed for their sessions is kept."""
        ended = []
        for row, job in enumerate(self.slots):
            if job is None:
                continue
            job.finish_reason = self.stops.reason(job)
            if not job.finish_reason:
                continue
            if job.prompt.session is not None and self.network.stackable:
                self._keep(row, job)
            self.slots[row] = None
            ended.append(job)
        return ended
