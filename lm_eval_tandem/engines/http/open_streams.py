"""One stream per question, kept open from call to call, for texts that are judged before they are complete.

The first call of a session opens a stream that is long enough for all its calls (`Prompt.horizon`): a mentor's up to
the last stage, an intern's up to the end of the answer. Each call reads on up to its own limits
(`OpenStreams.generate`); `OpenStreams.release` closes the stream, so that the server stops generating, and accounts for
what had arrived unread.

A stream that breaks, or that was closed too early, is opened again. The server then generates the same text once more;
what earlier calls have returned of it is skipped. Where it generates another text, it is asked to continue the old one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from lm_eval_tandem.engines import Completion, Prompt, Sampling, UnreadOutput
from lm_eval_tandem.engines.http.client import ServerPool
from lm_eval_tandem.engines.http.logprobs import LogprobRequest
from lm_eval_tandem.engines.http.replies import Piece, Usage, empty_reply, without_thinking
from lm_eval_tandem.engines.http.retries import Retries
from lm_eval_tandem.engines.http.single import call_name, prompt_fields, request_body
from lm_eval_tandem.engines.http.stream import ReplayDiverged, Stream
from lm_eval_tandem.engines.http.text import (
    CONTINUE_REQUEST,
    Counting,
    TokenCounter,
    decode_chat,
    decode_reply,
    encode_chat,
    encode_reply,
)
from lm_eval_tandem.engines.stopping import answer_text
from lm_eval_tandem.engines.token_reports import TokenReports
from lm_eval_tandem.errors import EngineError


class OpenStreams:
    """The open streams of an engine, one for each session.

    Parameters
    ----------
    servers
        Where streams are opened; their options and totals are used.
    counter
        Counts tokens where the server does not.
    counting
        How the tokens of a stream are counted.
    window
        Largest number of prompt and new tokens together.
    resume
        Whether the server can continue a partial answer: not with "stream".

    Attributes
    ----------
    logprobs
        Which log-probabilities measured calls ask for; None for an engine that measures nothing. Where it is set, the
        streams are answers: plain text goes to the completions endpoint, and tokens are counted by log-probabilities.
    """

    def __init__(
        self, servers: ServerPool, counter: TokenCounter, counting: Counting, window: int, resume: str
    ) -> None:
        self._servers, self._counter, self._counting, self._window = servers, counter, counting, window
        self._options, self._work, self._prices = servers.options, servers.work, servers.options.prices
        self._resume = resume
        self.logprobs: LogprobRequest | None = None
        self._streams: dict[str, Stream] = {}
        self._single_calls = count()

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`: read on in the session's stream, or open one that gets to the same place."""
        if prompt.session is not None:
            return await self._generate(prompt.session, prompt, sampling)
        session = f"single call {next(self._single_calls)}"
        try:
            return await self._generate(session, prompt, sampling)
        finally:
            self.release(session)

    async def _generate(self, session: str, prompt: Prompt, sampling: Sampling) -> Completion:
        started = time.perf_counter()
        retries = self._servers.retries(call_name(prompt, sampling))
        replays, dollars = sampling.temperature == 0, 0.0
        ends = self._end_of(prompt, sampling)
        reports = None if prompt.on_tokens is None else TokenReports(prompt.on_tokens)
        while True:
            stream = self._streams.get(session)
            try:
                unmeasured = sampling.return_token_stats and stream is not None and stream.logprobs != self.logprobs
                if stream is None or unmeasured or not stream.is_at(prompt):
                    dollars += self._abandon(session)
                    stream = self._open(session, prompt, sampling, retries, replays)
                on_text = None if reports is None else self._reported(stream, reports)
                read, finish_reason = await stream.read(
                    sampling.max_tokens, self._options.timeout, sampling.max_entropy, ends, on_text
                )
                if not (read.text or read.measured or prompt.continued):
                    raise empty_reply(finish_reason, stream.usage)
                break
            except ReplayDiverged:
                dollars += self._abandon(session)
                replays = False
            except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
                self._work.failed_calls += 1
                dollars += self._abandon(session)
                await retries.wait_after(self._servers.errors.failure(error))
        token_ids = encode_reply(read.text, read.ids if stream.logprobs else ())
        stream.returned += token_ids
        text, stopped = answer_text(read.content, sampling.stop, self._options.think_end_token)
        dollars += self._charge(stream, stream.replayed_tokens + stream.read_tokens) or 0.0
        usage = stream.usage or self._prompt_usage(prompt.text)
        new_prompt = stream.count_prompt(usage.prompt - usage.cached)
        self._work.decode_tokens += read.tokens
        seconds = time.perf_counter() - started
        self._work.generate_seconds += seconds
        if finish_reason == "stop" and stream.generates:
            dollars += self._abandon(session)  # a stop string, which the server was not told
        return Completion(
            text=text,
            token_ids=token_ids,
            finish_reason="stop" if stopped else finish_reason,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.prompt - new_prompt,
            seconds=seconds,
            counted=read.tokens,
            dollars=None if self._prices is None else dollars,
            **self._statistics(read, sampling),
        )

    def _statistics(self, read: Piece, sampling: Sampling) -> dict[str, Any]:
        """Those of a completion, where the call asks for them."""
        if not sampling.return_token_stats:
            return {}
        self._work.estimated_entropies += len(read.measured)
        self._work.entropy_error += sum(read.measured.error)
        values = {"logprob": read.measured.logprob, "entropy": read.measured.entropy}
        return {name: np.array(value, dtype=np.float32) for name, value in values.items()}

    def _reported(self, stream: Stream, reports: TokenReports) -> Callable[[str], None]:
        """Reports the bytes of a text that is read in pieces."""
        reported = 0

        def report(text: str) -> None:
            nonlocal reported
            self._servers.separates_thoughts |= stream.has_thought
            data = encode_reply(text)
            reports.add(reported, data)
            reported += len(data)

        return report

    def _end_of(self, prompt: Prompt, sampling: Sampling) -> Callable[[str], bool] | None:
        """Whether an answer has a stop string with the content read so far; None where it has none to look for.

        Servers look for a few stop strings themselves, and for none in the answer of a model that thinks.
        """
        stop, think_end = [word for word in sampling.stop if word], self._options.think_end_token
        if not stop:
            return None
        before = without_thinking(decode_reply(prompt.continued))

        def ends(content: str) -> bool:
            text = before + content
            return (not think_end or think_end in text) and answer_text(text, stop, think_end)[1]

        return ends

    def release(self, session: str) -> UnreadOutput | None:
        """See `Engine.release`: close the session's stream, so that the server stops generating."""
        stream = self._streams.pop(session, None)
        if stream is None:
            return None
        stream.close()
        unread = stream.unread_tokens
        self._work.decode_tokens += unread
        dollars = self._charge(stream, stream.arrived_tokens)
        return UnreadOutput(unread, dollars) if unread or dollars else None

    def close(self) -> None:
        """Close all streams."""
        for session in list(self._streams):
            self.release(session)

    def _open(self, session: str, prompt: Prompt, sampling: Sampling, retries: Retries, replays: bool) -> Stream:
        """A new stream for the session.

        Of a text that has been started already, the server repeats the start (`replays`), or it gets the start and is
        asked to continue it.
        """
        so_far = decode_reply(prompt.continued)
        path, fields = self._prompt_fields(prompt, so_far if not replays else "")
        logprobs = self._logprobs_of(sampling, path)
        # Room for the replayed text: half a token per character is more than enough for a mentor's.
        replayed = len(so_far.encode("utf-8", "replace")) if logprobs is not None else len(so_far) // 2
        needed = (prompt.horizon or sampling.max_tokens) + (replayed if replays else 0)
        prompt_tokens = len(self._counter.encode(prompt.text))
        limit = min(needed, max(1, self._window - prompt_tokens))
        exact = logprobs is not None or self._counting in ("by pieces", "by the server")
        replay = so_far if replays else ""
        stream = Stream(prompt.text, prompt.continued, replay, self._tokens_of, limit if exact else None, logprobs)
        body = request_body(self._options, sampling, return_ids=self._counting == "by the server") | {
            "max_tokens": limit,
            "stream": True,
            "stream_options": {"include_usage": True},
            **fields,
            **({} if logprobs is None else logprobs.fields(path)),
        }
        stream.start(self._servers.stream(stream.started, path, body, session, retries))
        if prompt.continued:
            stream.count_prompt(prompt_tokens)  # an earlier stream has read it
        self._streams[session] = stream
        self._work.prefill_tokens += prompt_tokens
        return stream

    def _prompt_fields(self, prompt: Prompt, so_far: str) -> tuple[str, dict[str, Any]]:
        """Path and fields of a request for the prompt, in which a text `so_far` is to be continued."""
        plain_as_chat = self.logprobs is None
        messages, _ = decode_chat(prompt.text)
        if so_far and self._resume == "stream" and (messages is not None or plain_as_chat):
            turns = (("user", prompt.text),) if messages is None else messages
            text = encode_chat((*turns, ("assistant", so_far), ("user", CONTINUE_REQUEST)))
            prompt, so_far = Prompt(text), ""
        continued = replace(prompt, continued=encode_reply(so_far))
        return prompt_fields(self._servers, self._counter, self._resume, continued, plain_as_chat)

    def _logprobs_of(self, sampling: Sampling, path: str) -> LogprobRequest | None:
        """What a stream asks for: all that is measured, or one per token, by which tokens are counted, or none.

        Raises
        ------
        EngineError
            The call is to be measured, and the server reports none at this endpoint.
        """
        request = self.logprobs
        if request is None or (path in request.refused and not sampling.return_token_stats):
            return None
        if path in request.refused:
            raise EngineError(request.refused[path])
        return request if sampling.return_token_stats else replace(request, columns=1)

    def _abandon(self, session: str) -> float:
        """Close a stream before its end; dollars that it has cost beyond what is charged already."""
        unread = self.release(session)
        return unread.dollars or 0.0 if unread is not None else 0.0

    def _charge(self, stream: Stream, new_tokens: int) -> float | None:
        """Dollars of a stream up to its `new_tokens`-th token, without what was charged before; None without prices."""
        if self._prices is None:
            return None
        usage = stream.usage or self._prompt_usage(stream.prompt_text)
        billed = stream.arrived_tokens or stream.usage is not None
        total = self._prices.dollars(usage.prompt, usage.cached, new_tokens) if billed else 0.0
        dollars, stream.charged_dollars = total - stream.charged_dollars, total
        self._work.dollars += dollars
        return dollars

    def _prompt_usage(self, prompt_text: str) -> Usage:
        return Usage(len(self._counter.encode(prompt_text)), 0, 0)

    def _tokens_of(self, text: str) -> int:
        """Number of tokens of a piece for which the server returns no token ids."""
        return 1 if self._counting == "by pieces" else max(1, self._counter.count(text))
