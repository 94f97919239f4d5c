"""The engine for transformers: lm-eval's HFLM loads the model, and a worker thread batches the calls that wait.

Between two decoding steps the worker removes rows that have ended, adds new ones and scores the prompts that wait, so
a short answer never waits for the longest of its batch. What was computed for a session is kept until the session is
released or the memory is needed: judging stage t + 1 reads only the new tokens, and the answer starts from the judge's
forward pass.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import transformers
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import postprocess_generated_text

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    EngineWork,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
)
from lm_eval_tandem.engines.entropy import zero_near_certain
from lm_eval_tandem.engines.hf.batch import DecodingBatch, Job, StopChecker, resolve, take_jobs
from lm_eval_tandem.engines.hf.cpu_scheduler import CpuScheduler
from lm_eval_tandem.engines.hf.kv_cache import Network, PrefixCache
from lm_eval_tandem.engines.hf.scoring import score_batch
from lm_eval_tandem.engines.limits import check_window
from lm_eval_tandem.engines.tokenizer import LocalTokenizer, model_identity
from lm_eval_tandem.errors import EngineError

if TYPE_CHECKING:
    from lm_eval_tandem.engines.hf.lora_adapter import Adapter

CPU = CpuScheduler()
"""Of all engines on the CPU: two forward passes at once would compete for the same cores."""
MAX_SCORE_DELAY = 8
"""Decoding steps that prompts to be scored wait at most for a full batch."""
GPU_PREFIX_SHARE = 0.2
"""Share of a GPU's free memory that kept prefixes may take."""
CPU_PREFIX_BYTES = 2 * 2**30
"""Memory that kept prefixes may take on a CPU."""


class HFEngine(LocalTokenizer):
    """An engine (see `engines.Engine`) on lm-eval's HFLM.

    Parameters
    ----------
    arguments
        Those of `--model hf` (pretrained, dtype, device, batch_size, parallelize, peft, …).

    Raises
    ------
    EngineError
        The model cannot be loaded, or is not a decoder-only model with a key-value cache.

    Examples
    --------
    >>> engine = HFEngine({"pretrained": "Qwen/Qwen3-0.6B", "dtype": "bfloat16", "batch_size": 16})
    >>> asyncio.run(engine.generate(Prompt("1 + 1 ="), Sampling(max_tokens=4))).text
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.name = str(arguments["pretrained"])
        lm = load_hflm(arguments)
        super().__init__(lm, lambda text: lm.tok_batch_encode([text])[0][0].long().tolist())
        if self.lm.backend != "causal" or getattr(self.lm.model, "_is_stateful", False):
            raise EngineError(
                f"{self.name} is no decoder-only model with a key-value cache, which this engine needs; "
                "name a causal language model."
            )
        self.parameters = sum(p.numel() for p in self.lm.model.parameters())
        self.window = int(self.lm.max_length)
        self.identity = self._identity(arguments)
        self.work = EngineWork()
        size = self.lm.batch_size
        self.batch_size = int(size) if str(size).isdigit() else int(self.lm._detect_batch_size())
        self.max_concurrency = self.batch_size
        ends = self.lm.model.generation_config.eos_token_id
        end_tokens = {self.lm.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._end_text = self.lm.tok_decode(self.lm.eot_token_id, skip_special_tokens=False)
        self._prefixes = PrefixCache(prefix_memory(self.lm.device))
        self._adapter: Adapter | None = None
        # What was computed with the adapter is kept apart; there is no memory for it until one is loaded.
        self._adapter_prefixes = PrefixCache(0)
        stops = StopChecker(self.lm.tokenizer, end_tokens)
        self._network = Network(self.lm.model, self.lm.tokenizer.pad_token_id or 0)
        self.reads_drafts = self._network.stackable
        self._decoding = DecodingBatch(self._network, stops, self._prefixes, self.work)
        self._wake = threading.Condition()
        self._submitted: list[Job] = []
        self._to_score: deque[Job] = deque()
        self._to_generate: deque[Job] = deque()
        self._released: deque[str] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"tandem {self.name}", daemon=True)
        self._thread.start()

    def _identity(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "engine": "hf",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "commit": getattr(self.lm.model.config, "_commit_hash", None),
            "dtype": str(self.lm.model.dtype),
            "device": self.lm.device.type,
            **model_identity(self.name, arguments),
        }

    # Called by coroutines and other threads

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        job = self._job(prompt)
        job.sampling = sampling
        if self.reads_drafts:
            job.draft = prompt.draft[: sampling.max_tokens - 1]  # at least one token is decoded
        check_window(self.name, self.window, len(job.ids), sampling.max_tokens)
        completion: Completion = await self._submit(job)
        return completion

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`."""
        if view.adapter not in (None, self._adapter and self._adapter.checksum):
            raise EngineError(f"{self.name} has no adapter {view.adapter} loaded; load the classifier that has it.")
        job = self._job(prompt)
        job.view = view
        check_window(self.name, self.window, len(job.ids), 0)
        stats: TokenStats = await self._submit(job)
        return stats

    @property
    def hidden_size(self) -> int | None:
        """D, the size of `TokenStats.hidden`; None for an architecture that has no known output layer."""
        return self._network.hidden_size

    def load_adapter(self, folder: Path, checksum: str) -> None:
        """Load the LoRA adapter with which `score` reads prompts whose view names its checksum.

        Everything else is computed without it. Call this before the first question.

        Raises
        ------
        ClassifierError
            The adapter was made for another model.
        """
        from lm_eval_tandem.engines.hf.lora_adapter import Adapter  # needs peft, which is optional

        self._adapter = Adapter.read(self.lm.model, folder, checksum)
        self._prefixes.max_bytes //= 2
        self._adapter_prefixes.max_bytes = self._prefixes.max_bytes

    def release(self, session: str) -> None:
        """See `Engine.release`."""
        self._released.append(session)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        with self._tokenizer_lock:
            return str(self.lm.tok_decode(list(token_ids))).rstrip("\N{REPLACEMENT CHARACTER}")

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`. It does what HFLM does to its own answers."""
        new = list(token_ids)
        think_end = self.lm.think_end_token
        if isinstance(think_end, int) and think_end in new:
            new = new[len(new) - new[::-1].index(think_end) :]
        with self._tokenizer_lock:
            text = str(self.lm.tok_decode(new))
        if isinstance(think_end, int):
            return str(postprocess_generated_text(text.lstrip(), [*stop, self._end_text], None))
        return str(postprocess_generated_text(text, [*stop, self._end_text], think_end))

    def close(self) -> None:
        """See `Engine.close`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=60)

    def _job(self, prompt: Prompt) -> Job:
        ids = self.encode(prompt.text) + list(prompt.continued)
        return Job(prompt, ids, asyncio.get_running_loop().create_future(), time.perf_counter())

    async def _submit(self, job: Job) -> Any:
        # Jobs of one iteration of the event loop are handed over together, so that they start in one batch.
        if not self._submitted:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._submitted.append(job)
        return await job.future

    def _hand_over(self) -> None:
        with self._wake:
            for job in self._submitted:
                (self._to_score if job.sampling is None else self._to_generate).append(job)
            self._submitted = []
            self._wake.notify()

    # The worker thread

    def _run(self) -> None:
        registered = CPU.registered(self._fill) if self._on_cpu else nullcontext()
        # numpy would warn of infinities in `generated_token_stats`, which handles them.
        with np.errstate(over="ignore", invalid="ignore"), registered:
            self._work()

    def _fill(self) -> float:
        """How full the next batch would be: 0 for nothing to do, up to 1."""
        jobs = len(self._to_score) + len(self._to_generate) + len(self._decoding.running)
        return min(1.0, jobs / self.batch_size)

    def _work(self) -> None:
        """Until the engine is closed: one batch of prompts to score, or one decoding step, after the other."""
        steps = 0
        while True:
            with self._wake:
                while not (self._closed or self._fill()):
                    self._wake.wait()
                if self._closed:
                    return
            self._drop_released()
            involved: list[Job] = []
            try:
                with torch.inference_mode(), self._autocast(), self._cpu_turn():
                    if self._scores_next(steps):
                        steps = 0
                        involved = take_jobs(self._to_score, self.batch_size)
                        self._score(involved)
                    else:
                        involved = self._newcomers()
                        steps += self._decode(involved)
            except Exception as error:  # the thread survives a failed batch; each of its questions gets the exception
                failed = [*involved, *(job for job in self._decoding.running if job not in involved)]
                self._decoding.clear()
                resolve([(job, error) for job in failed])

    def _drop_released(self) -> None:
        while self._released:
            session = self._released.popleft()
            self._prefixes.drop(session)
            self._adapter_prefixes.drop(session)

    def _scores_next(self, steps: int) -> bool:
        """Whether the next pass scores: for a full batch, with nothing to decode, or after `MAX_SCORE_DELAY` steps."""
        waiting = len(self._to_score)
        full = waiting >= self.batch_size
        return bool(waiting) and (full or not self._decoding.running or steps >= MAX_SCORE_DELAY)

    def _decode(self, newcomers: list[Job]) -> int:
        """One decoding step, or the start of new rows; the number of steps that this counts as."""
        started, before = time.perf_counter(), self._decoding.stats_seconds
        steps = 0
        if newcomers or self._decoding.mostly_ended:
            self._decoding.admit(newcomers)
        else:
            self._decoding.step()
            steps = 1
        self._finish(self._decoding.take_ended())
        judging = self._decoding.stats_seconds - before
        self.work.judge_seconds += judging
        self.work.generate_seconds += time.perf_counter() - started - judging
        return steps

    def _newcomers(self) -> list[Job]:
        """Jobs to add to the batch; none while only a few of its rows are free, because starting rows has a price."""
        running = len(self._decoding.running)
        free = self.batch_size - running
        if running and (not self._network.stackable or free < max(1, self.batch_size // 4)):
            return []
        return take_jobs(self._to_generate, free)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.lm.mixed_precision_dtype
        return torch.autocast(self.lm.device.type, dtype) if dtype is not None else nullcontext()

    def _cpu_turn(self) -> AbstractContextManager[Any]:
        return CPU.turn(self._fill) if self._on_cpu else nullcontext()

    @property
    def _on_cpu(self) -> bool:
        return bool(self.lm.device.type == "cpu")

    def _finish(self, jobs: list[Job]) -> None:
        """Resolve the futures of generations that have ended."""
        if not jobs:
            return
        now = time.perf_counter()
        results: list[tuple[Job, Any]] = []
        for job in jobs:
            assert job.sampling is not None
            stats: tuple[Any, Any] = (None, None)
            if job.wants_stats:
                logprob, entropy = np.array(job.stats, dtype=np.float32).T
                stats = zero_near_certain(logprob, entropy, self._network.vocabulary)
            completion = Completion(
                text=self.answer_text(tuple(job.new), job.sampling.stop),
                token_ids=tuple(job.new),
                finish_reason=job.finish_reason,
                prompt_tokens=len(job.ids),
                cached_tokens=job.cached,
                seconds=now - job.submitted,
                logprob=stats[0],
                entropy=stats[1],
            )
            results.append((job, completion))
        resolve(results)

    def _score(self, jobs: list[Job]) -> None:
        plain = [job for job in jobs if job.view.adapter is None]
        adapted = [job for job in jobs if job.view.adapter is not None]
        if plain:
            score_batch(plain, self._network, self._prefixes, self.work)
        if adapted and self._adapter is not None:
            with self._adapter.enabled():
                score_batch(adapted, self._network, self._adapter_prefixes, self.work)


def load_hflm(arguments: Mapping[str, Any]) -> HFLM:
    """lm-eval's model with these arguments, on a GPU where there is one.

    Raises
    ------
    EngineError
        It cannot be loaded.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return HFLM(**{"device": device, **arguments})
    except (OSError, ValueError, TypeError, ImportError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise EngineError(f"the model {arguments['pretrained']} could not be loaded: {reason[:300]}") from error


def prefix_memory(device: torch.device) -> int:
    """Bytes that kept prefixes may take on the device."""
    if device.type != "cuda":
        return CPU_PREFIX_BYTES
    return int(GPU_PREFIX_SHARE * torch.cuda.mem_get_info(device)[0])
