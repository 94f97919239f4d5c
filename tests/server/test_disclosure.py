"""What clients are not told: words, addresses and accounts of the models' own servers, and paths of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")
pytest.importorskip("openai")

from engines.http.listener import refusal
from engines.http.openai_server import Behaviour, ModelServer
from lm_eval_tandem import pair
from lm_eval_tandem.server.disclosure import last_part, without_keys
from server.serving import EASY, Served, error_of, serving

SECRET, ADDRESS, PATH, ACCOUNT = "sk-planted-0123456789abcdef", "10.1.2.3:8443", "/srv/models/inner", "acct-kappa"
WORDS = f"key {SECRET} of {ACCOUNT} at http://{ADDRESS} cannot read {PATH}"
MARKS = {"Zeta": 500, "Theta": 402, "Sigma": 400}
"""Names in questions at which the mentor's server fails, and with which status."""


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    ended = {"connection": "close"}  # the server closes it after such a reply
    replies = {mark: (lambda _, status=status: [refusal(status, WORDS, **ended)]) for mark, status in MARKS.items()}
    mentor = ModelServer(pair.MENTOR, Behaviour(raw_replies=replies))
    arguments = (
        f"mentor=tiny,mentor_backend=openai,mentor_base_url={mentor.url},mentor_parameters=884480,mentor_retries=0,"
        f"intern={pair.INTERN},policy=stage:1,batch_size=4"
    )
    with serving(["--model_args", arguments]) as found:
        yield found
    mentor.close()


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("mark", "status", "kind"), [("Zeta", 502, "5xx"), ("Theta", 503, "4xx"), ("Sigma", 502, "4xx")]
)
def test_the_words_of_a_model_s_server_are_for_the_log_alone(
    server: Served, mark: str, status: int, kind: str, stream: bool
) -> None:
    body = {"model": "tandem", "messages": [{"role": "user", "content": f"{mark} {EASY}"}], "stream": stream}
    before = server.process.complained()
    found, reply, headers = server.ask("POST", "/v1/chat/completions", body)
    assert found == status
    message = error_of(reply)["message"]
    assert message.startswith("the mentor ")
    assert f"status {kind}" in message
    assert headers["X-Request-Id"] in message
    for word in (SECRET, ADDRESS, PATH, ACCOUNT, "127.0.0.1"):
        assert word not in message
    logged = server.process.complained().removeprefix(before)
    assert headers["X-Request-Id"] in logged
    assert f"of {ACCOUNT} at http://{ADDRESS} cannot read {PATH}" in logged
    assert SECRET not in server.process.complained() + server.process.printed()


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x " * 600}),
        ("/v1/completions", {"prompt": "x " * 6000}),
        ("/v1/completions", {"prompt": EASY, "max_tokens": 100_000}),
        ("/v1/completions", {"prompt": [99999]}),
        ("/v1/completions", {"prompt": [5], "echo": True, "logprobs": 0, "max_tokens": 100_000}),
    ],
)
def test_a_refusal_names_a_model_without_its_folder(server: Served, path: str, body: dict[str, Any]) -> None:
    status, reply, _ = server.ask("POST", path, {"model": "tandem/intern", **body})
    assert status == 400
    message = error_of(reply)["message"]
    assert str(pair.INTERN.parent) not in message
    assert pair.INTERN.name in message


def test_what_is_loaded_is_told_without_folders(server: Served) -> None:
    status, info, _ = server.ask("GET", "/v1/tandem/info")
    assert status == 200
    assert info["intern"]["model"] == pair.INTERN.name
    assert str(pair.INTERN.parent) not in json.dumps(info)


def test_a_relative_path_is_one_where_something_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "small.gguf").touch()
    names = ("models/small.gguf", "./models/small.gguf", "Qwen/Qwen2.5-0.5B", "models", "a/b " * 2000)
    assert [last_part(name) for name in names] == ["small.gguf", "small.gguf", *names[2:]]


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Incorrect API key provided: sk-proj-abc_def-0123456789.", "Incorrect API key provided: …."),
        ("Authorization: Bearer abcdef012345; retry", "Authorization: Bearer …; retry"),
        ("api_key=s3cr3tvalue, user 5", "api_key=…, user 5"),
        ("your token is hunter22", "your token is …"),
        ("hf_abcdefghijklmnopqrst is not allowed", "… is not allowed"),
        ("the prompt has 600 tokens, the window 512", "the prompt has 600 tokens, the window 512"),
        ("a token of the key is wrong", "a token of the key is wrong"),
    ],
)
def test_keys_are_blotted_out(text: str, left: str) -> None:
    assert without_keys(text) == left
