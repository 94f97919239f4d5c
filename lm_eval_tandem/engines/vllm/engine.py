"""vLLM as an engine: every call is a request of its own, and vLLM's continuous batching does the rest.

A mentor's text that grows does so in a request that stays open (`vllm_growing`). Answering after judging starts from
what vLLM's prefix cache holds, in whole blocks. A judge pass reads from that cache too: the statistics of the tokens
found there are kept here from the pass before.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from lm_eval.models.utils import postprocess_generated_text
from numpy.typing import NDArray
from transformers import AutoConfig, AutoModelForCausalLM
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
    Work,
    common_prefix,
    require_default_view,
)
from lm_eval_tandem.engines.entropy import Entropy, Values, told
from lm_eval_tandem.engines.tokenizer import LocalTokenizer, weights_identity
from lm_eval_tandem.engines.vllm.async_llm import VERSION, load
from lm_eval_tandem.engines.vllm.open_requests import ContinuedOutput, OpenRequests
from lm_eval_tandem.errors import ContextError, EngineError


@dataclass
class Session:
    """What vLLM has read for one question, and what is known of its tokens."""

    salt: str
    """Keeps what a judge pass wrote into the prefix cache to this session; see `VLLMEngine.score`."""
    read: list[int] = field(default_factory=list)
    """The tokens last read or written: the prefix cache holds them, until it needs the room."""
    scored: list[int] = field(default_factory=list)
    logprob: Values = field(default_factory=lambda: np.empty(0, np.float32))
    entropy: Values = field(default_factory=lambda: np.empty(0, np.float32))


class Shares:
    """Divides an engine's time among the calls that run: of each moment, every running call gets the same part."""

    def __init__(self) -> None:
        self._running, self._since, self._passed = 0, 0.0, 0.0

    def _advance(self) -> float:
        now = time.perf_counter()
        if self._running:
            self._passed += (now - self._since) / self._running
        self._since = now
        return self._passed

    @contextmanager
    def one(self) -> Iterator[list[float]]:
        """While it lasts a call runs; its seconds stand in the list afterwards."""
        seconds: list[float] = []
        before = self._advance()
        self._running += 1
        try:
            yield seconds
        finally:
            seconds.append(self._advance() - before)
            self._running -= 1


class VLLMEngine(LocalTokenizer):
    """An engine (see `engines.Engine`) on vLLM.

    Parameters
    ----------
    arguments
        What `--model vllm` takes (pretrained, dtype, tensor_parallel_size, gpu_memory_utilization, max_model_len,
        quantization, lora_local_path, ...), any argument of vLLM's engine, and `entropy`: "exact", or "topk:K" for an
        estimate from the K most likely tokens.

    Raises
    ------
    EngineError
        The model cannot be loaded, or this vLLM cannot be measured in.
    """

    drafts = False

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        given = {name: value for name, value in arguments.items() if name != "device"}  # vLLM knows its own
        self.name = str(given["pretrained"])
        self._entropy = Entropy.parse(str(given.pop("entropy", "exact")))
        if self._entropy.top is not None:
            given["max_logprobs"] = max(int(given.get("max_logprobs", 0)), self._entropy.top)
        lm = load(given, exact=self._entropy.top is None)
        super().__init__(lm, lm.tok_encode)
        self._served = self.lm.model
        settings = self._served.llm.vllm_config
        self.window = int(settings.model_config.max_model_len)
        self.max_concurrency = int(settings.scheduler_config.max_num_seqs)
        self.block = int(settings.cache_config.block_size)
        self.parameters = self._count_parameters(given)
        self.identity = self._identify(given, settings)
        self.work = Work()
        self._vocabulary = int(settings.model_config.get_vocab_size())
        self._defaults = settings.model_config.get_diff_sampling_param()
        self._ranks = int(settings.parallel_config.data_parallel_size)
        self._end_text = self.lm.tokenizer.decode([self.lm.eot_token_id], skip_special_tokens=False)
        self._sessions: dict[str, Session] = {}
        self._numbers = count()
        self._shares = Shares()
        self._growth = OpenRequests(self._served, settings.cache_config.kv_cache_size_tokens or 0, self.max_concurrency)

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        since = time.perf_counter()
        ids = self._ids(prompt)
        self._fits(len(ids), sampling.max_tokens)
        session = self._session(prompt)
        with self._shares.one() as seconds:
            found = await self._grow(prompt, sampling, ids)
            if found is None:
                found = await self._ask(ids, self._params(sampling), session, until=self._exceeds_max_entropy(sampling))
        self.work.generate_seconds += seconds[0]
        output, cached = found.outputs[0], found.num_cached_tokens or 0
        new = tuple(output.token_ids)
        reason = output.finish_reason or "max_entropy"
        self._count(session, ids, cached, new[:-1])
        self.work.decode_tokens += len(new)
        logprob = entropy = None
        if sampling.measured:
            logprob, entropy, measured = self._entropy.read(output.logprobs, self._vocabulary)
            self._check(measured)
            above = np.flatnonzero(entropy > (np.inf if sampling.max_entropy is None else sampling.max_entropy))
            if len(above) and above[0] + 1 < len(new):  # vLLM has written on before it was told
                n, reason = int(above[0]) + 1, "max_entropy"
                new, logprob, entropy = new[:n], logprob[:n], entropy[:n]
            logprob, entropy = told(logprob, entropy, self._vocabulary)
        return Completion(
            text=self.text(tuple(new), sampling.stop),
            token_ids=new,
            finish_reason=reason,
            prompt_tokens=len(ids),
            cached_tokens=cached,
            seconds=time.perf_counter() - since,
            logprob=logprob,
            entropy=entropy,
        )

    async def _grow(self, prompt: Prompt, sampling: Sampling, ids: list[int]) -> ContinuedOutput | None:
        """A text that later calls will grow, or that an earlier one left open, goes on in its open request.

        Only greedy texts: a seed's random numbers would run on instead of beginning anew with each call.
        """
        params = self._params(sampling)
        plain = not params.stop and params.logprobs is None and params.repetition_penalty == 1.0
        if prompt.session is None or prompt.horizon is None or sampling.temperature > 0 or not plain or self._ranks > 1:
            return None
        options = {"lora_request": self.lm.lora_request}
        return await self._growth.goes_on(prompt.session, ids, prompt.horizon, params, options)

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. vLLM always generates a token, so the prompt has to leave room for one.

        The statistics of tokens that vLLM finds in its prefix cache are those of this session's pass before. What
        other questions wrote there is of no use, hence the salt, and the first pass of a session reads all.
        """
        require_default_view(view, self.name)
        ids = self._ids(prompt)
        self._fits(len(ids), 1)
        session = self._session(prompt)
        known = common_prefix(session.scored, ids)
        with self._shares.one() as seconds:
            stats = None
            if known:
                # Where texts part at the end of a block the cache holds all that is known, and nobody knows yet how
                # likely the token after it was.
                parted = known < len(ids) and known % self.block == 0
                next_token = await self._next(session, ids[:known], ids[known]) if parted else None
                stats = await self._measure(session, ids, known, next_token)
            if stats is None:
                stats = await self._measure(session, ids, 0)
        if stats is None:
            raise EngineError(f"vLLM {VERSION} read its prefix cache although it was told not to; use vllm 0.32.")
        self.work.judge_seconds += seconds[0]
        session.scored, (session.logprob, session.entropy, cached) = ids, stats
        return TokenStats(session.logprob, session.entropy, cached, seconds[0])

    async def _next(self, session: Session, ids: list[int], token: int) -> tuple[float, float]:
        """Log-probability of a token after tokens that were read before, and the entropy there: the last block again.

        vLLM tells these of tokens that it generates, so it has to generate this one.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            allowed_token_ids=[token],
            logprobs=self._entropy.columns,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found = await self._ask(ids, params, session, salted=True)
        again = len(ids) - (found.num_cached_tokens or 0)
        self.work.prefill_tokens += again
        self.work.recomputed_tokens += again
        logprob, entropy, measured = self._entropy.read(found.outputs[0].logprobs, self._vocabulary)
        self._check(measured)
        return float(logprob[0]), float(entropy[0])

    async def _measure(
        self, session: Session, ids: list[int], known: int, next_token: tuple[float, float] | None = None
    ) -> tuple[Values, Values, int] | None:
        """One judge pass: the statistics of all tokens, and how many leading ones are those of the pass before.

        known: leading tokens whose statistics the session has. next_token: those of the token after them.
        None where the cache held more than those.
        """
        params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            prompt_logprobs=self._entropy.columns,
            flat_logprobs=True,
            detokenize=False,
            skip_reading_prefix_cache=known == 0,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        found = await self._ask(ids, params, session, salted=True)
        cached = found.num_cached_tokens or 0
        self._count(session, ids, cached, ())
        if cached and cached >= known + (next_token is not None):
            return None
        logprob, entropy = np.full((2, len(ids)), np.nan, dtype=np.float32)
        if len(ids) > 1:
            rows = self._entropy.read(found.prompt_logprobs, self._vocabulary)
            # Row i tells of token i + 1. One of vLLM's runners leaves rows of cached tokens unwritten, the other out.
            left_out = len(ids) - 1 - len(rows[0])
            self._check(rows[2][max(cached - left_out, 0) :] & (left_out <= cached))
            logprob[1 + left_out :], entropy[1 + left_out :] = rows[0], rows[1]
        if cached:
            # The first row that was computed is that of token `cached`, and tells of the token after it.
            old = min(cached + 1, known)
            logprob[:old], entropy[:old] = session.logprob[:old], session.entropy[:old]
        if cached and cached == known and next_token is not None:
            logprob[known], entropy[known] = next_token
        return logprob, entropy, cached

    def _session(self, prompt: Prompt) -> Session:
        """What is known for the prompt's session; a new one that nobody keeps where it has none."""
        if prompt.session is None:
            return Session(f"tandem-{next(self._numbers)}")
        if prompt.session not in self._sessions:
            self._sessions[prompt.session] = Session(f"tandem-{next(self._numbers)}")
        return self._sessions[prompt.session]

    def release(self, session: str) -> None:
        """See `Engine.release`. What vLLM's prefix cache holds goes when its room is needed."""
        self._sessions.pop(session, None)
        self._growth.end(session)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return self._decode(list(token_ids)).rstrip("\N{REPLACEMENT CHARACTER}")

    def _decode(self, token_ids: list[int]) -> str:
        with self._tokenizer:
            return str(self.lm.tokenizer.decode(token_ids, skip_special_tokens=True))

    def close(self) -> None:
        """See `Engine.close`."""
        self._served.close()

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.encode(prompt.text) + list(prompt.continued)

    def _fits(self, prompt: int, new: int) -> None:
        if prompt + new > self.window:
            raise ContextError(
                f"a prompt of {prompt} tokens and {new} tokens to generate exceed the window of {self.name}, "
                f"{self.window} tokens; lower max_gen_toks or the efforts, or use a model with a longer window."
            )

    def _exceeds_max_entropy(self, sampling: Sampling) -> Callable[[Any], bool] | None:
        """Whether a generation that goes on has just written a token of more than `Sampling.max_entropy`."""
        limit = sampling.max_entropy
        if limit is None:
            return None

        def newest(found: Any) -> bool:
            return bool((self._entropy.read(found.outputs[0].logprobs, self._vocabulary)[1] > limit).any())

        return newest

    async def _ask(
        self,
        ids: list[int],
        params: SamplingParams,
        session: Session,
        salted: bool = False,
        until: Callable[[Any], bool] | None = None,
    ) -> Any:
        options: dict[str, Any] = {"lora_request": self.lm.lora_request, "until": until}
        if self._ranks > 1:  # to the rank whose cache holds the question
            options["data_parallel_rank"] = zlib.crc32(session.salt.encode()) % self._ranks
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if salted or session.scored:
            prompt["cache_salt"] = session.salt
        return await self._served.one(prompt, params, **options)

    def _params(self, sampling: Sampling) -> SamplingParams:
        def setting(name: str, neutral: float) -> Any:
            asked = getattr(sampling, name)
            return self._defaults.get(name, neutral) if asked is None else asked

        # A thinking model may think a stop string; lm-eval then looks for it only in what comes after.
        stop = [] if self.lm.think_end_token else list(sampling.stop)
        chosen: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": setting("repetition_penalty", 1.0)}
        if sampling.temperature > 0:
            chosen |= {"temperature": sampling.temperature, "seed": sampling.seed}
            chosen |= {"top_p": setting("top_p", 1.0), "top_k": setting("top_k", 0), "min_p": setting("min_p", 0.0)}
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            stop=stop,
            stop_token_ids=[self.lm.eot_token_id],
            detokenize=bool(stop),
            skip_special_tokens=False,  # a stop string may be one
            spaces_between_special_tokens=False,
            logprobs=self._entropy.columns if sampling.measured else None,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY if sampling.max_entropy is None else RequestOutputKind.CUMULATIVE,
            **chosen,
        )

    def text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.text`; as lm-eval does it."""
        stops = [*stop, self._end_text] if self._end_text else [*stop]
        return str(postprocess_generated_text(self._decode(list(token_ids)), stops, self.lm.think_end_token))

    def _count(self, session: Session, ids: list[int], cached: int, written: tuple[int, ...]) -> None:
        """Count what was read, and remember it for the session."""
        self.work.prefill_tokens += len(ids) - cached
        self.work.recomputed_tokens += max(0, common_prefix(session.read, ids) - cached)
        session.read = [*ids, *written]

    def _check(self, measured: NDArray[np.bool_]) -> None:
        if not measured.all():
            raise EngineError(
                f"vLLM {VERSION} gave {int((~measured).sum())} of {measured.size} tokens without an exact entropy; "
                "use vllm 0.32, or entropy=topk:20."
            )

    def _count_parameters(self, given: Mapping[str, Any]) -> int:
        """As the transformers engine counts them: vLLM pads vocabularies, and quantised weights are packed."""
        options = {"trust_remote_code": bool(given.get("trust_remote_code")), "revision": given.get("revision")}
        try:
            config = AutoConfig.from_pretrained(self.name, **options)
            config.quantization_config = None
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=options["trust_remote_code"])
        except (ValueError, ImportError, AttributeError, RuntimeError):  # an architecture that only vLLM knows
            return sum(self._served.call("tandem_parameters"))
        return sum(parameter.numel() for parameter in model.parameters())

    def _identify(self, given: Mapping[str, Any], settings: Any) -> dict[str, Any]:
        unimportant = {"pretrained", "batch_size", "max_batch_size", "device"}
        return {
            "engine": "vllm",
            "vllm": VERSION,
            "lm_eval": version("lm_eval"),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "model": weights_identity(Path(self.name)) or self.name,
            "commit": getattr(settings.model_config.hf_config, "_commit_hash", None),
            "dtype": str(settings.model_config.dtype),
            "device": str(settings.device_config.device_type),
            "entropy": str(self._entropy),
            "arguments": {key: str(value) for key, value in sorted(given.items()) if key not in unimportant},
        }
