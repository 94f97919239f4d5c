"""Prompts that are far too long: refused without being tokenized, and while one is tokenized the server goes on."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

import asyncio

from bundled import COMMON
from lm_eval_tandem.errors import ContextError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.server.app import make_app
from lm_eval_tandem.server.guard import GuardOptions
from lm_eval_tandem.server.protocol import read_completion
from lm_eval_tandem.server.request_log import RequestLog
from lm_eval_tandem.server.service import Service
from lm_eval_tandem.server.work import Limits


@pytest.fixture(scope="module")
def lm() -> Iterator[TandemLM]:
    found = TandemLM(**COMMON, policy="intern")
    yield found
    found.close()


@pytest.fixture
def service(lm: TandemLM) -> Service:
    return Service(lm, Limits(None, 64))


def asked(prompt: Any) -> Any:
    return read_completion(json.dumps({"model": "tandem", "prompt": prompt, "max_tokens": 4}).encode())


@pytest.fixture
def tokenized(lm: TandemLM, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The lengths of the texts that the intern's tokenizer gets."""
    engine: Any = lm.engines["intern"]
    lengths: list[int] = []
    encode = engine._encoded

    def encoded(text: str) -> Any:
        lengths.append(len(text))
        return encode(text)

    monkeypatch.setattr(engine, "_encoded", encoded)
    return lengths


def test_what_cannot_fit_is_not_tokenized(service: Service, tokenized: list[int]) -> None:
    window = service.lm.engines["intern"].window  # type: ignore[union-attr]
    for text in ("a " * 450_000, "1" * 990_000, "Retrieval" * 10_000, "\N{CJK UNIFIED IDEOGRAPH-65E5}" * 100_000):
        with pytest.raises(ContextError, match=f", {window} tokens: it has at least [0-9]+; send a shorter one"):
            asyncio.run(service.begin(asked(text)))
    assert tokenized == []
    assert service.under_way == 0


def test_what_may_fit_is_counted(service: Service, tokenized: list[int]) -> None:
    """A text of 600 tokens is shorter than 512 of the longest ones, so only counting shows that it does not fit."""
    with pytest.raises(ContextError, match="it has at least 601;"):
        asyncio.run(service.begin(asked("x " * 600)))
    assert tokenized == [1200]


def test_other_requests_are_answered_while_a_prompt_is_tokenized(
    service: Service, lm: TandemLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine: Any = lm.engines["intern"]
    begun, may_end = threading.Event(), threading.Event()
    encode = engine._encoded

    def slowly(text: str) -> Any:
        if len(text) > 3_000:
            with engine._tokenizer_lock:
                begun.set()
                assert may_end.wait(600)
        return encode(text)

    monkeypatch.setattr(engine, "_encoded", slowly)
    app = make_app(service, GuardOptions(), RequestLog())

    async def ask(method: str, path: str, body: bytes = b"") -> int:
        statuses: list[int] = []

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                statuses.append(message["status"])

        async def receive() -> Any:
            if waiting:
                return {"type": "http.request", "body": waiting.pop()}
            await asyncio.sleep(3600)

        waiting = [body]
        headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b"", "state": {}}
        await app(scope, receive, send)
        return statuses[0]

    def completion(prompt: str) -> bytes:
        return json.dumps({"model": "tandem", "prompt": prompt, "max_tokens": 4}).encode()

    async def all_of_them() -> list[int]:
        long = asyncio.ensure_future(ask("POST", "/v1/completions", completion("x " * 2_000)))
        assert await asyncio.to_thread(begun.wait, 600)
        short = asyncio.ensure_future(ask("POST", "/v1/completions", completion("Six?")))
        healthy = await ask("GET", "/health")
        assert not long.done()
        assert not short.done(), "it needs the tokenizer, too"
        may_end.set()
        return [healthy, await long, await short]

    assert asyncio.run(all_of_them()) == [200, 400, 200]
