"""Calls that are one request and one reply: a text is continued by sending it along, where the server allows that.

`SingleRequests.generate` builds the request, sends it through `client.ServerPool` until an attempt succeeds, reads the
reply (`replies.Reply`) and makes a `Completion` of it. `stream` is the other way to generate. A call that reports its
tokens gets the same reply as a stream.
"""

from __future__ import annotations

import time
import zlib
from contextlib import aclosing
from typing import Any

import numpy as np
import openai

from lm_eval_tandem.engines import Completion, OnTokens, Prompt, Sampling, TokenStats
from lm_eval_tandem.engines.entropy import EntropyMethod, entropy_bounds
from lm_eval_tandem.engines.http.assembled import AssembledReply
from lm_eval_tandem.engines.http.client import ServerPool
from lm_eval_tandem.engines.http.options import CHAT_PATH, COMPLETIONS_PATH, Options
from lm_eval_tandem.engines.http.replies import Reply, Usage, prompt_logprobs
from lm_eval_tandem.engines.http.retries import Retries
from lm_eval_tandem.engines.http.text import (
    TokenCounter,
    decode_chat,
    decode_reply,
    encode_reply,
    server_ids,
)
from lm_eval_tandem.engines.stopping import answer_text
from lm_eval_tandem.engines.token_reports import TokenReports
from lm_eval_tandem.errors import EngineError

MAX_STOP_STRINGS = 4
"""Stop strings that the protocol allows; further ones are applied to the reply alone."""


class SingleRequests:
    """Generates and scores by one request for each call.

    Parameters
    ----------
    servers
        Where requests go; their options and totals are used.
    counter
        Counts tokens where the server does not.
    resume
        How a text is continued: "ids" (the token ids of prompt and text are the new prompt) or "prefix" (the text is
        the start of the assistant's message). With "stream" a text cannot be continued here.
    vocabulary
        Number of tokens of the vocabulary, for estimated entropies.
    """

    def __init__(self, servers: ServerPool, counter: TokenCounter, resume: str, vocabulary: int) -> None:
        self._servers, self._counter, self._resume, self._vocabulary = servers, counter, resume, vocabulary
        self._options, self._work = servers.options, servers.work
        self._prompt_ids: dict[str, tuple[str, list[int]]] = {}
        self._streams = True  # until a server refuses it

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`."""
        started = time.perf_counter()
        path, body = await self._request(prompt, sampling)
        name = call_name(prompt, sampling)
        retries = self._servers.retries(name)
        session, may_be_empty = prompt.session or name, bool(prompt.continued)
        if prompt.on_tokens is None or not self._streams:
            reply = await self._reply(path, body, session, retries, may_be_empty)
        else:
            reply = await self._streamed_reply(path, body, session, retries, may_be_empty, prompt.on_tokens)
        if prompt.session is not None and not prompt.continued and reply.prompt_ids:
            self._prompt_ids[prompt.session] = prompt.text, list(reply.prompt_ids)
        text, stopped = answer_text(reply.content, sampling.stop, self._options.think_end_token)
        usage = reply.usage or self._estimated_usage(prompt, reply)
        dollars = self._count(usage, retries)
        seconds = time.perf_counter() - started
        self._work.generate_seconds += seconds
        return Completion(
            text=text,
            token_ids=encode_reply(reply.text, reply.ids),
            finish_reason="stop" if stopped else reply.finish_reason,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.cached,
            seconds=seconds,
            counted=usage.new,
            dollars=dollars,
        )

    async def score(self, prompt: Prompt, method: EntropyMethod) -> TokenStats:
        """Statistics of a prompt from a vLLM server, with estimated entropies; see `Engine.score`."""
        started = time.perf_counter()
        path, body = await self._request(prompt, Sampling(max_tokens=1))
        body |= {"prompt_logprobs": method.columns, "return_token_ids": True}

        async def attempt(number: int) -> tuple[TokenStats, Usage | None]:
            reply = await self._servers.post(path, body, prompt.session or prompt.text, number)
            logprob, top = prompt_logprobs(reply, method.columns)
            least, most = entropy_bounds(top, self._vocabulary)
            entropy = np.concatenate([[np.nan], (least + most) / 2]).astype(np.float32)
            self._work.estimated_entropies += len(top)
            self._work.entropy_error += float((most - least).sum()) / 2
            return TokenStats(logprob, entropy, 0, time.perf_counter() - started), Usage.of(reply)

        retries = self._servers.retries("score")
        stats, usage = await self._servers.retry(attempt, retries)
        self._count(usage or Usage(len(stats), 0, 1), retries)
        self._work.judge_seconds += stats.seconds
        return stats

    def forget(self, session: str) -> None:
        """Free what is kept for the session."""
        self._prompt_ids.pop(session, None)

    async def _request(self, prompt: Prompt, sampling: Sampling) -> tuple[str, dict[str, Any]]:
        """The request's path and body; text generated so far is included as `resume` requires."""
        body = request_body(self._options, sampling, return_ids=self._resume == "ids")
        if prompt.continued and self._resume == "ids":
            ids = await self._ids_of_prompt(prompt) + server_ids(prompt.continued)
            return COMPLETIONS_PATH, {**body, "prompt": ids}
        path, fields = prompt_fields(self._servers, self._counter, self._resume, prompt)
        return path, body | fields

    async def _ids_of_prompt(self, prompt: Prompt) -> list[int]:
        """The server's token ids of the prompt's text.

        They are requested again where another process had made the session's first call and its result came from a
        store.
        """
        if self._options.send_ids:
            return self._counter.encode(prompt.text)
        text, ids = self._prompt_ids.get(prompt.session or "", ("", []))
        if text != prompt.text:
            path, body = await self._request(Prompt(prompt.text, session=prompt.session), Sampling(max_tokens=1))
            retries = self._servers.retries("ids")
            reply = await self._reply(path, body, prompt.session or "ids", retries)
            self._count(reply.usage or self._estimated_usage(prompt, reply), retries)
            ids = list(reply.prompt_ids)
            if prompt.session is not None:
                self._prompt_ids[prompt.session] = prompt.text, ids
        return ids

    async def _reply(
        self, path: str, body: dict[str, Any], session: str, retries: Retries, may_be_empty: bool = False
    ) -> Reply:
        async def attempt(number: int) -> Reply:
            return Reply.of(await self._servers.post(path, body, session, number), may_be_empty)

        return await self._servers.retry(attempt, retries)

    async def _streamed_reply(
        self,
        path: str,
        body: dict[str, Any],
        session: str,
        retries: Retries,
        may_be_empty: bool,
        on_tokens: OnTokens,
    ) -> Reply:
        """The same reply by a stream, whose text is reported; from a server that does not stream, in one piece."""
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        reports = TokenReports(on_tokens)

        async def attempt(number: int) -> Reply:
            reply = AssembledReply(reports)
            try:
                async with aclosing(self._servers.chunks(path, streamed, session, number, True)) as chunks:
                    async for chunk in chunks:
                        reply.add(chunk)
                        self._servers.separates_thoughts |= reply.has_thought
                lacks_ids = "return_token_ids" in self._servers.supported(body) and not reply.ids
            except (openai.BadRequestError, openai.UnprocessableEntityError):
                lacks_ids = True
            except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
                raise self._servers.errors.failure(error) from error
            if not lacks_ids:
                return Reply.of(reply.whole, may_be_empty)
            # A later call may continue from the ids; and a refused request may be one that is refused as a stream.
            whole = Reply.of(await self._servers.post(path, body, session, number), may_be_empty)
            self._streams = False
            return whole

        return await self._servers.retry(attempt, retries)

    def _estimated_usage(self, prompt: Prompt, reply: Reply) -> Usage:
        """For servers that report none."""
        continued = self._counter.count(decode_reply(prompt.continued))
        new = len(reply.ids) or self._counter.count(reply.text)
        return Usage(len(self._counter.encode(prompt.text)) + continued, 0, new)

    def _count(self, usage: Usage, retries: Retries) -> float | None:
        """Add a call to the engine's work.

        Returns
        -------
        float or None
            Its dollars; each failed attempt that the server bills costs its prompt. None without prices.
        """
        self._work.prefill_tokens += usage.prompt - usage.cached
        self._work.decode_tokens += usage.new
        prices = self._options.prices
        if prices is None:
            return None
        billed_failures = sum(failure.billed for failure in retries.failures)
        dollars = prices.dollars(usage.prompt, usage.cached, usage.new)
        dollars += prices.dollars(usage.prompt * billed_failures, 0, 0)
        self._work.dollars += dollars
        return dollars


def request_body(options: Options, sampling: Sampling, return_ids: bool) -> dict[str, Any]:
    """The body of a request without its prompt.

    Parameters
    ----------
    options, sampling
        What is sent; values of None are left out.
    return_ids
        Whether to request the server's token ids of prompt and reply.
    """
    # Many servers would search the thinking, too.
    thinks = options.think_end_token or options.enable_thinking or options.reasoning_effort
    stop = [] if thinks else [word for word in sampling.stop if word]
    body: dict[str, Any] = {
        "model": options.model,
        "max_tokens": sampling.max_tokens,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "stop": stop[:MAX_STOP_STRINGS] or None,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repetition_penalty": sampling.repetition_penalty,
        "reasoning_effort": options.reasoning_effort,
        "return_token_ids": True if return_ids else None,
    }
    if options.enable_thinking is not None:
        body["chat_template_kwargs"] = {"enable_thinking": options.enable_thinking}
    return {name: value for name, value in body.items() if value is not None} | dict(options.extra_body)


def prompt_fields(
    servers: ServerPool, counter: TokenCounter, resume: str, prompt: Prompt, plain_as_chat: bool = False
) -> tuple[str, dict[str, Any]]:
    """The path of a request and the fields that hold its prompt, with the text generated so far.

    Parameters
    ----------
    servers, counter
        Where the request goes, and what encodes it with `send_ids`.
    resume
        Whether a partial answer can be continued: not with "stream".
    prompt
        The prompt.
    plain_as_chat
        Whether plain text is sent as a user's message.

    Raises
    ------
    EngineError
        The server cannot continue a partial answer, and there is one.
    """
    # `text` is the partial answer after the messages or, without messages, the plain prompt.
    messages, text = decode_chat(prompt.text)
    so_far = decode_reply(prompt.continued)
    if servers.options.send_ids:
        return COMPLETIONS_PATH, {"prompt": counter.encode(prompt.text + so_far)}
    if messages is None and (plain_as_chat or not servers.has_completions):
        messages, text = (("user", text),), ""
    text += so_far
    if messages is None:
        return COMPLETIONS_PATH, {"prompt": text}
    turns = [{"role": role, "content": content} for role, content in messages]
    if not text:
        return CHAT_PATH, {"messages": turns}
    if resume == "stream":
        raise EngineError(
            f"the server of {servers.options.model} cannot continue a partial answer (resume=stream), and this run "
            "needs it; use another policy or guidance, or resume=prefix or send_ids=True where the server can."
        )
    turns.append({"role": "assistant", "content": text})
    return CHAT_PATH, {"messages": turns, "add_generation_prompt": False, "continue_final_message": True}


def call_name(prompt: Prompt, sampling: Sampling) -> str:
    """A name for a call that is the same in every run; it seeds the jitter of its retries."""
    return f"{sampling.seed}/{zlib.crc32(prompt.text.encode('utf-8', 'replace'))}/{len(prompt.continued)}"
