"""The HTTP engine against real servers on the loopback: texts that grow, streams that close, failures, dollars."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.api.instance import Instance
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("openai", reason="the package openai is not installed")

import tiny
from command_line import DEFAULT_TASKS_LEFT_OUT, MAIN, save_task
from engines.conformance import THOUGHT, Reference, run, together
from engines.http.listener import refusal, response
from engines.http.openai_server import Behaviour, FaultyProxy, ModelServer, serving
from engines.http.strange_replies import whole
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.http.failures import Failure, requested_wait
from lm_eval_tandem.engines.http.openai import APIEngine
from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.engines.http.retries import Reachability, Retries
from lm_eval_tandem.engines.http.text import CONTINUE_REQUEST, server_ids
from lm_eval_tandem.errors import ArgumentError, CallError, ContextError, EngineError, UnreachableError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems

KEY = "sk-test-0123456789-secret"
QUESTIONS = [f"Mira starts with {n} coins and buys a lantern. How many are left?" for n in range(10, 40)]
WAYS = {
    "ids": Behaviour(),
    "prefix": Behaviour(),
    "stream": Behaviour(returns_ids=False),
    "pieces of three": Behaviour(returns_ids=False, tokens_per_chunk=3),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tmp_path_factory.mktemp("model"))
    wording = {"request": " Insights:", "open": "\nInsights: ", "close": "\nAnswer: "}  # a tiny window needs short ones
    (folder / "wording.json").write_text(json.dumps(wording))
    return folder


@pytest.fixture(scope="module")
def reference(folder: Path) -> Reference:
    return reference_of(folder)


def reference_of(folder: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(folder))


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def engine_of(server: ModelServer | FaultyProxy, **arguments: Any) -> APIEngine:
    return APIEngine("tiny", {"base_url": server.url, **arguments})


async def grown(engine: APIEngine, question: str, budgets: tuple[int, ...]) -> tuple[tuple[int, ...], int]:
    """The token ids, and the number of tokens, of a text that is continued up to each budget in turn."""
    ids: tuple[int, ...] = ()
    tokens = 0
    for budget in budgets:
        prompt = Prompt(engine.render((("user", question),)), ids, question, budgets[-1] - tokens)
        part = await engine.generate(prompt, Sampling(budget - tokens))
        ids, tokens = ids + part.token_ids, tokens + part.new_tokens
        assert tokens <= budget
        if part.finish_reason == "stop":
            break
    return ids, tokens


async def until(condition: Callable[[], bool]) -> None:
    """Return once the condition holds; ten minutes are long enough on any machine, however busy."""
    deadline = time.monotonic() + 600
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.01)


class TestATextThatGrows:
    """Whichever way of continuing the server supports, the text is that of one uninterrupted call."""

    @pytest.mark.parametrize("way", WAYS)
    def test_it_is_that_of_one_uninterrupted_call(self, folder: Path, reference: Reference, way: str) -> None:
        resume = way if way in ("ids", "prefix") else "auto"
        # Text that is encoded again has the same tokens only if a trained model wrote it.
        if way not in ("ids", "stream"):
            folder, reference = pair.MENTOR, reference_of(pair.MENTOR)
        with serving(folder, WAYS[way], KEY) as server:
            engine = engine_of(server, resume=resume, tokenizer=str(folder), api_key_env="OPENAI_API_KEY")
            assert engine.resume == resume.replace("auto", "stream")
            found = run(together(*(grown(engine, question, (4, 9, 24)) for question in QUESTIONS[:6])))
            engine.close()
        for question, (ids, tokens) in zip(QUESTIONS, found, strict=False):
            expected = reference.greedy(question, 24)
            assert engine.decode(ids) == reference.tokenizer.decode(expected, skip_special_tokens=True)
            assert tokens == len(expected), "tokens are not counted as the server counts them"
            if way == "ids":
                assert server_ids(ids) == expected

    def test_a_stream_of_single_tokens_is_counted_without_a_tokenizer(self, folder: Path) -> None:
        with serving(folder, Behaviour(returns_ids=False)) as server:
            engine = engine_of(server)
            assert engine.identity["counted"] == "by pieces"
            _, tokens = run(grown(engine, QUESTIONS[0], (5, 11)))
            assert tokens == 11
            engine.close()
        with serving(folder, Behaviour(returns_ids=False, tokens_per_chunk=4)) as server:
            engine = engine_of(server)
            assert engine.identity["counted"] == "by bytes"
            engine.close()

    def test_text_that_another_process_has_read_is_replayed_and_skipped(self, folder: Path) -> None:
        with serving(folder, Behaviour(returns_ids=False)) as server:
            first, second = engine_of(server), engine_of(server)
            whole, _ = run(grown(first, QUESTIONS[0], (20,)))

            async def from_a_store() -> tuple[int, ...]:
                text = first.render((("user", QUESTIONS[0]),))
                start = await first.generate(Prompt(text, (), "s", 20), Sampling(8))
                first.release("s")
                rest = await second.generate(Prompt(text, start.token_ids, "s", 12), Sampling(12))
                assert rest.new_tokens == 12
                return start.token_ids + rest.token_ids

            assert run(from_a_store()) == whole

    def test_a_server_that_replays_another_text_is_asked_to_continue(self, folder: Path) -> None:
        with serving(folder, Behaviour(returns_ids=False)) as server:
            engine = engine_of(server)

            async def sampled() -> Completion:
                prompt = Prompt(engine.render((("user", QUESTIONS[0]),)), tuple(b" something else"), "s", 20)
                return await engine.generate(prompt, Sampling(6))

            assert run(sampled()).new_tokens == 6
            turns = server.requests[-1]["messages"]
            assert [turn["content"] for turn in turns[1:]] == [" something else", CONTINUE_REQUEST]
            engine.close()


class TestAStreamIsClosed:
    """The server stops generating when the insight suffices."""

    def test_no_token_is_generated_once_the_insight_suffices(self, folder: Path) -> None:
        """The server is three tokens ahead when the judge decides, and ends each stream at the client's word alone."""

        async def judged(engine: APIEngine, question: str) -> tuple[int, int]:
            ids: tuple[int, ...] = ()
            read, finish_reason = 0, ""
            for budget in (30, 60):
                prompt = Prompt(engine.render((("user", question),)), ids, question, 200 - read)
                part = await engine.generate(prompt, Sampling(budget - read))
                ids, read, finish_reason = ids + part.token_ids, read + part.new_tokens, part.finish_reason
                if finish_reason == "stop":
                    return read, 0
            await until(lambda: engine._streams._streams[question].arrived_tokens == 63)
            unused = engine.release(question)
            return read, 0 if unused is None else unused.tokens

        async def all_judged(engine: APIEngine) -> list[tuple[int, int]]:
            found = await together(*(judged(engine, question) for question in QUESTIONS[:8]))
            await until(lambda: server.left == found.count((60, 3)))
            return found

        with serving(folder, Behaviour(returns_ids=False, pause_after=63)) as server:
            engine = engine_of(server)
            before = server.generated
            found = run(all_judged(engine))
            assert found.count((60, 3)) >= 5, "tokens that arrived unread are not accounted for"
            assert server.generated - before == sum(read + unused for read, unused in found)
            engine.close()

    def test_the_last_budget_is_the_limit_of_the_server_s_stream(self, folder: Path) -> None:
        with serving(folder, Behaviour(returns_ids=False)) as server:
            engine = engine_of(server)
            before = server.generated
            _, tokens = run(grown(engine, QUESTIONS[1], (10, 25)))
            assert server.generated - before == tokens == 25
            assert engine.release(QUESTIONS[1]) is None
            engine.close()

    @pytest.mark.parametrize("pause", [0.0, 0.05])
    def test_a_prompt_counts_once_and_as_the_server_counts_it(self, folder: Path, pause: float) -> None:
        """Whether its usage is there when the first call returns, or comes with a later one."""
        with serving(folder, Behaviour(returns_ids=False, seconds_per_token=pause)) as server:
            engine = engine_of(server, price_input=1e6, price_output=0)

            async def read() -> tuple[int, float]:
                text, ids, counted, dollars = engine.render((("user", QUESTIONS[0]),)), (), 0, 0.0
                for budget in (3, 4, 5):
                    part = await engine.generate(Prompt(text, ids, "s", 12 - len(ids)), Sampling(budget))
                    await asyncio.sleep(0.2 if pause == 0 else 0)
                    ids, counted = ids + part.token_ids, counted + part.prompt_tokens - part.cached_tokens
                    dollars += part.dollars or 0.0
                engine.release("s")
                return counted, dollars

            before = server.prompted
            counted, dollars = run(read())
            assert counted == server.prompted - before != len(engine.encode(QUESTIONS[0]))
            assert dollars == pytest.approx(counted)
            engine.close()

    def test_a_cancelled_call_closes_its_stream(self, folder: Path) -> None:
        async def cancelled(engine: APIEngine) -> None:
            prompt = Prompt(engine.render((("user", QUESTIONS[0]),)), (), "s", 200)
            task = asyncio.ensure_future(engine.generate(prompt, Sampling(150)))
            await until(lambda: server.generated - before == 20)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            engine.release("s")
            await until(lambda: server.left == 1)

        with serving(folder, Behaviour(returns_ids=False, pause_after=20)) as server:
            engine = engine_of(server)
            before = server.generated
            run(cancelled(engine))
            assert server.generated - before == 20
            engine.close()


class TestReplies:
    """Of every kind, errors included."""

    def test_thinking_is_part_of_the_text_but_not_of_the_answer(self, folder: Path, reference: Reference) -> None:
        with serving(folder, Behaviour(reasoning_tokens=6)) as server:
            engine = engine_of(server)
            found = run(engine.generate(Prompt(engine.render((("user", QUESTIONS[0]),))), Sampling(12)))
            cut = run(engine.generate(Prompt(engine.render((("user", QUESTIONS[0]),))), Sampling(5)))
            engine.close()
        expected = reference.greedy(QUESTIONS[0], 12)
        thought, answer = (reference.tokenizer.decode(ids) for ids in (expected[:6], expected[6:]))
        assert engine.decode(found.token_ids) == f"<think>{thought}</think>{answer}"
        assert (found.text, found.finish_reason) == (answer, "length")
        assert (cut.text, cut.finish_reason) == ("", "length"), "thinking alone was taken for an answer"

    @pytest.mark.parametrize(
        ("choice", "sentence"),
        [
            ({"message": {"content": ""}, "finish_reason": "content_filter"}, "content filter"),
            ({"message": {"content": None, "refusal": "I cannot help"}, "finish_reason": "stop"}, "refused: I cannot"),
            ({"message": {"content": None}, "finish_reason": "length"}, "hidden reasoning within 4 tokens"),
            ({"message": {"content": ""}, "finish_reason": "stop"}, r"empty \(after 2 attempts\)"),
            ({"strange": 1}, "no completion"),
        ],
    )
    def test_a_reply_without_an_answer_fails_its_question(self, folder: Path, choice: Any, sentence: str) -> None:
        with serving(folder, Behaviour(fixed_choices={"lantern": choice})) as server:
            engine = engine_of(server, retries=1)
            with pytest.raises(CallError, match=sentence):
                run(engine.generate(Prompt(engine.render((("user", "a lantern"),))), Sampling(5)))
            assert run(engine.generate(Prompt(engine.render((("user", "a purse"),))), Sampling(5))).new_tokens == 5
            engine.close()

    def test_refused_parameters_are_left_out(
        self, folder: Path, reference: Reference, caplog: pytest.LogCaptureFixture
    ) -> None:
        behaviour = Behaviour(
            returns_ids=False,
            has_completions=False,
            refused_parameters=("max_tokens", "temperature", "return_token_ids"),
        )
        with serving(folder, behaviour) as server:
            engine = engine_of(server)
            assert engine.identity["without"] == ["max_tokens", "return_token_ids", "temperature"]
            found = run(engine.generate(Prompt("0: x = 48"), Sampling(7)))
            assert server.requests[-1]["messages"] == [{"role": "user", "content": "0: x = 48"}]
            engine.close()
        assert engine.decode(found.token_ids) == reference.tokenizer.decode(reference.greedy("0: x = 48", 7))
        assert "does not accept temperature" in caplog.text

    def test_stop_strings_beyond_the_protocol_s_limit_are_applied(self, folder: Path, reference: Reference) -> None:
        plain = reference.tokenizer.decode(reference.greedy(QUESTIONS[0], 12))
        with serving(folder) as server:
            engine = engine_of(server)
            sampling = Sampling(12, stop=("@1", "@2", "@3", "@4", plain[10:14]))
            found = run(engine.generate(Prompt(engine.render((("user", QUESTIONS[0]),))), sampling))
            engine.close()
        assert (found.text, found.finish_reason) == (plain.split(plain[10:14])[0], "stop")

    @pytest.mark.parametrize("horizon", [None, 200])
    def test_a_stop_string_ends_an_answer_and_no_thinking(self, tmp_path: Path, horizon: int | None) -> None:
        """In one request and in a stream: a server would search the thinking, too, so it gets no stop strings."""
        turns = [{"role": "user", "content": "x"}]
        template = AutoTokenizer.from_pretrained(pair.INTERN).apply_chat_template
        rendered = str(template(turns, tokenize=False, add_generation_prompt=True))
        with serving(tiny.save_script(tmp_path, THOUGHT, rendered), Behaviour(returns_ids=False)) as server:
            engine = engine_of(server, think_end_token="</think>")
            for stop, text in (("\n\n", "Été: 37。"), ("。", "Été: 37"), ("see", "Été: 37。\n\nDone")):
                prompt = Prompt(engine.render((("user", "x"),)), session="s", horizon=horizon)
                found = run(engine.generate(prompt, Sampling(99, (stop,))))
                assert (found.text, found.finish_reason) == (text, "stop")
                assert "stop" not in server.requests[-1]
                assert ("stream" in server.requests[-1]) == (horizon is not None)
                engine.release("s")
            engine.close()

    def test_a_call_that_exceeds_the_window_is_refused(self, folder: Path) -> None:
        with serving(folder) as server:
            engine = engine_of(server)
            with pytest.raises(ContextError, match="window of tiny, 256 tokens"):
                run(engine.generate(Prompt("x"), Sampling(257)))
            with pytest.raises(CallError, match="replied with status 400: The context length"):
                run(engine.generate(Prompt("x y z " * 40), Sampling(150)))
            engine.close()

    def test_a_refused_key_is_not_repeated_in_the_error(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with serving(folder, key="another") as server:
            with pytest.raises(EngineError, match="refuses the key in OPENAI_API_KEY") as caught:
                engine_of(server, api_key_env="OPENAI_API_KEY")
            assert KEY not in str(caught.value)
            with pytest.raises(ArgumentError, match="environment variable MY_KEY is not set"):
                engine_of(server, api_key_env="MY_KEY")
            monkeypatch.setenv("MY_KEY", "another")
            engine_of(server, api_key_env="MY_KEY").close()

    def test_the_key_of_openai_is_sent_to_no_other_server(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("OPENAI_ORG_ID", "org-0123456789")
        with serving(folder) as server:
            engine_of(server).close()
            assert server.headers
            assert "org-0123456789" not in str(server.headers)
            assert KEY not in str(server.headers)
            engine_of(server, api_key_env="OPENAI_API_KEY").close()
            assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
            server.key = KEY
            with pytest.raises(EngineError, match=r"wants a key \(401\).* that variable's name as mentor_api_key_env="):
                engine_of(server)

    @pytest.mark.parametrize(
        "reply",
        [
            {"error": {"message": f"bad key {KEY}"}},
            {"error": {"message": f"bad key {KEY}", "code": 403}},
            {"choices": [{"message": {"refusal": f"I saw {KEY}"}, "finish_reason": "stop"}]},
            {"choices": [{"message": {"content": "x"}, "finish_reason": KEY}]},
            [KEY],
        ],
    )
    @pytest.mark.parametrize("ids", [True, False], ids=["single", "streamed"])
    def test_a_key_that_a_server_quotes_is_in_no_error(self, folder: Path, reply: Any, ids: bool) -> None:
        with serving(folder, Behaviour(returns_ids=ids)) as server:
            engine = engine_of(server, api_key_env="OPENAI_API_KEY", retries=0)
            message = (
                {"choices": [{"delta": c["message"], **c} for c in reply["choices"]]} if "choices" in reply else reply
            )
            head = b"HTTP/1.1 200 X\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n"
            events = head.replace(b"application/json", b"text/event-stream") + b"data: "
            body = json.dumps(message).encode()
            server.behaviour.raw_replies = {"lantern": lambda stream: [events if stream else head, body, b"\n\n"]}
            prompt = Prompt(engine.render((("user", "a lantern"),)), (), "s", 20)
            with pytest.raises(CallError) as caught:
                run(engine.generate(prompt, Sampling(5)))
            assert KEY not in str(caught.value)
            assert "…" in str(caught.value)
            engine.close()

    def test_a_missing_model_or_server_is_reported_after_a_few_attempts(self, folder: Path) -> None:
        with serving(folder) as server, pytest.raises(EngineError, match="huge: the server replied with status 404"):
            APIEngine("huge", {"base_url": server.url})
        with pytest.raises(EngineError, match=r"the connection failed: .* \(after 4 attempts\)"):
            engine_of(server)

    def test_what_the_server_cannot_do_is_refused(self, folder: Path) -> None:
        with serving(folder, Behaviour(returns_ids=False)) as server:
            with pytest.raises(EngineError, match="resume=ids needs a server"):
                engine_of(server, resume="ids")
            engine = engine_of(server)
            with pytest.raises(EngineError, match="cannot continue a partial answer"):
                run(engine.generate(Prompt(engine.render((("user", "x"),)) + "So"), Sampling(3)))
            with pytest.raises(EngineError, match="intern_backend=hf"):
                run(engine.score(Prompt("x")))
            with pytest.raises(EngineError, match="kind generate_until"):
                engine.lm.loglikelihood([])
            engine.close()


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        (
            "<html>\n<head><title>502 Bad\n Gateway</title></head>\n<body><h1>nginx</h1></body></html>",
            "502 Bad Gateway",
        ),
        ("<!DOCTYPE html><html><style>p {}</style><body>\n<p>Please&nbsp;sign in</p><p>Now</p>", "Please\xa0sign in"),
        ("<html></html>", "an empty HTML page"),
        ("upstream is down", "upstream is down"),
    ],
)
def test_a_server_s_page_is_quoted_by_its_title_or_first_line(folder: Path, page: str, shown: str) -> None:
    replies = [response(502, page.encode(), "text/html", connection="close")]
    with serving(folder) as server:
        engine = engine_of(server, retries=0)
        server.behaviour.raw_replies = {"lantern": lambda stream: replies}
        with pytest.raises(CallError) as caught:
            run(engine.generate(Prompt(engine.render((("user", "a lantern"),))), Sampling(5)))
        engine.close()
    assert f"the server replied with status 502: {' '.join(shown.split())}" in str(caught.value)
    assert "<" not in str(caught.value)


def test_a_wait_that_a_server_asks_for_is_limited(folder: Path) -> None:
    """It would wait a day; the call fails as soon as it may not be tried again, and says what was asked."""
    busy = refusal(429, "slow down", retry_after="86400")
    retries = Retries(Options("tiny", retries=0), Reachability("tiny", 30.0), "x", str)
    failure = Failure("slow down", retry_after=86400.0)
    assert 60 <= retries._wait_seconds(failure, 1) <= 66
    with serving(folder) as server:
        engine = engine_of(server, retries=0)
        server.behaviour.raw_replies = {"lantern": lambda stream: [busy]}
        with pytest.raises(CallError, match=r"slow down \(asks to wait 86400 s, of which 60 are waited\)"):
            run(engine.generate(Prompt(engine.render((("user", "a lantern"),))), Sampling(5)))
        engine.close()


@pytest.mark.parametrize("given", ["inf", "nan", "-5", "²", "soon", "1e999"])
def test_a_wait_that_is_no_number_counts_as_none(given: str) -> None:
    assert requested_wait({"retry-after": given}) is None
    assert requested_wait({"retry-after-ms": given}) is None


def test_the_first_requests_go_to_a_server_that_works(folder: Path) -> None:
    """Whichever comes first in base_url: the attempts after a failure go to the next one, those of streams too."""
    with (
        serving(folder, Behaviour(returns_ids=False)) as server,
        serving(folder, Behaviour(returns_ids=False)) as other,
    ):
        other.go_away()
        for urls in (f"{other.url};{server.url}", f"{server.url};{other.url}"):
            engine = APIEngine("tiny", {"base_url": urls})
            assert engine.identity["counted"] == "by pieces"
            engine.close()


def test_judge_calls_and_repeated_requests_are_part_of_the_engine_s_work(folder: Path) -> None:
    prices = {"price_input": 1, "price_output": 1}
    with serving(folder) as server:
        engine = engine_of(server, **prices)
        prompted, generated = server.prompted, server.generated
        text = engine.render((("user", QUESTIONS[0]),))

        async def in_two_processes() -> None:
            first = await engine.generate(Prompt(text, (), "s"), Sampling(6))
            engine.release("s")
            await engine.generate(Prompt(text, first.token_ids, "s"), Sampling(4))

        before = (engine.work.prefill_tokens, engine.work.decode_tokens, engine.work.dollars)
        run(in_two_processes())
        used = (server.prompted - prompted, server.generated - generated)
        assert len(server.requests[-3:]) == 3
        work = (engine.work.prefill_tokens - before[0], engine.work.decode_tokens - before[1])
        assert work == used
        assert engine.work.dollars - before[2] == pytest.approx(sum(used) / 1e6)
        engine.close()
        scored = {
            "choices": [
                {
                    "message": {"content": "x"},
                    "finish_reason": "length",
                    "prompt_token_ids": [5, 6],
                    "prompt_logprobs": [None, {str(i): {"logprob": -float(i)} for i in range(1, 8)}],
                }
            ],
            "usage": {"prompt_tokens": 2, "completion_tokens": 1},
        }
        server.behaviour.raw_replies = {"Hi there": lambda _: whole(scored), "lantern": lambda _: whole(scored)}
        engine = engine_of(server, entropy="topk:3", tokenizer=str(folder), retries=0, **prices)
        assert engine.cannot_score == ""
        dollars = engine.work.dollars
        assert len(run(engine.score(Prompt(engine.render((("user", "a lantern"),)))))) == 2
        assert engine.work.dollars - dollars == pytest.approx(3 / 1e6)
        scored["choices"][0]["prompt_logprobs"][1]["1"]["logprob"] = None
        with pytest.raises(CallError, match="prompt_logprobs is a list"):
            run(engine.score(Prompt(engine.render((("user", "the lantern"),)))))
        engine.close()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"resume": "x"}, "resume=x is not known; use one of auto, ids, prefix, stream"),
        ({"base_url": "localhost:8000"}, "is no web address"),
        ({"base_url": "http://me:secret@x/v1"}, "base_url of x contains a secret"),
        ({"base_url": "http://x/v1?api_key=secret"}, "base_url of x contains a secret"),
        ({"base_url": "me:secret@x/v1"}, "base_url of the server contains a secret"),
        ({"base_url": "http://x/v1?password=secret"}, "base_url of x contains a secret"),
        ({"base_url": "http://[x/v1"}, "is no web address"),
        ({"base_url": "http://x:port/v1"}, "is no web address"),
        ({"concurrency": 0}, "concurrency=0 has to be a whole number, 1 or more"),
        ({"concurrency": True}, "concurrency=True has to be a whole number, 1 or more"),
        ({"concurrency": "inf"}, "concurrency=inf has to be a whole number, 1 or more"),
        ({"max_length": 10.5}, "max_length=10.5 has to be a whole number, 1 or more"),
        ({"retries": -1}, "retries=-1 has to be a whole number, 0 or more"),
        ({"timeout": "soon"}, "timeout=soon has to be a number above 0"),
        ({"timeout": 0}, "timeout=0 has to be a number above 0"),
        ({"timeout": "nan"}, "timeout=nan has to be a number above 0"),
        ({"total_timeout": 0}, "total_timeout=0 has to be a number above 0"),
        ({"give_up": -1}, "give_up=-1 has to be a number, 0 or more"),
        ({"parameters": 0}, "parameters=0 has to be a number, 1 or more"),
        ({"parameters": "inf"}, "parameters=inf has to be a number, 1 or more"),
        ({"price_input": 1}, "belong together"),
        ({"extra_body": "[1"}, "has to be a JSON object; on the command line all of --model_args is one JSON object"),
        ({"entropy": "topk:²"}, "entropy=topk:² is not known"),
        ({"entropy": ""}, "entropy= is not known"),
        ({"enable_thinking": "perhaps"}, "has to be True or False"),
    ],
)
def test_a_wrong_argument_is_one_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence) as caught:
        APIEngine("tiny", arguments)
    assert "secret@" not in str(caught.value)
    assert "=secret" not in str(caught.value)


def test_several_servers_share_the_load_and_replace_each_other(folder: Path) -> None:
    with serving(folder) as one, serving(folder) as other:
        engine = APIEngine("tiny", {"base_url": f"{one.url};{other.url}"})
        texts = [engine.render((("user", question),)) for question in QUESTIONS[:12]]

        async def ask() -> list[Completion]:
            return await together(*(engine.generate(Prompt(text, session=text), Sampling(3)) for text in texts))

        both = run(ask())
        assert min(len(one.requests), len(other.requests)) >= 3
        other.go_away()
        assert [found.text for found in run(ask())] == [found.text for found in both]
        engine.close()


# The whole model, with an API mentor and a local intern


def instances(questions: list[str], tokens: int = 12) -> list[Instance]:
    settings = {"until": [], "max_gen_toks": tokens, "do_sample": False}
    return [Instance("generate_until", {}, (text, settings), 0, ("t", i, 1)) for i, text in enumerate(questions)]


def tandem(server: ModelServer | FaultyProxy, folder: Path, **arguments: Any) -> TandemLM:
    given = {"mentor": "tiny", "mentor_backend": "openai", "mentor_base_url": server.url, "intern": str(folder)}
    common = {
        "prompts": str(folder / "wording.json"),
        "policy": "stage:2",
        "efforts": "6:14",
        "dtype": "float32",
        "device": "cpu",
        "batch_size": 16,
    }
    return TandemLM(**{**given, **common, **arguments})


def answered(lm: TandemLM, questions: list[str]) -> list[str]:
    try:
        return [str(answer) for answer in lm.generate_until(instances(questions), disable_tqdm=True)]
    finally:
        lm.close()


def test_dollars_and_tflops_are_reported_where_they_are_known(folder: Path) -> None:
    prices = {"mentor_price_input": 2.0, "mentor_price_output": 10.0}
    with serving(
        folder, Behaviour(returns_ids=False, usage_delay=0.1)
    ) as server:  # the bill comes after the last token
        before = server.generated, server.prompted
        lm = tandem(server, folder, mentor_parameters="32e9", **prices)
        probed = server.generated - before[0], server.prompted - before[1]
        answers = lm.generate_until(instances(QUESTIONS[:5]), disable_tqdm=True)
        totals = lm.totals()
        billed = (2 * (server.prompted - probed[1]) + 10 * (server.generated - probed[0])) / 1e6
        assert totals["dollars_per_1000"] == pytest.approx(1000 * billed / 5)
        assert totals["computed"]["mentor"]["dollars"] == pytest.approx(billed)
        assert totals["tflops"] == pytest.approx(2e-12 * 32e9 * 14, rel=0.01)
        assert all(answer.metrics["dollars"] > 0 for answer in answers)  # type: ignore[attr-defined]
        lm.close()
        lm = tandem(server, folder)
        (answer,) = lm.generate_until(instances(QUESTIONS[:1]), disable_tqdm=True)
        assert not {"dollars", "tflops"} & set(answer.metrics)  # type: ignore[attr-defined]
        totals = lm.totals()
        assert totals["tflops"] is totals["bill_tflops"] is totals["dollars_per_1000"] is None
        lm.close()


def test_the_mentor_alone_answers_over_the_protocol(folder: Path, reference: Reference) -> None:
    with serving(folder) as server:
        lm = tandem(server, folder, policy="mentor")
        chat = [{"role": "user", "content": QUESTIONS[0]}]
        prompt = lm.apply_chat_template(chat)
        requests = instances([QUESTIONS[1]])
        requests[0].arguments = (prompt, requests[0].args[1])
        (answer,) = lm.generate_until(requests, disable_tqdm=True)
        assert answer == reference.tokenizer.decode(reference.greedy(QUESTIONS[0], 12))
        assert lm.tokenizer_name == "tandem--tiny"
        assert lm.chat_template(True) == ""
        with pytest.raises(EngineError, match="this needs likelihoods"):
            lm.loglikelihood([])
        json.dumps(lm.get_model_info())
        lm.close()


@pytest.mark.parametrize("ids", [True, False], ids=["resumed", "streamed"])
def test_a_failed_question_fails_alone_and_is_tried_again_by_the_next_run(
    folder: Path, tmp_path: Path, ids: bool
) -> None:
    store = str(tmp_path / "store.sqlite")
    withheld = {"message": {"content": ""}, "finish_reason": "content_filter"}
    with serving(
        folder, Behaviour(returns_ids=ids, fixed_choices={"with 12 coins": withheld, "with 15 coins": withheld})
    ) as server:
        with pytest.raises(
            EngineError, match=r"^2 of 10 questions failed \(.*\), .* tiny: the server's content filter .* other 8"
        ):
            answered(tandem(server, folder, store=store, mentor_retries=0), QUESTIONS[:10])
        earlier = len(server.requests)
        server.behaviour.fixed_choices = {}
        again = answered(tandem(server, folder, store=store), QUESTIONS[:10])
        mine = [request for request in server.requests[earlier:] if "coins" in json.dumps(request)]
        assert {"12" in json.dumps(request) or "15" in json.dumps(request) for request in mine} == {True} or ids
        assert len(mine) <= 4
        assert again == answered(tandem(server, folder), QUESTIONS[:10])


def test_a_server_that_stays_unreachable_ends_the_run_and_finished_calls_are_stored(
    folder: Path, tmp_path: Path
) -> None:
    store = str(tmp_path / "store.sqlite")
    with serving(folder, Behaviour(seconds_per_token=0.01)) as server:
        lm = tandem(server, folder, store=store, mentor_give_up=2, mentor_concurrency=4)

        def vanish() -> None:
            while len(server.replied) < 20:
                time.sleep(0.02)
            server.go_away()

        threading.Thread(target=vanish).start()
        with pytest.raises(UnreachableError, match=r"no call has reached tiny for .* are in store="):
            lm.generate_until(instances(QUESTIONS), disable_tqdm=True)
        assert lm.store is not None
        assert len(lm.store) >= 10
        lm.close()


SHARES = {"429": 0.10, "500": 0.05, "cut": 0.05, "stall": 0.02, "garbage": 0.01}


def under_fire(folder: Path, questions: list[str], behaviour: Behaviour) -> dict[str, Any]:
    """The same questions undisturbed, and through a proxy at which requests fail."""
    with serving(folder, behaviour) as server:
        began = time.monotonic()
        undisturbed = answered(tandem(server, folder), questions)
        calm = time.monotonic() - began
        calls = sum(server.replied.values())
        proxy = FaultyProxy(server.port, SHARES, retry_after=0.5)
        began = time.monotonic()
        lm = tandem(proxy, folder, mentor_timeout=2, mentor_price_input=1, mentor_price_output=1)
        found = answered(lm, questions)
        disturbed = time.monotonic() - began
        proxy.close()
        again = sum(server.replied.values()) - calls
        return {
            "same": undisturbed == found,
            "calm": calm,
            "disturbed": disturbed,
            "waits": 0.5 * proxy.done["429"] / 16,
            "calls": calls,
            "calls under fire": again,
            "faults": dict(proxy.done),
            "dollars": lm.totals()["dollars_per_1000"],
        }


def test_no_network_failure_loses_or_changes_an_answer(folder: Path) -> None:
    found = under_fire(folder, [f"{n}: {QUESTIONS[n % 30]}" for n in range(60)], Behaviour())
    faults = found["faults"]
    assert found["same"]
    assert min(faults[kind] for kind in ("429", "500", "cut")) > 0
    lost = faults["cut"] + faults.get("garbage", 0) + faults.get("late", 0)
    assert found["calls under fire"] <= found["calls"] + lost, "billed twice"


@pytest.mark.slow
def test_a_thousand_questions_under_fire(folder: Path) -> None:
    found = under_fire(folder, [f"{n}: {QUESTIONS[n % 30]}" for n in range(1000)], Behaviour(seconds_per_token=0.01))
    print(found)
    faults = found["faults"]
    assert found["same"]
    assert found["calls under fire"] <= found["calls"] + faults["cut"] + faults["garbage"] + faults["late"]
    # It takes about 1.2 times as long; if calls waited for each other's failures, it would be more than ten times.
    assert found["disturbed"] < 5 * found["calm"] + found["waits"]


def test_the_key_appears_nowhere(folder: Path, tmp_path: Path) -> None:
    """In the ledger, store, samples and printed output of a whole run of the harness."""
    save_task(tmp_path, QUESTIONS[:3])
    with serving(folder, Behaviour(returns_ids=False), KEY) as server:
        arguments = (
            f"mentor=tiny,mentor_backend=openai,mentor_base_url={server.url},mentor_api_key_env=OPENAI_API_KEY,intern={folder},policy=stage:1,efforts=6:9,"
            f"dtype=float32,prompts={folder}/wording.json,store={tmp_path}/out/s.sqlite,ledger={tmp_path}/out/l.jsonl,mentor_price_input=1,"
            "mentor_price_output=2"
        )
        command = [sys.executable, "-c", DEFAULT_TASKS_LEFT_OUT + MAIN, "--model", "tandem", "--model_args", arguments]
        command += ["--tasks", "coins", "--include_path", str(tmp_path / "tasks")]
        command += ["--output_path", str(tmp_path / "out")]
        environment = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HOME": str(tmp_path / "hf"), "LOGLEVEL": "DEBUG"}
        done = subprocess.run(
            [*command, "--log_samples"], capture_output=True, text=True, env=environment, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert {file.suffix for file in files} >= {".jsonl", ".json", ".sqlite"}
    for content in (*(file.read_bytes().decode("utf-8", "ignore") for file in files), done.stdout, done.stderr):
        assert KEY not in content


def test_a_key_among_the_arguments_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"mentor_api_key would be printed .* variable OPENAI_API_KEY") as caught:
        TandemLM(mentor="x", mentor_backend="openai", mentor_api_key=KEY, intern="org/small", policy="stage:1")
    assert KEY not in str(caught.value)


def test_a_judge_that_needs_entropies_is_refused_before_the_run(folder: Path) -> None:
    with serving(folder) as server:
        given = {"intern": "tiny", "intern_backend": "openai", "intern_base_url": server.url}
        with pytest.raises(EngineError, match="cannot be the intern of a judge"):
            TandemLM(mentor=str(folder), policy="stage:1", record_features=True, device="cpu", **given)


@pytest.mark.parametrize("policy", ["intern", "mentor", "stage:2"])
def test_both_models_may_be_behind_servers_that_report_nothing(folder: Path, reference: Reference, policy: str) -> None:
    with serving(folder, Behaviour(returns_ids=False)) as server:
        given = {"intern": "tiny", "intern_backend": "openai", "intern_base_url": server.url}
        lm = tandem(server, folder, policy=policy, **given, dtype=None, device=None)
        found = answered(lm, QUESTIONS[:4])
        asked = {name for request in server.requests for name in request}
    assert not {"logprobs", "top_logprobs", "prompt_logprobs"} & asked, "asked for what the policy does not need"
    assert [record.finish_reason for record in lm.records] == ["length"] * 4
    assert [record.tokens.mentor_new for record in lm.records] == [{"intern": 0, "mentor": 12}.get(policy, 14)] * 4
    if policy != "mentor":
        assert {record.refused_tokens for record in lm.records} == {0}, "bytes were counted as tokens"
    if policy == "intern":
        expected = [reference.greedy(question, 12) for question in QUESTIONS[:4]]
        assert found == [reference.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]


@pytest.mark.parametrize("ids", [True, False], ids=["resumed", "streamed"])
def test_the_cascade_decides_and_answers_as_with_a_local_mentor(tmp_path: Path, ids: bool) -> None:
    """The bundled pair, its mentor behind a server: the same stages, answers and mentor tokens."""
    profile = json.loads((Path(pair.__file__).parent / "profile.json").read_text())
    insights = {name: text for name, text in profile["insights"].items() if text}
    (tmp_path / "wording.json").write_text(json.dumps(insights))
    questions = [str(row["question"]) for row in problems.rows("math", "test", 40)]
    requests = instances(questions, 90)

    def cascaded(**arguments: Any) -> tuple[list[str], list[tuple[int, int, int]]]:
        lm = TandemLM(dtype="float32", device="cpu", batch_size=16, **arguments)
        answers = [str(answer) for answer in lm.generate_until(requests, disable_tqdm=True)]
        records = sorted(lm.records, key=lambda record: record.doc_id)
        lm.close()
        return answers, [(record.doc_id, record.stage, record.tokens.mentor_new) for record in records]

    with serving(pair.MENTOR, Behaviour(returns_ids=ids, seconds_per_token=0.002)) as server:
        given = {"mentor": "tiny", "mentor_backend": "openai", "mentor_base_url": server.url}
        given |= {"intern": str(pair.INTERN), "prompts": str(tmp_path / "wording.json"), "classifier": "pair"}
        remote = cascaded(efforts=":".join(map(str, profile["efforts"])), **given)
    local = cascaded()
    assert len({stage for _, stage, _ in local[1]}) > 1
    assert remote == local
