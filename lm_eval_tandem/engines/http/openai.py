"""A model behind a server of the OpenAI protocol, as an engine: a mentor whose text grows, and what it costs.

Three ways to go on in a text (`resume=`): by token ids or in the last message, where the server can; otherwise one
stream a question is kept open, read up to the stage's budget, and closed when the insight suffices.
"""

from __future__ import annotations

import logging
import math
import time
import zlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines import (
    DEFAULT_VIEW,
    Completion,
    Messages,
    Prompt,
    Sampling,
    ScoringView,
    TokenStats,
    Unused,
    require_default_view,
)
from lm_eval_tandem.engines.entropy import Entropy, estimate
from lm_eval_tandem.engines.http.client import CHAT, TEXT, CallWork, ServerPool
from lm_eval_tandem.engines.http.options import UNKNOWN_WINDOW, Options
from lm_eval_tandem.engines.http.replies import Diverged, Reply, Stream, Usage, empty
from lm_eval_tandem.engines.http.retries import Failure, Retries
from lm_eval_tandem.engines.http.text import (
    CONTINUE_REQUEST,
    Counter,
    TextLM,
    cut,
    decode_chat,
    decode_reply,
    encode_chat,
    encode_reply,
    server_ids,
)
from lm_eval_tandem.errors import ArgumentError, CallError, ContextError, EngineError
from lm_eval_tandem.event_loop import EventLoopThread

log = logging.getLogger(__name__)

TOP = 20
"""Logprobs a token that vLLM's server tells at most."""
STOPS = 4
"""Stop strings that the protocol allows; further ones are cut at here."""
STARTUP_RETRIES = 3
"""Retries before the run: who mistyped an address learns it in seconds."""


class APIEngine:
    """An engine (see `engines.Engine`) behind a server of the OpenAI protocol.

    Parameters
    ----------
    model
        Its name at the server.
    arguments
        See `remote.Options`.

    Raises
    ------
    ArgumentError
        An argument has no such value, or the key is missing.
    EngineError
        No server is reached, or it does not know the model or the key.
    """

    drafts = False

    def __init__(self, model: str, arguments: Mapping[str, Any]) -> None:
        self.options = options = Options.read(model, arguments)
        self.name, self.prices = model, options.prices
        self.parameters = None if options.parameters is None else int(options.parameters)
        self.max_concurrency = options.concurrency
        self.work = CallWork()
        self._counter = Counter(options.tokenizer)
        self._servers = ServerPool(options, options.key(), self.work)
        self._counted = "by a tokenizer" if self._counter.exact else "by bytes"
        self._streams: dict[str, Stream] = {}
        self._prompt_ids: dict[str, tuple[str, list[int]]] = {}
        self._entropy = self._check_scores()
        looking = EventLoopThread()
        try:
            served, self.resume = looking.run(self._look())
            self.window = options.max_length or int(served.get("max_model_len") or UNKNOWN_WINDOW)
            if options.entropy is not None:
                looking.run(self.score(Prompt("Hi there")))
        finally:
            looking.run(self._servers.hang_up())
            looking.close()
        self.lm = TextLM(model, self.window, options.max_gen_toks)
        self.identity = self._identity(served)
        if options.entropy is not None:
            log.warning("%s: the judge's entropies are estimates from the %s.", model, options.entropy)

    def _identity(self, served: Mapping[str, Any]) -> dict[str, Any]:
        options = self.options
        return {
            "engine": "openai",
            "model": self.name,
            "servers": sorted(options.urls),
            "weights": served.get("root"),
            "resume": self.resume,
            "counted": self._counted,
            "without": sorted(self._servers.left_out),
            "arguments": {
                "enable_thinking": options.enable_thinking,
                "reasoning_effort": options.reasoning_effort,
                "extra_body": dict(options.extra_body),
                "think_end_token": options.think_end_token,
            },
            **({"entropy": options.entropy} if options.entropy else {}),
        }

    # What the server is and can do

    async def _look(self) -> tuple[dict[str, Any], str]:
        """What the server says of the model, and how a text is gone on with: by one small call, two for a stream."""
        options, body = self.options, self._body(Sampling(max_tokens=16), ids=self.options.resume in ("auto", "ids"))
        asked = {**body, "messages": [{"role": "user", "content": "Hi"}]}

        async def call(attempt: int) -> Reply:
            return Reply.of(await self._servers.posted(CHAT, asked, "", attempt))

        patience = replace(options, retries=min(options.retries, STARTUP_RETRIES))
        servers = self._servers
        try:
            served = await servers.persist(servers.listed, Retries(patience, servers.line, "list"), [])
            reply = await servers.persist(call, Retries(patience, servers.line, "look"), [])
            told = bool(reply.ids and reply.prompt_ids)
        except CallError as error:
            if "output limit" not in str(error) and "hidden reasoning" not in str(error):
                raise EngineError(f"{error}; look at the name of the model, base_url and the server.") from error
            told = False  # it thinks, and 16 tokens were too few for that: it works
        if options.resume == "ids" and not told:
            raise EngineError(
                f"resume=ids needs a server that tells token ids (vLLM does), and that of {self.name} does not; "
                "use resume=stream, or resume=prefix where it can go on in the last message."
            )
        resume = options.resume if options.resume != "auto" else "ids" if told else "stream"
        if told:
            self._counted = "by the server"
        elif resume == "stream" and await self._piece_is_token(asked, patience):
            self._counted = "by pieces"
        return served, resume

    async def _piece_is_token(self, asked: dict[str, Any], patience: Options) -> bool:
        """Whether this server streams each token as a piece, as most do."""

        async def call(attempt: int) -> bool:
            tries = Retries(patience, self._servers.line, "pieces")
            stream = Stream("", (), "", self._tokens_of)
            body = {**asked, "stream": True, "stream_options": {"include_usage": True}}
            stream.start(self._servers.chunks(stream.started, body, "", tries))
            try:
                await stream.read(UNKNOWN_WINDOW, self.options.timeout)
            except Exception as error:  # as in Servers.posted
                raise self._servers.failure(error) from error
            usage = stream.usage
            # An end token is billed and makes no piece.
            return usage is not None and 0 <= usage.new - usage.reasoning - stream.pieces <= 1

        return await self._servers.persist(call, Retries(patience, self._servers.line, "pieces"), [], place=False)

    # For coroutines

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`. Raises CallError when the call fails for good, UnreachableError when all do."""
        if sampling.measured:
            raise EngineError(f"{self.name} is reached over a server, which tells no entropy of generated tokens.")
        self._fits(prompt, sampling.max_tokens)
        goes_on = bool(prompt.continued) or (prompt.horizon or 0) > sampling.max_tokens
        if self.resume == "stream" and goes_on and prompt.session is not None:
            return await self._read_on(prompt, sampling)
        return await self._ask(prompt, sampling)

    async def score(self, prompt: Prompt, view: ScoringView = DEFAULT_VIEW) -> TokenStats:
        """See `Engine.score`; with `entropy=topk:K` alone, and the entropies are then estimates."""
        if self.cannot_score:
            raise EngineError(self.cannot_score)
        require_default_view(view, self.name)
        self._fits(prompt, 1)
        started = time.perf_counter()
        path, body = await self._request(prompt, Sampling(max_tokens=1))
        body |= {"prompt_logprobs": self._entropy.columns, "return_token_ids": True}

        async def one(attempt: int) -> TokenStats:
            reply = await self._servers.posted(path, body, prompt.session or prompt.text, attempt)
            logprob, top = prompt_logprobs(reply, self._entropy.columns)
            estimated = np.concatenate([[np.nan], estimate(top, self._counter.vocabulary)]).astype(np.float32)
            return TokenStats(logprob, estimated, 0, time.perf_counter() - started)

        stats = await self._servers.persist(one, Retries(self.options, self._servers.line, "score"), [])
        self.work.judge_seconds += stats.seconds
        self.work.prefill_tokens += len(stats)
        return stats

    @property
    def cannot_score(self) -> str:
        """Why this engine cannot judge; "" where it can."""
        if self.options.entropy is not None:
            return ""
        return (
            f"{self.name} is reached over a server, which tells no entropies, so the judge cannot read with it; run "
            "the intern with intern_backend=hf or vllm, use policy=stage:N, which needs no judge, or with a vLLM "
            "server give intern_entropy=topk:20 for estimates."
        )

    def _check_scores(self) -> Entropy:
        """How entropies are estimated. Raises ArgumentError where they cannot be asked for in this way."""
        asked = Entropy.parse(self.options.entropy or f"topk:{TOP}")
        if asked.top is None or asked.top > TOP or (self.options.entropy and not self._counter.exact):
            raise ArgumentError(
                f"entropy={self.options.entropy} cannot be had from a server: give entropy=topk:K with K up to {TOP} "
                "and tokenizer=… (for the size of the vocabulary); exact ones need backend=hf or backend=vllm."
            )
        return asked

    def release(self, session: str) -> Unused | None:
        """See `Engine.release`: closes the session's stream, so that the server stops writing."""
        self._prompt_ids.pop(session, None)
        stream = self._streams.pop(session, None)
        if stream is None:
            return None
        stream.stop()
        unread = stream.unread
        self.work.decode_tokens += unread
        dollars = None if self.prices is None else self._charge(stream, stream.arrived)
        return Unused(unread, dollars) if unread or dollars else None

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`: the conversation itself, the server has the template."""
        return encode_chat(messages, generation_prompt)

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`: by the tokenizer that was given, or estimated."""
        return self._counter.encode(text)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        """See `Engine.decode`."""
        return decode_reply(token_ids)

    def text(self, token_ids: tuple[int, ...], stop: tuple[str, ...]) -> str:
        """See `Engine.text`."""
        return cut(decode_reply(token_ids), stop, self.options.think_end_token)[0]

    def close(self) -> None:
        """Close the streams and connections that are left."""
        for session in list(self._streams):
            self.release(session)
        self._servers.close()

    def _fits(self, prompt: Prompt, new: int) -> None:
        size = len(self.encode(prompt.text)) + (len(server_ids(prompt.continued)) or self._estimated(prompt.continued))
        if size + new > self.window:
            raise ContextError(
                f"a prompt of {size} tokens and {new} tokens to generate exceed the window of {self.name}, "
                f"{self.window} tokens; lower max_gen_toks or the efforts, or use a model with a longer window."
            )

    def _tokens_of(self, piece: str) -> int:
        """Tokens of a stream's piece where the server does not tell."""
        return 1 if self._counted == "by pieces" else max(1, self._counter.count(piece))

    def _estimated(self, continued: tuple[int, ...]) -> int:
        return self._counter.count(decode_reply(continued))

    # One call, one reply

    async def _ask(self, prompt: Prompt, sampling: Sampling) -> Completion:
        started = time.perf_counter()
        path, body = await self._request(prompt, sampling)
        lost: list[Failure] = []
        goes_on = bool(prompt.continued)
        reply = await self._attempts(path, body, self._name_of(prompt, sampling), prompt.session, lost, goes_on)
        if prompt.session is not None and not prompt.continued and reply.prompt_ids:
            self._prompt_ids[prompt.session] = prompt.text, list(reply.prompt_ids)
        text, stopped = cut(reply.content, sampling.stop, self.options.think_end_token)
        counted = len(reply.ids) or self._counter.count(reply.written)
        usage = reply.usage or Usage(len(self.encode(prompt.text)) + self._estimated(prompt.continued), 0, counted)
        dollars = None
        if self.prices is not None:
            dollars = self.prices.dollars(usage.prompt, usage.cached, usage.new)
            dollars += self.prices.dollars(usage.prompt * sum(failure.billed for failure in lost), 0, 0)
            self.work.dollars += dollars
        self.work.prefill_tokens += usage.prompt - usage.cached
        self.work.decode_tokens += usage.new
        seconds = time.perf_counter() - started
        self.work.generate_seconds += seconds
        return Completion(
            text=text,
            token_ids=encode_reply(reply.written, reply.ids),
            finish_reason="stop" if stopped else reply.finish_reason,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            seconds=seconds,
            counted=usage.new,
            dollars=dollars,
        )

    async def _request(self, prompt: Prompt, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        """Where to and what: the prompt, and what of the answer is written already."""
        body = self._body(sampling, ids=self.resume == "ids")
        messages, begun = decode_chat(prompt.text)
        own = server_ids(prompt.continued)
        if prompt.continued and self.resume == "ids":
            return TEXT, {**body, "prompt": await self._ids_before(prompt) + own}
        written = decode_reply(prompt.continued)
        if messages is None and not self._servers.can_complete:
            messages, begun = (("user", begun),), ""
        if messages is None:
            return TEXT, {**body, "prompt": begun + written}
        turns = [{"role": role, "content": content} for role, content in messages]
        begun += written
        if begun and self.resume == "stream":
            raise EngineError(
                f"the server of {self.name} cannot go on in an answer that has begun (resume=stream), "
                "and this needs it; use another policy or guidance, or resume=prefix where the server can."
            )
        if begun:
            turns.append({"role": "assistant", "content": begun})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        return CHAT, {**body, "messages": turns}

    async def _ids_before(self, prompt: Prompt) -> list[int]:
        """The server's ids of the prompt; asked for again where another process had generated the beginning."""
        text, ids = self._prompt_ids.get(prompt.session or "", ("", []))
        if text != prompt.text:
            again = Prompt(prompt.text, session=prompt.session)
            path, body = await self._request(again, Sampling(max_tokens=1))
            reply = await self._attempts(path, body, "ids", prompt.session, [])
            ids = list(reply.prompt_ids)
            if prompt.session is not None:
                self._prompt_ids[prompt.session] = prompt.text, ids
        return ids

    def _body(self, sampling: Sampling, ids: bool) -> dict[str, Any]:
        options = self.options
        body: dict[str, Any] = {
            "model": self.name,
            "max_tokens": sampling.max_tokens,
            "temperature": sampling.temperature,
            "seed": sampling.seed,
            "stop": list(sampling.stop[:STOPS]) or None,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repetition_penalty": sampling.repetition_penalty,
            "reasoning_effort": options.reasoning_effort,
            "return_token_ids": True if ids else None,
        }
        if options.enable_thinking is not None:
            body["chat_template_kwargs"] = {"enable_thinking": options.enable_thinking}
        return {name: value for name, value in body.items() if value is not None} | dict(options.extra_body)

    def _name_of(self, prompt: Prompt, sampling: Sampling) -> str:
        return f"{sampling.seed}/{zlib.crc32(prompt.text.encode('utf-8', 'replace'))}/{len(prompt.continued)}"

    async def _attempts(
        self,
        path: str,
        body: dict[str, Any],
        name: str,
        session: str | None,
        lost: list[Failure],
        goes_on: bool = False,
    ) -> Reply:
        """The reply to a request, tried as often as the options allow; attempts that failed are added to `lost`."""

        async def one(attempt: int) -> Reply:
            return Reply.of(await self._servers.posted(path, body, session or name, attempt), goes_on)

        return await self._servers.persist(one, Retries(self.options, self._servers.line, name), lost)

    # One stream for all stages of a question

    async def _read_on(self, prompt: Prompt, sampling: Sampling) -> Completion:
        started = time.perf_counter()
        assert prompt.session is not None
        tries = Retries(self.options, self._servers.line, self._name_of(prompt, sampling))
        repeats, dollars = True, 0.0
        while True:
            stream = self._streams.get(prompt.session)
            try:
                if stream is None or (stream.text, stream.told) != (prompt.text, prompt.continued):
                    dollars += self._dropped(prompt.session)
                    stream = self._open(prompt, sampling, tries, repeats)
                read, finish = await stream.read(sampling.max_tokens, self.options.timeout)
                if not (read.text or prompt.continued):
                    raise empty(finish, stream.usage)
                break
            except Diverged:
                dollars += self._dropped(prompt.session)
                repeats = False
            except Exception as error:  # as in Servers.posted
                self.work.failed_calls += 1
                dollars += self._dropped(prompt.session)
                await tries.after(self._servers.failure(error))
        own = encode_reply(read.text)
        stream.told += own
        text, _ = cut(read.content, sampling.stop, self.options.think_end_token)
        if self.prices is not None:
            dollars += self._charge(stream, stream.repeated + stream.read_tokens)
        usage = stream.usage or Usage(len(self.encode(prompt.text)), 0, 0)
        self.work.decode_tokens += read.tokens
        seconds = time.perf_counter() - started
        self.work.generate_seconds += seconds
        return Completion(
            text=text,
            token_ids=own,
            finish_reason=finish,
            prompt_tokens=usage.prompt,
            # A stream reads its prompt once: for all calls but the first it is there already.
            cached_tokens=usage.prompt if prompt.continued else usage.cached,
            seconds=seconds,
            counted=read.tokens,
            dollars=None if self.prices is None else dollars,
        )

    def _open(self, prompt: Prompt, sampling: Sampling, tries: Retries, repeats: bool) -> Stream:
        """A new stream; of a text that was begun elsewhere it repeats the beginning, or is asked to go on."""
        messages, begun = decode_chat(prompt.text)
        turns = [("user", begun)] if messages is None else [*messages]
        written = decode_reply(prompt.continued)
        if not repeats:
            turns += [("assistant", written), ("user", CONTINUE_REQUEST)]
        # Of a text in this alphabet half a token a byte is more than enough.
        wanted = (prompt.horizon or sampling.max_tokens) + (len(written) // 2 if repeats else 0)
        limit = min(wanted, max(1, self.window - len(self.encode(prompt.text))))
        estimated = self._counted not in ("by pieces", "by the server")
        again = written if repeats else ""
        stream = Stream(prompt.text, prompt.continued, again, self._tokens_of, None if estimated else limit)
        body = self._body(sampling, ids=self._counted == "by the server") | {
            "max_tokens": limit,
            "messages": [{"role": role, "content": content} for role, content in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        assert prompt.session is not None
        stream.start(self._servers.chunks(stream.started, body, prompt.session, tries))
        self._streams[prompt.session] = stream
        self.work.prefill_tokens += len(self.encode(prompt.text))
        return stream

    def _dropped(self, session: str) -> float:
        """What a stream that is given up has cost beyond what is charged already."""
        unused = self.release(session)
        return unused.dollars or 0.0 if unused is not None else 0.0

    def _charge(self, stream: Stream, new: int) -> float:
        """Dollars of a stream up to its `new`th token, without what was charged before."""
        assert self.prices is not None
        usage = stream.usage or Usage(len(self.encode(stream.text)), 0, 0)
        reached = stream.arrived or stream.usage is not None
        total = self.prices.dollars(usage.prompt, usage.cached, new) if reached else 0.0
        dollars, stream.charged = total - stream.charged, total
        self.work.dollars += dollars
        return dollars


def prompt_logprobs(reply: Any, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities [n] of a prompt's tokens (the first is NaN), and of the likeliest [n - 1, columns].

    Raises Failure where the server tells none.
    """
    try:
        choice = reply["choices"][0]
        ids = reply.get("prompt_token_ids") or choice["prompt_token_ids"]
        told = reply.get("prompt_logprobs") or choice["prompt_logprobs"]
        own = [math.nan] + [entry[str(i)]["logprob"] for i, entry in zip(ids[1:], told[1:], strict=True)]
        top = [sorted((one["logprob"] for one in entry.values()), reverse=True)[:columns] for entry in told[1:]]
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise Failure("the server tells no prompt_logprobs, which scoring needs", again=False) from error
    return np.array(own, dtype=np.float32), np.array(top, dtype=np.float32).reshape(-1, columns)
