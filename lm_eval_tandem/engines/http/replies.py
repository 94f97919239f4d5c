"""What a server of the OpenAI protocol replies, whole or piece by piece, as JSON objects."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from lm_eval_tandem.engines.http.retries import Failure

OPEN, CLOSE = "<think>", "</think>"
"""Around what a server gives as `reasoning`, apart from the content: one text again, as the model wrote it."""


@dataclass(frozen=True)
class Usage:
    """Tokens as the server bills them; `new` includes hidden reasoning."""

    prompt: int
    cached: int
    new: int
    reasoning: int = 0

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Usage | None:
        """The usage of a reply or of a stream's piece, None where it says nothing."""
        told = reply.get("usage") or {}
        if "prompt_tokens" not in told:
            return None
        prompt_details = told.get("prompt_tokens_details") or {}
        new_details = told.get("completion_tokens_details") or {}
        cached = prompt_details.get("cached_tokens") or told.get("prompt_cache_hit_tokens") or 0
        reasoning = new_details.get("reasoning_tokens") or 0
        return cls(int(told["prompt_tokens"]), int(cached), int(told.get("completion_tokens") or 0), int(reasoning))


@dataclass(frozen=True)
class Reply:
    """A whole reply. written: everything, thinking in its marks; content: what is the answer."""

    written: str
    content: str
    finish_reason: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    usage: Usage | None

    @classmethod
    def of(cls, reply: Any, may_be_empty: bool = False) -> Reply:
        """Raises Failure where it is none, was refused, or holds nothing (unless a text that goes on may end here)."""
        try:
            choice = reply["choices"][0]
            message = choice.get("message") or {"content": choice["text"]}
            thought, content = thought_of(message), message.get("content") or ""
            ids = tuple(choice.get("token_ids") or ())
            prompt_ids = tuple(reply.get("prompt_token_ids") or choice.get("prompt_token_ids") or ())
            usage = Usage.of(reply)
            finish = finish_of(choice.get("finish_reason"), message.get("refusal")) or "stop"
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Failure("the server replied with something that is no completion", billed=True) from error
        written = (OPEN + thought + (CLOSE if content else "") if thought else "") + content
        if not written and not (finish == "stop" and (ids or may_be_empty)):
            raise empty(finish, usage)
        return cls(written, content, finish, ids, prompt_ids, usage)


def thought_of(message: Mapping[str, Any]) -> str:
    """What the model thought, where the server parts it from the content."""
    return str(message.get("reasoning") or message.get("reasoning_content") or "")


def finish_of(reason: str | None, refusal: str | None = None) -> str | None:
    """ "stop", "length", or None for not yet. Raises Failure where the answer was withheld."""
    if reason == "content_filter":
        raise Failure("the server's content filter withheld the answer", again=False, billed=True)
    if refusal:
        raise Failure(f"the model refused: {refusal[:100]}", again=False, billed=True)
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"


def empty(finish: str | None, usage: Usage | None) -> Failure:
    """The failure of a reply in which nothing can be read."""
    if usage is not None and usage.new and finish == "length":
        return Failure(
            f"nothing but hidden reasoning within {usage.new} tokens; raise the efforts (or max_gen_toks), "
            "or give reasoning_effort=low",
            again=False,
            billed=True,
        )
    return Failure("the reply was empty", billed=True)


@dataclass
class Piece:
    """A part of a stream: text, whether it was thought, tokens."""

    text: str
    content: str
    tokens: int

    def parted(self, tokens: int) -> tuple[Piece, Piece]:
        """The piece in two, the first with so many tokens and its share of the characters."""
        share = tokens / self.tokens
        first, rest = (round(share * len(text)) for text in (self.text, self.content))
        return (
            Piece(self.text[:first], self.content[:rest], tokens),
            Piece(self.text[first:], self.content[rest:], self.tokens - tokens),
        )


class Stream:
    """One answer while it is being written: what has arrived, and what was read of it.

    text: the prompt. told: the letters that calls have read. behind: text that the server writes once more, because
    an earlier stream was lost or another process had read it; it is passed over if it is the same. count: tokens of a
    piece's text, for servers that do not tell. limit: tokens after which the server ends; None where they are
    estimated.
    """

    def __init__(
        self, text: str, told: tuple[int, ...], behind: str, count: Callable[[str], int], limit: int | None = None
    ) -> None:
        self.text, self.told = text, told
        self.started = asyncio.Event()
        self.usage: Usage | None = None
        self.charged: float = 0.0
        self.read_tokens = 0
        self.repeated = 0
        self._count = count
        self._limit = limit
        self._behind = behind
        self._pieces: deque[Piece] = deque()
        self._news = asyncio.Event()
        self._finish: str | None = None
        self._ended = False
        self._failure: BaseException | None = None
        self._thinking = False
        self.pieces = self._tokens = 0
        self._task: asyncio.Task[None] | None = None

    def start(self, chunks: AsyncGenerator[Any, None]) -> None:
        """Take in what arrives from now on."""
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.ensure_future(self._pump(chunks))

    async def _pump(self, chunks: AsyncGenerator[Any, None]) -> None:
        try:
            async with aclosing(chunks):
                async for chunk in chunks:
                    self._take(chunk)
                    self._news.set()
            if self._finish is None:
                raise Failure("the stream broke off", billed=True)
            self._ended = True
        except Exception as error:  # whoever reads is told
            self._failure = error
        finally:
            if not self._over:
                self._failure = Failure("the stream was closed")
            self.started.set()
            self._news.set()

    def _take(self, chunk: Any) -> None:
        try:
            self.usage = Usage.of(chunk) or self.usage
            choice = (chunk.get("choices") or [None])[0]
            if choice is None:
                return
            delta = choice.get("delta") or {"content": choice.get("text")}
            self._finish = finish_of(choice.get("finish_reason"), delta.get("refusal")) or self._finish
            thought, content = thought_of(delta), delta.get("content") or ""
            ids = choice.get("token_ids")
        except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
            raise Failure("the server sent a piece that is none", billed=True) from error
        # A token that only begins a character makes a piece without text; so do roles and ends, which are none.
        if not (thought or content or ids) and (delta.get("content") is None or delta.get("role") or self._finish):
            return
        marked = self._marked(thought, content)
        piece = Piece(marked, content, self._count(thought + content) if ids is None else len(ids))
        self.pieces += 1
        self._tokens += piece.tokens
        self._pieces.append(self._beyond(piece))

    def _marked(self, thought: str, content: str) -> str:
        text = thought
        if thought and not self._thinking:
            self._thinking, text = True, OPEN + thought
        if content and self._thinking:
            self._thinking, text = False, text + CLOSE
        return text + content

    def _beyond(self, piece: Piece) -> Piece:
        """What a piece has beyond the text that is written once more. Raises Diverged where that is another text."""
        if not self._behind:
            return piece
        n = min(len(self._behind), len(piece.text))
        if self._behind[:n] != piece.text[:n]:
            raise Diverged
        self._behind = self._behind[n:]
        left = len(piece.text) - n
        repeated = piece.tokens if not left else 0
        self.repeated += repeated
        content = piece.content[len(piece.content) - min(left, len(piece.content)) :] if left else ""
        return Piece(piece.text[n:], content, piece.tokens - repeated)

    async def read(self, budget: int, timeout: float) -> tuple[Piece, str]:
        """The next tokens, up to the budget, and "length", or how the stream ended.

        Raises Failure (or what the connection raised) where it broke; what it had taken by then is lost.
        """
        await self.started.wait()
        read = Piece("", "", 0)
        while read.tokens < budget:
            while not self._pieces and self._task is not None and not self._over:
                await self._told(timeout)
            if not self._pieces:
                if self._failure is not None:
                    raise self._failure
                break
            piece = self._pieces.popleft()
            if read.tokens + piece.tokens > budget:
                piece, rest = piece.parted(budget - read.tokens)
                self._pieces.appendleft(rest)
            read = Piece(read.text + piece.text, read.content + piece.content, read.tokens + piece.tokens)
        while self._whole and not self._over:
            await self._told(timeout)
        ended = self._ended and not self._pieces
        if ended and self.usage is not None:
            # The server's own count, hidden reasoning included, settles what was counted piece by piece.
            read.tokens = max(0, self.usage.new - self.repeated - self.read_tokens)
        self.read_tokens += read.tokens
        return read, (self._finish or "stop") if ended else "length"

    async def _told(self, timeout: float) -> None:
        """Wait for news. `asyncio.wait_for` would lose a cancellation that comes together with them (Python < 3.12)."""
        self._news.clear()
        waiting = asyncio.ensure_future(self._news.wait())
        try:
            done, _ = await asyncio.wait({waiting}, timeout=timeout)
        finally:
            waiting.cancel()
        if not done:
            raise asyncio.TimeoutError

    @property
    def _whole(self) -> bool:
        """All of the answer has been read: what may still come is the server's count of it, which settles the bill."""
        if self._pieces or self._task is None:
            return False
        return self._finish is not None or (self._limit is not None and self._tokens >= self._limit)

    @property
    def _over(self) -> bool:
        return self._ended or self._failure is not None

    @property
    def arrived(self) -> int:
        """All tokens that the server has sent, by its own count where it has given one."""
        return max(self._tokens, self.usage.new if self.usage is not None else 0)

    @property
    def unread(self) -> int:
        """Tokens that arrived and were not read."""
        return max(0, self.arrived - self.repeated - self.read_tokens)

    def stop(self) -> None:
        """Close the connection: the server stops writing."""
        if self._task is not None and not self._task.done():
            self._loop.call_soon_threadsafe(self._task.cancel)


class Diverged(Exception):
    """A server writes another text than it did before."""
