"""Who may not ask, and what may not be sent: a 4xx in OpenAI's shape, and the server goes on."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

import command_line
from lm_eval_tandem.cli import main
from server.serving import EASY, Served, error_of, serving

KEY = "a key with ümlauts"
AUTHORIZED = {"Authorization": f"Bearer {KEY}".encode().decode("latin-1")}
READ_SECONDS = 3
BODY = {"model": "tandem/intern", "messages": [{"role": "user", "content": EASY}], "max_tokens": 4}
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    options = ["--api-key-env", "TANDEM_TEST_KEY", "--read-seconds", str(READ_SECONDS), "--max-tokens", "50"]
    with serving(options, {"TANDEM_TEST_KEY": KEY}) as found:
        yield found


@pytest.fixture(autouse=True)
def goes_on(server: Served) -> Iterator[None]:
    yield
    status, reply, _ = server.ask("POST", CHAT, BODY, AUTHORIZED)
    assert status == 200
    assert reply["choices"][0]["message"]["content"]


def raw(server: Served, sent: bytes, wait: float = command_line.PATIENCE) -> tuple[int, Any]:
    """Status and JSON of what the server replies to bytes; it closes the connection, or says how long the reply is."""
    with socket.create_connection((server.host, server.port), timeout=wait) as connection:
        connection.sendall(sent)
        return reply_on(connection)


def reply_on(connection: socket.socket) -> tuple[int, Any]:
    got = b""
    while b"\r\n\r\n" not in got:
        part = connection.recv(65536)
        assert part, got
        got += part
    head, _, body = got.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split()[1]), json.loads(body)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Bearer"},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Bearer {KEY[:-1]}".encode().decode("latin-1")},
        {"Authorization": f"Basic {KEY}".encode().decode("latin-1")},
        {"Authorization": f"Bearer {KEY}{KEY}".encode().decode("latin-1")},
        {"X-Api-Key": "wrong"},
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/metrics", "/v1/tandem/info", "/nothing", "/health/../metrics"])
def test_without_the_key_nobody_gets_anything(server: Served, headers: dict[str, str], path: str) -> None:
    method, body = ("POST", BODY) if path == CHAT else ("GET", None)
    status, reply, told = server.ask(method, path, body, headers)
    assert status == 401
    assert told["WWW-Authenticate"] == "Bearer"
    assert error_of(reply)["code"] == "invalid_api_key"


def test_the_page_and_health_need_no_key(server: Served) -> None:
    assert server.ask("GET", "/health")[0] == 200
    status, text, _ = server.ask("GET", "/")
    assert status == 200
    assert KEY not in text


def test_the_key_is_in_no_line(server: Served) -> None:
    assert server.ask("GET", "/v1/models", headers=AUTHORIZED)[0] == 200
    assert KEY not in server.process.printed() + server.process.complained()


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_of_100_megabytes_is_refused(server: Served, announced: bool) -> None:
    size, piece = 100_000_000, b"a" * 1_000_000
    headers = {**AUTHORIZED, "Content-Type": "application/json"}
    connection = server.connect()
    if announced:
        headers["Content-Length"] = str(size)
    pieces = (piece for _ in range(size // len(piece)))
    connection.request("POST", CHAT, pieces, headers, encode_chunked=not announced)
    reply = connection.getresponse()
    assert reply.status == 413
    assert error_of(json.loads(reply.read()))["code"] == "too_large"
    connection.close()


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["x"] * 10_000},
        {"max_tokens": 1_000_000},
        {"messages": [{"role": "user", "content": "a " * 400_000}]},
        {"messages": [{"role": "user", "content": "x"}] * 20_000},
        {"messages": [{"role": "assistant", "content": ""}] * 3},
        {"n": 10**100},
        {"seed": 10**400},
        {"temperature": 1e308},
        {"temperature": 1e-300},
        {"temperature": 1, "repetition_penalty": 1e-300},
        {"temperature": 1, "repetition_penalty": 1e300},
    ],
)
def test_requests_of_absurd_size_are_refused(server: Served, fields: dict[str, Any]) -> None:
    status, reply, _ = server.ask("POST", CHAT, BODY | fields, AUTHORIZED)
    if "messages" in fields and len(fields["messages"]) == 3:
        assert status == 200  # odd, and no attack
    else:
        assert status == 400
        assert len(error_of(reply)["message"]) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"model": "tandem"',
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b"\x00\xff\xfe",
        b'data: {"model": "tandem"}\n\n',
        b'{"model": "tandem", "messages": [{"role": "user", "content": "\\ud800"}]}',
        b'{"model": "tandem", "messages": NaN}',
        b"1e999999",
    ],
)
def test_malformed_json_is_refused(server: Served, body: bytes) -> None:
    for path in (CHAT, "/v1/completions"):
        status, reply, _ = server.ask("POST", path, body, AUTHORIZED)
        assert status == 400
        error_of(reply)


@pytest.mark.parametrize(
    "path",
    [
        "/v1/../v1/models/../../etc/passwd",
        "/v1/%2e%2e/%2e%2e/etc/passwd",
        "//v1/models",
        "/v1/models%00",
        "/v1//chat/completions",
        "/V1/models",
        "/page.html",
        "/static/../server/page.py",
        "/docs",
        "/openapi.json",
        "/v1/" + "a" * 5000,
    ],
)
def test_path_tricks_find_nothing(server: Served, path: str) -> None:
    status, reply, _ = server.ask("GET", path, headers=AUTHORIZED)
    assert status == 404
    assert error_of(reply)["code"] in ("not_found", "model_not_found")


@pytest.mark.parametrize(("method", "path"), [("GET", CHAT), ("DELETE", "/v1/models"), ("PUT", "/metrics")])
def test_other_methods_are_refused(server: Served, method: str, path: str) -> None:
    status, reply, _ = server.ask(method, path, headers=AUTHORIZED)
    assert status == 405
    assert error_of(reply)["code"] == "method_not_allowed"
    assert error_of(reply)["message"].endswith("; use POST." if path == CHAT else "; use GET.")


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
def test_pages_of_other_sites_are_refused(server: Served, headers: dict[str, str]) -> None:
    status, reply, told = server.ask("POST", CHAT, BODY, AUTHORIZED | headers)
    assert status == 403
    assert error_of(reply)["code"] == "cross_site"
    assert not [name for name in told if name.lower().startswith("access-control")]


def test_a_page_s_form_cannot_ask(server: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        status, reply, _ = server.ask("POST", CHAT, BODY, AUTHORIZED | {"Content-Type": kind})
        assert status == 415
        error_of(reply)
    status, _, told = server.ask("OPTIONS", CHAT, headers=AUTHORIZED)
    assert status == 405
    assert not [name for name in told if name.lower().startswith("access-control")]


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"GET /health FTP/1.1\r\n\r\n",
        b"GET /v1/models HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: x\r\n\r\n",
        b"GET /health HTTP/1.1\r\nHost: a\r\n" + b"X: " + b"a" * 2_000_000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(server: Served, sent: bytes) -> None:
    status, reply = raw(server, sent)
    assert status == 400
    assert error_of(reply)["code"] == "invalid_http"


def test_slow_clients_are_turned_away(server: Served) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer {KEY}\r\nContent-Type: application/json\r\n"
    body_is_slow = head.encode() + b"Content-Length: 1000\r\n\r\n{"
    for sent in (b"GET /health HTTP/1.1\r\nHo", b"", body_is_slow):
        started = time.monotonic()
        with socket.create_connection((server.host, server.port), timeout=command_line.PATIENCE) as connection:
            for byte in sent[:-1]:
                connection.send(bytes([byte]))
            connection.send(sent[-1:])
            status, reply = reply_on(connection)
            assert connection.recv(1) == b"", "the connection is closed"
        assert status == 408
        assert error_of(reply)["code"] == "too_slow"
        assert time.monotonic() - started >= READ_SECONDS * 0.9


def test_many_silent_connections_leave_room_for_others(server: Served) -> None:
    silent = [socket.create_connection((server.host, server.port)) for _ in range(200)]
    assert server.ask("POST", CHAT, BODY, AUTHORIZED)[0] == 200
    for one in silent:
        one.close()


def test_without_a_key_only_this_machine_s_names_are_answered() -> None:
    """A page of another host whose name leads here (DNS rebinding) gets nothing."""
    with serving() as open_server:
        for host in ("evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "localhost.evil.example:80"):
            status, reply, _ = open_server.ask("GET", "/v1/models", headers={"Host": host})
            assert status == 403, host
            assert error_of(reply)["code"] == "host_not_allowed"
        for host in ("localhost", "LOCALHOST:5", "127.0.0.1", "127.1.2.3:80", "[::1]:8000"):
            assert open_server.ask("GET", "/v1/models", headers={"Host": host})[0] == 200, host
        for path, status in (("/health", b"200"), ("/v1/models", b"403")):  # as load balancers ask
            with socket.create_connection((open_server.host, open_server.port)) as connection:
                connection.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
                assert connection.makefile("rb").readline().split()[1] == status, path
        assert open_server.ask("GET", "/health", headers={"Host": "evil.example"})[0] == 403


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "a key is needed"),
        (["--host", "::"], "a key is needed"),
        (["--api-key-env", "TANDEM_NO_SUCH_VARIABLE"], "is empty"),
        (["--port", "70000"], "is no port"),
        (["--max-requests", "0"], "lets nothing through"),
        (["--drain-timeout", "-1"], "is no time"),
        (["--model_args", "ledger=l.jsonl"], "has no effect under serve"),
        (["--config", "nothing.yaml"], "cannot be read"),
        (["--config", "nothing.yaml", "--model_args", "policy=intern"], "both given"),
        (["--model_args", "policy=nothing"], "is not known"),
        (["--model_args", "policy=intern,step_end=."], "step_end has no effect with policy=intern; it is for steps:N"),
    ],
)
def test_a_server_that_cannot_work_is_refused_before_it_starts(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["serve", *([] if "--port" in options else ["--port", "0"]), *options])  # 8000 may be taken
    assert words in capsys.readouterr().err


def test_a_port_that_is_taken_is_refused(server: Served, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        main(["serve", "--port", str(server.port)])
    assert "cannot be listened at" in capsys.readouterr().err
