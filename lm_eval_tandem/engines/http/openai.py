"""The engine of a model behind a server of the OpenAI protocol, with what it costs.

A mentor's text is continued from stage to stage in one of three ways (`resume=`). Where the server returns token ids,
or can continue the assistant's last message, every stage is one request (`single`). Otherwise one stream per question
is kept open, read up to each stage's budget, and closed when the insight suffices (`stream`). Which of them a server
supports is found out by small requests when the engine is made (`abilities`).

An intern's answer that is judged while it is being written is one stream, whatever the server: measured calls ask for
the log-probabilities of its tokens. Whether the server reports them is found out where a run needs them
(`APIEngine.cannot_measure`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Mapping
from typing import Any

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Messages,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
    UnreadOutput,
)
from lm_eval_tandem.engines.entropy import EntropyMethod
from lm_eval_tandem.engines.http.abilities import (
    LARGE_VOCABULARY,
    USUAL_COLUMNS,
    Measuring,
    find_logprobs,
    probe,
)
from lm_eval_tandem.engines.http.client import ServerPool, ServerWork, run_apart
from lm_eval_tandem.engines.http.open_streams import OpenStreams
from lm_eval_tandem.engines.http.options import UNKNOWN_WINDOW, Options
from lm_eval_tandem.engines.http.replies import THINK_CLOSE, THINK_OPEN, without_thinking
from lm_eval_tandem.engines.http.single import SingleRequests
from lm_eval_tandem.engines.http.text import (
    TextOnlyLM,
    TokenCounter,
    decode_reply,
    encode_chat,
    server_ids,
)
from lm_eval_tandem.engines.limits import check_window, require_default_view
from lm_eval_tandem.engines.settled import settled_text
from lm_eval_tandem.engines.stopping import answer_text
from lm_eval_tandem.errors import ArgumentError, CallError, EngineError

log = logging.getLogger(__name__)


class APIEngine:
    """An engine (see `engines.Engine`) behind a server of the OpenAI protocol.

    Parameters
    ----------
    model
        Name of the model at the server.
    arguments
        See `options.Options`.

    Attributes
    ----------
    resume
        How a text is continued: "ids", "prefix" or "stream".

    Raises
    ------
    ArgumentError
        An argument has a wrong value, or the API key is missing.
    EngineError
        No server is reached, or the server does not know the model or the key.

    Examples
    --------
    >>> engine = APIEngine("gpt-5-mini", {"reasoning_effort": "low", "price_input": 0.25, "price_output": 2})
    """

    reads_drafts = False

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        self.options = options = Options.read(model, arguments)
        self.name = model
        self.parameters = None if options.parameters is None else int(options.parameters)
        self.max_concurrency = options.concurrency
        self.work = ServerWork()
        self._counter = TokenCounter(options.tokenizer)
        self._servers = ServerPool(options, options.key(), self.work)
        self._wanted = entropy_method(options)
        server = run_apart(self._servers, probe(self._servers, self._counter))
        self.resume = server.resume
        self.window = options.max_length or server.entry.window or UNKNOWN_WINDOW
        self._vocabulary = options.vocabulary or self._counter.vocabulary or server.entry.vocabulary or LARGE_VOCABULARY
        self._single = SingleRequests(self._servers, self._counter, server.resume, self._vocabulary)
        self._streams = OpenStreams(self._servers, self._counter, server.counting, self.window, server.resume)
        self.lm = TextOnlyLM(model, self.window, options.max_gen_toks)
        self._abilities = server
        self._finding_out = threading.RLock()
        self._measuring: Measuring | None = None
        self._score_fault: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """See `Engine.identity`. It names the entropies once they have been asked for."""
        options, server = self.options, self._abilities
        measured = self._measuring is not None and self._measuring.request is not None
        scored = self._score_fault == ""
        sized = measured or options.vocabulary or (scored and not self._counter.vocabulary)
        return {
            "engine": "openai",
            "model": self.name,
            "servers": sorted(options.urls),
            "weights": server.entry.root,
            "resume": server.resume,
            "counted": server.counting,
            "without": sorted(self._servers.unsupported),
            "arguments": {
                "enable_thinking": options.enable_thinking,
                "reasoning_effort": options.reasoning_effort,
                "extra_body": dict(options.extra_body),
                "think_end_token": options.think_end_token,
            },
            **({"send_ids": True} if options.send_ids else {}),
            **({"entropy": str(self.entropy_method)} if measured or scored or options.entropy else {}),
            **({"vocabulary": self._vocabulary} if sized else {}),
        }

    @property
    def entropy_method(self) -> EntropyMethod:
        """How entropies are obtained: from as many most likely tokens as are requested, or as the server reports."""
        if self._measuring is not None and self._measuring.request is not None:
            return EntropyMethod(self._measuring.request.columns)
        return self._wanted or EntropyMethod(USUAL_COLUMNS[0])

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`.

        Raises
        ------
        CallError
            The call has failed after all retries.
        UnreachableError
            No call has reached a server for `options.give_up` seconds.
        """
        if sampling.return_token_stats:
            await self._check_measured(sampling)
        self._check_window(prompt, sampling.max_tokens)
        judged = sampling.return_token_stats or (self._streams.logprobs is not None and bool(prompt.continued))
        grows = bool(prompt.continued) or (prompt.horizon or 0) > sampling.max_tokens
        if judged or (self.resume == "stream" and grows and prompt.session is not None):
            return await self._streams.generate(prompt, sampling)
        return await self._single.generate(prompt, sampling)

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. It needs a server that reports `prompt_logprobs` (vLLM); the entropies are estimates."""
        fault = await asyncio.to_thread(lambda: self.cannot_score)
        if fault:
            raise EngineError(fault)
        require_default_view(view, self.name)
        self._check_window(prompt, 1)
        return await self._single.score(prompt, self.entropy_method)

    @property
    def cannot_score(self) -> str:
        """See `Engine.cannot_score`. When first read, it asks the server for the log-probabilities of a prompt."""
        with self._finding_out:
            if self._score_fault is None:
                self._score_fault = self._find_score_fault()
            return self._score_fault

    def _find_score_fault(self) -> str:
        servers = self._servers.twin()
        single = SingleRequests(servers, self._counter, self.resume, self._vocabulary)
        try:
            run_apart(servers, single.score(Prompt("Hi there"), self.entropy_method))
        except CallError as error:
            return (
                f"the server reports no log-probabilities of a prompt ({error}), so {self.name} cannot be the intern "
                "of a judge that reads the prompt; use a classifier that reads the answer's first tokens alone "
                "(fit --inputs probe), policy=stage:N, which needs no judge, or run the intern with intern_backend=hf, "
                "vllm or llamacpp."
            )
        log.warning("%s: the judge's entropies are estimates (entropy=%s).", self.name, self.entropy_method)
        return ""

    @property
    def cannot_measure(self) -> str:
        """See `Engine.cannot_measure`. When first read, it asks the server for log-probabilities of a few tokens."""
        with self._finding_out:
            if self._measuring is None:
                servers = self._servers.twin()
                work = find_logprobs(servers, self._counter, self._wanted, self._vocabulary)
                self._measuring = run_apart(servers, work)
                self._streams.logprobs = self._measuring.request
                if self._measuring.request is not None:
                    log.warning("%s: the judge's entropies are estimates (entropy=%s).", self.name, self.entropy_method)
            return self._measuring.fault

    async def _check_measured(self, sampling: Sampling) -> None:
        """Refuse a measured call that the server cannot answer."""
        fault = await asyncio.to_thread(lambda: self.cannot_measure)
        if fault:
            raise EngineError(fault)
        assert self._measuring is not None
        if self._measuring.tempered and sampling.temperature not in (0, 1):
            raise EngineError(
                f"the server of {self.name} reports log-probabilities after temperature={sampling.temperature:g}, and "
                "the judge needs those of the model; use a temperature of 0 or 1, or another server or backend."
            )

    def stop(self, session: str) -> UnreadOutput | None:
        """See `Engine.stop`: closes the session's stream."""
        return self._streams.release(session)

    def release(self, session: str) -> UnreadOutput | None:
        """See `Engine.release`: closes the session's stream, so that the server stops generating."""
        self._single.forget(session)
        return self._streams.release(session)

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`: the messages as `text.encode_chat` represents them; the server applies its template."""
        return encode_chat(messages, generation_prompt)

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`: by the tokenizer of `options.tokenizer`, otherwise an estimate."""
        return self._counter.encode(text)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return decode_reply(token_ids)

    def answer_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.answer_text`."""
        return answer_text(without_thinking(decode_reply(token_ids)), stop, self.options.think_end_token)[0]

    def settled_text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.settled_text`.

        A thought is removed where the server has sent it apart from the content. One that is part of the content may
        stay in the answer or not, so nothing of such an answer is settled.
        """
        text = decode_reply(token_ids)
        may_think = THINK_OPEN.startswith(text) or text.startswith(THINK_OPEN)
        if may_think and (THINK_CLOSE not in text or not self._servers.separates_thoughts):
            return ""
        content = without_thinking(text)
        return settled_text(lambda _: content, token_ids, stop=stop, think_end=self.options.think_end_token)

    def close(self) -> None:
        """Close all streams and connections."""
        self._streams.close()
        self._servers.close()

    def _check_window(self, prompt: Prompt, new_tokens: int) -> None:
        continued = len(server_ids(prompt.continued)) or self._counter.count(decode_reply(prompt.continued))
        check_window(self.name, self.window, len(self.encode(prompt.text)) + continued, new_tokens)


def entropy_method(options: Options) -> EntropyMethod | None:
    """How entropies are estimated where the user says so; otherwise None.

    Raises
    ------
    ArgumentError
        `entropy=` requests exact ones.
    """
    if options.entropy is None:
        return None
    method = EntropyMethod.parse(options.entropy)
    if method.top is None:
        raise ArgumentError(
            f"entropy={options.entropy} is not available from a server: give entropy=topk:K, which with K=the size of "
            "the vocabulary (vocabulary=…) is as good where the server allows it; exact ones need backend=hf, "
            "backend=vllm or backend=llamacpp."
        )
    return method
