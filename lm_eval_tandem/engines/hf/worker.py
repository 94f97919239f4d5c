"""The thread of a transformers engine: it runs the calls that wait in batches, and scores between decoding steps.

The thread holds the worker and never the engine, so an engine that nobody uses any more is collected like every other
object, and its thread ends. Threads that still run when the interpreter exits are ended first (`end_threads`): a
thread that computes while the interpreter is torn down would abort the process.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch

from lm_eval_tandem.engines import EngineWork
from lm_eval_tandem.engines.hf.batch import DecodingBatch, Job, hand_over_tokens, resolve, take_jobs
from lm_eval_tandem.engines.hf.cpu_scheduler import CpuScheduler
from lm_eval_tandem.engines.hf.kv_cache import Network, PrefixCache
from lm_eval_tandem.engines.hf.scoring import score_batch
from lm_eval_tandem.errors import EngineError

if TYPE_CHECKING:
    from lm_eval_tandem.engines.hf.lora_adapter import Adapter

log = logging.getLogger(__name__)

CPU = CpuScheduler()
"""Of all engines on the CPU: two forward passes at once would compete for the same cores."""
MAX_SCORE_DELAY = 8
"""Decoding steps that prompts to be scored wait at most for a full batch."""
GPU_PREFIX_SHARE = 0.2
"""Share of a GPU's free memory that kept prefixes may take."""
CPU_PREFIX_BYTES = 2 * 2**30
"""Memory that kept prefixes may take on a CPU."""


class Worker:
    """Computes the calls of one engine in a thread of its own.

    Parameters
    ----------
    name
        Of the model.
    network
        The model.
    end_tokens
        Token ids that end a generation.
    batch_size
        Largest number of rows in one forward pass.
    mixed_precision
        For `torch.autocast`; None for the model's own dtype.
    window
        Largest number of tokens of a row.
    new_batch
        Makes the batch that decodes, from the arguments of `DecodingBatch`.

    Attributes
    ----------
    work
        Totals of what was computed.
    adapter
        With which prompts of a view with an adapter are scored; None before `use_adapter`.
    freed
        Whether the worker was closed, which frees the model.
    """

    def __init__(
        self,
        name: str,
        network: Network,
        end_tokens: Collection[int],
        batch_size: int,
        mixed_precision: torch.dtype | None,
        window: int,
        new_batch: Callable[[Network, Collection[int], PrefixCache, EngineWork], DecodingBatch] = DecodingBatch,
    ) -> None:
        self.name, self.network, self.batch_size, self.window = name, network, batch_size, window
        self.work = EngineWork()
        self.adapter: Adapter | None = None
        self._mixed_precision = mixed_precision
        self._on_cpu = network.device.type == "cpu"
        self._prefixes = PrefixCache(prefix_memory(network.device))
        # What was computed with the adapter is kept apart; there is no memory for it until one is loaded.
        self._adapter_prefixes = PrefixCache(0)
        self._decoding = new_batch(network, end_tokens, self._prefixes, self.work)
        self._wake = threading.Condition()
        self._to_score: deque[Job] = deque()
        self._to_generate: deque[Job] = deque()
        self._released: deque[str] = deque()
        self._steps = 0
        """Decoding steps since prompts were scored."""
        self._halved = False
        self._closed = self.freed = False
        self._thread = threading.Thread(target=self._run, name=f"tandem {name}", daemon=True)
        RUNNING.add(self)
        self._thread.start()

    # Called by other threads

    def submit(self, jobs: Iterable[Job]) -> None:
        """Queue calls; those that are queued together start in one batch."""
        with self._wake:
            if self._closed:
                raise EngineError(f"{self.name} was closed; load it again.")
            for job in jobs:
                (self._to_score if job.sampling is None else self._to_generate).append(job)
            self._wake.notify()

    def release(self, session: str) -> None:
        """Free what is kept for a session, before the next batch."""
        with self._wake:
            self._released.append(session)
            self._wake.notify()

    def use_adapter(self, adapter: Adapter) -> None:
        """Set the adapter and divide the memory for kept prefixes. Call this before the first question."""
        self.adapter = adapter
        self._prefixes.max_bytes //= 2
        self._adapter_prefixes.max_bytes = self._prefixes.max_bytes

    def stop(self) -> None:
        """Let the thread end after the forward pass that it computes. Never blocks, so any thread may call it."""
        with self._wake:
            self._closed = True
            self._wake.notify()

    def close(self) -> None:
        """Stop the thread, fail the calls that are left, and free the model and all that was computed."""
        self.end()
        if self.freed:
            return
        closed = EngineError(f"{self.name} was closed before it had answered.")
        resolve([(job, closed) for job in (*self._to_score, *self._to_generate, *self._decoding.running)])
        self._to_score.clear()
        self._to_generate.clear()
        self.freed, self.adapter = True, None
        del self.network, self._decoding, self._prefixes, self._adapter_prefixes

    def end(self) -> None:
        """Stop the thread and wait for its end, where nobody waits for answers any more."""
        self.stop()
        self._thread.join()

    # The thread

    def _run(self) -> None:
        registered = CPU.registered(self._fill) if self._on_cpu else nullcontext()
        with registered:
            while self._wait_for_jobs():
                self._compute()
        RUNNING.discard(self)

    def _wait_for_jobs(self) -> bool:
        """Wait until there is something to do; False where the engine was closed instead."""
        with self._wake:
            while not (self._closed or self._fill()):
                self._free_released()
                self._wake.wait()
            return not self._closed

    def _fill(self) -> float:
        """How full the next batch would be: 0 for nothing to do, up to 1."""
        jobs = len(self._to_score) + len(self._to_generate) + len(self._decoding.running)
        return min(1.0, jobs / self.batch_size)

    def _compute(self) -> None:
        """One batch of prompts to score, or one decoding step. Only calls whose computation was lost get its error."""
        self._free_released()
        involved = self._decoding.running
        lacks_memory = False
        try:
            with torch.inference_mode(), autocast(self.network.device, self._mixed_precision), self._cpu_turn():
                if self._scores_next():
                    self._steps = 0
                    involved = take_jobs(self._to_score, self.batch_size)
                    self._score(involved)
                else:
                    newcomers = self._newcomers()
                    involved = [*involved, *newcomers]
                    self._decode(newcomers)
        except Exception as error:  # the thread survives a failed batch; each of its questions gets the exception
            lacks_memory = is_out_of_memory(error)
            if not lacks_memory:
                resolve([(job, error) for job in self._lost(involved)])
        if lacks_memory:  # only now nothing holds the tensors of the failed pass any more
            self._use_less_memory(self._lost(involved))

    def _free_released(self) -> None:
        while self._released:
            session = self._released.popleft()
            self._prefixes.drop(session)
            self._adapter_prefixes.drop(session)

    def _lost(self, involved: list[Job]) -> list[Job]:
        running = self._decoding.running
        return [job for job in involved if job not in running]

    def _use_less_memory(self, lost: list[Job]) -> None:
        """Try the work of a pass that ran out of memory again with half the batch size; a second time, it fails."""
        tried = self.batch_size
        self._prefixes.clear()
        self._adapter_prefixes.clear()
        if not self._on_cpu:
            torch.cuda.empty_cache()
        if self._halved:
            failed = EngineError(
                f"{self.name} ran out of memory, with batch_size={tried} too, after it had been halved; give a smaller "
                "batch_size (mentor_batch_size and intern_batch_size set it for one model)."
            )
            resolve([(job, failed) for job in lost])
            return
        self._halved, self.batch_size = True, max(1, tried // 2)
        log.warning("%s ran out of memory with batch_size=%d and goes on with %d.", self.name, tried, self.batch_size)
        for job in reversed(lost):
            (self._to_score if job.sampling is None else self._to_generate).appendleft(job)

    def _scores_next(self) -> bool:
        """Whether the next pass scores: for a full batch, with nothing to decode, or after `MAX_SCORE_DELAY` steps."""
        waiting = len(self._to_score)
        full = waiting >= self.batch_size
        return bool(waiting) and (full or not self._decoding.running or self._steps >= MAX_SCORE_DELAY)

    def _score(self, jobs: list[Job]) -> None:
        plain = [job for job in jobs if job.view.adapter is None]
        adapted = [job for job in jobs if job.view.adapter is not None]
        if plain:
            score_batch(plain, self.network, self._prefixes, self.work)
        if adapted and self.adapter is not None:
            with self.adapter.enabled():
                score_batch(adapted, self.network, self._adapter_prefixes, self.work)

    def _decode(self, newcomers: list[Job]) -> None:
        """One decoding step, or the start of new rows."""
        started, before = time.perf_counter(), self._decoding.stats_seconds
        if newcomers or self._decoding.mostly_ended:
            self._decoding.admit(newcomers)
        else:
            self._decoding.step()
            self._steps += 1
        hand_over_tokens(self._decoding.running)
        ended = self._decoding.take_ended()
        for job in ended:
            job.seconds = time.perf_counter() - job.submitted
        resolve([(job, None) for job in ended])
        judging = self._decoding.stats_seconds - before
        self.work.judge_seconds += judging
        self.work.generate_seconds += time.perf_counter() - started - judging

    def _newcomers(self) -> list[Job]:
        """Jobs to add to the batch; none while only a few of its rows are free, because starting rows has a price."""
        running = len(self._decoding.running)
        free = self.batch_size - running
        if running and (not self.network.stackable or free < max(1, self.batch_size // 4)):
            return []
        return take_jobs(self._to_generate, free, None if self.network.stackable else self.window)

    def _cpu_turn(self) -> AbstractContextManager[Any]:
        return CPU.turn(self._fill) if self._on_cpu else nullcontext()


class Submissions:
    """Calls on their way from an event loop to a worker: those of one iteration of the loop start in one batch."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._jobs: list[Job] = []

    async def result(self, job: Job) -> Any:
        """Hand the job over, and wait for its result."""
        if not self._jobs:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._jobs.append(job)
        return await job.future

    def _hand_over(self) -> None:
        jobs, self._jobs = self._jobs, []
        try:
            self._worker.submit(jobs)
        except EngineError as closed:
            resolve([(job, closed) for job in jobs])


RUNNING: weakref.WeakSet[Worker] = weakref.WeakSet()
"""Workers whose thread has not ended."""


@atexit.register
def end_threads() -> None:
    """Stop all workers and wait for the ends of their threads."""
    workers = list(RUNNING)
    for worker in workers:
        worker.stop()
    for worker in workers:
        worker.end()


def is_out_of_memory(error: Exception) -> bool:
    """Whether torch could not allocate memory; on a CPU it says so in a RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def autocast(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[Any]:
    """Mixed precision of this dtype; None for the model's own."""
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


def prefix_memory(device: torch.device) -> int:
    """Bytes that kept prefixes may take on the device."""
    if device.type != "cuda":
        return CPU_PREFIX_BYTES
    return int(GPU_PREFIX_SHARE * torch.cuda.mem_get_info(device)[0])
