"""Answers of a server that are shown while it writes them, and requests whose caller has hung up."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai", reason="the package openai is not installed")

import tiny
from engines.conformance import THOUGHT, run, together_reported
from engines.http.openai_server import Behaviour, FaultyProxy, ModelServer, serving
from engines.http.strange_replies import whole
from lm_eval_tandem.cascade import live_text
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import Prompts, Question, Wording
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import Watcher
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.http.openai import APIEngine
from lm_eval_tandem.engines.http.text import SERVER_ID_OFFSET

QUESTION = "Mira starts with 20 coins and buys a lantern. How many are left?"
SLOW = 0.02


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def every_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    monkeypatch.setattr(live_text, "INTERVAL", 0.0)
    monkeypatch.setattr(live_text, "DECODING_SHARE", 1e9)


def engine_of(server: ModelServer | FaultyProxy, **arguments: Any) -> APIEngine:
    return APIEngine("tiny", {"base_url": server.url, "retries": 3, **arguments})


def watched(engine: APIEngine, prompt: Prompt, sampling: Sampling) -> tuple[Completion, list[str]]:
    """The completion of a call that reports its tokens, which is that of one that does not, and the texts it shows."""
    plain = run(engine.generate(prompt, sampling))
    (calls,), (found,) = run(together_reported(engine, [prompt], sampling))
    for name in ("text", "token_ids", "finish_reason", "counted", "prompt_tokens", "dollars"):
        assert getattr(found, name) == getattr(plain, name), name
    ids = tuple(token for new in calls for token in new)
    text = tuple(token for token in found.token_ids if token < SERVER_ID_OFFSET)
    assert ids == text[: len(ids)]
    shown = [engine.settled_text(ids[:n], sampling.stop) for n in range(len(ids) + 1)]
    assert all(found.text.startswith(one) for one in shown)
    return found, list(dict.fromkeys(shown))


@pytest.mark.parametrize("behaviour", [Behaviour(), Behaviour(returns_ids=False), Behaviour(tokens_per_chunk=3)])
def test_a_single_request_is_shown_as_it_is_written(folder: Path, behaviour: Behaviour) -> None:
    with serving(folder, behaviour) as server:
        engine = engine_of(server, price_input=1.0, price_output=2.0)
        for text in (QUESTION, engine.render((("user", QUESTION),))):
            found, shown = watched(engine, Prompt(text), Sampling(30))
            assert [bool(body.get("stream")) for body in server.requests[-2:]] == [False, True]
            assert len(shown) > 3
            stop = found.text[8:10]
            # This server sends a stop string in a stream, which those that are in use do not.
            calls, (cut,) = run(together_reported(engine, [Prompt(text)], Sampling(30, (stop,))))
            assert (cut.text, cut.finish_reason) == (found.text[: found.text.index(stop)], "stop")
            ids = tuple(token for new in calls[0] for token in new)
            assert all(cut.text.startswith(engine.settled_text(ids[:n], (stop,))) for n in range(len(ids) + 1))
        engine.close()


def test_a_mentor_that_is_continued_by_its_ids_is_shown(folder: Path) -> None:
    with serving(folder) as server:
        engine = engine_of(server)

        async def grow(on_tokens: Callable[[tuple[int, ...]], None] | None) -> tuple[int, ...]:
            ids: tuple[int, ...] = ()
            for budget in (6, 9):
                prompt = Prompt(QUESTION, ids, "s", horizon=20, on_tokens=on_tokens)
                ids += (await engine.generate(prompt, Sampling(budget))).token_ids
            engine.release("s")
            return ids

        reported: list[tuple[int, ...]] = []
        assert run(grow(reported.append)) == run(grow(None))
        assert len(reported) > 4
        engine.close()


def test_a_stream_that_is_read_in_parts_is_shown(folder: Path) -> None:
    with serving(folder, Behaviour(returns_ids=False)) as server:
        engine = engine_of(server)
        assert engine.resume == "stream"
        text = engine.render((("user", QUESTION),))
        prompt = Prompt(text, session="s", horizon=40)
        (calls,), (first,) = run(together_reported(engine, [prompt], Sampling(8)))
        assert tuple(token for new in calls for token in new) == first.token_ids
        assert len(calls) > 3
        engine.release("s")
        engine.close()


def test_thinking_that_comes_apart_is_never_shown(folder: Path) -> None:
    with serving(folder, Behaviour(returns_ids=False, reasoning_tokens=8)) as server:
        engine = engine_of(server)
        found, shown = watched(engine, Prompt(engine.render((("user", QUESTION),))), Sampling(30))
        assert shown[0] == ""
        assert len(shown) > 5
        assert found.text.startswith(shown[-1])
        engine.close()


def test_nothing_of_a_thought_within_the_content_is_shown(tmp_path: Path) -> None:
    """Of a model whose server does not know that it thinks, by the argument that says so."""
    with serving(tiny.save_script(tmp_path, THOUGHT), Behaviour(returns_ids=False)) as server:
        engine = engine_of(server, think_end_token="</think>")
        found, shown = watched(engine, Prompt("x"), Sampling(99))
        assert found.text == "Été: 37。\n\nDone"
        assert shown[1] == "É"
        engine.close()


@pytest.mark.parametrize("refused", ["stream", "stream_options", "max_tokens"])
def test_a_server_that_refuses_a_stream_is_asked_for_the_whole(folder: Path, refused: str) -> None:
    with serving(folder, Behaviour(returns_ids=True, refused_parameters=(refused,))) as server:
        engine = engine_of(server)
        for _ in range(2):
            calls, (found,) = run(together_reported(engine, [Prompt(QUESTION)], Sampling(12)))
            plain = run(engine.generate(Prompt(QUESTION), Sampling(12)))
            assert (found.token_ids, found.counted) == (plain.token_ids, plain.counted)
            assert bool(calls[0]) == (refused != "stream")
        engine.close()


def test_a_whole_reply_in_place_of_a_stream_is_taken(folder: Path) -> None:
    choice = {"message": {"content": "It takes three."}, "finish_reason": "stop"}
    packets = whole({"choices": [choice]})
    with serving(folder, Behaviour(returns_ids=False, raw_replies={"lantern": lambda stream: packets})) as server:
        engine = engine_of(server)
        calls, (found,) = run(together_reported(engine, [Prompt(engine.render((("user", QUESTION),)))], Sampling(9)))
        assert found.text == "It takes three."
        assert bytes(token for new in calls[0] for token in new).decode() == found.text
        engine.close()


def test_a_question_that_is_refused_is_not_taken_for_a_stream_that_is(folder: Path) -> None:
    with serving(folder) as server:
        engine = engine_of(server, max_length=100_000)
        with pytest.raises(Exception, match="context length"):
            run(engine.generate(Prompt(QUESTION, on_tokens=print), Sampling(50_000)))
        calls, _ = run(together_reported(engine, [Prompt(QUESTION)], Sampling(12)))
        assert len(calls[0]) > 3, "a later call was not shown"
        engine.close()


def test_answers_under_fire_are_shown_and_are_the_same(folder: Path) -> None:
    """A server that breaks streams off: what was shown of them is not shown again."""
    with serving(folder, Behaviour(returns_ids=False)) as server:
        proxy = FaultyProxy(server.port, {"cut": 0.4, "500": 0.1}, seed=3)
        direct, engine = engine_of(server), engine_of(proxy, retries=20)
        prompts = [Prompt(engine.render((("user", f"{QUESTION} {n}"),))) for n in range(12)]
        calls, found = run(together_reported(engine, prompts, Sampling(20)))
        assert proxy.done["cut"] > 2
        _, expected = run(together_reported(direct, prompts, Sampling(20)))
        assert [one.text for one in found] == [one.text for one in expected]
        for reported, completion in zip(calls, found, strict=True):
            assert tuple(token for new in reported for token in new) == completion.token_ids
        direct.close()
        engine.close()
        proxy.close()


async def until(condition: Callable[[], bool]) -> None:
    deadline = asyncio.get_running_loop().time() + 60
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it never came so"
        await asyncio.sleep(0.01)


async def hung_up(call: Any, when: Callable[[], bool]) -> None:
    task = asyncio.ensure_future(call)
    await until(when)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("streamed", [False, True])
def test_a_single_request_whose_caller_hangs_up_is_closed(folder: Path, streamed: bool) -> None:
    """The server sees its client leave, and the connection is free for the next call."""
    with serving(folder, Behaviour(returns_ids=False, seconds_per_token=SLOW)) as server:
        engine = engine_of(server, concurrency=1)
        text = engine.render((("user", QUESTION),))
        asked, generated = len(server.requests), server.generated

        async def hang_up() -> None:
            begun = (lambda: server.generated > generated) if streamed else (lambda: len(server.requests) > asked)
            prompt = Prompt(text, on_tokens=(lambda new: None) if streamed else None)
            await hung_up(engine.generate(prompt, Sampling(150)), begun)
            if not streamed:
                await until(lambda: server.left == 1)
            assert (await engine.generate(Prompt(text), Sampling(3))).new_tokens == 3

        run(hang_up())
        assert server.generated - generated < 120, "the server wrote on"
        engine.close()


class Begun(Watcher):
    """Notes that an insight, or the answer, has begun to grow."""

    def __init__(self) -> None:
        self.insight = self.answer = False

    def insight_grew(self, stage: int, text: str) -> None:
        self.insight = True

    def answer_grew(self, text: str) -> None:
        self.answer = True


@pytest.mark.parametrize("resume", ["ids", "stream"])
@pytest.mark.parametrize("event", ["insight", "answer"])
def test_a_question_that_is_cancelled_leaves_no_request_open(folder: Path, resume: str, event: str) -> None:
    wording = Wording(" Insights:", "\nInsights: ", "\nAnswer: ")
    with serving(folder, Behaviour(returns_ids=resume == "ids", seconds_per_token=SLOW)) as server:
        engine = engine_of(server)
        cascade = Cascade(engine, engine, Prompts(wording), Policy("stage", 2), (20, 40))
        task = Task(Question(QUESTION), Sampling(100), "t", 1)
        generated = server.generated

        async def hang_up() -> int:
            watcher = Begun()
            await hung_up(cascade.answer(task, watcher), lambda: bool(getattr(watcher, event)))
            await until(lambda: not server.engine._worker._decoding.running)
            before = server.generated
            await asyncio.sleep(10 * SLOW)
            assert server.generated - before <= 1, "the server writes on"
            return server.generated - generated

        assert run(hang_up()) < (40 if event == "insight" else 140)
        assert not engine._streams._streams
        engine.close()


def test_an_answer_of_servers_is_shown_by_the_cascade(folder: Path) -> None:
    class Shown(Watcher):
        def __init__(self) -> None:
            self.texts: list[str] = []

        def answer_grew(self, text: str) -> None:
            self.texts.append(text)

    with serving(folder, Behaviour(returns_ids=False)) as server:
        engine = engine_of(server)
        mentor = Cascade(engine, None, Prompts(), Policy("mentor"), (20,))
        task, watcher = Task(Question(QUESTION), Sampling(30), "t", 1), Shown()
        plain, _ = run(mentor.answer(task))
        text, _ = run(mentor.answer(replace(task), watcher))
        assert text == plain == watcher.texts[-1]
        assert len(watcher.texts) > 5
        engine.close()
