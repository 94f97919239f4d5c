"""The engine for transformers: lm-eval's HFLM loads the model, and a thread batches the calls that wait (`worker`).

Between two decoding steps the worker removes rows that have ended, adds new ones and scores the prompts that wait, so
a short answer never waits for the longest of its batch. What was computed for a session is kept until the session is
released or the memory is needed: judging stage t + 1 reads only the new tokens, and the answer starts from the judge's
forward pass.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lm_eval.models.utils_hf import clear_torch_cache

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
)
from lm_eval_tandem.engines.hf.batch import Job
from lm_eval_tandem.engines.hf.cache_check import check_cache
from lm_eval_tandem.engines.hf.kv_cache import Network
from lm_eval_tandem.engines.hf.loading import load_hflm
from lm_eval_tandem.engines.hf.worker import Submissions, Worker, autocast
from lm_eval_tandem.engines.identity import model_identity
from lm_eval_tandem.engines.limits import check_window
from lm_eval_tandem.engines.output_layer import is_repeated, sampled_rows
from lm_eval_tandem.engines.settled import settled_text
from lm_eval_tandem.engines.stopping import StopRule, after_token, answer_text
from lm_eval_tandem.engines.tokenizer import LocalTokenizer
from lm_eval_tandem.errors import EngineError


class HFEngine(LocalTokenizer):
    """An engine (see `engines.Engine`) on lm-eval's HFLM.

    Parameters
    ----------
    arguments
        Those of `--model hf` (pretrained, dtype, device, batch_size, parallelize, peft, …).

    Attributes
    ----------
    end_tokens, end_text
        Token ids that end a generation, and the text of the tokenizer's own.
    mixed_precision
        For `torch.autocast`; None for the model's own dtype.

    Raises
    ------
    EngineError
        The model cannot be loaded, or is not a decoder-only model that runs on a cache of transformers.

    Examples
    --------
    >>> engine = HFEngine({"pretrained": "Qwen/Qwen3-0.6B", "dtype": "bfloat16", "batch_size": 16})
    >>> asyncio.run(engine.generate(Prompt("1 + 1 ="), Sampling(max_tokens=4))).text
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.name = str(arguments["pretrained"])
        lm = load_hflm(arguments)
        super().__init__(lm, lambda text: lm.tok_batch_encode([text])[0][0].long().tolist())
        self.parameters = count_parameters(self.lm.model)
        self.window = int(self.lm.max_length)
        # Answers of stores of version 0.1 end with a stop string in the thinking.
        stop = {} if self.lm.think_end_token is None else {"stop": "after thinking"}
        config, dtype = self.lm.model.config, str(self.lm.model.dtype)
        self.identity = model_identity(
            self.name, arguments, config, engine="hf", dtype=dtype, device=self.lm.device.type, **stop
        )
        size = self.lm.batch_size
        self.max_concurrency = int(size) if str(size).isdigit() else int(self.lm._detect_batch_size())
        ends = self.lm.model.generation_config.eos_token_id
        self.end_tokens = frozenset({self.lm.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None})
        self.end_text = self.lm.tok_decode(self.lm.eot_token_id, skip_special_tokens=False)
        self._stop_rule = StopRule(self.lm.tokenizer.decode, self.lm.think_end_token)
        network = Network(self.lm.model, self.lm.tokenizer.pad_token_id or 0)
        self.mixed_precision: torch.dtype | None = self.lm.mixed_precision_dtype
        with torch.inference_mode(), autocast(network.device, self.mixed_precision):
            check_cache(network, self.encode, self.name)
        if not network.paddable:
            self.max_concurrency = 1
        self.reads_drafts, self.hidden_size = network.stackable, network.hidden_size
        self._worker = Worker(
            self.name, network, self.end_tokens, self.max_concurrency, self.mixed_precision, self.window
        )
        self.work = self._worker.work
        self._submissions = Submissions(self._worker)
        weakref.finalize(self, self._worker.stop).atexit = False  # `worker.end_threads` does more

    @property
    def network(self) -> Network:
        """The model, until it is closed."""
        return self._worker.network

    # Called by coroutines and other threads

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        job = self._job(prompt)
        job.sampling = sampling
        job.search_stops = partial(self._stop_rule.search, (*sampling.stop, self.end_text), prompt.continued)
        if self.reads_drafts:
            job.draft = prompt.draft[: sampling.max_tokens - 1]  # at least one token is decoded
        check_window(self.name, self.window, len(job.ids), sampling.max_tokens)
        await self._submissions.result(job)
        return job.completion(self.answer_text(tuple(job.new), sampling.stop))

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`."""
        if view.adapter not in (None, self._worker.adapter and self._worker.adapter.checksum):
            raise EngineError(f"{self.name} has no adapter {view.adapter} loaded; load the classifier that has it.")
        job = self._job(prompt)
        job.view = view
        check_window(self.name, self.window, len(job.ids), 0)
        stats: TokenStats = await self._submissions.result(job)
        return stats

    def load_adapter(self, folder: Path, checksum: str) -> None:
        """Load the LoRA adapter with which `score` reads prompts whose view names its checksum.

        Everything else is computed without it. Call this before the first question.

        Raises
        ------
        ClassifierError
            The adapter was made for another model.
        """
        from lm_eval_tandem.engines.hf.lora_adapter import Adapter  # needs peft, which is optional

        self._worker.use_adapter(Adapter.read(self.lm.model, folder, checksum))

    def release(self, session: str) -> None:
        """See `Engine.release`."""
        self._worker.release(session)

    def encode_part(self, text: str) -> list[int]:
        """Token ids of a text that stands within another one: no special tokens are added."""
        with self._tokenizer_lock:
            return list(self.lm.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return self._text(token_ids).rstrip("\N{REPLACEMENT CHARACTER}")

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`. It does what HFLM does to its own answers."""
        think_end = self.lm.think_end_token
        text = self._text(after_token(token_ids, think_end))
        return answer_text(text, (*stop, self.end_text), think_end)[0]

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`."""
        think_end = self.lm.think_end_token
        if isinstance(think_end, int) and think_end not in token_ids:
            return ""
        new = after_token(token_ids, think_end)
        return settled_text(self._text, new, self._incomplete_character, (*stop, self.end_text), think_end)

    def close(self) -> None:
        """See `Engine.close`. What needs the tokenizer alone still works afterwards."""
        self._worker.close()
        self.lm._model = None  # lm-eval's model has no method that frees the weights
        clear_torch_cache()

    def _text(self, token_ids: tuple[int, ...]) -> str:
        with self._tokenizer_lock:
            return str(self.lm.tok_decode(list(token_ids)))

    def _job(self, prompt: Prompt) -> Job:
        ids = self.encode(prompt.text) + list(prompt.continued)
        return Job(prompt, ids, asyncio.get_running_loop().create_future(), time.perf_counter())


def count_parameters(model: Any) -> int:
    """Number of a model's parameters; of weights that were packed into fewer numbers while loading, as before that.

    An output layer that repeats the input layer, as many GGUF files hold it, counts once.
    """
    if getattr(model, "is_loaded_in_4bit", False):  # two weights in each byte
        return int(model.num_parameters())
    repeated = repeated_layer(model)
    return sum(parameter.numel() for parameter in model.parameters() if parameter is not repeated)


def repeated_layer(model: Any) -> torch.Tensor | None:
    """The output layer's own weights where they are the input layer's but for rounding; otherwise None."""
    try:
        one, other = (
            getattr(layer, "weight", None) for layer in (model.get_input_embeddings(), model.get_output_embeddings())
        )
    except NotImplementedError:  # transformers does not know where this model has them
        return None
    if one is None or other is None or other is one or other.shape != one.shape:
        return None
    if any(layer.device.type == "meta" or not layer.is_floating_point() for layer in (one, other)):
        return None
    rows = torch.from_numpy(sampled_rows(len(one)))
    a, b = (layer.detach()[rows.to(layer.device)].float().cpu().numpy() for layer in (one, other))
    return other if is_repeated(a, b) else None
