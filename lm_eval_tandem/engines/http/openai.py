"""The engine of a model behind a server of the OpenAI protocol, with what it costs.

A mentor's text is continued from stage to stage in one of three ways (`resume=`). Where the server returns token ids,
or can continue the assistant's last message, every stage is one request (`single`). Otherwise one stream per question
is kept open, read up to each stage's budget, and closed when the insight suffices (`stream`). Which of them a server
supports is found out by small requests when the engine is made (`probe`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
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
from lm_eval_tandem.engines.http.client import CHAT_PATH, ServerPool, ServerWork
from lm_eval_tandem.engines.http.options import UNKNOWN_WINDOW, Options
from lm_eval_tandem.engines.http.replies import ModelEntry, Reply
from lm_eval_tandem.engines.http.single import SingleRequests, request_body
from lm_eval_tandem.engines.http.stream import OpenStreams, Stream
from lm_eval_tandem.engines.http.text import (
    Counting,
    TextOnlyLM,
    TokenCounter,
    decode_reply,
    encode_chat,
    server_ids,
)
from lm_eval_tandem.engines.limits import check_window, require_default_view
from lm_eval_tandem.engines.stopping import answer_text
from lm_eval_tandem.errors import ArgumentError, CallError, EngineError
from lm_eval_tandem.event_loop import EventLoopThread

log = logging.getLogger(__name__)

MAX_TOP_LOGPROBS = 20
"""The largest number of logprobs per token that a vLLM server returns by default."""
PROBE_TOKENS = 16
"""Tokens that are generated to find out what a server can do."""
STARTUP_RETRIES = 3
"""Retries of these first requests: a mistyped address is reported within seconds."""


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
        self._entropy_method = entropy_method(options)
        loop = EventLoopThread()
        try:
            server = loop.run(probe(self._servers, self._counter))
            self.resume = server.resume
            self.window = options.max_length or server.entry.window or UNKNOWN_WINDOW
            self._single = SingleRequests(self._servers, self._counter, server.resume)
            self._streams = OpenStreams(self._servers, self._counter, server.counting, self.window)
            if options.entropy is not None:
                loop.run(self.score(Prompt("Hi there")))
        finally:
            loop.run(self._servers.disconnect())
            loop.close()
        self.lm = TextOnlyLM(model, self.window, options.max_gen_toks)
        self.identity = self._identity(server)
        if options.entropy is not None:
            log.warning("%s: the judge's entropies are estimates from the %s.", model, options.entropy)

    def _identity(self, server: ServerAbilities) -> dict[str, Any]:
        options = self.options
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
            **({} if options.entropy is None else {"entropy": options.entropy}),
        }

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
            raise EngineError(f"{self.name} runs behind a server, which reports no entropy of generated tokens.")
        self._check_window(prompt, sampling.max_tokens)
        grows = bool(prompt.continued) or (prompt.horizon or 0) > sampling.max_tokens
        if self.resume == "stream" and grows and prompt.session is not None:
            return await self._streams.generate(prompt, sampling)
        return await self._single.generate(prompt, sampling)

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`. It needs a vLLM server and `entropy=topk:K`; the entropies are estimates."""
        if self.cannot_score:
            raise EngineError(self.cannot_score)
        require_default_view(view, self.name)
        self._check_window(prompt, 1)
        return await self._single.score(prompt, self._entropy_method)

    @property
    def cannot_score(self) -> str:
        """Why this engine cannot score prompts; "" where it can."""
        if self.options.entropy is not None:
            return ""
        return (
            f"{self.name} runs behind a server, which reports no entropies, so it cannot be the intern of a judge; run "
            "the intern with intern_backend=hf or vllm, use policy=stage:N, which needs no judge, or with a vLLM "
            "server give intern_entropy=topk:20 for estimates."
        )

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
        return answer_text(decode_reply(token_ids), stop, self.options.think_end_token)[0]

    def close(self) -> None:
        """Close all streams and connections."""
        self._streams.close()
        self._servers.close()

    def _check_window(self, prompt: Prompt, new_tokens: int) -> None:
        continued = len(server_ids(prompt.continued)) or self._counter.count(decode_reply(prompt.continued))
        check_window(self.name, self.window, len(self.encode(prompt.text)) + continued, new_tokens)


def entropy_method(options: Options) -> EntropyMethod:
    """How `score` estimates entropies.

    Raises
    ------
    ArgumentError
        `entropy=` requests what a server cannot give.
    """
    method = EntropyMethod.parse(f"topk:{MAX_TOP_LOGPROBS}" if options.entropy is None else options.entropy)
    without_tokenizer = options.entropy is not None and options.tokenizer is None
    if method.top is None or method.top > MAX_TOP_LOGPROBS or without_tokenizer:
        raise ArgumentError(
            f"entropy={options.entropy} is not available from a server: give entropy=topk:K with K up to "
            f"{MAX_TOP_LOGPROBS} and tokenizer=… (for the size of the vocabulary); exact ones need backend=hf or "
            "backend=vllm."
        )
    return method


@dataclass(frozen=True)
class ServerAbilities:
    """What a server turned out to support.

    Attributes
    ----------
    entry
        Its entry for the model in its list of models; an empty one where it has none.
    resume
        How a text is continued: "ids", "prefix" or "stream".
    counting
        How the tokens of a stream are counted.
    """

    entry: ModelEntry
    resume: str
    counting: Counting


async def probe(servers: ServerPool, counter: TokenCounter) -> ServerAbilities:
    """Find out what a server supports: by its list of models, one small request, and a second one for streams.

    Raises
    ------
    EngineError
        The server cannot be used, or not with the `resume=` that is set.
    """
    options = servers.options
    body = request_body(options, Sampling(max_tokens=PROBE_TOKENS), return_ids=options.resume in ("auto", "ids"))
    body["messages"] = [{"role": "user", "content": "Hi"}]
    impatient = replace(options, retries=min(options.retries, STARTUP_RETRIES))

    async def attempt(number: int) -> Reply:
        return Reply.of(await servers.post(CHAT_PATH, body, "", number))

    try:
        entry = await servers.retry(servers.model_entry, servers.retries("list", impatient))
        reply = await servers.retry(attempt, servers.retries("look", impatient))
        returns_ids = bool(reply.ids and reply.prompt_ids)
    except CallError as error:
        if "output limit" not in str(error) and "hidden reasoning" not in str(error):
            raise EngineError(f"{error}; check the model's name and the server, {options.urls[0]}.") from error
        # The model thinks, and the few tokens were too few for an answer. So the server works.
        returns_ids = False
    if options.resume == "ids" and not returns_ids:
        raise EngineError(
            f"resume=ids needs a server that returns token ids (vLLM does), and that of {options.model} does not; "
            "use resume=stream, or resume=prefix where it can continue the last message."
        )
    resume = options.resume if options.resume != "auto" else "ids" if returns_ids else "stream"
    counting: Counting = "by a tokenizer" if counter.exact else "by bytes"
    if returns_ids:
        counting = "by the server"
    elif resume == "stream" and await streams_each_token(servers, counter, body, impatient):
        counting = "by pieces"
    return ServerAbilities(entry, resume, counting)


async def streams_each_token(
    servers: ServerPool, counter: TokenCounter, body: Mapping[str, Any], options: Options
) -> bool:
    """Whether a server sends each token as one chunk of a stream, as most do."""
    retries = servers.retries("pieces", options)

    async def attempt(_: int) -> bool:
        stream = Stream("", (), "", counter.count)
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        stream.start(servers.stream(stream.started, streamed, "", retries))
        try:
            await stream.read(UNKNOWN_WINDOW, servers.options.timeout)
        except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
            raise servers.errors.failure(error) from error
        usage = stream.usage
        # An end token is billed and has no chunk.
        return usage is not None and 0 <= usage.new - usage.reasoning - stream.pieces <= 1

    return await servers.retry(attempt, retries, takes_connection=False)
