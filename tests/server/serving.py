"""`lm-eval-tandem serve` as tests start it: a process of its own, on a free port, with the bundled pair."""

from __future__ import annotations

import http.client
import json
import re
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import command_line
import forked
from lm_eval_tandem.pair import problems

READY = re.compile(r"^serve: .* at (http://\S+)/v1$", re.M)
EASY = str(problems.rows("math", "test", 1)[0]["question"])
HARD = (
    "Ben starts with 12 coins: 1) sells a paput, 2) buys a bokov, 3) sells a brodas, 4) sells a tea, 5) buys a tradif, "
    "6) sells a carpet. How many coins does Ben have?"
)
"""A question about goods whose prices the intern does not know, so that the mentor has to write."""


class Served:
    """A server that runs."""

    def __init__(self, process: forked.Process) -> None:
        self.process = process
        self.address = ""
        while not self.address:
            assert process.poll() is None, process.complained()
            found = READY.search(process.complained())
            self.address = found[1] if found else ""
            time.sleep(0.05)
        parts = urlsplit(self.address)
        self.host, self.port = str(parts.hostname), int(parts.port or 0)

    @property
    def api(self) -> str:
        """The base URL of OpenAI's API."""
        return f"{self.address}/v1"

    def connect(self) -> http.client.HTTPConnection:
        """A connection that waits as long as a busy machine needs."""
        return http.client.HTTPConnection(self.host, self.port, timeout=command_line.PATIENCE)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None
    ) -> tuple[int, Any, http.client.HTTPMessage]:
        """Status, content (JSON where it is that) and headers of one reply."""
        connection = self.connect()
        sent = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        given = {"Content-Type": "application/json"} if sent is not None else {}
        connection.request(method, path, sent, given | dict(headers or {}))
        reply = connection.getresponse()
        text = reply.read().decode()
        connection.close()
        is_json = str(reply.headers["Content-Type"]).startswith("application/json")
        return reply.status, json.loads(text) if is_json else text, reply.headers

    def chat(self, question: str = EASY, model: str = "tandem", **fields: Any) -> dict[str, Any]:
        """The reply to a chat of one question."""
        messages = [{"role": "user", "content": question}]
        status, reply, _ = self.ask("POST", "/v1/chat/completions", {"model": model, "messages": messages, **fields})
        assert status == 200, reply
        return dict(reply)

    def complete(self, prompt: Any = EASY, model: str = "tandem", **fields: Any) -> dict[str, Any]:
        """The reply to a completion."""
        status, reply, _ = self.ask("POST", "/v1/completions", {"model": model, "prompt": prompt, **fields})
        assert status == 200, reply
        return dict(reply)

    def stream(self, path: str, **fields: Any) -> list[dict[str, Any]]:
        """The chunks of a stream, which ends as it should."""
        status, text, headers = self.ask("POST", path, {"model": "tandem", "stream": True, **fields})
        assert status == 200, text
        assert headers["Content-Type"].startswith("text/event-stream")
        events = [line.removeprefix("data: ") for line in text.split("\n\n") if line.startswith("data: ")]
        assert events.pop() == "[DONE]"
        return [json.loads(one) for one in events]

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's values with these labels."""
        _, text, _ = self.ask("GET", "/metrics")
        lines = re.findall(rf"^{name}(?:{{(.*)}})? (\S+)$", text, re.M)
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(float(value) for given, value in lines if all(one in given for one in wanted))

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The log's lines so far."""
        return [json.loads(line) for line in self.process.printed().splitlines()]

    def line_of(self, request: str) -> dict[str, Any]:
        """The log's line of a request, by its id; it is written after the reply has been sent."""
        while not (found := [line for line in self.lines if line.get("id") == request]):
            assert self.process.poll() is None, self.process.complained()
            time.sleep(0.02)
        return found[0]

    def until_idle(self) -> None:
        """Wait until no answer is under way."""
        while self.metric("tandem_answers_under_way"):
            time.sleep(0.05)


@contextmanager
def serving(
    options: Sequence[str] = (), environment: Mapping[str, str] | None = None, port: int = 0
) -> Iterator[Served]:
    """A server, until the end of the block."""
    folder = Path(tempfile.mkdtemp())
    program = ["-m", "lm_eval_tandem.cli", "serve", "--port", str(port), *options]
    process = forked.Process(program, folder, {**command_line.ENVIRONMENT, **(environment or {})}, folder)
    try:
        yield Served(process)
    finally:
        process.kill()


def error_of(reply: Any) -> dict[str, Any]:
    """The error object of a reply, which has OpenAI's shape."""
    assert set(reply) == {"error"}, reply
    error = dict(reply["error"])
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    return error
