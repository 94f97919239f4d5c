"""The batch that is being generated: rows join and leave between two steps."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lm_eval_tandem.engines import PLAIN, Prompt, Sampling, View, Work, common_prefix
from lm_eval_tandem.engines.rows import Kept, Network, Prefixes, Rows, measures
from lm_eval_tandem.engines.sampling import Chooser, choose


@dataclass(eq=False)
class Job:
    """One call of an engine that waits or runs: the prompt's tokens and, for a generation, what it wrote so far; for a
    judge's look at a prompt its view."""

    prompt: Prompt
    ids: list[int]
    future: asyncio.Future[Any]
    since: float
    sampling: Sampling | None = None
    new: list[int] = field(default_factory=list)
    measures: list[list[float]] = field(default_factory=list)
    """Log-probability and entropy of each new token, for `Sampling.measured`."""
    cached: int = 0
    finish_reason: str = ""
    view: View = PLAIN


class Stops:
    """Says when a row has ended: an end token, a stop string in its text, or its limit."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, ends: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.ends = frozenset(ends)
        self._pieces: dict[int, str] = {}

    def reason(self, job: Job) -> str:
        """ "stop", "length", or "" while the row goes on. Looks at the last token only where it could end a stop."""
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
        return "length" if len(job.new) >= job.sampling.max_tokens else ""

    def _piece(self, token: int) -> str:
        """All characters that the token may add to a text: a lone piece may be shown without its space or byte."""
        if token not in self._pieces:
            raw = self.tokenizer.convert_ids_to_tokens(token) or ""
            text = str(self.tokenizer.decode([token]))
            hidden = " " if raw[:1] in ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ") else ""
            self._pieces[token] = raw + text + hidden
        return self._pieces[token]


class Decoding:
    """Rows that are being generated, in one cache, each with its own stops, limit and random stream."""

    def __init__(self, network: Network, stops: Stops, prefixes: Prefixes, work: Work) -> None:
        self.network = network
        self.stops = stops
        self.prefixes = prefixes
        self.work = work
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        self.rows = Rows(self.network)
        self.slots: list[Job | None] = []
        """The job of each row of the cache; None where it has ended and its cells are still there."""
        self._choosers: list[Chooser] = []

    @property
    def live(self) -> list[Job]:
        """The jobs that go on."""
        return [job for job in self.slots if job is not None]

    @property
    def sparse(self) -> bool:
        """Half of the cells or more belong to rows that have ended, and may be let go."""
        live = len(self.live)
        return not live or (self.network.stackable and len(self.slots) >= 2 * live)

    def admit(self, jobs: list[Job]) -> None:
        """Let the cells of ended rows go and take new rows in; reads their prompts and writes their first token."""
        live = [row for row, job in enumerate(self.slots) if job is not None]
        old = [self.rows.take(row) for row in live]
        slots: list[Job | None] = [self.slots[row] for row in live]
        choosers = [self._choosers[row] for row in live]
        fresh = Rows(self.network)
        if jobs:
            new_choosers = self._read(fresh, jobs)
            slots += jobs
            choosers += new_choosers
        if old:
            self.rows.stack(old + [fresh.take(row) for row in range(len(jobs))])
        else:
            self.rows = fresh
        self.slots, self._choosers = slots, choosers

    def _read(self, rows: Rows, jobs: list[Job]) -> list[Chooser]:
        layers, choosers = [], []
        for job in jobs:
            assert job.sampling is not None
            kept = self.prefixes.get(job.prompt.session)
            shared = common_prefix(kept.ids, job.ids) if kept is not None else 0
            job.cached = min(shared, len(job.ids) - 1)
            self.work.recomputed_tokens += shared - job.cached
            self.work.prefill_tokens += len(job.ids) - job.cached
            layers.append(kept.cut(job.cached) if kept is not None else [])
            choosers.append(Chooser(job.sampling, self.network.model.generation_config, self.network.device))
        rows.stack(layers)
        logits = rows.read([job.ids[job.cached :] for job in jobs])
        for job, token in zip(jobs, choose(choosers, [job.ids for job in jobs], logits), strict=True):
            job.new.append(token)
        self._measure(jobs, logits)
        return choosers

    def step(self) -> None:
        """One more token for every row."""
        last = [[job.new[-1]] if job is not None else [self.network.pad] for job in self.slots]
        logits = self.rows.read(last)
        self.work.decode_tokens += len(self.live)
        written = [job.ids + job.new if job is not None else [] for job in self.slots] if self._picky else []
        tokens = choose(self._choosers, written, logits)
        for job, token in zip(self.slots, tokens, strict=True):
            if job is not None:
                job.new.append(token)
        self._measure(self.slots, logits)

    def _measure(self, jobs: Sequence[Job | None], logits: torch.Tensor) -> None:
        """Note what the model thought of each row's newest token, for those that asked; logits [B, V]."""
        asked = [
            (row, job) for row, job in enumerate(jobs) if job is not None and job.sampling and job.sampling.measured
        ]
        if not asked:
            return
        chosen = torch.tensor([[job.new[-1]] for _, job in asked], device=logits.device)
        logprob, entropy = measures(logits[[row for row, _ in asked]], chosen)
        for (_, job), pair in zip(asked, torch.cat([logprob, entropy], dim=1).tolist(), strict=True):
            job.measures.append(pair)

    @property
    def _picky(self) -> bool:
        return any(not chooser.plain for chooser in self._choosers)

    def _keep(self, row: int, job: Job) -> None:
        """Keep what was computed for the job's session, with the statistics of what was scored of its prompt."""
        session = job.prompt.session
        assert session is not None
        before = self.prefixes.get(session)
        kept = Kept(job.ids + job.new[:-1], self.rows.take(row))
        if before is not None and before.logprob is not None and before.entropy is not None:
            shared = min(common_prefix(before.ids, job.ids), len(before.logprob))
            kept = replace(kept, logprob=before.logprob[:shared], entropy=before.entropy[:shared])
        self.prefixes.put(session, kept)

    def settle(self) -> list[Job]:
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
