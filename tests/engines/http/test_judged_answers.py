"""Answers that are judged while a server writes them: log-probabilities in every documented form, closed streams."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("openai", reason="the package openai is not installed")

from engines.http.scripted_server import ANSWER, END, KINDS, OTHER, VOCABULARY, Kind, ScriptedServer, scripted, tokens
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.http.openai import APIEngine
from lm_eval_tandem.engines.http.replies import ModelEntry
from lm_eval_tandem.errors import CallError, EngineError

TEXT = "It takes 3 coins, not 4."
MEASURED = Sampling(30, return_token_stats=True)


def engine_of(server: ScriptedServer, **arguments: Any) -> APIEngine:
    return APIEngine("script", {"base_url": server.url, "vocabulary": VOCABULARY, "retries": 0, **arguments})


def prompt_of(engine: APIEngine, form: str, question: str = "How many?", **others: Any) -> Prompt:
    return Prompt(question if form == "plain" else engine.render((("user", question),)), **others)


def generated(engine: APIEngine, prompt: Prompt, sampling: Sampling) -> Completion:
    return asyncio.run(engine.generate(prompt, sampling))


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("name", KINDS)
def test_statistics_are_read_in_every_documented_form(name: str, form: str) -> None:
    kind = KINDS[name]
    with scripted(kind) as server:
        engine = engine_of(server)
        assert engine.cannot_measure == ""
        columns = 5 if name == "openai" else 20
        assert engine.identity["entropy"] == f"topk:{columns}"
        found = generated(engine, prompt_of(engine, form), MEASURED)
        work = engine.work
        engine.close()
    expected = ANSWER if kind.sends_end else ANSWER[:-1]
    assert (found.text, found.finish_reason, found.new_tokens) == (TEXT, "stop", len(ANSWER))
    assert found.entropy is not None
    assert found.logprob is not None
    np.testing.assert_allclose(found.logprob, [token.distribution()[0] for token in expected], atol=1e-5)
    errors = np.abs(found.entropy - [token.entropy for token in expected])
    assert work.estimated_entropies == len(expected)
    assert errors.sum() <= work.entropy_error + 1e-5
    assert errors.max() < (0.1 if columns == 5 else 0.001)


@pytest.mark.parametrize("form", ["chat", "plain"])
@pytest.mark.parametrize("name", KINDS)
def test_an_answer_is_one_stream_that_is_judged_and_read_on(name: str, form: str) -> None:
    """Whether chunks have one token or several: the judged part ends with the first uncertain token."""
    with scripted(KINDS[name]) as server:
        engine = engine_of(server)
        assert engine.cannot_measure == ""
        before = len(server.requests)

        async def ask() -> tuple[Completion, Completion]:
            prompt = prompt_of(engine, form, session="q", horizon=30)
            first = await engine.generate(prompt, replace(MEASURED, max_tokens=12, max_entropy=1.0))
            rest = await engine.generate(replace(prompt, continued=first.token_ids, horizon=None), Sampling(18))
            return first, rest

        first, rest = asyncio.run(ask())
        assert len(server.requests) == before + 1
        whole = engine.answer_text(first.token_ids + rest.token_ids, ())
        engine.close()
    assert (first.new_tokens, first.finish_reason) == (3, "max_entropy")
    assert first.entropy is not None
    assert (first.entropy > 1.0).tolist() == [False, False, True]
    assert (rest.new_tokens, rest.finish_reason) == (len(ANSWER) - 3, "stop")
    assert whole == TEXT


LONG = [*tokens(*(f" {n}" for n in range(400))), END]


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_a_refused_answer_ends_at_the_server_within_16_tokens(form: str) -> None:
    with scripted(KINDS["vllm"], lambda question: LONG) as server:
        engine = engine_of(server)
        assert engine.cannot_measure == ""
        server.seconds_per_token = 0.1  # it writes until its client leaves

        async def refuse() -> int:
            prompt = prompt_of(engine, form, "refuse this", session="q", horizon=400)
            found = await engine.generate(prompt, replace(MEASURED, max_tokens=10))
            assert found.new_tokens == 10
            unread = engine.stop("q")
            await asyncio.sleep(3.0)
            return 0 if unread is None else unread.tokens

        unread = asyncio.run(refuse())
        assert 10 <= server.written["refuse this"] <= 10 + 16
        assert unread <= 16
        engine.close()


@pytest.mark.parametrize("form", ["chat", "plain"])
def test_a_refused_answer_that_is_chosen_after_all_is_written_once_more(form: str) -> None:
    with scripted(KINDS["vllm"]) as server:
        engine = engine_of(server)

        async def ask() -> list[Completion]:
            prompt = prompt_of(engine, form, session="q", horizon=30)
            first = await engine.generate(prompt, replace(MEASURED, max_tokens=4))
            engine.stop("q")
            other = await engine.generate(prompt_of(engine, form, "Another?", session="q", horizon=30), MEASURED)
            rest = await engine.generate(replace(prompt, continued=first.token_ids, horizon=None), Sampling(26))
            return [first, other, rest]

        first, other, rest = asyncio.run(ask())
        assert engine.answer_text(first.token_ids + rest.token_ids, ()) == TEXT
        assert (first.new_tokens, rest.new_tokens) == (4, len(ANSWER) - 4)
        assert other.text == TEXT
        last = server.requests[-1]
        assert (last["top_logprobs"] if form == "chat" else last["logprobs"]) == 1, "asked for more than it needs"
        engine.close()


def test_another_text_in_place_of_the_refused_one_is_continued() -> None:
    answers = [ANSWER, OTHER, OTHER]
    with scripted(KINDS["vllm"], lambda question: answers.pop(0) if "coins" in question else ANSWER) as server:
        engine = engine_of(server)

        async def ask() -> Completion:
            first = await engine.generate(Prompt("coins", session="q", horizon=30), replace(MEASURED, max_tokens=2))
            engine.stop("q")
            return await engine.generate(Prompt("coins", first.token_ids, "q"), Sampling(28))

        assert asyncio.run(ask()).text == "One more word"
        assert server.requests[-1]["prompt"] == "coinsIt takes"
        engine.close()


@pytest.mark.parametrize("name", [name for name in KINDS if name != "llama.cpp"])
def test_characters_of_several_tokens_are_read(name: str) -> None:
    text = [*tokens("Smile ", (b"\xf0\x9f", 0.5), b"\x99\x82", " now"), END]
    with scripted(KINDS[name], lambda question: text if "smile" in question else ANSWER) as server:
        engine = engine_of(server)

        async def ask() -> tuple[Completion, Completion]:
            prompt = prompt_of(engine, "chat", "smile", session="q", horizon=9)
            first = await engine.generate(prompt, replace(MEASURED, max_tokens=2))
            return first, await engine.generate(replace(prompt, continued=first.token_ids, horizon=None), Sampling(7))

        first, rest = asyncio.run(ask())
        assert (first.new_tokens, rest.new_tokens) == (2, 3)
        assert engine.answer_text(first.token_ids + rest.token_ids, ()) == "Smile 🙂 now"
        engine.close()


def test_tokens_without_their_log_probabilities_fail_the_question() -> None:
    text = [*tokens("Smile ", b"\xf0\x9f", b"\x99\x82", " now"), END]
    with scripted(KINDS["llama.cpp"], lambda question: text if "smile" in question else ANSWER) as server:
        engine = engine_of(server)
        with pytest.raises(CallError, match=r"none for a part of the answer's text.* intern_backend=llamacpp"):
            generated(engine, prompt_of(engine, "chat", "smile"), MEASURED)
        assert generated(engine, prompt_of(engine, "chat"), MEASURED).text == TEXT
        engine.close()


def test_a_stop_string_ends_an_answer_across_two_calls() -> None:
    """More stop strings than the protocol allows are looked for here, and the stream is closed."""
    stops = ("@1", "@2", "@3", "@4", "coins, n")
    with scripted(KINDS["vllm"], lambda question: [*ANSWER[:-1], *LONG]) as server:
        engine = engine_of(server)
        assert engine.cannot_measure == ""
        server.seconds_per_token = 0.05

        async def ask() -> tuple[Completion, Completion]:
            prompt = prompt_of(engine, "chat", session="q", horizon=300)
            first = await engine.generate(prompt, replace(MEASURED, max_tokens=4, stop=stops))
            rest = await engine.generate(
                replace(prompt, continued=first.token_ids, horizon=None), Sampling(296, stop=stops)
            )
            await asyncio.sleep(1.0)
            return first, rest

        first, rest = asyncio.run(ask())
        assert (first.finish_reason, rest.finish_reason) == ("length", "stop")
        assert engine.answer_text(first.token_ids + rest.token_ids, stops) == "It takes 3 "
        assert server.written["How many?"] < 60
        engine.close()


NOTHING = Kind(ignores_logprobs=True)


def test_a_server_that_reports_nothing_says_so_and_writes_answers() -> None:
    with scripted(NOTHING) as server:
        engine = engine_of(server)
        before = len(server.requests)
        found = generated(engine, prompt_of(engine, "plain", session="q"), Sampling(30))
        assert (found.text, found.logprob, len(server.requests)) == (TEXT, None, before + 1)
        assert not any("logprobs" in request for request in server.requests), "asked for what nobody needs"
        assert "entropy" not in engine.identity
        assert "reports no log-probabilities of generated tokens" in engine.cannot_measure
        assert "no log-probabilities of a prompt" in engine.cannot_score
        with pytest.raises(EngineError, match="use a classifier that reads no tokens of the answer"):
            generated(engine, prompt_of(engine, "plain"), MEASURED)
        engine.close()


def test_log_probabilities_that_depend_on_the_sampling_are_refused() -> None:
    with scripted(Kind(sampled=True), lambda question: [*tokens(("It", 0.4), " is"), END]) as server:
        engine = engine_of(server)
        assert "those of its sampling, not of the model" in engine.cannot_measure
        engine.close()
    with scripted(KINDS["sglang"], lambda question: [*tokens(("It", 0.4), " is"), END]) as server:
        engine = engine_of(server)
        for temperature in (0.0, 1.0):
            assert generated(engine, Prompt("x"), replace(MEASURED, temperature=temperature)).text == "It is"
        with pytest.raises(EngineError, match=r"after temperature=0.7, .* use a temperature of 0 or 1"):
            generated(engine, Prompt("x"), replace(MEASURED, temperature=0.7))
        engine.close()


def test_the_number_of_likely_tokens_is_what_the_user_says_or_the_server_reports() -> None:
    with scripted(KINDS["llama.cpp"]) as server:
        engine = engine_of(server, entropy=f"topk:{VOCABULARY}")
        found = generated(engine, Prompt("x"), MEASURED)
        assert engine.identity["entropy"] == f"topk:{VOCABULARY}"
        np.testing.assert_allclose(found.entropy, [token.entropy for token in ANSWER], atol=1e-4)
        assert engine.work.entropy_error < 1e-3
        engine.close()
    with scripted(KINDS["vllm"]) as server:
        engine = engine_of(server, entropy="topk:50")
        assert "at most 20" in engine.cannot_measure
        engine.close()


def test_the_vocabulary_is_that_of_the_only_model_of_a_server() -> None:
    models = {"data": [{"id": "model.gguf", "meta": {"n_vocab": 1335}}]}
    assert ModelEntry.of(models, "any name").vocabulary == 1335
    assert ModelEntry.of({"data": [*models["data"], {"id": "other"}]}, "any name").vocabulary is None


WRONG = {
    "NaN": lambda entry: entry.update(logprob=math.nan),
    "null": lambda entry: entry.update(logprob=None),
    "text": lambda entry: entry.update(logprob="-1"),
    "a probability": lambda entry: entry.update(logprob=0.9),
    "infinite": lambda entry: entry["top_logprobs"][0].update(logprob=math.inf),
    "probabilities that sum up to more than 1": lambda entry: [
        one.update(logprob=-0.5) for one in entry["top_logprobs"]
    ],
    "no likely tokens": lambda entry: entry.update(top_logprobs=[]),
    "likely tokens that are none": lambda entry: entry.update(top_logprobs=None),
    "a token more likely than the most likely one": lambda entry: entry.update(
        logprob=-1e-9, top_logprobs=entry["top_logprobs"][1:]
    ),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_values_that_are_no_log_probabilities_fail_the_question(wrong: str) -> None:
    changes = [WRONG[wrong]]

    def change(entry: dict[str, Any]) -> None:
        if entry["token"] == " takes" and broken:
            changes[0](entry)

    broken = False
    with scripted(Kind(change=change)) as server:
        engine = engine_of(server)
        assert engine.cannot_measure == ""
        broken = True
        with pytest.raises(CallError, match="log-probabilities cannot be used"):
            generated(engine, prompt_of(engine, "chat"), MEASURED)
        assert generated(engine, prompt_of(engine, "chat"), Sampling(30)).text == TEXT
        engine.close()


@pytest.mark.parametrize("floor", [-9999.0, -math.inf, -3.4e38])
def test_a_floor_stands_for_a_token_that_is_not_among_the_likely_ones(floor: float) -> None:
    """The token that was sampled counts as likely as the least likely of the known ones, or as what they leave."""

    def change(entry: dict[str, Any]) -> None:
        if entry["token"] == " 3":
            entry["logprob"] = floor
            entry["top_logprobs"] = entry["top_logprobs"][1:6]
        for one in entry["top_logprobs"][10:]:
            one["logprob"] = floor

    with scripted(Kind(change=change)) as server:
        engine = engine_of(server)
        found = generated(engine, prompt_of(engine, "chat"), MEASURED)
        engine.close()
    assert found.logprob is not None
    assert found.entropy is not None
    assert np.isfinite(found.logprob).all()
    assert np.isfinite(found.entropy).all()
    known = next(token for token in ANSWER if token.data == b" 3").distribution()[1:6]
    assert found.logprob[2] == pytest.approx(known[-1], abs=1e-4)
