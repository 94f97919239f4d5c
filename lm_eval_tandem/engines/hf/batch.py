"""The batch that is being decoded: rows join and leave between two steps, each with its own stop, limit and sampler."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch

from lm_eval_tandem.engines import DEFAULT_VIEW, Completion, EngineWork, Prompt, Sampling, ScoringView
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.hf.kv_cache import BatchedCache, Network, PrefixCache, PrefixEntry
from lm_eval_tandem.engines.hf.sampling import TokenSampler, choose_tokens
from lm_eval_tandem.engines.hf.token_stats import generated_token_stats, likeliest_tokens
from lm_eval_tandem.engines.limits import undefined_logits
from lm_eval_tandem.engines.stopping import StopSearch
from lm_eval_tandem.engines.token_reports import TokenReports

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
    search_stops
        Starts the search of the generated tokens for stop strings.
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
    seconds
        From the call to the end of the generation.
    broken
        Whether the model's logits were no numbers: the call has failed.
    reports
        Of the generated tokens, for a prompt with `on_tokens`.
    handed_over
        Number of new tokens that were handed over to be reported.
    """

    prompt: Prompt
    ids: list[int]
    future: asyncio.Future[Any]
    submitted: float
    sampling: Sampling | None = None
    view: ScoringView = DEFAULT_VIEW
    search_stops: Callable[[], StopSearch] | None = None
    new: list[int] = field(default_factory=list)
    stats: list[TokenPair] = field(default_factory=list)
    draft: tuple[int, ...] = ()
    cached: int = 0
    finish_reason: str = ""
    seconds: float = 0.0
    broken: bool = False
    reports: TokenReports | None = field(init=False)
    handed_over: int = 0
    _stops: StopSearch | None = None

    def __post_init__(self) -> None:
        on_tokens = self.prompt.on_tokens
        self.reports = None if on_tokens is None else TokenReports(on_tokens)

    @property
    def wants_stats(self) -> bool:
        """Whether the statistics of the generated tokens are requested."""
        return self.sampling is not None and self.sampling.return_token_stats

    @property
    def stopped(self) -> bool:
        """Whether the answer contains a stop string."""
        return self._stops is not None and self._stops.stopped

    def start(self) -> None:
        """Begin the generation, or begin it again after a failure."""
        self.new, self.stats, self.broken, self.handed_over = [], [], False, 0
        self._stops = None if self.search_stops is None else self.search_stops()

    def completion(self, text: str, turns: tuple[int, ...] = ()) -> Completion:
        """The result of a generation that has ended; `text` is that of its tokens."""
        logprob: Any = None
        entropy: Any = None
        if self.wants_stats:
            logprob, entropy = np.array(self.stats, dtype=np.float32).T
        return Completion(
            text=text,
            token_ids=tuple(self.new),
            finish_reason=self.finish_reason,
            prompt_tokens=len(self.ids),
            cached_tokens=self.cached,
            seconds=self.seconds,
            logprob=logprob,
            entropy=entropy,
            turns=turns,
        )

    def add(self, token: int, pair: TokenPair | None) -> None:
        """Append a generated token, with its statistics where they are requested."""
        self.new.append(token)
        if self._stops is not None:
            self._stops.add(token)
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
        if not job.future.done():
            prompt = max(prompt, len(job.ids))
            answer = max(answer, job.sampling.max_tokens if job.sampling is not None else 0)
            if jobs and cells is not None and prompt + answer > cells:
                break
            jobs.append(job)
        queue.popleft()
    return jobs


class Waiting(Protocol):
    """What waits for a result."""

    @property
    def future(self) -> asyncio.Future[Any]:
        """Gets it, in the caller's event loop."""
        ...


def resolve(results: Sequence[tuple[Waiting, Any]]) -> None:
    """Set results, or exceptions, as those of the jobs' futures, from any thread."""

    def settle() -> None:
        for job, result in results:
            if job.future.done():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    results = [(job, result) for job, result in results if not job.future.done()]
    if results:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            results[0][0].future.get_loop().call_soon_threadsafe(settle)


def hand_over_tokens(jobs: Sequence[Job]) -> None:
    """Have the tokens of these jobs that are new since the last time reported in their event loop, from any thread."""
    new = []
    for job in jobs:
        if job.reports is not None and len(job.new) > job.handed_over and not job.broken:
            new.append((job, job.handed_over, job.new[job.handed_over :]))
            job.handed_over = len(job.new)

    def report() -> None:
        for job, start, tokens in new:
            if job.reports is None or job.future.done():
                continue
            try:
                job.reports.add(start, tokens)
            except Exception as error:  # of who watches this call, which is nothing to the others
                failed = {"message": "a listener to new tokens has failed", "exception": error}
                job.future.get_loop().call_exception_handler(failed)

    if new:
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            new[0][0].future.get_loop().call_soon_threadsafe(report)


class RowCache(Protocol):
    """What a batch requires of a key-value cache (`kv_cache.BatchedCache`)."""

    def stack(self, rows: Sequence[Any]) -> None:
        """Replace the batch by these rows."""
        ...

    def copy_row(self, row: int) -> Any:
        """A copy of what is in one row, for `stack`."""
        ...

    def read(self, new: Sequence[Sequence[int]], last: int = 1) -> torch.Tensor:
        """Read each row's new tokens; one row of (B, last, V) for each of the `last` positions."""
        ...


class DecodingBatch:
    """The generations that are running, in one key-value cache.

    Parameters
    ----------
    network
        The model.
    end_tokens
        Token ids that end a generation.
    prefixes
        Where computed prefixes of sessions are found and put.
    work
        Totals that the batch adds to.

    Attributes
    ----------
    name
        Of the model, for messages.
    slots
        The job of each row of the cache; None for a row that has ended and is still in the cache.
    stats_seconds
        Time spent on the statistics of generated tokens, which counts as judging. `work.judge_seconds` cannot be read
        for it, because other threads add to it as well.
    """

    def __init__(self, network: Network, end_tokens: Collection[int], prefixes: PrefixCache, work: EngineWork) -> None:
        self.network, self.name = network, network.name
        self.end_tokens = frozenset(end_tokens)
        self.prefixes = prefixes
        self.work = work
        self.stats_seconds = 0.0
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        self.cache: RowCache = self._empty_cache()
        self.slots: list[Job | None] = []
        self._samplers: list[TokenSampler] = []

    def _empty_cache(self) -> RowCache:
        return BatchedCache(self.network)

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
        """Remove ended rows and add new ones: read their prompts and generate their first tokens.

        After an exception, the rows that are still running are unharmed.
        """
        new_cache, new_samplers = self._prefill(jobs) if jobs else (self._empty_cache(), [])
        running = [row for row, job in enumerate(self.slots) if job is not None]
        rows = [self.cache.copy_row(row) for row in running]
        slots = [*(self.slots[row] for row in running), *jobs]
        samplers = [*(self._samplers[row] for row in running), *new_samplers]
        self.clear()
        if rows:
            new_cache.stack(rows + [new_cache.copy_row(row) for row in range(len(jobs))])
        self.cache, self.slots, self._samplers = new_cache, slots, samplers

    def _prefill(self, jobs: list[Job]) -> tuple[RowCache, list[TokenSampler]]:
        """Read the jobs' prompts and drafts into a cache and generate their first tokens."""
        cache = BatchedCache(self.network)
        rows, samplers = [], []
        for job in jobs:
            assert job.sampling is not None
            job.start()
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
        return cache, samplers

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
                if self._finish_reason(job):  # the rest of a draft comes after the end
                    break

    def step(self) -> None:
        """Generate one more token for every running row. After an exception, no row is running."""
        try:
            self._step()
        except BaseException:
            self.clear()
            raise

    def _step(self) -> None:
        last = [[job.new[-1]] if job is not None else [self.network.pad] for job in self.slots]
        logits = self.cache.read(last)[:, 0]
        self.work.decode_tokens += len(self.running)
        all_argmax = all(sampler.takes_argmax for sampler in self._samplers)
        previous = [] if all_argmax else [job.ids + job.new if job is not None else [] for job in self.slots]
        tokens, finite = choose_tokens(self._samplers, previous, logits)
        self._add_tokens(self.slots, logits, tokens, finite)

    def _add_tokens(
        self, slots: Sequence[Job | None], logits: torch.Tensor, tokens: Sequence[int], finite: Sequence[bool]
    ) -> None:
        """Append to each row's job the token chosen from its logits (B, V), with its statistics where requested."""
        requested = [row for row, job in enumerate(slots) if job is not None and job.wants_stats]
        pairs: dict[int, TokenPair] = {}
        if requested:
            # Selecting rows costs more than computing the others as well, unless most rows are others.
            if 2 * len(requested) > len(logits):
                pairs = dict(enumerate(self._token_stats(logits, tokens)))
            else:
                stats = self._token_stats(logits, [tokens[row] for row in requested], requested)
                pairs = dict(zip(requested, stats, strict=True))
        for row, job in enumerate(slots):
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
        """The jobs that have ended since the last call; what was computed for their sessions is kept.

        Rows whose caller does not wait any more end here, too.
        """
        ended = []
        for row, job in enumerate(self.slots):
            if job is None:
                continue
            if job.broken:
                resolve([(job, undefined_logits(self.name))])
            if job.broken or job.future.done():
                self.slots[row] = None
                continue
            job.finish_reason = self._finish_reason(job)
            if not job.finish_reason:
                continue
            if job.prompt.session is not None and self.network.stackable:
                self._keep_prefix(row, job)
            self.slots[row] = None
            ended.append(job)
        if not self.running:
            self.clear()  # frees the cache
        return ended

    def _finish_reason(self, job: Job) -> str:
        """The reason "stop", "length" or "max_entropy" for which the newest token is the last; "" if it is not."""
        assert job.sampling is not None
        if job.new[-1] in self.end_tokens or job.stopped:
            return "stop"
        if len(job.new) >= job.sampling.max_tokens:
            return "length"
        limit = job.sampling.max_entropy
        return "max_entropy" if limit is not None and job.stats and job.stats[-1][1] > limit else ""

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
        token, means_something = best[position], finite[position]
        if means_something and not sampler.takes_argmax:
            token, means_something = sampler.choose(ids, logits[position])
        job.broken = not means_something
        generated.append(token)
        ids.append(token)
        if token != expected or job.broken:
            break
    return generated
