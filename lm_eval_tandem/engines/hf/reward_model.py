"""Reward models of transformers: they read a question with an answer and rate the answer, or each of its steps.

A model for token classification is a *process* reward model. The answer is cut into steps; every step is followed by
the separator, and the model's reward for the step is its probability of label 1 at the separator's last token, which is
where TRL trains such models. A model for sequence classification is an *outcome* reward model: one value for the whole.

Candidates wait in a queue, and one thread rates them in batches, so the event loop is never blocked.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.utils_hf import clear_torch_cache
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from lm_eval_tandem.engines.hf.batch import resolve
from lm_eval_tandem.engines.hf.reward_text import AnswerReader, Reading
from lm_eval_tandem.engines.hf.worker import CPU, is_out_of_memory
from lm_eval_tandem.engines.identity import model_identity
from lm_eval_tandem.engines.limits import undefined_logits
from lm_eval_tandem.engines.rating import Candidate, RewardKind, Score, reward_kind
from lm_eval_tandem.errors import ArgumentError, EngineError, TandemError, loading

MODEL_CLASSES = {"process": AutoModelForTokenClassification, "outcome": AutoModelForSequenceClassification}
DTYPES = ("float32", "bfloat16", "float16", "auto")
UNLIMITED = 1e9
"""From here on a tokenizer's model_max_length says that there is no limit."""


@dataclass(eq=False)
class Job:
    """A candidate that waits for its score, which `future` gets in the caller's event loop."""

    candidate: Candidate
    future: asyncio.Future[Score]


class RewardModel:
    r"""A scorer (see `rating.Scorer`) that is a reward model of transformers.

    With a chat template the model reads the conversation (a plain question is the user's message) and the answer as the
    assistant's message, otherwise question, line break and answer. The score is the mean reward of the steps that end
    in the rated text (0 to 1) or, of an outcome reward model, its only logit or the probability of its last label.

    Parameters
    ----------
    path
        Folder or hub id. Code in the model's own repository is never run.
    device
        As torch names it; by default a GPU where there is one.
    dtype
        One of `DTYPES`; by default float32 on a CPU, otherwise that of the weights.
    batch_size
        Largest number of candidates in one forward pass.
    step_separator
        What separates the steps of an answer; a process reward model reads it after every step, the last one included.
    max_length
        The window in tokens; by default the model's and its tokenizer's.

    Attributes
    ----------
    kind
        "process" or "outcome".
    window
        The largest number of tokens of question and answer together; None if nothing limits it.

    Raises
    ------
    ArgumentError
        The model is no reward model, or an argument has a wrong value.
    EngineError
        The model cannot be loaded.

    Examples
    --------
    >>> scorer = RewardModel("trl-lib/Qwen2-0.5B-Reward-Math-Sheperd", step_separator="\n")
    >>> [score] = await scorer.score([Candidate("1 + 1 = ?", None, "", "It is 2.", {}, "q1")])
    """

    def __init__(
        self,
        path: str,
        device: str | None = None,
        dtype: str | None = None,
        batch_size: int = 8,
        step_separator: str = "\n\n",
        max_length: int | None = None,
    ) -> None:
        if not step_separator:
            raise ArgumentError(r"step_separator= is empty; give the text between two steps, such as \n\n.")
        if batch_size < 1 or (max_length is not None and max_length < 1):
            raise ArgumentError(f"batch_size={batch_size} and max_length={max_length} have to be whole numbers from 1.")
        self.name, self.batch_size = path, batch_size
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or ("float32" if device == "cpu" else "auto")
        if dtype not in DTYPES:
            raise ArgumentError(f"dtype={dtype} is not known; give one of {', '.join(DTYPES)}.")
        folder = str(Path(path).expanduser()) if path.startswith("~") else path
        self.kind, self._model, tokenizer = load(folder, dtype, device)
        self.parameters = sum(parameter.numel() for parameter in self._model.parameters())
        config = self._model.config.get_text_config()
        self._pad: int | None = config.pad_token_id
        limits = (getattr(config, "max_position_embeddings", None), tokenizer.model_max_length)
        limit = min(limit for limit in limits if limit is not None)
        self.window = max_length or (int(limit) if limit < UNLIMITED else None)
        self._reader = AnswerReader(path, tokenizer, None if self.kind == "outcome" else step_separator, self.window)
        self.identity = model_identity(
            folder,
            {},
            self._model.config,
            engine="reward",
            architecture=type(self._model).__name__,
            dtype=str(self._model.dtype),
            device=self._model.device.type,
            separator=step_separator,
        )
        self._waiting: deque[Job] = deque()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"tandem {path}")

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """See `rating.Scorer.score`."""
        loop = asyncio.get_running_loop()
        jobs = [Job(candidate, loop.create_future()) for candidate in candidates]
        self._waiting.extend(jobs)
        try:
            for _ in jobs:  # one turn for each is enough, whoever else waits; a turn that finds nothing left is free
                self._thread.submit(self._rate_batch)
        except RuntimeError as error:
            raise EngineError(f"the reward model {self.name} was closed; load it again.") from error
        return list(await asyncio.gather(*(job.future for job in jobs)))

    def close(self) -> None:
        """See `rating.Scorer.close`. What still waits fails."""
        self._thread.shutdown(wait=True, cancel_futures=True)
        closed = EngineError(f"the reward model {self.name} was closed before it had rated this answer.")
        while self._waiting:
            resolve([(self._waiting.popleft(), closed)])
        self._model = None
        clear_torch_cache()

    # The thread

    def _rate_batch(self) -> None:
        """Rate as many of the waiting candidates as fit into a batch; an error is that of the candidates it is of."""
        if not self._waiting:
            return
        jobs: list[Job] = []
        try:
            with torch.inference_mode(), ExitStack() as turn:
                if self._model.device.type == "cpu":
                    turn.enter_context(CPU.registered(self._fill))
                    turn.enter_context(CPU.turn(self._fill))
                while self._waiting and len(jobs) < self.batch_size:
                    job = self._waiting.popleft()
                    if not job.future.done():  # its caller still waits
                        jobs.append(job)
                self._rate(jobs)
        except Exception as error:  # the thread survives a failed batch; each of its questions gets the exception
            for job in jobs:
                resolve([(job, self._too_large() if is_out_of_memory(error) else error)])

    def _fill(self) -> float:
        """How full the next batch would be; see `cpu_scheduler.FillLevel`."""
        return min(1.0, len(self._waiting) / self.batch_size)

    def _too_large(self) -> EngineError:
        return EngineError(
            f"the reward model {self.name} ran out of memory with batch_size={self.batch_size}; give a smaller one."
        )

    def _rate(self, jobs: list[Job]) -> None:
        started = time.perf_counter()
        readings: list[tuple[Job, Reading]] = []
        for job in jobs:
            try:
                reading = self._reader.read(job.candidate)
            except TandemError as error:
                resolve([(job, error)])
                continue
            if self.kind == "process" and not reading.ends:
                resolve([(job, Score(float("-inf"), 0, 0.0))])
            else:
                readings.append((job, reading))
        if not readings:
            return
        # A model without a padding token finds the end of a row in no other way than by its being alone.
        size = len(readings) if self._pad is not None else 1
        values: list[float] = []
        for start in range(0, len(readings), size):
            values += self._values([reading for _, reading in readings[start : start + size]])
        seconds = (time.perf_counter() - started) / len(readings)
        for (job, reading), value in zip(readings, values, strict=True):
            finite = abs(value) < float("inf")  # False for NaN as well
            resolve([(job, Score(value, len(reading.ids), seconds) if finite else undefined_logits(self.name))])

    def _values(self, rows: list[Reading]) -> list[float]:
        """The score of each row, from one forward pass over rows that are padded on the right."""
        lengths = torch.tensor([len(row.ids) for row in rows])
        ids = torch.full((len(rows), int(lengths.max())), self._pad or 0)
        for i, row in enumerate(rows):
            ids[i, : len(row.ids)] = torch.tensor(row.ids)
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        device = self._model.device
        logits = self._model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits.float()
        if self.kind == "process":
            alone = logits.shape[-1] == 1
            rewards = logits[..., 0].sigmoid() if alone else logits.softmax(-1)[..., 1]
            return [float(rewards[i, list(row.ends)].mean()) for i, row in enumerate(rows)]
        return [float(one) for one in (logits[:, 0] if logits.shape[-1] == 1 else logits.softmax(-1)[:, -1])]


def load(path: str, dtype: str, device: str) -> tuple[RewardKind, Any, Any]:
    """The kind of a reward model, the model, and its tokenizer.

    Raises
    ------
    ArgumentError
        It is no reward model.
    EngineError
        It cannot be loaded, or lacks weights.
    """
    with loading(f"the reward model {path}"):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        kind = reward_kind(path, config.architectures)
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        model, found = MODEL_CLASSES[kind].from_pretrained(
            path, config=config, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
        model.to(device)
    if found["missing_keys"]:
        missing = sorted(found["missing_keys"])[0]
        raise EngineError(f"the reward model {path} has no weights for {missing}; use one that was saved whole.")
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False
    return kind, model.eval(), tokenizer
