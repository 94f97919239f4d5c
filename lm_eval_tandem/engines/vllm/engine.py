"""The engine for vLLM: every call is one request, and vLLM's continuous batching does the rest.

A mentor's text that grows by stages does so in a request that stays open (`open_requests`). A judge pass reads only new
tokens (`scoring`), and an answer starts from what vLLM's prefix cache holds of that pass, in whole blocks.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from vllm import SamplingParams
from vllm.sampling_params import RequestOutputKind

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    EngineWork,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
)
from lm_eval_tandem.engines.entropy import EntropyMethod, Values, len_until
from lm_eval_tandem.engines.identity import model_identity
from lm_eval_tandem.engines.limits import check_window, is_finite, require_default_view, undefined_logits
from lm_eval_tandem.engines.settled import settled_text
from lm_eval_tandem.engines.shared_time import SharedTime
from lm_eval_tandem.engines.stopping import StopRule, StopSearch, answer_text
from lm_eval_tandem.engines.token_reports import RemoteReports
from lm_eval_tandem.engines.tokenizer import LocalTokenizer
from lm_eval_tandem.engines.vllm.async_llm import VERSION, AsyncLLMThread, load_vllm
from lm_eval_tandem.engines.vllm.entropy_check import TEXT, entropy_fault
from lm_eval_tandem.engines.vllm.open_requests import OpenRequests, StageOutput
from lm_eval_tandem.engines.vllm.scoring import Scorer, Session, check_valid


class VLLMEngine(LocalTokenizer):
    """An engine (see `engines.Engine`) on vLLM.

    Parameters
    ----------
    arguments
        Those of `--model vllm` (pretrained, dtype, tensor_parallel_size, gpu_memory_utilization, max_model_len,
        quantization, lora_local_path, …), any of vLLM's engine, and `entropy`: "exact", or "topk:K" for an estimate
        from the K most likely tokens.

    Raises
    ------
    EngineError
        The model cannot be loaded.

    Examples
    --------
    >>> engine = VLLMEngine({"pretrained": "Qwen/Qwen3-0.6B", "gpu_memory_utilization": 0.4})
    """

    reads_drafts = False

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        given = {name: value for name, value in arguments.items() if name != "device"}  # vLLM finds its device itself
        self.name = str(given["pretrained"])
        self._entropy_method = EntropyMethod.parse(str(given.pop("entropy", "exact")))
        if self._entropy_method.top is not None:
            given["max_logprobs"] = max(int(given.get("max_logprobs", 0)), self._entropy_method.top)
        lm = load_vllm(given, exact=self._entropy_method.top is None)
        super().__init__(lm, lm.tok_encode)
        self._async_llm: AsyncLLMThread = self.lm.model
        settings = self._async_llm.llm.vllm_config
        self.window = int(settings.model_config.max_model_len)
        self.max_concurrency = int(settings.scheduler_config.max_num_seqs)
        self.parameters = self._count_parameters(given)
        self.identity = model_identity(
            self.name,
            given,
            settings.model_config.hf_config,
            engine="vllm",
            vllm=VERSION,
            dtype=str(settings.model_config.dtype),
            device=str(settings.device_config.device_type),
            entropy=str(self._entropy_method),
        )
        self.work = EngineWork()
        self._vocabulary = int(settings.model_config.get_vocab_size())
        self._sampling_defaults = settings.model_config.get_diff_sampling_param()
        self._ranks = int(settings.parallel_config.data_parallel_size)
        self._end_text = self.lm.tokenizer.decode([self.lm.eot_token_id], skip_special_tokens=False)
        self._stop_rule = StopRule(self._decode_all, self.lm.think_end_token)
        self._sessions: dict[str, Session] = {}
        self._session_numbers = count()
        self._time = SharedTime()
        block = int(settings.cache_config.block_size)
        self._scorer = Scorer(self._send_salted, self._entropy_method, self._vocabulary, block, self.work)
        kv_cache_tokens = settings.cache_config.kv_cache_size_tokens or 0
        self._open_requests = OpenRequests(self._async_llm, kv_cache_tokens, self.max_concurrency)

    @cached_property
    def cannot_score(self) -> str:  # type: ignore[override]
        """See `Engine.cannot_score`. When first read, it compares vLLM's exact entropies with a reference."""
        if self._entropy_method.top is not None:
            return ""

        def send(ids: list[int], params: SamplingParams) -> Any:
            request = self._async_llm.complete({"prompt_token_ids": ids}, params, lora_request=self.lm.lora_request)
            return self._async_llm.wait(request)

        return entropy_fault(send, self.encode(TEXT), VERSION)

    @property
    def cannot_measure(self) -> str:  # type: ignore[override]
        """See `Engine.cannot_measure`: what is wrong with entropies of prompts is wrong with those of answers."""
        return self.cannot_score

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        started = time.perf_counter()
        ids = self._ids(prompt)
        check_window(self.name, self.window, len(ids), sampling.max_tokens)
        session = self._session(prompt)
        with self._time.share() as seconds, RemoteReports.of(prompt.on_tokens) as reports:
            result = await self._generate_in_open_request(prompt, sampling, ids, reports)
            if result is None:
                until = self._ended_check(prompt, sampling)
                if reports is not None:
                    until = self._reporting(reports, self._stop_search(prompt, sampling), until)
                result = await self._send(ids, self._params(sampling, until), session, bool(session.scored), until)
        self.work.generate_seconds += seconds[0]
        output, cached = result.outputs[0], result.num_cached_tokens or 0
        generated = tuple(output.token_ids)
        session.count(self.work, ids, cached, generated[:-1])  # the last token was generated, but never read
        self.work.decode_tokens += len(generated)
        # vLLM generates further tokens before it learns that the request is to end; these are no part of the result.
        search = self._stop_search(prompt, sampling)
        new = generated[: search.length(generated)]
        finish_reason = "stop" if search.stopped else output.finish_reason or "max_entropy"
        logprob: Values | None = None
        entropy: Values | None = None
        if sampling.return_token_stats:
            logprob, entropy, valid = self._entropy_method.read(output.logprobs, self._vocabulary)
            check_valid(valid)
            if not np.isfinite(entropy).all():
                raise undefined_logits(self.name)
            n = len_until(entropy[: len(new)], sampling.max_entropy)
            if n < len(new):
                finish_reason = "max_entropy"
            new, logprob, entropy = new[:n], logprob[:n], entropy[:n]
        return Completion(
            text=self.answer_text(new, sampling.stop),
            token_ids=new,
            finish_reason=finish_reason,
            prompt_tokens=len(ids),
            cached_tokens=cached,
            seconds=time.perf_counter() - started,
            logprob=logprob,
            entropy=entropy,
        )

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. vLLM always generates a token, so the window has to have room for one more."""
        require_default_view(view, self.name)
        ids = self._ids(prompt)
        check_window(self.name, self.window, len(ids), 1)
        session = self._session(prompt)
        with self._time.share() as seconds:
            cached = await self._scorer.score(session, ids)
        self.work.judge_seconds += seconds[0]
        stats = TokenStats(session.logprob, session.entropy, cached, seconds[0])
        if not is_finite(stats):
            raise undefined_logits(self.name)
        return stats

    def release(self, session: str) -> None:
        """See `Engine.release`. The prefix cache keeps the session's blocks until it needs the room."""
        self._sessions.pop(session, None)
        self._open_requests.end(session)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return self._decode(token_ids).rstrip("\N{REPLACEMENT CHARACTER}")

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`. It does what lm-eval's class does to its own answers."""
        return answer_text(self._decode(token_ids), (*stop, self._end_text), self.lm.think_end_token)[0]

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`."""
        think_end = self.lm.think_end_token
        return settled_text(self._decode, token_ids, self._incomplete_character, (*stop, self._end_text), think_end)

    def close(self) -> None:
        """See `Engine.close`."""
        self._async_llm.close()

    # Requests

    async def _generate_in_open_request(
        self, prompt: Prompt, sampling: Sampling, ids: list[int], reports: RemoteReports | None
    ) -> StageOutput | None:
        """Continue a text that grows by stages in its open request; None where the call has to be its own request.

        Only greedy generations: with a seed, an open request would not start its random numbers anew with each call.
        """
        params = self._params(sampling)
        plain = not sampling.stop and params.logprobs is None and params.repetition_penalty == 1.0
        if prompt.session is None or prompt.horizon is None or sampling.temperature > 0 or not plain or self._ranks > 1:
            return None
        options = {"lora_request": self.lm.lora_request}
        return await self._open_requests.generate(prompt.session, ids, prompt.horizon, params, options, reports)

    async def _send(
        self,
        ids: list[int],
        params: SamplingParams,
        session: Session,
        salted: bool,
        until: Callable[[Any], bool] | None = None,
    ) -> Any:
        """The `RequestOutput` of one request; `salted` lets it use the session's part of the prefix cache alone."""
        options: dict[str, Any] = {"lora_request": self.lm.lora_request, "until": until}
        if self._ranks > 1:  # the rank whose prefix cache holds the question
            options["data_parallel_rank"] = zlib.crc32(session.salt.encode()) % self._ranks
        prompt: dict[str, Any] = {"prompt_token_ids": ids}
        if salted:
            prompt["cache_salt"] = session.salt
        return await self._async_llm.complete(prompt, params, **options)

    async def _send_salted(self, ids: list[int], params: SamplingParams, session: Session) -> Any:
        return await self._send(ids, params, session, salted=True)

    def _stop_search(self, prompt: Prompt, sampling: Sampling) -> StopSearch:
        return self._stop_rule.search((*sampling.stop, self._end_text), prompt.continued)

    def _ended_check(self, prompt: Prompt, sampling: Sampling) -> Callable[[Any], bool] | None:
        """Whether an unfinished output has ended for a reason that vLLM does not know; None where there is none.

        vLLM does not know `Sampling.max_entropy`, the end of the thinking, and stop strings that begin in
        `Prompt.continued`.
        """
        limit = sampling.max_entropy
        if limit is None and not (sampling.stop and (prompt.continued or self.lm.think_end_token)):
            return None
        search = self._stop_search(prompt, sampling)
        searched = 0

        def ended(output: Any) -> bool:
            nonlocal searched
            ids = output.outputs[0].token_ids
            search.length(ids[searched:])
            searched = len(ids)
            if search.stopped or limit is None:
                return search.stopped
            _, entropy, _ = self._entropy_method.read(output.outputs[0].logprobs, self._vocabulary)
            return bool((entropy > limit).any())

        return ended

    def _reporting(
        self, reports: RemoteReports, search: StopSearch, ended: Callable[[Any], bool] | None
    ) -> Callable[[Any], bool]:
        """The check `ended`, which also reports the tokens of unfinished outputs, as far as the result has them."""
        seen = 0

        def check(output: Any) -> bool:
            nonlocal seen
            if ended is not None and ended(output):
                return True
            ids = output.outputs[0].token_ids
            new = list(ids[seen:])
            if not search.stopped:
                reports.add(seen, new[: search.length(new)])
            seen = len(ids)
            return False

        return check

    def _params(self, sampling: Sampling, until: Callable[[Any], bool] | None = None) -> SamplingParams:
        """Parameters for vLLM; `until` needs every output of the request so far."""

        def setting(name: str, neutral: float) -> Any:
            value = getattr(sampling, name)
            return self._sampling_defaults.get(name, neutral) if value is None else value

        # vLLM would search the thinking, too.
        stop = [] if self.lm.think_end_token else [word for word in sampling.stop if word]
        chosen: dict[str, Any] = {"temperature": 0.0, "repetition_penalty": setting("repetition_penalty", 1.0)}
        if sampling.temperature > 0:
            chosen |= {"temperature": sampling.temperature, "seed": sampling.seed}
            chosen |= {"top_p": setting("top_p", 1.0), "top_k": setting("top_k", 0), "min_p": setting("min_p", 0.0)}
        return SamplingParams(
            max_tokens=sampling.max_tokens,
            stop=stop,
            stop_token_ids=[self.lm.eot_token_id],
            detokenize=bool(stop),
            skip_special_tokens=False,  # a stop string may be a special token
            spaces_between_special_tokens=False,
            logprobs=self._entropy_method.columns if sampling.return_token_stats else None,
            flat_logprobs=True,
            output_kind=RequestOutputKind.FINAL_ONLY if until is None else RequestOutputKind.CUMULATIVE,
            **chosen,
        )

    # Sessions and tokens

    def _session(self, prompt: Prompt) -> Session:
        """What is known of the prompt's session; a new one, which is not kept, for a prompt without a session."""
        if prompt.session is None:
            return self._new_session()
        if prompt.session not in self._sessions:
            self._sessions[prompt.session] = self._new_session()
        return self._sessions[prompt.session]

    def _new_session(self) -> Session:
        return Session(f"tandem-{next(self._session_numbers)}")

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.encode(prompt.text) + list(prompt.continued)

    def _decode(self, token_ids: tuple[int, ...]) -> str:
        with self._tokenizer_lock:
            return str(self.lm.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        with self._tokenizer_lock:
            return str(self.lm.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    # What the model is

    def _count_parameters(self, given: Mapping[str, Any]) -> int:
        """Number of parameters as transformers counts them: vLLM pads vocabularies and packs quantised weights."""
        options = {"trust_remote_code": bool(given.get("trust_remote_code")), "revision": given.get("revision")}
        try:
            config = AutoConfig.from_pretrained(self.name, **options)
            config.quantization_config = None
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(config, trust_remote_code=options["trust_remote_code"])
        except (ValueError, ImportError, AttributeError, RuntimeError):  # an architecture that only vLLM has
            return sum(self._async_llm.call_workers("tandem_parameters"))
        return sum(parameter.numel() for parameter in model.parameters())
