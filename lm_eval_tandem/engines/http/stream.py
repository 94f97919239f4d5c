"""One stream per question, kept open from stage to stage, for servers that cannot continue a text.

The first call of a session opens a stream that is long enough for all stages (`Prompt.horizon`). Each call reads on up
to its own budget (`OpenStreams.generate`); `OpenStreams.release` closes the stream, so that the server stops
generating, and accounts for what had arrived unread.

A stream that breaks is opened again. The server then generates the same text once more; what earlier calls have
returned of it is skipped. Where it generates another text, it is asked in a further message to continue the old one.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from lm_eval_tandem.engines import Completion, Prompt, Sampling, UnreadOutput
from lm_eval_tandem.engines.http.client import ServerPool
from lm_eval_tandem.engines.http.failures import Failure
from lm_eval_tandem.engines.http.replies import (
    THINK_CLOSE,
    THINK_OPEN,
    Delta,
    Piece,
    Usage,
    empty_reply,
    whole_characters,
)
from lm_eval_tandem.engines.http.retries import Retries
from lm_eval_tandem.engines.http.single import call_name, request_body
from lm_eval_tandem.engines.http.text import (
    CONTINUE_REQUEST,
    Counting,
    TokenCounter,
    decode_chat,
    decode_reply,
    encode_reply,
)
from lm_eval_tandem.engines.stopping import answer_text


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
    """

    def __init__(self, servers: ServerPool, counter: TokenCounter, counting: Counting, window: int) -> None:
        self._servers, self._counter, self._counting, self._window = servers, counter, counting, window
        self._options, self._work, self._prices = servers.options, servers.work, servers.options.prices
        self._streams: dict[str, Stream] = {}

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        """See `Engine.generate`: read on in the session's stream, or open one that gets to the same place."""
        started = time.perf_counter()
        assert prompt.session is not None
        retries = self._servers.retries(call_name(prompt, sampling))
        replays, dollars = True, 0.0
        while True:
            stream = self._streams.get(prompt.session)
            try:
                if stream is None or (stream.prompt_text, stream.returned) != (prompt.text, prompt.continued):
                    dollars += self._abandon(prompt.session)
                    stream = self._open(prompt, sampling, retries, replays)
                read, finish_reason = await stream.read(sampling.max_tokens, self._options.timeout)
                if not (read.text or prompt.continued):
                    raise empty_reply(finish_reason, stream.usage)
                break
            except ReplayDiverged:
                dollars += self._abandon(prompt.session)
                replays = False
            except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
                self._work.failed_calls += 1
                dollars += self._abandon(prompt.session)
                await retries.wait_after(self._servers.errors.failure(error))
        token_ids = encode_reply(read.text)
        stream.returned += token_ids
        text, stopped = answer_text(read.content, sampling.stop, self._options.think_end_token)
        dollars += self._charge(stream, stream.replayed_tokens + stream.read_tokens) or 0.0
        usage = stream.usage or self._prompt_usage(prompt.text)
        new_prompt = stream.count_prompt(usage.prompt - usage.cached)
        self._work.decode_tokens += read.tokens
        seconds = time.perf_counter() - started
        self._work.generate_seconds += seconds
        return Completion(
            text=text,
            token_ids=token_ids,
            finish_reason="stop" if stopped else finish_reason,
            prompt_tokens=usage.prompt,
            cached_tokens=usage.prompt - new_prompt,
            seconds=seconds,
            counted=read.tokens,
            dollars=None if self._prices is None else dollars,
        )

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

    def _open(self, prompt: Prompt, sampling: Sampling, retries: Retries, replays: bool) -> Stream:
        """A new stream for the session.

        Of a text that has been started already, the server repeats the start (`replays`), or it gets the start as a
        message and is asked to continue it.
        """
        assert prompt.session is not None
        messages, plain_text = decode_chat(prompt.text)
        turns = [("user", plain_text)] if messages is None else [*messages]
        so_far = decode_reply(prompt.continued)
        if not replays:
            turns += [("assistant", so_far), ("user", CONTINUE_REQUEST)]
        # Room for the replayed text: half a token per character is more than enough.
        needed = (prompt.horizon or sampling.max_tokens) + (len(so_far) // 2 if replays else 0)
        prompt_tokens = len(self._counter.encode(prompt.text))
        limit = min(needed, max(1, self._window - prompt_tokens))
        exact = self._counting in ("by pieces", "by the server")
        replay = so_far if replays else ""
        stream = Stream(prompt.text, prompt.continued, replay, self._tokens_of, limit if exact else None)
        body = request_body(self._options, sampling, return_ids=self._counting == "by the server") | {
            "max_tokens": limit,
            "messages": [{"role": role, "content": content} for role, content in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        stream.start(self._servers.stream(stream.started, body, prompt.session, retries))
        if prompt.continued:
            stream.count_prompt(prompt_tokens)  # an earlier stream has read it
        self._streams[prompt.session] = stream
        self._work.prefill_tokens += prompt_tokens
        return stream

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


class Stream:
    """One answer that a server is generating: what has arrived, and how much of it calls have read.

    Parameters
    ----------
    prompt_text
        The text of the prompt.
    returned
        What earlier calls have returned for it, as encoded by `encode_reply`.
    replay
        Text that the server generates once more and that is skipped; "" where the stream starts with new text.
    count_tokens
        Number of tokens of a piece's text, for servers that return no token ids.
    limit
        Number of tokens at which the server ends the stream; None where tokens are estimated.

    Attributes
    ----------
    usage
        As the server reports it, usually at the end.
    read_tokens
        Tokens that calls have read.
    replayed_tokens
        Tokens of `replay`, which calls do not get.
    pieces
        Number of pieces that have arrived.
    charged_dollars
        What completions account for so far.
    counted_prompt
        The same of the prompt's tokens.
    """

    def __init__(
        self,
        prompt_text: str,
        returned: tuple[int, ...],
        replay: str,
        count_tokens: Callable[[str], int],
        limit: int | None = None,
    ) -> None:
        self.prompt_text, self.returned = prompt_text, returned
        self.started = asyncio.Event()
        self.usage: Usage | None = None
        self.charged_dollars: float = 0.0
        self.counted_prompt = 0
        self.read_tokens = 0
        self.replayed_tokens = 0
        self.pieces = self._tokens = 0
        self._replay = replay
        self._count_tokens = count_tokens
        self._limit = limit
        self._unread: deque[Piece] = deque()
        self._changed = asyncio.Event()
        self._finish_reason: str | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._thinking = False
        self._half = ""  # the first half of a character whose second half comes with the next chunk
        self._task: asyncio.Task[None] | None = None

    def count_prompt(self, tokens: int) -> int:
        """Tokens of the prompt that no completion accounts for yet, which one does from now on.

        A stream reads its prompt once. The first completion counts it, by an estimate where the server has not yet
        reported its usage; the one that comes after the report corrects that, by a negative number if it has to.
        """
        new, self.counted_prompt = tokens - self.counted_prompt, tokens
        return new

    # Receiving

    def start(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Receive chunks in a task of the running event loop from now on."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._receive(chunks))

    def close(self) -> None:
        """Close the connection, from any thread; the server then stops generating."""
        if self._task is not None and not self._task.done():
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def _receive(self, chunks: AsyncGenerator[Any, None]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._add(chunk)
                    self._changed.set()
            if self._finish_reason is None:
                raise Failure("the stream broke off", billed=True)
            self._ended = True
        except Exception as error:  # raised again in `read`
            self._failure = error
        finally:
            if not self._over:
                self._failure = Failure("the stream was closed")
            self.started.set()
            self._changed.set()

    def _add(self, chunk: Any) -> None:
        delta = Delta.of(chunk)
        self.usage = Usage.of(chunk) or self.usage
        if delta is None:
            return
        thought, half = whole_characters(self._half + delta.thought)
        content, self._half = whole_characters(half + delta.content)
        self._finish_reason = delta.finish_reason or self._finish_reason
        # A chunk without text is one token if its content is empty: a token that holds only the first bytes of a
        # character. Chunks that announce a role or the end are not tokens.
        if not (thought or content or delta.ids) and (delta.marker or self._finish_reason):
            return
        tokens = self._count_tokens(thought + content) if delta.ids is None else len(delta.ids)
        piece = Piece(self._with_think_marks(thought, content), content, tokens)
        self.pieces += 1
        self._tokens += piece.tokens
        self._unread.append(self._without_replay(piece))

    def _with_think_marks(self, thought: str, content: str) -> str:
        text = thought
        if thought and not self._thinking:
            self._thinking, text = True, THINK_OPEN + thought
        if content and self._thinking:
            self._thinking, text = False, text + THINK_CLOSE
        return text + content

    def _without_replay(self, piece: Piece) -> Piece:
        """The part of a piece that is not repeated text. Raises ReplayDiverged where the server repeats another."""
        if not self._replay:
            return piece
        n = min(len(self._replay), len(piece.text))
        if self._replay[:n] != piece.text[:n]:
            raise ReplayDiverged
        self._replay = self._replay[n:]
        n_new = len(piece.text) - n
        replayed = piece.tokens if not n_new else 0
        self.replayed_tokens += replayed
        content = piece.content[len(piece.content) - min(n_new, len(piece.content)) :] if n_new else ""
        return Piece(piece.text[n:], content, piece.tokens - replayed)

    # Reading

    async def read(self, budget: int, timeout: float) -> tuple[Piece, str]:
        """The next tokens.

        Parameters
        ----------
        budget
            Largest number of tokens to read.
        timeout
            Seconds to wait for each chunk.

        Returns
        -------
        piece : Piece
        finish_reason : str
            "length" where the budget is used up, otherwise how the stream ended.

        Raises
        ------
        Failure
            The stream broke; what this call had read by then is lost. Exceptions of the client library are raised as
            they are.
        ReplayDiverged
            The server generates another text than the one to be skipped.
        """
        await self.started.wait()
        read = Piece("", "", 0)
        while read.tokens < budget:
            while not self._unread and self._task is not None and not self._over:
                await self._wait_for_change(timeout)
            if not self._unread:
                if self._failure is not None:
                    raise self._failure
                break
            piece = self._unread.popleft()
            if read.tokens + piece.tokens > budget:
                piece, rest = piece.split(budget - read.tokens)
                self._unread.appendleft(rest)
            read = Piece(read.text + piece.text, read.content + piece.content, read.tokens + piece.tokens)
        while self._fully_read and not self._over:
            await self._wait_for_change(timeout)
        ended = self._ended and not self._unread
        if ended and self.usage is not None:
            # The server's own count, hidden reasoning included, replaces what was counted piece by piece.
            read.tokens = max(0, self.usage.new - self.replayed_tokens - self.read_tokens)
        self.read_tokens += read.tokens
        return read, (self._finish_reason or "stop") if ended else "length"

    async def _wait_for_change(self, timeout: float) -> None:
        # `asyncio.wait_for` would lose a cancellation that arrives together with the change (Python < 3.12).
        self._changed.clear()
        waiting = asyncio.ensure_future(self._changed.wait())
        try:
            done, _ = await asyncio.wait({waiting}, timeout=timeout)
        finally:
            waiting.cancel()
        if not done:
            raise asyncio.TimeoutError

    @property
    def _fully_read(self) -> bool:
        """All of the answer has been read; only the server's usage, by which it is billed, may still arrive."""
        if self._unread or self._task is None:
            return False
        return self._finish_reason is not None or (self._limit is not None and self._tokens >= self._limit)

    @property
    def _over(self) -> bool:
        return self._ended or self._failure is not None

    @property
    def arrived_tokens(self) -> int:
        """Number of tokens that the server has sent, by its own count where it has given one."""
        return max(self._tokens, self.usage.new if self.usage is not None else 0)

    @property
    def unread_tokens(self) -> int:
        """Number of tokens that have arrived and that no call has read."""
        return max(0, self.arrived_tokens - self.replayed_tokens - self.read_tokens)


class ReplayDiverged(Exception):
    """A server generates another text than the one that it was expected to repeat."""
