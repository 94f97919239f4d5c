"""The server of the bundled pair: its answers are the harness's, in every form that a client may ask for."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

from lm_eval.api.instance import Instance

from bundled import COMMON, instances
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.pair import problems
from lm_eval_tandem.server.command import load, read_model
from server.serving import EASY, HARD, Served, error_of, serving

QUESTIONS = 8
ROWS = [str(row["question"]) for row in problems.rows("math", "test", QUESTIONS)]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def lm() -> Iterator[TandemLM]:
    found = TandemLM(**COMMON, policy="cascade")
    yield found
    found.close()


@pytest.fixture(scope="module")
def expected(lm: TandemLM) -> tuple[list[str], dict[int, Record]]:
    """The harness's answers to the questions, and their records."""
    answers = lm.generate_until(instances(QUESTIONS), disable_tqdm=True)
    return answers, {record.doc_id: record for record in lm.records}


def test_chats_and_completions_are_answered_as_by_the_harness(
    server: Served, expected: tuple[list[str], dict[int, Record]]
) -> None:
    answers, records = expected
    with ThreadPoolExecutor(QUESTIONS) as pool:
        chats = list(pool.map(lambda question: server.chat(question, max_tokens=90), ROWS))
    completions = server.complete(ROWS, max_tokens=90)
    assert [chat["choices"][0]["message"]["content"] for chat in chats] == answers
    assert [choice["text"] for choice in completions["choices"]] == answers
    assert [choice["index"] for choice in completions["choices"]] == list(range(QUESTIONS))
    for number, chat in enumerate(chats):
        told, record = chat["usage"]["tandem"], records[number]
        assert (told["policy"], told["stage"], told["reason"]) == ("cascade", record.stage, record.reason)
        assert told["tokens"]["mentor_new"] == record.tokens.mentor_new
        assert told["tflops"] == pytest.approx(record.tflops)
        assert [one["score"] for one in told["stages"]] == pytest.approx([one.score for one in record.stages], rel=1e-4)
        assert chat["choices"][0]["finish_reason"] == record.finish_reason
        assert chat["usage"]["total_tokens"] == chat["usage"]["prompt_tokens"] + chat["usage"]["completion_tokens"]
    told = completions["usage"]
    assert len(told["tandem"]["answers"]) == QUESTIONS
    assert told["prompt_tokens"] == sum(chat["usage"]["prompt_tokens"] for chat in chats)
    assert told["completion_tokens"] == sum(chat["usage"]["completion_tokens"] for chat in chats)


def test_every_listed_name_answers_and_counts_its_answer(server: Served, lm: TandemLM) -> None:
    status, listed, _ = server.ask("GET", "/v1/models")
    names = [model["id"] for model in listed["data"]]
    assert status == 200
    assert {"tandem", "tandem/intern", "tandem/mentor", "tandem/stage:2", "tandem/escalate"} <= set(names)
    for name in [*names, "tandem/handoff:10", "tandem/steps:0.5"]:
        reply = server.chat(HARD, name, max_tokens=30)
        text = reply["choices"][0]["message"]["content"]
        assert reply["model"] == name
        assert text
        size = len(lm.engines["intern"].encode(text))  # type: ignore[union-attr]
        assert reply["usage"]["completion_tokens"] in (size, size + 1), name  # the end token counts
        assert server.ask("GET", f"/v1/models/{name}")[1]["id"] == name
    assert server.chat(HARD, "tandem/mentor", max_tokens=30)["usage"]["tandem"]["stage"] == -1
    forced = server.chat(HARD, "tandem/budget_forcing:5", max_tokens=30)["usage"]  # its text has words of nobody, too
    assert forced["completion_tokens"] == forced["tandem"]["tokens"]["mentor_new"] == 30


@pytest.mark.parametrize(
    "name",
    [
        "gpt-4",
        "",
        "tandem/",
        "tandem/stage:9",
        "tandem/nothing",
        "mentor",
        "x" * 1000,
        "tandem/handoff:" + "9" * 5000,
        "tandem/stage:\N{ARABIC-INDIC DIGIT TWO}",
    ],
)
def test_other_names_do_not_exist(server: Served, name: str) -> None:
    body = {"model": name, "messages": [{"role": "user", "content": "x"}]}
    status, reply, _ = server.ask("POST", "/v1/chat/completions", body)
    assert status == 404
    assert error_of(reply)["code"] == "model_not_found"


def test_streams_are_the_same_answers_in_pieces(server: Served) -> None:
    messages = [{"role": "user", "content": HARD}]
    whole = server.chat(HARD)
    asked: dict[str, Any] = {"messages": messages, "stream_options": {"include_usage": True}}
    chunks = server.stream("/v1/chat/completions", **asked)
    text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
    assert text == whole["choices"][0]["message"]["content"]
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
    assert chunks[-1]["choices"] == []
    assert [chunk["usage"] for chunk in chunks[:-1]] == [None] * (len(chunks) - 1)
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert chunks[-1]["usage"]["tandem"]["tokens"] == whole["usage"]["tandem"]["tokens"]
    assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1
    chunks = server.stream("/v1/completions", prompt=[HARD, EASY], echo=True)
    texts = ["".join(c["text"] for chunk in chunks for c in chunk["choices"] if c["index"] == i) for i in range(2)]
    assert texts == [choice["text"] for choice in server.complete([HARD, EASY], echo=True)["choices"]]
    assert texts[0].startswith(HARD)
    assert "usage" not in chunks[-1]


def test_a_stream_tells_what_happens_besides(server: Served) -> None:
    messages = [{"role": "user", "content": HARD}]
    asked = {"events": True, "insights": True}
    chunks = server.stream("/v1/chat/completions", messages=messages, tandem=asked)
    events = [chunk["tandem"] for chunk in chunks if "tandem" in chunk]
    record = chunks[-1]["usage"]["tandem"]
    judged = [event for event in events if event["type"] == "judged"]
    assert [event["score"] for event in judged] == [one["score"] for one in record["stages"]]
    assert [event["threshold"] for event in judged] == [one["threshold"] for one in record["stages"]]
    assert [event["passed"] for event in judged] == [False] * (len(judged) - 1) + [True]
    assert [event["mentor_tokens"] for event in judged] == [one["mentor_tokens"] for one in record["stages"]]
    (begun,) = [event for event in events if event["type"] == "answer"]
    assert begun == {"type": "answer", "writer": "intern", "stage": record["stage"]}
    insight = "".join(event["text"] for event in events if event["type"] == "insight")
    assert insight
    reasoning = [c["delta"].get("reasoning_content", "") for chunk in chunks for c in chunk["choices"]]
    assert "".join(reasoning) == insight
    whole = server.chat(HARD, tandem={"insights": True})
    assert whole["choices"][0]["message"]["reasoning_content"] == insight
    assert "reasoning_content" not in server.chat(HARD)["choices"][0]["message"]


def test_stop_strings_end_answers(server: Served) -> None:
    whole = server.chat(EASY)["choices"][0]["message"]["content"]
    for stop in ("Check", ["Answer", "Check"]):
        choice = server.chat(EASY, stop=stop)["choices"][0]
        assert choice["message"]["content"] == whole.partition("Check")[0]
        assert choice["finish_reason"] == "stop"
        chunks = server.stream("/v1/chat/completions", messages=[{"role": "user", "content": EASY}], stop=stop)
        text = "".join(choice["delta"].get("content", "") for chunk in chunks for choice in chunk["choices"])
        assert text == whole.partition("Check")[0]


def test_a_seed_gives_the_same_answers_again(server: Served) -> None:
    def texts(**fields: Any) -> list[str]:
        reply = server.complete("Ada starts with", "tandem/intern", n=4, max_tokens=12, temperature=1.5, **fields)
        return [choice["text"] for choice in reply["choices"]]

    first = texts(seed=5)
    assert len(set(first)) > 1, "the answers to one prompt are sampled apart"
    assert texts(seed=5) == first
    assert texts(seed=6) != first
    reply = server.complete("Ada starts with", "tandem/intern", max_tokens=12, temperature=1.5)
    seed = reply["usage"]["tandem"]["seed"]
    again = server.complete("Ada starts with", "tandem/intern", max_tokens=12, temperature=1.5, seed=seed)
    assert again["choices"] == reply["choices"]
    greedy = server.complete("Ada starts with", "tandem/intern", n=2, max_tokens=12)
    assert greedy["choices"][0]["text"] == greedy["choices"][1]["text"]
    assert "seed" not in server.chat(EASY)["usage"]["tandem"]


def test_the_last_turn_of_the_assistant_is_continued(server: Served) -> None:
    whole = server.chat(EASY)["choices"][0]["message"]["content"]
    begun = [{"role": "user", "content": EASY}, {"role": "assistant", "content": whole[:40]}]
    _, reply, _ = server.ask("POST", "/v1/chat/completions", {"model": "tandem", "messages": begun})
    assert "Answer" in reply["choices"][0]["message"]["content"]


@pytest.mark.parametrize("model", ["tandem", "tandem/intern", "tandem/mentor", "tandem/stage:1"])
def test_log_probabilities_of_answers_are_those_of_the_tokens(server: Served, lm: TandemLM, model: str) -> None:
    reply = server.chat(HARD, model, logprobs=True, max_tokens=60)
    text = reply["choices"][0]["message"]["content"]
    content = reply["choices"][0]["logprobs"]["content"]
    assert text == server.chat(HARD, model, max_tokens=60)["choices"][0]["message"]["content"]
    assert "".join(token["token"] for token in content) == text
    assert all(token["logprob"] <= 0 and bytes(token["bytes"]).decode() == token["token"] for token in content)
    completion = server.complete(HARD, model, logprobs=1, max_tokens=60)["choices"][0]["logprobs"]
    assert completion["token_logprobs"] == pytest.approx([token["logprob"] for token in content], abs=1e-5)
    assert completion["tokens"] == [token["token"] for token in content]
    for token, logprob, top in zip(*(completion[n] for n in ("tokens", "token_logprobs", "top_logprobs")), strict=True):
        assert top == {token: logprob}
    if model == "tandem/intern":
        total = lm.loglikelihood([Instance("loglikelihood", {}, (HARD, text), 0)], disable_tqdm=True)[0][0]
        assert math.fsum(token["logprob"] for token in content) == pytest.approx(total, abs=1e-3)


def test_a_prompt_is_scored_as_by_the_harness(server: Served, lm: TandemLM) -> None:
    """What lm-eval's own client reads for a likelihood (`parse_logprobs`)."""
    pairs = [(EASY, " Steps: 1)"), ("Ada starts with", " 34 coins"), ("Ada", " zzz é")]
    truth = lm.loglikelihood([Instance("loglikelihood", {}, pair, i) for i, pair in enumerate(pairs)])
    intern = lm.engines["intern"]
    assert intern is not None
    ids = [intern.encode(context + more) for context, more in pairs]
    asked = {"max_tokens": 1, "logprobs": 1, "echo": True, "temperature": 0, "seed": 1234}
    for prompts in (ids, [context + more for context, more in pairs]):
        choices = server.complete(prompts, **asked)["choices"]
        for (context, more), choice, (total, is_greedy) in zip(pairs, choices, truth, strict=True):
            begin = len(intern.encode(context))
            logprobs = choice["logprobs"]["token_logprobs"]
            top = choice["logprobs"]["top_logprobs"]
            assert logprobs[0] is None
            assert sum(logprobs[begin:-1]) == pytest.approx(total, abs=1e-4)
            greedy = [one == max(best.values()) for one, best in zip(logprobs[begin:-1], top[begin:-1], strict=True)]
            assert all(greedy) == is_greedy
            assert choice["text"].startswith(context + more)


def test_a_prompt_is_scored_or_repeated_without_an_answer(server: Served) -> None:
    whole = server.complete(EASY, echo=True, logprobs=1, max_tokens=1)["choices"][0]
    reply = server.complete(EASY, echo=True, logprobs=1, max_tokens=0)
    choice, read = reply["choices"][0], reply["usage"]["prompt_tokens"]
    assert (choice["text"], choice["finish_reason"]) == (EASY, "length")
    assert choice["logprobs"]["token_logprobs"] == whole["logprobs"]["token_logprobs"][:-1]
    assert len(choice["logprobs"]["tokens"]) == read
    assert (reply["usage"]["completion_tokens"], reply["usage"]["total_tokens"]) == (0, read)
    window = 512
    filled = server.complete([[5] * window], echo=True, logprobs=1, max_tokens=0)["choices"][0]
    assert len(filled["logprobs"]["tokens"]) == window
    computed = server.metric("tandem_computed_tokens_total")
    assert server.complete(HARD, echo=True, max_tokens=0)["choices"][0]["text"] == HARD
    chunks = server.stream("/v1/completions", prompt=[HARD, EASY], echo=True, max_tokens=0)
    assert [c["text"] for chunk in chunks for c in chunk["choices"] if c["text"]] == [HARD, EASY]
    assert server.metric("tandem_computed_tokens_total") == computed


@pytest.mark.parametrize(("model", "words", "excess"), [("tandem/intern", 512, 1), ("tandem/stage:1", 500, 12)])
def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused_with_its_numbers(
    server: Served, model: str, words: int, excess: int
) -> None:
    """The intern's window has 512 tokens; insights of 18 and five tokens around them may come into it, too."""
    body = {"model": model, "prompt": "x " * (words - 1)}
    status, reply, _ = server.ask("POST", "/v1/completions", body)
    assert status == 400
    assert error_of(reply)["code"] == "context_length_exceeded"
    expected = f"the prompt has {words} tokens, {excess} too many for an answer of {model} to fit"
    assert error_of(reply)["message"].startswith(expected)
    shorter = server.complete("x " * (words - 1 - excess), model)
    assert shorter["usage"]["completion_tokens"] == 1


def test_the_log_has_no_warning_of_a_prompt_that_was_refused(server: Served) -> None:
    """The tokenizer's own: "Running this sequence through the model will result in indexing errors"."""
    status, _, _ = server.ask("POST", "/v1/completions", {"model": "tandem", "prompt": "x " * 600})
    assert status == 400
    assert "longer than the specified maximum" not in server.process.complained()


@pytest.mark.parametrize(
    ("model", "fields", "words"),
    [
        ("tandem/handoff:5", {"logprobs": 0}, "not written by one model alone"),
        ("tandem/escalate", {"logprobs": 0}, "not written by one model alone"),
        ("tandem", {"logprobs": 1, "temperature": 1.0}, "greedy"),
        ("tandem", {"logprobs": 1, "echo": True, "stream": True}, "cannot be streamed"),
        ("tandem", {"prompt": [5, 10**6]}, "token id 1000000"),
        ("tandem", {"prompt": [5, -1]}, "token id -1"),
        ("tandem", {"prompt": "1 + " * 5000}, "does not fit into the window"),
        ("tandem", {"max_tokens": 10**6}, "does not fit into the window"),
        ("tandem", {"n": 16, "prompt": ["x"] * 20}, "320 answers"),
    ],
)
def test_what_cannot_be_done_is_refused_in_a_sentence(
    server: Served, model: str, fields: dict[str, Any], words: str
) -> None:
    status, reply, _ = server.ask("POST", "/v1/completions", {"model": model, "prompt": EASY, **fields})
    assert status == 400
    assert words in error_of(reply)["message"]


def test_metrics_count_what_the_replies_say(server: Served) -> None:
    before = {kind: server.metric("tandem_tokens_total", model="mentor", kind=kind) for kind in ("generated", "read")}
    answers = server.metric("tandem_answers_total", policy="cascade")
    replies = [server.chat(HARD), server.chat(EASY)]
    server.stream("/v1/chat/completions", messages=[{"role": "user", "content": HARD}])
    generated = [reply["usage"]["tandem"]["tokens"]["mentor_new"] for reply in replies]
    assert generated[0] > 0
    now = server.metric("tandem_tokens_total", model="mentor", kind="generated")
    assert now - before["generated"] == 2 * generated[0] + generated[1]
    assert server.metric("tandem_answers_total", policy="cascade") == answers + 3
    assert server.metric("tandem_requests_total", route="/v1/chat/completions", status="200") >= 3
    assert server.metric("tandem_first_text_seconds_count") >= 1
    assert server.metric("tandem_computed_tokens_total", model="mentor", kind="generated") >= generated[0]
    assert server.metric("tandem_answers_under_way") == 0


def test_the_log_has_a_line_for_each_request_and_no_contents(server: Served) -> None:
    server.ask("GET", "/")
    server.ask("GET", "/v1/secret-path")
    server.ask("POST", "/v1/chat/completions", {"model": "secret-model", "messages": []}, {"Authorization": "Bearer s"})
    chat = {"model": "tandem/intern", "max_tokens": 4, "user": "secret-user"}
    chat["messages"] = [{"role": "user", "content": "a secret question"}]
    _, _, headers = server.ask("POST", "/v1/chat/completions", chat)
    server.line_of(headers["X-Request-Id"])
    lines = server.lines
    assert (lines[-4]["route"], lines[-4]["status"]) == ("/", 200)
    assert (lines[-3]["route"], lines[-3]["status"], lines[-3]["error"]) == ("other", 404, "not_found")
    assert (lines[-2]["route"], lines[-2]["status"]) == ("/v1/chat/completions", 400)
    assert (lines[-1]["model"], lines[-1]["answers"][0]["policy"]) == ("tandem/intern", "intern")
    assert lines[-1]["completion_tokens"] == 4
    assert "secret" not in server.process.printed() + server.process.complained()
    assert "Bearer" not in server.process.printed()


def test_who_hangs_up_is_answered_no_further(server: Served) -> None:
    server.until_idle()
    gone = server.metric("tandem_clients_gone_total")
    body = json.dumps({"model": "tandem/mentor", "stream": True, "prompt": ["Ada"] * 8, "max_tokens": 400}).encode()
    connection = server.connect()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    connection.getresponse().read1(1)
    connection.close()
    whole = json.dumps({"model": "tandem/mentor", "prompt": ["Ada"] * 8, "max_tokens": 400}).encode()
    connection = server.connect()
    connection.request("POST", "/v1/completions", whole, {"Content-Type": "application/json"})
    while server.metric("tandem_answers_under_way") == 0:
        pass
    connection.close()
    server.until_idle()
    assert server.metric("tandem_clients_gone_total") == gone + 2
    computed = server.metric("tandem_computed_tokens_total")
    assert server.chat(EASY)["choices"][0]["finish_reason"] == "stop"
    assert server.metric("tandem_computed_tokens_total") - computed < 1000, "the models work on what was hung up"


def test_the_size_of_batches_comes_from_the_configuration(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text('{"model_args": {"policy": "intern"}, "batch_size": "auto", "max_batch_size": 3}')
    given = argparse.Namespace(config=file, model=None, model_args="", batch_size=None, device="cpu")
    _, arguments, _ = read_model(given)
    expected = {"policy": "intern", "batch_size": "auto", "max_batch_size": 3, "device": "cpu"}
    assert arguments == expected


def test_the_file_of_an_ensemble_is_read_and_warned_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its models are no bundled ones by default, so the bundled pair's size of batches is not theirs."""
    file = tmp_path / "toolkit.yaml"
    specs = [{"path": "pair/mentor"}, {"path": "pair/intern"}]
    content = {"server": {"port": 8000}, "model_specs": specs, "ensemble": {"output_aggregation_method": "loop"}}
    file.write_text(json.dumps(content))
    given = argparse.Namespace(
        config=None, model="ensemble", model_args=f"ensemble={file}", batch_size=None, device="cpu"
    )
    model, arguments, _ = read_model(given)
    assert "batch_size" not in arguments
    load(model, arguments).close()
    assert len([record for record in caplog.records if "have no effect here" in record.message]) == 1


def test_what_has_no_effect_is_refused_in_the_file_of_an_ensemble_too(tmp_path: Path) -> None:
    file = tmp_path / "e.yaml"
    file.write_text("models: pair\naggregation: loop\nledger: l.jsonl\n")
    given = argparse.Namespace(
        config=None, model="ensemble", model_args=f"ensemble={file}", batch_size=None, device=None
    )
    with pytest.raises(ArgumentError, match=r"^ledger=l\.jsonl has no effect under serve: "):
        read_model(given)


def test_too_many_answers_at_once_are_turned_away(server: Served) -> None:
    server.until_idle()
    most = int(server.metric("tandem_max_answers_under_way"))
    body = {"model": "tandem/mentor", "prompt": ["Ada"] * most, "max_tokens": 60}
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(server.ask, "POST", "/v1/completions", body)
        while server.metric("tandem_answers_under_way") < most:
            assert not first.done()
        status, reply, headers = server.ask("POST", "/v1/completions", {"model": "tandem", "prompt": "Ada"})
        assert status == 429
        assert headers["Retry-After"] == "1"
        assert error_of(reply)["type"] == "rate_limit_error"
        assert first.result()[0] == 200
    assert server.metric("tandem_answers_under_way") == 0
