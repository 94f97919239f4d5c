"""Models of llama.cpp behind the server: prompts are scored as by the engine, and no client sees a file's path."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import pair
from server.serving import EASY, Served, error_of, serving

pytestmark = NEEDS_LLAMACPP


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("secret-folder")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Served]:
    from engines.llamacpp import to_gguf

    file = to_gguf.save(pair.INTERN, folder / "small.gguf")
    arguments = f"mentor=pair,intern={file},intern_backend=llamacpp,intern_cache_type=f32,policy=intern,batch_size=4"
    with serving(["--model_args", arguments]) as found:
        yield found


def test_a_prompt_is_scored_as_by_transformers(server: Served) -> None:
    scored = server.complete(EASY, echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
    with serving(["--model_args", "policy=intern"]) as transformers:
        truth = transformers.complete(EASY, echo=True, logprobs=0, max_tokens=0)["choices"][0]["logprobs"]
    assert scored["tokens"] == truth["tokens"]
    assert scored["token_logprobs"][0] is None
    assert scored["token_logprobs"][1:] == pytest.approx(truth["token_logprobs"][1:], abs=1e-3)
    assert scored["top_logprobs"] == [None] * len(scored["tokens"]), "the likeliest tokens are not known"


def test_what_it_does_not_report_is_refused_in_the_words_of_clients(server: Served, folder: Path) -> None:
    status, reply, _ = server.ask(
        "POST", "/v1/completions", {"model": "tandem", "prompt": EASY, "echo": True, "logprobs": 1}
    )
    assert status == 400
    message = error_of(reply)["message"]
    assert message.endswith("with echo, use logprobs: 0.")
    for word in ("hidden", "classifier", "gguf", str(folder)):
        assert word not in message


def test_no_reply_has_the_folder_of_a_file(server: Served, folder: Path) -> None:
    asked = ("GET", "/v1/tandem/info", None), ("POST", "/v1/completions", {"model": "tandem", "prompt": "x " * 6000})
    for method, path, body in asked:
        _, reply, _ = server.ask(method, path, body)
        assert "small.gguf" in str(reply)
        assert folder.name not in str(reply)
