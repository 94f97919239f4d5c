"""One answer that a server is generating: what has arrived, and how much of it calls have read.

`open_streams` keeps one `Stream` for each question and makes calls of it.
"""

from __future__ import annotations

import asyncio
import codecs
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import numpy as np

from lm_eval_tandem.engines import Prompt
from lm_eval_tandem.engines.entropy import Values
from lm_eval_tandem.engines.http.failures import Failure
from lm_eval_tandem.engines.http.logprobs import Coverage, LogprobRequest, Measured, wrong
from lm_eval_tandem.engines.http.replies import THINK_CLOSE, THINK_OPEN, Delta, Piece, Usage, whole_characters


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
    logprobs
        Which log-probabilities the server was asked for, by which tokens are counted then; None for none.

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
    first_top
        Log-probabilities of the most likely first tokens, where they were asked for.
    charged_dollars
        What completions account for so far.
    counted_prompt
        The same of the prompt's tokens.
    has_thought
        Whether the server has sent thinking apart from the content.
    """

    def __init__(
        self,
        prompt_text: str,
        returned: tuple[int, ...],
        replay: str,
        count_tokens: Callable[[str], int],
        limit: int | None = None,
        logprobs: LogprobRequest | None = None,
    ) -> None:
        self.prompt_text, self.returned = prompt_text, returned
        self.started = asyncio.Event()
        self.usage: Usage | None = None
        self.charged_dollars: float = 0.0
        self.counted_prompt = 0
        self.has_thought = False
        self.read_tokens = 0
        self.replayed_tokens = 0
        self.pieces = self._tokens = 0
        self._replay = replay
        self._count_tokens = count_tokens
        self._limit = limit
        self.logprobs = logprobs
        self.first_top: Values = np.empty(0, dtype=np.float32)
        self._coverage = Coverage()
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

    def is_at(self, prompt: Prompt) -> bool:
        """Whether the next tokens are those after this prompt."""
        return (self.prompt_text, self.returned) == (prompt.text, prompt.continued)

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
        delta = Delta.of(chunk, None if self.logprobs is None else self.logprobs.columns)
        self.usage = Usage.of(chunk) or self.usage
        if delta is None:
            return
        thought, half = whole_characters(self._half + delta.thought)
        content, self._half = whole_characters(half + delta.content)
        self.has_thought = self.has_thought or bool(thought)
        self._finish_reason = delta.finish_reason or self._finish_reason
        if self.logprobs is not None:
            self._add_measured(self.logprobs, delta, thought, content)
            return
        # A chunk without text is one token if its content is empty: a token that holds only the first bytes of a
        # character. Chunks that announce a role or the end are not tokens.
        if not (thought or content or delta.ids) and (delta.marker or self._finish_reason):
            return
        tokens = self._count_tokens(thought + content) if delta.ids is None else len(delta.ids)
        self._append(Piece(self._with_think_marks(thought, content), content, tokens, delta.ids or ()))

    def _add_measured(self, request: LogprobRequest, delta: Delta, thought: str, content: str) -> None:
        """Add a chunk whose tokens are those with log-probabilities, one by one where their texts are its text."""
        tokens = delta.logprobs
        if tokens and not len(self.first_top):
            self.first_top = tokens[0].top
        self._coverage.add(thought + content, tokens)
        if delta.ids is not None and len(delta.ids) != len(tokens):
            raise wrong(f"{len(tokens)} for {len(delta.ids)} tokens")
        ids = delta.ids or tuple(token.id for token in tokens if token.id is not None)
        if len(tokens) > 1 and not thought and b"".join(token.text or b"" for token in tokens) == content.encode():
            decoder = codecs.getincrementaldecoder("utf-8")()
            for i, token in enumerate(tokens):
                text = decoder.decode(token.text or b"")
                measured = Measured.of([token], request.vocabulary)
                self._append(Piece(self._with_think_marks("", text), text, 1, ids[i : i + 1], measured))
        elif tokens or thought or content:
            measured = Measured.of(tokens, request.vocabulary)
            self._append(Piece(self._with_think_marks(thought, content), content, len(tokens), ids, measured))

    def _append(self, piece: Piece) -> None:
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
        if not n_new:
            return Piece(tokens=piece.tokens - replayed)
        content = piece.content[len(piece.content) - min(n_new, len(piece.content)) :]
        return Piece(piece.text[n:], content, piece.tokens, piece.ids, piece.measured)

    # Reading

    async def read(
        self,
        budget: int,
        patience: float,
        max_entropy: float | None = None,
        ends: Callable[[str], bool] | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> tuple[Piece, str]:
        """The next tokens.

        Parameters
        ----------
        budget
            Largest number of tokens to read.
        patience
            Seconds to wait for each chunk.
        max_entropy
            In nats: the first token whose entropy is higher is the last that is read.
        ends
            Whether the answer ends with the content read so far.
        on_text
            Gets the text of each piece as it is read.

        Returns
        -------
        piece : Piece
        finish_reason : str
            "stop" where `ends` says so, "length" where the budget is used up, "max_entropy", or how the stream ended.

        Raises
        ------
        Failure
            The stream broke; what this call had read by then is lost. Exceptions of the client library are raised as
            they are.
        ReplayDiverged
            The server generates another text than the one to be skipped.
        """
        await self.started.wait()
        pieces: list[Piece] = []
        tokens, content, reason, silent = 0, "", "", False
        while tokens < budget and not reason and await self._has_arrived(patience):
            piece = self._unread.popleft()
            n = min(piece.tokens, budget - tokens)
            uncertain = piece.measured.first_above(max_entropy)
            if uncertain is not None and uncertain < n:
                n, reason = uncertain + 1, "max_entropy"
            if n < piece.tokens:
                piece, rest = piece.split(n)
                self._unread.appendleft(rest)
            pieces.append(piece)
            tokens, content = tokens + piece.tokens, content + piece.content
            if on_text is not None:
                on_text(piece.text)
            silent = bool(piece.measured) and not piece.text  # perhaps the end token: the next chunk says so
            if ends is not None and ends(content):
                reason = "stop"
        while reason != "stop":
            while self._unread and not self._unread[0].tokens:  # text of the tokens that are read
                pieces.append(self._unread.popleft())
            if self._unread or self._over or not (silent or self._fully_read):
                break
            await self._wait_for_change(patience)
            silent = silent and not self._unread
        read = Piece.joined(pieces)
        ended = self._ended and not self._unread
        if ended and self.usage is not None:
            # The server's own count, hidden reasoning included, replaces what was counted piece by piece.
            read.tokens = max(0, self.usage.new - self.replayed_tokens - self.read_tokens)
        self.read_tokens += read.tokens
        if ended and reason != "stop":
            return read, self._finish_reason or "stop"
        return read, reason or "length"

    async def _has_arrived(self, patience: float) -> bool:
        """Wait for the next piece; False where the stream has ended. Raises what broke it."""
        while not self._unread and self._task is not None and not self._over:
            await self._wait_for_change(patience)
        if not self._unread and self._failure is not None:
            raise self._failure
        return bool(self._unread)

    async def _wait_for_change(self, patience: float) -> None:
        self._changed.clear()
        async with asyncio.timeout(patience):
            await self._changed.wait()

    @property
    def _fully_read(self) -> bool:
        """All of the answer has been read; only the server's usage, by which it is billed, may still arrive."""
        if self._unread or self._task is None:
            return False
        return self._finish_reason is not None or (self._limit is not None and self._tokens >= self._limit)

    @property
    def generates(self) -> bool:
        """Whether the server may still be generating."""
        return self._task is not None and not self._over

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
