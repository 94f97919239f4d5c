"""The batch that is being decoded: rows join and leave between two steps, each with its own stop, limit and sampler."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from lm_eval_tandem.engines import DEFAULT_VIEW, EngineWork, Prompt, Sampling, ScoringView
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.hf.kv_cache import BatchedCache, Network, PrefixCache, PrefixEntry
from lm_eval_tandem.engines.hf.sampling import TokenSampler, choose_tokens
from lm_eval_tandem.engines.hf.token_stats import generated_token_stats, likeliest_tokens
from lm_eval_tandem.engines.limits import undefined_logits

TokenPair = tuple[float, float]
"""Log-probability and entropy of one token, in nats."""


@dataclass(eq=False)
class Job:
    """One call of the engine, waiting or running.

    Attributes
    ----------
    prompt
        The call's prompt.
    ids
        Token ids of its text and of what follows it.
    future
        Gets the result, in the caller's event loop.
    submitted
        `time.perf_counter` at the call.
    sampling
        Of a generation; None for a call of `score`.
    view
        Of a call of `score`.
    new
        Tokens generated so far.
    stats
        Statistics of each of them, for `Sampling.return_token_stats`.
    draft
        Tokens that the generation may start with; they are read together with the prompt.
    cached
        Leading tokens of `ids` that were computed before.
    finish_reason
        "" until the generation has ended.
    broken
        Whether the model's logits were no numbers: the call has failed.
    """

    prompt: Prompt
    ids: list[int]
    future: asyncio.Future[Any]
    submitted: float
    sampling: Sampling | None = None
    view: ScoringView = DEFAULT_VIEW
    new: list[int] = field(default_factory=list)
    stats: list[TokenPair] = field(default_factory=list)
    draft: tuple[int, ...] = ()
    cached: int = 0
    finish_reason: str = ""
    broken: bool = False

    @property
    def wants_stats(self) -> bool:
        """Whether the statistics of the generated tokens are requested."""
        return self.sampling is not None and self.sampling.return_token_stats

    def add(self, token: int, pair: TokenPair | None) -> None:
        """Append a generated token, with its statistics where they are requested."""
        self.new.append(token)
        if pair is not None:
            self.stats.append(pair)


def take_jobs(queue: deque[Job], n: int, cells: int | None = None) -> list[Job]:
    """Remove up to n jobs from the queue whose callers still wait.

    Parameters
    ----------
    queue, n
        The jobs, and the largest number to take.
    cells
        For generations whose rows stay together to the end: the largest number of cells of each row, which are those
        of the longest prompt and the longest answer. Some models have no more cells than their window.
    """
    jobs: list[Job] = []
    prompt = answer = 0
    while queue and len(jobs) < n:
        job = queue[0]
        if not job.future.cancelled():
            prompt = max(prompt, len(job.ids))
            answer = max(answer, job.sampling.max_tokens if job.sampling is not None else 0)
            if jobs and cells is not None and prompt + answer > cells:
                break
            jobs.append(job)
        queue.popleft()
    return jobs


def resolve(results: list[tuple[Job, Any]]) -> None:
    """Set results, or exceptions, as those of the jobs' futures, from any thread."""

    def settle() -> None:
        for job, result in results:
            if job.future.done():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    if results:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            results[0][0].future.get_loop().call_soon_threadsafe(settle)


class StopChecker:
    """Decides after each token whether a generation has ended.

    Parameters
    ----------
    tokenizer
        Decodes tokens to search them for stop strings.
    end_tokens
        Token ids that end a generation.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int]) -> None:
        self.tokenizer = tokenizer
        self.end_tokens = frozenset(end_tokens)
        self._characters: dict[int, str] = {}

    def finish_reason(self, job: Job) -> str:
        """The reason "stop", "length" or "max_entropy" for which the newest token is the last; "" if it is not."""
        assert job.sampling is not None
        token = job.new[-1]
        if token in self.end_tokens:
            return "stop"
        stops = job.sampling.stop
        # Decoding the text's tail is needed only if the newest token can complete a stop string.
        if stops and any(stop[-1] in self._possible_characters(token) for stop in stops):
            tail = job.new[-(max(map(len, stops)) + 2) :]
            text = self.tokenizer.decode(tail)
            if any(stop in text for stop in stops):
                return "stop"
        if len(job.new) >= job.sampling.max_tokens:
            return "length"
        limit = job.sampling.max_entropy
        return "max_entropy" if limit is not None and job.stats and job.stats[-1][1] > limit else ""

    def _possible_characters(self, token: int) -> str:
        """All characters that a token may add to a text; decoded alone it may lack its leading space."""
        if token not in self._characters:
            raw = self.tokenizer.convert_ids_to_tokens(token) or ""
            text = str(self.tokenizer.decode([token]))
            space = " " if raw[:1] in ("\N{LOWER ONE EIGHTH BLOCK}", "Ġ") else ""
            self._characters[token] = raw + text + space
        return self._characters[token]


class DecodingBatch:
    """The generations that are running, in one key-value cache.

    Parameters
    ----------
    network
        The model.
    stops
        Decides when a row ends.
    prefixes
        Where computed prefixes of sessions are found and put.
    work
        Totals that the batch adds to.

    Attributes
    ----------
    slots
        The job of each row of the cache; None for a row that has ended and is still in the cache.
    stats_seconds
        Time spent on the statistics of generated tokens, which counts as judging. `work.judge_seconds` cannot be read
        for it, because other threads add to it as well.
    """

    def __init__(self, network: Network, stops: StopChecker, prefixes: PrefixCache, work: EngineWork) -> None:
        self.network = network
        self.stops = stops
        self.prefixes = prefixes
        self.work = work
        self.stats_seconds = 0.0
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        self.cache = BatchedCache(self.network)
        self.slots: list[Job | None] = []
        self._samplers: list[TokenSampler] = []

    @property
    def running(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.slots if job is not None]

    @property
    def mostly_ended(self) -> bool:
        """Whether half of the rows or more have ended and can be removed from the cache."""
        running = len(self.running)
        return not running or (self.network.stackable and len(self.slots) >= 2 * running)

    def admit(self, jobs: list[Job]) -> None:
        """Remove ended rows and add new ones: read their prompts and generate their first tokens."""
        running = [row for row, job in enumerate(self.slots) if job is not None]
        old_rows = [self.cache.copy_row(row) for row in running]
        slots: list[Job | None] = [self.slots[row] for row in running]
        samplers = [self._samplers[row] for row in running]
        new_cache = BatchedCache(self.network)
        if jobs:
            new_samplers = self._prefill(new_cache, jobs)
            slots += jobs
            samplers += new_samplers
        if old_rows:
            self.cache.stack(old_rows + [new_cache.copy_row(row) for row in range(len(jobs))])
        else:
            self.cache = new_cache
        self.slots, self._samplers = slots, samplers

    def _prefill(self, cache: BatchedCache, jobs: list[Job]) -> list[TokenSampler]:
        """Read the jobs' prompts and drafts into the cache and generate their first tokens."""
        rows, samplers = [], []
        for job in jobs:
            assert job.sampling is not None
            entry = self.prefixes.get(job.prompt.session)
            shared = common_prefix_length(entry.ids, job.ids) if entry is not None else 0
            job.cached = min(shared, len(job.ids) - 1)  # the last token is read again, for the logits after it
            self.work.recomputed_tokens += shared - job.cached
            self.work.prefill_tokens += len(job.ids) - job.cached + len(job.draft)
            rows.append(entry.prefix(job.cached) if entry is not None else [])
            samplers.append(TokenSampler(job.sampling, self.network.model.generation_config, self.network.device))
        cache.stack(rows)
        unread = [[*job.ids[job.cached :], *job.draft] for job in jobs]
        logits = cache.read(unread, last=1 + max(len(job.draft) for job in jobs))
        self._generate_first(jobs, samplers, logits)
        for row, job in enumerate(jobs):
            cache.discard_newest(row, len(job.draft) - (len(job.new) - 1))
        return samplers

    def _generate_first(self, jobs: list[Job], samplers: list[TokenSampler], logits: torch.Tensor) -> None:
        """Append each job's first tokens: those of its draft that it generates itself, and the one after them.

        Parameters
        ----------
        logits
            Shape (B, K, V): after the last K tokens of each row's prompt and draft.
        """
        starts = [logits.shape[1] - 1 - len(job.draft) for job in jobs]
        generated = [
            _start_of(job, sampler, logits[row, start:])
            for row, (job, sampler, start) in enumerate(zip(jobs, samplers, starts, strict=True))
        ]
        pairs: dict[int, list[TokenPair]] = {}
        requested = [row for row, job in enumerate(jobs) if job.wants_stats]
        single = [row for row in requested if len(generated[row]) == 1]
        if single:  # the rows with one token are computed together
            positions = [row * logits.shape[1] + starts[row] for row in single]
            stats = self._token_stats(logits.flatten(0, 1), [generated[row][0] for row in single], positions)
            pairs = {row: [pair] for row, pair in zip(single, stats, strict=True)}
        for row in requested:
            if row not in pairs:
                own = logits[row, starts[row] : starts[row] + len(generated[row])]
                pairs[row] = self._token_stats(own, generated[row])
        for row, job in enumerate(jobs):
            for i, token in enumerate(generated[row]):
                job.add(token, pairs[row][i] if row in pairs else None)
                if self.stops.finish_reason(job):  # the rest of a draft comes after the end
                    break

    def step(self) -> None:
        """Generate one more token for every running row."""
        last = [[job.new[-1]] if job is not None else [self.network.pad] for job in self.slots]
        logits = self.cache.read(last)[:, 0]
        self.work.decode_tokens += len(self.running)
        all_argmax = all(sampler.takes_argmax for sampler in self._samplers)
        previous = [] if all_argmax else [job.ids + job.new if job is not None else [] for job in self.slots]
        tokens, finite = choose_tokens(self._samplers, previous, logits)
        requested = [row for row, job in enumerate(self.slots) if job is not None and job.wants_stats]
        pairs: dict[int, TokenPair] = {}
        if requested:
            # Selecting rows costs more than computing the others as well, unless most rows are others.
            if 2 * len(requested) > len(logits):
                pairs = dict(enumerate(self._token_stats(logits, tokens)))
            else:
                stats = self._token_stats(logits, [tokens[row] for row in requested], requested)
                pairs = dict(zip(requested, stats, strict=True))
        for row, job in enumerate(self.slots):
            if job is not None:
                job.broken = not finite[row]
                job.add(tokens[row], pairs.get(row))

    def _token_stats(
        self, logits: torch.Tensor, tokens: Sequence[int], rows: Sequence[int] | None = None
    ) -> list[TokenPair]:
        """`generated_token_stats` of these rows of logits (B, V), or of all; the time counts as judging."""
        # On a CPU only this thread's own time counts, not that of other engines.
        clock = time.thread_time if logits.device.type == "cpu" else time.perf_counter
        started = clock()
        if rows is not None:
            logits = logits.index_select(0, torch.tensor(rows, device=logits.device))
        pairs = generated_token_stats(logits, tokens)
        self.stats_seconds += clock() - started
        return pairs

    def take_ended(self) -> list[Job]:
        """The jobs that have ended since the last call; what was computed for their sessions is kept."""
        ended = []
        for row, job in enumerate(self.slots):
            if job is None:
                continue
            if job.broken:
                resolve([(job, undefined_logits(self.network.name))])
                self.slots[row] = None
                continue
            job.finish_reason = self.stops.finish_reason(job)
            if not job.finish_reason:
                continue
            if job.prompt.session is not None and self.network.stackable:
                self._keep_prefix(row, job)
            self.slots[row] = None
            ended.append(job)
        return ended

    def _keep_prefix(self, row: int, job: Job) -> None:
        """Keep what was computed for the job's session, with the statistics of those of its tokens that were scored."""
        session = job.prompt.session
        assert session is not None
        before = self.prefixes.get(session)
        entry = PrefixEntry(job.ids + job.new[:-1], self.cache.copy_row(row))  # the newest token was never read
        if before is not None and before.logprob is not None and before.entropy is not None:
            shared = min(common_prefix_length(before.ids, job.ids), len(before.logprob))
            entry = replace(entry, logprob=before.logprob[:shared], entropy=before.entropy[:shared])
        self.prefixes.put(session, entry)


def _start_of(job: Job, sampler: TokenSampler, logits: torch.Tensor) -> list[int]:
    """The tokens that a job generates itself, up to the first that differs from its draft, from logits (K, V)."""
    best, finite = likeliest_tokens(logits)
    generated, ids = [], list(job.ids)
    for position, expected in enumerate((*job.draft, None)):
        job.broken = not finite[position]
        token = best[position] if sampler.takes_argmax or job.broken else sampler.choose(ids, logits[position])
        generated.append(token)
        ids.append(token)
        if token != expected or job.broken:
            break
    return generated
