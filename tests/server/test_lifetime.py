"""How a server ends and begins again: SIGTERM, kill -9, and a mentor that goes away."""

from __future__ import annotations

import http.client
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")
pytest.importorskip("openai")

import command_line
import forked
from engines.http.openai_server import ModelServer
from lm_eval_tandem import pair
from lm_eval_tandem.pair import problems
from server.serving import EASY, HARD, Served, error_of, serving

ROWS = [str(row["question"]) for row in problems.rows("math", "test", 24)]


def content(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"])


def test_sigterm_lets_every_accepted_request_end() -> None:
    with serving() as server:
        whole = server.chat(HARD)

        def streamed(question: str) -> str:
            chunks = server.stream("/v1/chat/completions", messages=[{"role": "user", "content": question}])
            return "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])

        with ThreadPoolExecutor(24) as pool:
            asked = [
                pool.submit(streamed if number % 2 else lambda question: content(server.chat(question)), HARD)
                for number in range(24)
            ]
            while server.metric("tandem_answers_under_way") + sum(one.done() for one in asked) < 24:
                time.sleep(0.02)
            os.kill(server.process.pid, signal.SIGTERM)
            assert [one.result() for one in asked] == [content(whole)] * 24
        assert server.process.wait(command_line.PATIENCE) == 0, server.process.complained()
        with pytest.raises(OSError, match="refused"):
            server.ask("GET", "/health")


@pytest.fixture
def mentor() -> Iterator[ModelServer]:
    """The bundled mentor behind a server."""
    found = ModelServer(pair.MENTOR)
    yield found
    found.close()


def with_mentor_at(mentor: ModelServer) -> list[str]:
    arguments = (
        f"mentor=tiny,mentor_backend=openai,mentor_base_url={mentor.url},mentor_parameters=884480,mentor_give_up=0,"
        "mentor_retries=0,intern=pair,policy=stage:1,batch_size=16"
    )
    return ["--model_args", arguments]


def test_a_mentor_that_never_answers_does_not_hold_the_end(mentor: ModelServer) -> None:
    """What ends within --drain-timeout is answered; the rest gets 503, or an error as the last event of a stream."""
    with serving(["--drain-timeout", "8", *with_mentor_at(mentor)]) as server:
        mentor.behaviour.seconds_per_token = 1e6
        whole = server.complete(EASY, "tandem/intern", max_tokens=30)
        body = {"model": "tandem", "max_tokens": 30}
        fields = {"messages": [{"role": "user", "content": EASY}], "tandem": {"events": True}, "stream": True}

        def hangs(asked: dict[str, Any]) -> tuple[int, Any]:
            path = "/v1/chat/completions" if "messages" in asked else "/v1/completions"
            return server.ask("POST", path, body | asked)[:2]

        with ThreadPoolExecutor(12) as pool:
            held = [pool.submit(hangs, asked) for asked in ({"prompt": EASY}, {"prompt": EASY, "stream": True}, fields)]
            while server.metric("tandem_answers_under_way") < 3:
                time.sleep(0.02)
            time.sleep(2.5)  # the streams have sent their status by then
            ended = [pool.submit(server.complete, EASY, "tandem/intern", max_tokens=30) for _ in range(8)]
            while server.metric("tandem_answers_under_way") - 3 + sum(one.done() for one in ended) < 8:
                time.sleep(0.02)
            os.kill(server.process.pid, signal.SIGTERM)
            assert [one.result()["choices"] for one in ended] == [whole["choices"]] * 8
            (status, reply), *streams = [one.result() for one in held]
        assert status == 503
        assert error_of(reply)["code"] == "stopping"
        for status, text in streams:
            assert status == 200
            *_, last = [line for line in text.split("\n\n") if line]
            assert error_of(json.loads(last.removeprefix("data: ")))["code"] == "stopping"
        assert server.process.wait(command_line.PATIENCE) == 0, server.process.complained()
        assert "3 requests were not complete 8 seconds after the signal" in server.process.complained()
        assert sum(line.get("error") == "stopping" for line in server.lines) == 3


def test_sigterm_while_the_models_load_is_an_orderly_end_too(tmp_path: Path) -> None:
    program = ["-m", "lm_eval_tandem.cli", "serve", "--port", "0"]
    process = forked.Process(program, tmp_path, command_line.ENVIRONMENT, tmp_path)
    try:
        while "serve: loading the models." not in process.complained():
            assert process.poll() is None, process.complained()
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(command_line.PATIENCE) == 0, process.complained()
    finally:
        process.kill()


def test_what_the_harness_warns_of_is_logged_once_before_the_server_listens(tmp_path: Path) -> None:
    config = {"model_args": {"efforts": "10:20:30", "step_end": "."}, "batch_size": "auto", "max_batch_size": 3}
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with serving(["--config", str(tmp_path / "config.yaml")]) as server:
        before = server.process.complained().partition(" at http://")[0]
        assert before.count("was fitted with efforts=18:24:40, and this run has 10:20:30") == 1
        server.chat(model="tandem/steps:0.5")  # which has a use for the end of steps
        assert server.process.complained().count("was fitted with efforts=") == 1


def test_a_server_that_was_killed_computes_no_finished_answer_again(tmp_path: Path) -> None:
    options = ["--model_args", f"policy=cascade,store={tmp_path / 'store.sqlite'}"]
    with serving(options) as first:
        finished = [first.chat(question) for question in ROWS[:6]]
        with ThreadPoolExecutor(18) as pool:
            cut_off = [pool.submit(answer_or_none, first, question) for question in ROWS[6:]]
            while not first.metric("tandem_answers_under_way") and not all(one.done() for one in cut_off):
                time.sleep(0.02)
            first.process.kill()
    with serving(options) as second:
        again = [second.chat(question) for question in ROWS[:6]]
        assert second.metric("tandem_computed_tokens_total") == 0
        assert second.metric("tandem_store_hits_total") > 0
        assert [reply["choices"] for reply in again] == [reply["choices"] for reply in finished]
        for now, before in zip(again, finished, strict=True):
            assert now["usage"]["tandem"]["tokens"] == before["usage"]["tandem"]["tokens"]
        for question, one in zip(ROWS[6:], cut_off, strict=True):
            assert one.result() in (None, content(second.chat(question)))


def test_a_mentor_that_is_down_is_told_from_the_first_request_on(mentor: ModelServer) -> None:
    """Even while nothing says yet that it stays away (`mentor_give_up`)."""
    arguments = with_mentor_at(mentor)[1].replace("mentor_give_up=0", "mentor_give_up=3600")
    with serving(["--model_args", arguments]) as server:
        assert server.chat(EASY, max_tokens=60)["usage"]["tandem"]["tokens"]["mentor_new"] > 0
        mentor.go_away()
        body = {"model": "tandem", "messages": [{"role": "user", "content": EASY}], "max_tokens": 60}
        for _ in range(3):
            status, reply, headers = server.ask("POST", "/v1/chat/completions", body)
            assert (status, error_of(reply)["code"]) == (503, "model_unreachable")
            assert error_of(reply)["message"].startswith("the mentor cannot be reached")
            assert "start the same command" not in error_of(reply)["message"]
            assert headers["Retry-After"]


def answer_or_none(server: Served, question: str) -> str | None:
    """The answer; None where the server was killed before it was complete."""
    try:
        return content(server.chat(question))
    except (OSError, http.client.HTTPException):
        return None


def test_a_mentor_that_is_down(mentor: ModelServer) -> None:
    """503, or the intern's own answer where that was asked for, marked as such; never for who names the mentor."""
    given = with_mentor_at(mentor)
    body = {"model": "tandem", "messages": [{"role": "user", "content": EASY}], "max_tokens": 60}
    with serving(given) as strict, serving([*given, "--intern-if-mentor-fails"]) as lenient:
        assert strict.chat(EASY, max_tokens=60)["usage"]["tandem"]["tokens"]["mentor_new"] > 0
        mentor.go_away()
        for stream in (False, True):
            status, reply, headers = strict.ask("POST", "/v1/chat/completions", body | {"stream": stream})
            assert status == 503
            assert headers["Retry-After"]
            assert error_of(reply)["type"] == "server_error"
        alone = strict.chat(EASY, "tandem/intern", max_tokens=60)
        reply = lenient.chat(EASY, max_tokens=60)
        assert reply["choices"] == alone["choices"]
        assert reply["usage"]["tandem"]["fallback"] is True
        assert reply["usage"]["tandem"]["policy"] == "intern"
        assert "fallback" not in alone["usage"]["tandem"]
        assert lenient.metric("tandem_fallbacks_total") == 1
        assert lenient.ask("POST", "/v1/chat/completions", body | {"model": "tandem/mentor"})[0] == 503
