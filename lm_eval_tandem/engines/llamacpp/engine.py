"""The engine for llama.cpp: each call is a few requests of token ids to a llama-server.

A server keeps what it has computed for a text, so a request that extends one reads only the new tokens. What it does
not know is done here, between requests: stop strings that begin in an earlier call or in a thought, and entropies at
which a generation ends. Such calls ask for `BLOCK` tokens at a time, and greedy ones that report their tokens for
`LIVE_BLOCK`: a stream would lack the ids of tokens after which the text ends within a character.

A server reports what its model expects at the next place alone, never within a prompt. So `score` asks token by token:
each token is read once, as in a generation, and takes as long. What comes before the first token that is asked for
(`ScoringView.since`) is read as fast as any prompt.
"""

from __future__ import annotations

import logging
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.engines import DEFAULT_VIEW, Completion, Prompt, Sampling, ScoringView, TokenStats
from lm_eval_tandem.engines.drafts import common_prefix_length
from lm_eval_tandem.engines.entropy import Values, len_until
from lm_eval_tandem.engines.http.client import ServerWork
from lm_eval_tandem.engines.identity import content_of
from lm_eval_tandem.engines.limits import check_window, is_finite, require_default_view, undefined_logits
from lm_eval_tandem.engines.llamacpp.arguments import LONGEST_WINDOW, LlamaArguments
from lm_eval_tandem.engines.llamacpp.child import OwnServer
from lm_eval_tandem.engines.llamacpp.gguf_file import GGUFFile
from lm_eval_tandem.engines.llamacpp.likelihoods import Likelihoods
from lm_eval_tandem.engines.llamacpp.lm import LlamaLM
from lm_eval_tandem.engines.llamacpp.properties import Properties
from lm_eval_tandem.engines.llamacpp.replies import Distribution, Reply
from lm_eval_tandem.engines.llamacpp.servers import LlamaServers, ServerSession
from lm_eval_tandem.engines.llamacpp.tokenizer import load_tokenizer
from lm_eval_tandem.engines.settled import settled_text
from lm_eval_tandem.engines.shared_time import SharedTime
from lm_eval_tandem.engines.stopping import StopRule, answer_text
from lm_eval_tandem.engines.token_reports import TokenReports
from lm_eval_tandem.engines.tokenizer import LocalTokenizer
from lm_eval_tandem.errors import ArgumentError, EngineError, install

log = logging.getLogger(__name__)

BLOCK = 16
"""Tokens of a request where the server cannot see for itself where the generation ends."""
LIVE_BLOCK = 4
"""Tokens of a request of a greedy call that reports them. Sampled ones differ with the number of their requests."""


@dataclass
class Session(ServerSession):
    """What earlier calls of a question have read and scored.

    Attributes
    ----------
    scored
        The tokens of the last scored prompt.
    logprob, entropy
        Their statistics; NaN for those that nobody has needed.
    """

    scored: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)


class LlamaEngine(LocalTokenizer):
    """An engine (see `engines.Engine`) on a llama-server.

    Parameters
    ----------
    model
        A GGUF file; with `base_url`, any name.
    arguments
        See `arguments.LlamaArguments`.

    Raises
    ------
    ArgumentError
        An argument has a wrong value, the file is no GGUF file, or xllamacpp is missing.
    EngineError
        The model cannot be loaded, or no server is reached.

    Examples
    --------
    >>> engine = LlamaEngine("models/qwen2.5-0.5b-instruct-q4_k_m.gguf", {"batch_size": 4})
    """

    reads_drafts = False

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        self.name = model
        self.arguments = chosen = LlamaArguments.read(model, arguments)
        path = Path(model).expanduser()
        file = GGUFFile.read(path) if path.is_file() or not chosen.urls else None
        self._server = None if chosen.urls or file is None else start(chosen, file)
        urls = chosen.urls if self._server is None else (self._server.address,)
        try:
            found = Properties.of(urls[0])
            tokenizer = load_tokenizer(model, chosen.tokenizer, file, urls[0], found)
            usual = found.window if self._server is None else LONGEST_WINDOW
            self.window = min(found.window, window_of(chosen, file, usual))
            lm = self._model_interface(found, tokenizer)
            super().__init__(lm, lm.tok_encode)
        except BaseException:
            self._stop_server()
            raise
        self.work = ServerWork()
        self._servers = LlamaServers(
            model, urls, self._server, found.slots, found.vocabulary, lm.eot_token_id, chosen.timeout, self.work
        )
        lm.likelihoods = Likelihoods(self._servers, lm.prefix_token_id)
        self.max_concurrency = self._servers.max_concurrency
        counted = chosen.parameters or (found.parameters if file is None else file.parameters)
        self.parameters = None if counted is None else int(counted)
        self._vocabulary = found.vocabulary
        self._entropy_method = chosen.entropy_method(found.vocabulary)
        self._columns = min(self._entropy_method.top or found.vocabulary, found.vocabulary)
        self.identity = self._identity(found, file)
        self._stop_rule = StopRule(self._decode_all, chosen.think_end_token)
        self._sessions: dict[str, Session] = {}
        self._time = SharedTime()
        if self._entropy_method.top is not None:
            log.info("%s: entropies are estimates (entropy=%s).", model, self._entropy_method)

    def _model_interface(self, found: Properties, tokenizer: Any) -> LlamaLM:
        chosen = self.arguments
        if chosen.prefix_token_id is not None and chosen.prefix_token_id >= found.vocabulary:
            raise ArgumentError(
                f"prefix_token_id={chosen.prefix_token_id} is no token of {self.name}; give one from 0 to "
                f"{found.vocabulary - 1}."
            )
        return LlamaLM(
            self.name,
            self.window,
            # a server refuses a prompt that fills its window: the token after it has to fit
            min(self.window, found.window - 1),
            chosen.max_gen_toks,
            tokenizer,
            {} if chosen.enable_thinking is None else {"enable_thinking": chosen.enable_thinking},
            chosen.prefix_token_id,
        )

    def _identity(self, found: Properties, file: GGUFFile | None) -> dict[str, Any]:
        chosen = self.arguments
        own = {} if self._server is None else {"xllamacpp": version("xllamacpp"), "cache_type": chosen.cache_type}
        prefix = {} if chosen.prefix_token_id is None else {"prefix_token_id": chosen.prefix_token_id}
        return {
            "engine": "llamacpp",
            **own,
            **prefix,
            "servers": sorted(chosen.urls),
            "model": found.model if file is None else content_of(file.path),
            "build": found.model["build"],
            "dtype": str(found.model.get("ftype")),
            "entropy": str(self._entropy_method),
            "tokenizer": chosen.tokenizer and (content_of(Path(chosen.tokenizer)) or chosen.tokenizer),
            "enable_thinking": chosen.enable_thinking,
            "think_end_token": chosen.think_end_token,
        }

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        started = time.perf_counter()
        ids = self._ids(prompt)
        check_window(self.name, self.window, len(ids), sampling.max_tokens)
        session = self._session(prompt)
        async with self._servers.pool.slot():
            with self._time.share() as seconds:
                answer = await self._generate(session, prompt, ids, sampling)
        self.work.generate_seconds += seconds[0]
        return Completion(
            text=self.answer_text(tuple(answer.tokens), sampling.stop),
            token_ids=tuple(answer.tokens),
            finish_reason=answer.finish_reason,
            prompt_tokens=len(ids),
            cached_tokens=answer.cached,
            seconds=time.perf_counter() - started,
            logprob=np.array(answer.logprob, dtype=np.float32) if sampling.return_token_stats else None,
            entropy=np.array(answer.entropy, dtype=np.float32) if sampling.return_token_stats else None,
        )

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. It asks token by token, and reads each token once."""
        require_default_view(view, self.name)
        ids = self._ids(prompt)
        check_window(self.name, self.window, len(ids), 1)
        session, since = self._session(prompt), max(1, view.since)
        cached = common_prefix_length(session.scored, ids)
        unknown = [np.nan] * (len(ids) - cached)
        logprob, entropy = session.logprob[:cached] + unknown, session.entropy[:cached] + unknown
        async with self._servers.pool.slot():
            with self._time.share() as seconds:
                for place in range(since, len(ids)):
                    if np.isnan(logprob[place]):
                        logprob[place], entropy[place] = await self._stats_at(session, ids[:place], ids[place])
        self.work.judge_seconds += seconds[0]
        session.scored, session.logprob, session.entropy = ids, logprob, entropy
        values = np.array([logprob, entropy], dtype=np.float32)
        stats = TokenStats(values[0], values[1], cached, seconds[0])
        if not is_finite(stats, since):
            raise undefined_logits(self.name)
        return stats

    def release(self, session: str) -> None:
        """See `Engine.release`. The server keeps what it has computed until it needs the room."""
        self._sessions.pop(session, None)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return self._decode(token_ids).rstrip("\N{REPLACEMENT CHARACTER}")

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`."""
        return answer_text(self._decode(token_ids), stop, self.arguments.think_end_token)[0]

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`."""
        think_end = self.arguments.think_end_token
        return settled_text(self._decode, token_ids, self._incomplete_character, stop, think_end)

    def close(self) -> None:
        """See `Engine.close`. An own server is ended; one that ran already runs on."""
        self._servers.pool.close()
        self._stop_server()

    def _stop_server(self) -> None:
        if self._server is not None:
            self._server.close()

    # Generation

    async def _generate(self, session: Session, prompt: Prompt, ids: list[int], sampling: Sampling) -> Answer:
        """The tokens of a call, by one request or block by block."""
        search = self._stop_rule.search(sampling.stop, prompt.continued)
        stop = [] if self.arguments.think_end_token else [word for word in sampling.stop if word]
        unseen = sampling.max_entropy is not None or bool(
            sampling.stop and (prompt.continued or self.arguments.think_end_token)
        )
        reports = None if prompt.on_tokens is None else TokenReports(prompt.on_tokens)
        block = BLOCK if unseen else sampling.max_tokens
        if reports is not None and sampling.temperature == 0:
            block = LIVE_BLOCK
        answer = Answer()
        while answer.finish_reason == "":
            left = sampling.max_tokens - len(answer.tokens)
            body = parameters_of(sampling, len(answer.tokens)) | {"n_predict": min(left, block)}
            if sampling.return_token_stats:
                body["n_probs"] = self._columns  # with stop strings, the server would leave out the last ones
            else:
                body["stop"] = stop
            before = ids + answer.tokens
            reply = await self._servers.complete(session, before, body)
            answer.cached = reply.cached if not answer.tokens else answer.cached
            new = reply.tokens[: search.length(reply.tokens)]
            if not new:
                raise EngineError(f"{self.name}: the llama-server generated nothing; check its window and its log.")
            ended = search.stopped or reply.stop_type == "eos"
            answer.finish_reason = "stop" if ended else "length" if len(new) == left else ""
            if sampling.return_token_stats:
                stats = await self._stats_of(session, before, new, reply)
                n = len_until(stats[1], sampling.max_entropy)
                exceeded = sampling.max_entropy is not None and bool(stats[1][n - 1] > sampling.max_entropy)
                if exceeded and (n < len(new) or not answer.finish_reason):
                    answer.finish_reason = "max_entropy"
                new = new[:n]
                answer.logprob += stats[0][:n].tolist()
                answer.entropy += stats[1][:n].tolist()
            if reports is not None:
                reports.add(len(answer.tokens), new)
            answer.tokens += new
            self.work.decode_tokens += len(reply.tokens)
        return answer

    async def _stats_of(
        self, session: Session, before: list[int], new: list[int], reply: Reply
    ) -> tuple[Values, Values]:
        """Log-probabilities and entropies of the tokens of a reply.

        Where the server has left some out, all are asked for one by one.
        """
        if len(reply.distributions) == len(reply.tokens):
            pairs = [self._measured(one, token) for one, token in zip(reply.distributions, new, strict=False)]
        else:
            pairs = [await self._stats_at(session, before + new[:i], token) for i, token in enumerate(new)]
        logprob, entropy = np.array(pairs, dtype=np.float32).T
        if not np.isfinite(entropy).all():
            raise undefined_logits(self.name)
        return logprob, entropy

    async def _stats_at(self, session: Session, before: list[int], token: int) -> tuple[float, float]:
        """Log-probability and entropy of one token after those before it."""
        columns = (self._columns, self._vocabulary)
        return self._measured(await self._servers.distribution(session, before, token, columns), token)

    def _measured(self, found: Distribution, token: int) -> tuple[float, float]:
        logprob = found.logprob_of(token)
        if logprob is None:
            raise EngineError(
                f"{self.name}: the llama-server reports no probability of token {token}; use a newer one."
            )
        entropy, error = found.entropy(self._vocabulary)
        self.work.estimated_entropies += len(found.ids) < self._vocabulary
        self.work.entropy_error += error
        return logprob, entropy

    # Sessions and tokens

    def _session(self, prompt: Prompt) -> Session:
        """What is known of the prompt's session; a new one, which is not kept, for a prompt without a session."""
        return Session() if prompt.session is None else self._sessions.setdefault(prompt.session, Session())

    def _ids(self, prompt: Prompt) -> list[int]:
        return self.encode(prompt.text) + list(prompt.continued)

    def _decode(self, token_ids: Sequence[int]) -> str:
        with self._tokenizer_lock:
            return str(self.lm.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def _decode_all(self, token_ids: Sequence[int]) -> str:
        """The text, special tokens included."""
        with self._tokenizer_lock:
            return str(self.lm.tokenizer.decode(list(token_ids), skip_special_tokens=False))


@dataclass
class Answer:
    """What a call has generated so far; `finish_reason` is "" while it goes on."""

    tokens: list[int] = field(default_factory=list)
    logprob: list[float] = field(default_factory=list)
    entropy: list[float] = field(default_factory=list)
    finish_reason: str = ""
    cached: int = 0


def parameters_of(sampling: Sampling, generated: int) -> dict[str, Any]:
    """Sampling for a llama-server, whose own defaults are never used.

    Each block of a call has a seed of its own, because a server starts its random numbers anew with each request.
    """
    body: dict[str, Any] = {"temperature": sampling.temperature, "samplers": ["penalties", "temperature"]}
    if sampling.repetition_penalty not in (None, 1.0):
        body |= {"repeat_penalty": sampling.repetition_penalty, "repeat_last_n": -1}
    if sampling.temperature > 0:
        body |= {
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "seed": zlib.crc32(f"{sampling.seed}/{generated}".encode()),
            "top_k": max(0, sampling.top_k or 0),
            "top_p": 1.0 if sampling.top_p is None else sampling.top_p,
            "min_p": sampling.min_p or 0.0,
        }
    return body


def start(chosen: LlamaArguments, file: GGUFFile) -> OwnServer:
    """An own server for the file.

    Raises
    ------
    ArgumentError
        The package xllamacpp is missing.
    EngineError
        The model cannot be loaded.
    """
    if find_spec("xllamacpp") is None:
        raise ArgumentError(
            f"{chosen.model} needs the package xllamacpp; install it with {install('llamacpp')}, or "
            "give the address of a llama-server that serves the file as base_url=…"
        )
    return OwnServer(chosen.server_settings(window_of(chosen, file, LONGEST_WINDOW)))


def window_of(chosen: LlamaArguments, file: GGUFFile | None, usual: int) -> int:
    """The window in tokens: as it is given, otherwise the usual one; never more than the model was trained with.

    Raises
    ------
    ArgumentError
        A longer one is given.
    """
    trained = None if file is None else file.trained_window
    if chosen.max_length is not None and trained is not None and chosen.max_length > trained:
        raise ArgumentError(
            f"max_length={chosen.max_length} is more than {chosen.model} was trained with; give at most {trained}."
        )
    return chosen.max_length or min(usual, trained or usual)
