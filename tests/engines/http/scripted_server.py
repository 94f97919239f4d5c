"""A server that writes given tokens with given log-probabilities, in the forms that servers are documented to use.

Nothing is computed, so a test knows what has to be read. `Kind` describes how a server's streams look.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from engines.http.listener import Listener, Request, client_left, refusal, response, usage

VOCABULARY = 1000


@dataclass(frozen=True)
class Token:
    """A token of an answer: its bytes, and its probability; others share the rest in a falling series."""

    data: bytes
    p: float = 0.9

    def distribution(self, temperature: float = 1.0) -> list[float]:
        """Log-probabilities of the whole vocabulary, this token first, then falling."""
        tail = [0.5**i for i in range(1, 40)] + [1e-13] * (VOCABULARY - 40)
        weights = [self.p, *((1 - self.p) * weight / sum(tail) for weight in tail)]
        powers = [weight ** (1 / temperature) for weight in weights]
        return [math.log(power / sum(powers)) for power in powers]

    @property
    def entropy(self) -> float:
        """In nats, of the whole vocabulary."""
        return -sum(math.exp(each) * each for each in self.distribution())


def tokens(*parts: str | tuple[bytes | str, float]) -> list[Token]:
    pairs = [part if isinstance(part, tuple) else (part, 0.9) for part in parts]
    return [Token(data.encode() if isinstance(data, str) else data, p) for data, p in pairs]


END = Token(b"", 0.8)
ANSWER = [*tokens("It", " takes", (" 3", 0.4), " coins", (", not", 0.55), " 4", "."), END]
OTHER = [*tokens("One", (" more", 0.5), " word"), END]


@dataclass(frozen=True)
class Kind:
    """How a server streams."""

    legacy_completions: bool = True
    """Whether the completions endpoint sends four lists side by side, as in OpenAI's protocol."""
    most: int = 20
    """Largest number of likely tokens; a request for more is refused."""
    most_completions: int = 20
    sends_end: bool = True
    """Whether the end token comes as a chunk of its own, without text."""
    sends_bytes: bool = True
    encodes_text: bool = False
    """Whether the bytes are those of the token's text, in which half a character is a replacement character."""
    sends_ids: bool = False
    per_chunk: int = 1
    holds_halves: bool = False
    """Whether it holds text back within a character, and then sends the log-probabilities of the last token alone."""
    ignores_logprobs: bool = False
    tempered: bool = False
    """Whether log-probabilities are those after temperature, and at temperature 0 those of the model."""
    sampled: bool = False
    """Whether they are those after temperature at temperature 0, too."""
    change: Callable[[dict[str, Any]], Any] = lambda entry: None
    """Changes an entry of a token before it is sent."""


KINDS = {
    "openai": Kind(most_completions=5, sends_end=False),
    "vllm": Kind(encodes_text=True),
    "llama.cpp": Kind(legacy_completions=False, most=10**6, most_completions=10**6, sends_ids=True, holds_halves=True),
    "sglang": Kind(encodes_text=True, per_chunk=3, tempered=True),
    "bytes left out": Kind(sends_bytes=False),
    "ollama": Kind(legacy_completions=False, sends_end=False),
}


class ScriptedServer(Listener):
    """Serves the model `script`; `script` gives the tokens of the answer to a question."""

    def __init__(self, kind: Kind, script: Callable[[str], list[Token]]) -> None:
        self.kind, self.script, self.seconds_per_token = kind, script, 0.0
        self.requests: list[dict[str, Any]] = []
        self.written: Counter[str] = Counter()
        """Number of tokens generated, by question."""
        super().__init__()

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if request.path == "/v1/models":
            writer.write(response(200, json.dumps({"object": "list", "data": [{"id": "script"}]}).encode()))
            return True
        body = json.loads(request.body)
        chat = request.path == "/v1/chat/completions"
        asked = body.get("top_logprobs", 0) if chat else int(body.get("logprobs") or 0)
        most = self.kind.most if chat else self.kind.most_completions
        if asked > most and not self.kind.ignores_logprobs:
            writer.write(refusal(400, f"Invalid value for 'top_logprobs': {asked}; at most {most}.", "top_logprobs"))
            return True
        self.requests.append(body)
        question = body["messages"][-1]["content"] if chat else str(body["prompt"])
        answer = self.script(question)[: body["max_tokens"]]
        ended = answer[-1] is END
        counts = usage(7, len(answer))
        if not body.get("stream"):
            text = b"".join(token.data for token in answer).decode("utf-8", "replace")
            choice = {"message": {"content": text}} if chat else {"text": text}
            whole = {"choices": [{**choice, "finish_reason": "stop" if ended else "length"}], "usage": counts}
            writer.write(response(200, json.dumps(whole).encode()))
            return True
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        left = asyncio.ensure_future(client_left(reader))
        for chunk in self._chunks(question, answer, body, chat, asked if body.get("logprobs") else None):
            if left.done():
                return False
            writer.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")
            await writer.drain()
            await asyncio.sleep(self.seconds_per_token)
        ends = {"delta": {}} if chat else {"text": "", "logprobs": None}
        ends |= {"index": 0, "finish_reason": "stop" if ended else "length"}
        for last in ({"choices": [ends]}, {"choices": [], "usage": counts}):
            writer.write(b"data: " + json.dumps(last).encode() + b"\n\n")
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        left.cancel()
        return False

    def _chunks(
        self, question: str, answer: list[Token], body: dict[str, Any], chat: bool, columns: int | None
    ) -> Iterator[dict[str, Any]]:
        kind = self.kind
        if chat:
            yield {"choices": [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]}
        data, group = b"", []
        for n, token in enumerate(answer, 1):
            self.written[question] += 1
            data += token.data
            if token is not END or kind.sends_end:
                group.append(token)
            whole = data.decode("utf-8", "ignore").encode() == data
            if (n % kind.per_chunk and n < len(answer)) or (kind.holds_halves and not whole) or not group:
                continue
            text = data.decode("utf-8", "replace" if n == len(answer) else "ignore")
            data = data[len(text.encode()) :] if whole or n < len(answer) else b""
            sent = group[-1:] if kind.holds_halves else group
            choice: dict[str, Any] = {"delta": {"content": text}} if chat else {"text": text}
            if columns is not None and not kind.ignores_logprobs:
                temperature = float(body.get("temperature") or 0.0)
                entries = [self._entry(each, columns, temperature) for each in sent]
                choice["logprobs"] = (
                    {"content": entries} if chat or not kind.legacy_completions else side_by_side(entries)
                )
            yield {"choices": [{"index": 0, **choice, "finish_reason": None}]}
            group = []

    def _entry(self, token: Token, columns: int, temperature: float) -> dict[str, Any]:
        kind = self.kind
        warmth = temperature or (0.2 if kind.sampled else 1.0)
        values = token.distribution(warmth if kind.tempered or kind.sampled else 1.0)
        names = [token.data.decode("utf-8", "replace") or "<end>", *(f"<{i}>" for i in range(1, VOCABULARY))]
        listed = sorted(range(VOCABULARY), key=lambda i: -values[i])[:columns]
        entry: dict[str, Any] = {
            "token": names[0],
            "logprob": values[0],
            "bytes": list(names[0].encode() if kind.encodes_text else token.data) if kind.sends_bytes else None,
            "top_logprobs": [{"token": names[i], "logprob": values[i], "bytes": None} for i in listed],
        }
        if kind.sends_ids:
            entry["id"] = token.data[0] if token.data else 0
        kind.change(entry)
        return entry


def side_by_side(entries: list[dict[str, Any]]) -> dict[str, Any]:
    """The entries in the form of the completions endpoint."""
    return {
        "tokens": [entry["token"] for entry in entries],
        "token_logprobs": [entry["logprob"] for entry in entries],
        "top_logprobs": [{one["token"]: one["logprob"] for one in entry["top_logprobs"]} for entry in entries],
        "text_offset": [-1 for _ in entries],
    }


@contextmanager
def scripted(kind: Kind, script: Callable[[str], list[Token]] = lambda question: ANSWER) -> Iterator[ScriptedServer]:
    """A server that runs until the block ends."""
    server = ScriptedServer(kind, script)
    try:
        yield server
    finally:
        server.close()
