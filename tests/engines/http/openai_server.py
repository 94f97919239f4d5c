"""A small server of the OpenAI protocol over a tiny transformers model, and a proxy that fails as networks do.

Both are real: TCP on the loopback, HTTP/1.1, server-sent events, and a model that generates token by token. The server
counts what it generates, and stops when its client has gone. `Behaviour` is what a test varies.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engines.http.listener import Listener, Request, client_left, refusal, response, usage
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine


@dataclass
class Behaviour:
    """What the server supports, and how it answers."""

    returns_ids: bool = True
    """Whether it returns token ids, accepts them as a prompt, and continues a last message."""
    has_completions: bool = True
    """Whether it continues plain text."""
    refused_parameters: tuple[str, ...] = ()
    """Parameters that it refuses, as some models refuse max_tokens or temperature."""
    seconds_per_token: float = 0.0
    tokens_per_chunk: int = 1
    pause_after: int | None = None
    """Number of tokens after which a stream pauses until its client leaves."""
    usage_delay: float = 0.0
    """Seconds from a stream's last token to the chunks that end it and report the usage."""
    reasoning_tokens: int = 0
    """Number of leading tokens of each answer that it returns as `reasoning`."""
    fixed_choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    """For questions that contain the key: the choice of the reply (a refusal, a content filter, nothing)."""
    raw_replies: dict[str, Callable[[bool], list[bytes]]] = field(default_factory=dict)
    """For questions that contain the key: what is sent in place of a reply, packet by packet; called with whether the
    request wants a stream."""


class TokenPromptEngine(HFEngine):
    """Accepts a prompt that consists of token ids alone: its text is empty."""

    def encode(self, text: str) -> list[int]:
        return super().encode(text) if text else []


class ModelServer(Listener):
    """Serves a folder of weights as the model `tiny`."""

    def __init__(self, folder: Path, behaviour: Behaviour | None = None, key: str | None = None) -> None:
        self.engine = TokenPromptEngine(
            {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": 16}
        )
        self.behaviour = behaviour or Behaviour()
        self.key = key
        self.generated = 0
        """Number of tokens generated so far."""
        self.prompted = 0
        """Number of prompt tokens read so far."""
        self.requests: list[dict[str, Any]] = []
        self.replied: Counter[str] = Counter()
        """Number of whole replies, by question."""
        self.headers: list[dict[str, str]] = []
        """Of all requests."""
        self.left = 0
        """Number of paused streams, and of requests for a whole reply, whose client has left."""
        self._session = 0
        super().__init__()

    def close(self) -> None:
        super().close()
        self.engine.close()

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        self.headers.append(request.headers)
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            given = request.headers.get("authorization", "")
            writer.write(refusal(401, f"Incorrect API key provided: {given.removeprefix('Bearer ')}"))
            return True
        if request.path == "/v1/models":
            entry = {"id": "tiny", "object": "model", "max_model_len": self.engine.window}
            writer.write(response(200, json.dumps({"object": "list", "data": [entry]}).encode()))
            return True
        body = json.loads(request.body)
        chat = request.path == "/v1/chat/completions"
        if request.path == "/v1/completions" and not self.behaviour.has_completions:
            writer.write(refusal(404, "This is a chat model and not supported in the v1/completions endpoint."))
            return True
        if body["model"] != "tiny":
            writer.write(refusal(404, f"The model {body['model']} does not exist."))
            return True
        for name in self.behaviour.refused_parameters:
            if name in body:
                writer.write(refusal(400, f"Unsupported parameter: '{name}' is not supported.", name))
                return True
        self.requests.append(body)
        return await self._complete(body, chat, reader, writer)

    async def _complete(
        self, body: dict[str, Any], chat: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        text, ids = self._prompt(body, chat)
        question = json.dumps(body.get("messages") or body.get("prompt"))
        raw = next((reply for word, reply in self.behaviour.raw_replies.items() if word in question), None)
        if raw is not None:
            for packet in raw(bool(body.get("stream"))):
                writer.write(packet)
                await writer.drain()
                await asyncio.sleep(0.02)
            return False
        fixed = next((choice for word, choice in self.behaviour.fixed_choices.items() if word in question), None)
        if fixed is not None and body.get("stream"):
            only = {"choices": [{"delta": fixed["message"], "finish_reason": fixed["finish_reason"]}]}
            writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
            writer.write(b"data: " + json.dumps(only).encode() + b"\n\ndata: [DONE]\n\n")
            return False
        if fixed is not None:
            whole = {"choices": [fixed], "usage": usage(5, 4)}
            writer.write(response(200, json.dumps(whole).encode()))
            return True
        limit = body.get("max_tokens") or body.get("max_completion_tokens") or 16
        if len(ids) + limit > self.engine.window:
            writer.write(refusal(400, f"The context length is {self.engine.window} tokens."))
            return True
        self.prompted += len(ids)
        writing = self._generate(text, ids, body, limit)
        disconnected = asyncio.ensure_future(client_left(reader))
        if not body.get("stream"):
            last = asyncio.ensure_future(last_of(writing))
            await asyncio.wait({last, disconnected}, return_when=asyncio.FIRST_COMPLETED)
            if disconnected.done():
                last.cancel()
                await asyncio.gather(last, return_exceptions=True)
                self.left += 1
                return False
            disconnected.cancel()
            await asyncio.gather(disconnected, return_exceptions=True)
            writer.write(response(200, json.dumps(self._whole(await last, chat, body, ids)).encode()))
            self.replied[question] += 1
            return True
        writer.write(b"HTTP/1.1 200 X\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        sent_text = ""
        sent = 0
        async with aclosing(writing):
            async for piece in writing:
                if disconnected.done():
                    return False
                if len(piece["ids"]) % self.behaviour.tokens_per_chunk and piece["finish"] is None:
                    continue
                delta = self._delta(piece["text"], piece["ids"], sent_text, sent)
                ended = None if self.behaviour.usage_delay else piece["finish"]
                choice = {"index": 0, "delta": delta, "finish_reason": ended}
                if self.behaviour.returns_ids and body.get("return_token_ids"):
                    choice |= {"token_ids": piece["ids"][sent:], "prompt_token_ids": None if sent else ids}
                sent_text, sent = piece["text"], len(piece["ids"])
                writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
                await writer.drain()
                if sent == self.behaviour.pause_after:
                    await disconnected
                    self.left += 1
                    return False
        if self.behaviour.usage_delay:
            await asyncio.sleep(self.behaviour.usage_delay)
            choice = {"index": 0, "delta": {}, "finish_reason": piece["finish"]}
            writer.write(b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n")
        if (body.get("stream_options") or {}).get("include_usage"):
            final = {"choices": [], "usage": usage(len(ids), sent)}
            writer.write(b"data: " + json.dumps(final).encode() + b"\n\n")
        writer.write(b"data: [DONE]\n\n")
        await writer.drain()
        disconnected.cancel()
        return False

    def _prompt(self, body: dict[str, Any], chat: bool) -> tuple[str, list[int]]:
        if not chat:
            prompt = body["prompt"]
            return ("", prompt) if isinstance(prompt, list) else (prompt, self.engine.encode(prompt))
        continues = bool(body.get("continue_final_message"))
        turns = [(turn["role"], turn["content"]) for turn in body["messages"]]
        partial_answer = turns.pop()[1] if continues else ""
        text = self.engine.render(tuple(turns)) + partial_answer
        return text, self.engine.encode(text)

    async def _generate(self, text: str, ids: list[int], body: dict[str, Any], limit: int) -> Any:
        """The answer after each token: its ids and text so far, and the finish reason at its end."""
        self._session += 1
        session = f"request {self._session}"
        seed, temperature = int(body.get("seed") or 0), float(body.get("temperature") or 0.0)
        stop = tuple(body.get("stop") or ())
        new: list[int] = []
        step = limit if not body.get("stream") else 1
        try:
            while True:
                sampling = Sampling(step, stop, temperature, seed=seed + len(new))
                # As `continued`, the end tokens of earlier turns would end the answer.
                prompt = Prompt(text, tuple(new), session) if text else Prompt("", tuple(ids + new), session)
                found = await self.engine.generate(prompt, sampling)
                new += found.token_ids
                self.generated += len(found.token_ids)
                await asyncio.sleep(self.behaviour.seconds_per_token * len(found.token_ids))
                finish = found.finish_reason if found.finish_reason == "stop" or len(new) >= limit else None
                whole = found.text if step == limit else self.engine.decode(tuple(new))
                yield {"ids": list(new), "text": whole, "finish": finish}
                if finish is not None:
                    return
        finally:
            self.engine.release(session)

    def _whole(self, piece: dict[str, Any], chat: bool, body: dict[str, Any], ids: list[int]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": piece["finish"]}
        if chat:
            choice["message"] = {"role": "assistant", **self._delta(piece["text"], piece["ids"], "", 0)}
        else:
            choice["text"] = piece["text"]
        reply: dict[str, Any] = {"choices": [choice], "usage": usage(len(ids), len(piece["ids"]))}
        if self.behaviour.returns_ids and body.get("return_token_ids"):
            choice["token_ids"] = piece["ids"]
            (reply if chat else choice)["prompt_token_ids"] = ids
        return reply

    def _delta(self, text: str, ids: list[int], sent_text: str, sent: int) -> dict[str, Any]:
        """The text after `sent_text`, as reasoning or as content."""
        border = len(self.engine.decode(tuple(ids[: self.behaviour.reasoning_tokens])))
        return {"reasoning": text[len(sent_text) : border] or None, "content": text[max(border, len(sent_text)) :]}


class FaultyProxy(Listener):
    """Forwards requests to a server, except for random shares of them that fail, drawn with a seed.

    Parameters
    ----------
    port
        Of the server.
    shares
        Of failures, by kind: "429" (with Retry-After), "500", "cut" (the reply breaks off in the middle), "stall" (no
        reply), "garbage" (a reply that is no JSON). `done` counts them, and as "late" the replies that no
        client waited for.
    retry_after
        Seconds in the header Retry-After.
    seed
        Of the random numbers.
    """

    def __init__(self, port: int, shares: dict[str, float], retry_after: float = 1.0, seed: int = 0) -> None:
        self.target, self.shares, self.retry_after = port, shares, retry_after
        self.done: Counter[str] = Counter()
        self._random = random.Random(seed)
        super().__init__()

    async def answer(self, request: Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        kind = self._draw_kind() if request.method == "POST" else "passed"
        self.done[kind] += 1
        if kind == "429":
            writer.write(refusal(429, "slow down", retry_after=str(self.retry_after)))
            return True
        if kind == "500":
            writer.write(refusal(500, "something broke"))
            return True
        if kind == "stall":
            await reader.read(1)  # until the client disconnects
            return False
        head, body = await self._forward(request)
        self.done["late"] += reader.at_eof()  # the client has given up waiting
        if kind == "cut":
            writer.write(head + body[: len(body) // 2])
            await writer.drain()
            return False
        writer.write(head + (b"{" * len(body) if kind == "garbage" else body))
        await writer.drain()
        return b"connection: close" not in head.lower()

    def _draw_kind(self) -> str:
        drawn = self._random.random()
        for kind, share in self.shares.items():
            drawn -= share
            if drawn < 0:
                return kind
        return "passed"

    async def _forward(self, request: Request) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.target)
        head = f"{request.method} {request.path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        headers = {name: value for name, value in request.headers.items() if name not in ("host", "connection")}
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(head.encode() + lines.encode() + b"\r\n" + request.body)
        replied = await reader.readuntil(b"\r\n\r\n")
        length = next((line for line in replied.lower().split(b"\r\n") if line.startswith(b"content-length")), None)
        body = await (reader.readexactly(int(length.split(b":")[1])) if length else reader.read())
        writer.close()
        return replied, body


async def last_of(pieces: Any) -> dict[str, Any]:
    """The last piece of an answer that grows."""
    last: dict[str, Any] = {}
    async with aclosing(pieces):
        async for piece in pieces:
            last = piece
    return last


@contextmanager
def serving(folder: Path, behaviour: Behaviour | None = None, key: str | None = None) -> Iterator[ModelServer]:
    """A server that runs until the block ends."""
    server = ModelServer(folder, behaviour, key)
    try:
        yield server
    finally:
        server.close()
