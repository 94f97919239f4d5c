"""transformers as an engine: lm-eval's HFLM loads the model, this file batches whatever coroutines are waiting.

One worker thread per engine. Between two decoding steps it lets ended rows go, takes new ones in and scores the
prompts that wait, so a short answer never waits for the longest of its batch. What was computed for a session is kept
until the session is released or the room is needed: judging stage t + 1 reads only the new tokens, and the answer
starts from the judge's own pass.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
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
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
    Work,
    common_prefix,
)
from lm_eval_tandem.engines.entropy import told
from lm_eval_tandem.engines.hf.batch import DecodingBatch, GenerationJob, StopChecker
from lm_eval_tandem.engines.hf.cpu_scheduler import CpuScheduler
from lm_eval_tandem.engines.hf.kv_cache import BatchedCache, Network, PrefixCache, PrefixEntry
from lm_eval_tandem.engines.tokenizer import LocalTokenizer, weights_identity
from lm_eval_tandem.errors import ContextError, EngineError

if TYPE_CHECKING:
    from lm_eval_tandem.engines.hf.lora_adapter import Adapter

CPU = CpuScheduler()
"""For each pass on a CPU: two engines at once would fight for the same cores."""
PATIENCE = 8
"""Decoding steps that prompts to be scored wait at most for a full batch."""
KEPT_SHARE = 0.2
"""Share of a GPU's free memory that kept prefixes may take."""
KEPT_BYTES = 2 * 2**30
"""The same on a CPU, in bytes."""


class HFEngine(LocalTokenizer):
    """An engine (see `engines.Engine`) on lm-eval's HFLM.

    Parameters
    ----------
    arguments
        What `--model hf` takes (pretrained, dtype, device, batch_size, parallelize, peft, ...).

    Raises
    ------
    EngineError
        The model cannot be loaded, or is no decoder-only model with a key-value cache.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.name = str(arguments["pretrained"])
        lm = loaded(arguments)
        super().__init__(lm, lambda text: lm.tok_batch_encode([text])[0][0].long().tolist())
        if self.lm.backend != "causal" or getattr(self.lm.model, "_is_stateful", False):
            raise EngineError(
                f"{self.name} is no decoder-only model with a key-value cache, which this engine needs; "
                "name a causal language model."
            )
        self.parameters = sum(p.numel() for p in self.lm.model.parameters())
        self.window = int(self.lm.max_length)
        self.identity = identity(self.lm, arguments)
        self.work = Work()
        size = self.lm.batch_size
        self.batch_size = int(size) if str(size).isdigit() else int(self.lm._detect_batch_size())
        self.max_concurrency = self.batch_size
        ends = self.lm.model.generation_config.eos_token_id
        end_tokens = {self.lm.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        self._end_text = self.lm.tok_decode(self.lm.eot_token_id, skip_special_tokens=False)
        self._prefixes = PrefixCache(kept_room(self.lm.device))
        self._adapter: Adapter | None = None
        self._adapted = PrefixCache(0)
        """What was computed with the adapter."""
        stops = StopChecker(self.lm.tokenizer, end_tokens)
        self._network = Network(self.lm.model, self.lm.tokenizer.pad_token_id or 0)
        self.drafts = self._network.stackable
        self._decoding = DecodingBatch(self._network, stops, self._prefixes, self.work)
        self._wake = threading.Condition()
        self._gathered: list[GenerationJob] = []
        self._to_score: deque[GenerationJob] = deque()
        self._to_generate: deque[GenerationJob] = deque()
        self._released: deque[str] = deque()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name=f"tandem {self.name}", daemon=True)
        self._thread.start()

    # For coroutines

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        job = self._job(prompt, sampling)
        self._fits(len(job.ids), sampling.max_tokens)
        completion: Completion = await self._submit(job)
        return completion

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`."""
        if view.adapter not in (None, self._adapter and self._adapter.checksum):
            raise EngineError(f"{self.name} was given no adapter {view.adapter}; load the classifier that has it.")
        job = self._job(prompt, None)
        job.view = view
        self._fits(len(job.ids), 0)
        stats: TokenStats = await self._submit(job)
        return stats

    @property
    def width(self) -> int | None:
        """D, the numbers of `TokenStats.hidden`; None for an architecture that shows none."""
        return self._network.width

    def adapt(self, adapter: Path, checksum: str) -> None:
        """From now on `score` reads with the LoRA adapter of this folder where its view names the checksum. Everything
        else goes on without it. Call it before the first question.

        Raises
        ------
        ClassifierError
            The adapter is none for this model.
        """
        from lm_eval_tandem.engines.hf.lora_adapter import Adapter  # brings peft, which only such a judge needs

        self._adapter = Adapter.read(self.lm.model, adapter, checksum)
        self._prefixes.room //= 2
        self._adapted.room = self._prefixes.room

    def release(self, session: str) -> None:
        """See `Engine.release`."""
        self._released.append(session)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        with self._tokenizer:
            return str(self.lm.tok_decode(list(token_ids))).rstrip("\N{REPLACEMENT CHARACTER}")

    def close(self) -> None:
        """See `Engine.close`."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        self._thread.join(timeout=60)

    def _job(self, prompt: Prompt, sampling: Sampling | None) -> GenerationJob:
        ids = self.encode(prompt.text) + list(prompt.continued)
        job = GenerationJob(prompt, ids, asyncio.get_running_loop().create_future(), time.perf_counter(), sampling)
        if sampling is not None and self.drafts:
            job.draft = prompt.draft[: sampling.max_tokens - 1]  # at least one token is written
        return job

    def _fits(self, prompt: int, new: int) -> None:
        if prompt + new > self.window:
            raise ContextError(
                f"a prompt of {prompt} tokens and {new} tokens to generate exceed the window of {self.name}, "
                f"{self.window} tokens; lower max_gen_toks or the efforts, or use a model with a longer window."
            )

    async def _submit(self, job: GenerationJob) -> Any:
        # Coroutines that are ready in the same turn of the event loop are handed over together.
        if not self._gathered:
            asyncio.get_running_loop().call_soon(self._hand_over)
        self._gathered.append(job)
        return await job.future

    def _hand_over(self) -> None:
        with self._wake:
            for job in self._gathered:
                (self._to_score if job.sampling is None else self._to_generate).append(job)
            self._gathered = []
            self._wake.notify()

    # The worker

    def _run(self) -> None:
        # numpy's infinities while tokens are measured: see `measured`
        with np.errstate(over="ignore", invalid="ignore"), CPU.member(self._fill) if self._on_cpu else nullcontext():
            self._work()

    def _fill(self) -> float:
        """How full the next batch would be, 0 for none to 1."""
        jobs = len(self._to_score) + len(self._to_generate) + len(self._decoding.live)
        return min(1.0, jobs / self.batch_size)

    def _work(self) -> None:
        steps = 0
        decoding = self._decoding
        while True:
            with self._wake:
                while not (self._closed or self._fill()):
                    self._wake.wait()
                if self._closed:
                    return
            while self._released:
                session = self._released.popleft()
                self._prefixes.drop(session)
                self._adapted.drop(session)
            involved: list[GenerationJob] = []
            try:
                with torch.inference_mode(), self._autocast(), self._alone():
                    scores = len(self._to_score)
                    if scores and (scores >= self.batch_size or not decoding.live or steps >= PATIENCE):
                        steps = 0
                        involved = take(self._to_score, self.batch_size)
                        self._score(involved)
                        continue
                    started, before = time.perf_counter(), decoding.measuring_seconds
                    involved = self._newcomers()
                    if involved or decoding.sparse:
                        decoding.admit(involved)
                    else:
                        decoding.step()
                        steps += 1
                    self._finish(decoding.settle())
                    measuring = decoding.measuring_seconds - before
                    self.work.judge_seconds += measuring
                    self.work.generate_seconds += time.perf_counter() - started - measuring
            except Exception as error:  # the thread outlives a failed batch; each of its questions gets the error
                failed = [*involved, *(job for job in decoding.live if job not in involved)]
                decoding.clear()
                resolve([(job, error) for job in failed])

    def _newcomers(self) -> list[GenerationJob]:
        running = len(self._decoding.live)
        free = self.batch_size - running
        if running and (not self._network.stackable or free < max(1, self.batch_size // 4)):
            return []
        return take(self._to_generate, free)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = self.lm.mixed_precision_dtype
        return torch.autocast(self.lm.device.type, dtype) if dtype is not None else nullcontext()

    def _alone(self) -> AbstractContextManager[Any]:
        return CPU.turn(self._fill) if self._on_cpu else nullcontext()

    @property
    def _on_cpu(self) -> bool:
        return bool(self.lm.device.type == "cpu")

    def _finish(self, jobs: list[GenerationJob]) -> None:
        if not jobs:
            return
        now = time.perf_counter()
        results: list[tuple[GenerationJob, Any]] = []
        for job in jobs:
            assert job.sampling is not None
            text = self.text(tuple(job.new), job.sampling.stop)
            reason, seconds = job.finish_reason, now - job.since
            measured: tuple[Any, Any] = (None, None)
            if job.sampling.measured:
                logprob, entropy = np.array(job.measures, dtype=np.float32).T
                measured = told(logprob, entropy, self._network.vocabulary)
            found = Completion(text, tuple(job.new), reason, len(job.ids), job.cached, seconds, *measured)
            results.append((job, found))
        resolve(results)

    def text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.text`; as HFLM does it."""
        new = list(token_ids)
        think_end = self.lm.think_end_token
        if isinstance(think_end, int) and think_end in new:
            new = new[len(new) - new[::-1].index(think_end) :]
        with self._tokenizer:
            text = str(self.lm.tok_decode(new))
        if isinstance(think_end, int):
            return str(postprocess_generated_text(text.lstrip(), [*stop, self._end_text], None))
        return str(postprocess_generated_text(text, [*stop, self._end_text], think_end))

    def _score(self, jobs: list[GenerationJob]) -> None:
        plain = [job for job in jobs if job.view.adapter is None]
        adapted = [job for job in jobs if job.view.adapter is not None]
        if plain:
            self._look(plain, self._prefixes)
        if adapted and self._adapter is not None:
            with self._adapter.on():
                self._look(adapted, self._adapted)

    def _look(self, jobs: list[GenerationJob], prefixes: PrefixCache) -> None:
        started = time.perf_counter()
        rows = BatchedCache(self._network)
        before = [prefixes.get(job.prompt.session) for job in jobs]
        reused = []
        for job, kept in zip(jobs, before, strict=True):
            shared = 0
            if kept is not None and kept.logprob is not None:
                shared = min(common_prefix(kept.ids, job.ids), len(kept.logprob))
            # The last shared token is read once more: it predicts the first new one.
            reused.append(max(0, min(shared, len(job.ids)) - 1))
            self.work.recomputed_tokens += shared - reused[-1]
            self.work.prefill_tokens += len(job.ids) - reused[-1]
        rows.stack([kept.cut(n) if kept else [] for kept, n in zip(before, reused, strict=True)])
        hidden: list[Any] = [None] * len(jobs)
        with self._network.hidden() if any(job.view.hidden for job in jobs) else nullcontext() as caught:
            # The last token of every prompt is among the new ones, so its hidden state is in the last pass.
            scored = rows.score([job.ids[n:] for job, n in zip(jobs, reused, strict=True)])
        logprobs, entropies = (tensor.cpu().numpy() for tensor in scored)
        if caught is not None:
            hidden = [state if job.view.hidden else None for job, state in zip(jobs, taken(caught), strict=True)]
        arrays = []
        for row, (job, kept, n) in enumerate(zip(jobs, before, reused, strict=True)):
            logprob = joined(kept.logprob if kept else None, n, logprobs[row], len(job.ids))
            entropy = joined(kept.entropy if kept else None, n, entropies[row], len(job.ids))
            arrays.append((logprob, entropy))
            if job.prompt.session is not None and self._network.stackable:
                prefixes.put(job.prompt.session, PrefixEntry(job.ids, rows.take(row), logprob, entropy))
        seconds = time.perf_counter() - started
        self.work.judge_seconds += seconds
        share = seconds / len(jobs)
        found = [TokenStats(*pair, n, share, state) for pair, n, state in zip(arrays, reused, hidden, strict=True)]
        resolve(list(zip(jobs, found, strict=True)))


def taken(caught: list[torch.Tensor]) -> np.ndarray[Any, Any]:
    """Hidden states [B, D] as float32 of their own."""
    return np.array(caught[0].float().cpu().numpy())


def loaded(arguments: Mapping[str, Any]) -> HFLM:
    """lm-eval's model of these arguments.

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


def joined(before: np.ndarray[Any, Any] | None, reused: int, new: np.ndarray[Any, Any], n: int) -> Any:
    """Statistics of all n tokens: those known of the first `reused` + 1, then the new ones (aligned on the right)."""
    whole = np.full(n, np.nan, dtype=np.float32)
    if before is not None and reused:
        whole[: reused + 1] = before[: reused + 1]
    own = n - reused - 1
    if own:
        whole[n - own :] = new[len(new) - own :]
    return whole


def take(queue: deque[GenerationJob], n: int) -> list[GenerationJob]:
    """Up to n jobs whose callers still wait."""
    jobs: list[GenerationJob] = []
    while queue and len(jobs) < n:
        job = queue.popleft()
        if not job.future.cancelled():
            jobs.append(job)
    return jobs


def resolve(results: list[tuple[GenerationJob, Any]]) -> None:
    """Hand results, or errors, to the event loop that waits for them."""

    def settle() -> None:
        for job, result in results:
            if job.future.done():
                continue
            if isinstance(result, Exception):
                job.future.set_exception(result)
            else:
                job.future.set_result(result)

    if results:
        with suppress(RuntimeError):  # the loop has closed: nobody waits any more
            results[0][0].future.get_loop().call_soon_threadsafe(settle)


def kept_room(device: torch.device) -> int:
    """Bytes that kept prefixes may take on the device."""
    if device.type != "cuda":
        return KEPT_BYTES
    return int(KEPT_SHARE * torch.cuda.mem_get_info(device)[0])


def identity(lm: HFLM, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Everything besides prompt and sampling that can change an output of this engine."""
    unimportant = {"pretrained", "batch_size", "max_batch_size", "device"}
    return {
        "engine": "hf",
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "model": weights_identity(Path(str(arguments["pretrained"]))) or str(arguments["pretrained"]),
        "commit": getattr(lm.model.config, "_commit_hash", None),
        "dtype": str(lm.model.dtype),
        "device": lm.device.type,
        "arguments": {key: str(value) for key, value in sorted(arguments.items()) if key not in unimportant},
    }
