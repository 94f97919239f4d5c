"""Any registered model of the harness as a mentor: text in, text out, waiting calls in one batch."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

import tiny
from engines.conformance import run, together
from engines.http.openai_server import Behaviour, serving
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.http.registered import RegisteredEngine
from lm_eval_tandem.errors import ArgumentError, CallError, ContextError, EngineError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems


@register_model("tandem-test-halting")
class Halting(LM):
    """Generates one letter, four bytes per token, up to its budget; fails for prompts that contain "fail"."""

    def __init__(self, pretrained: str, letter: str = "a") -> None:
        super().__init__()
        self.letter, self.batches = letter, []

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[Any]:
        self.batches.append(len(requests))
        prompts = " ".join(request.args[0] for request in requests)
        if "too few" in prompts:
            return ["a"] * (len(requests) - 1)
        if "no list" in prompts:
            return None  # type: ignore[return-value]
        if "a number" in prompts:
            return [5 if "a number" in request.args[0] else "text" for request in requests]
        if "leave" in prompts:
            raise SystemExit(3)
        if any("fail" in request.args[0] for request in requests):
            raise RuntimeError("out of memory")
        return [None if "nothing" in r.args[0] else self.letter * 4 * r.args[1]["max_gen_toks"] for r in requests]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError


@pytest.fixture
def halting() -> Iterator[RegisteredEngine]:
    engine = RegisteredEngine("tandem-test-halting", "x", {"letter": "b", "batch_size": 1, "parameters": "2e9"})
    yield engine
    engine.close()


async def results(*calls: Coroutine[Any, Any, Completion]) -> list[Any]:
    """What each call returned or raised; none may wait for ever."""
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 60)


def test_waiting_calls_are_one_batch(halting: RegisteredEngine) -> None:
    found = run(together(*(halting.generate(Prompt(f"question {n}"), Sampling(5)) for n in range(9))))
    assert halting._model.batches == [9]
    assert {completion.text for completion in found} == {"b" * 20}
    assert all(completion.new_tokens == 5 and completion.finish_reason == "length" for completion in found)
    assert halting.parameters == 2 * 10**9


def test_a_failed_batch_fails_alone_and_an_empty_text_is_an_error(halting: RegisteredEngine) -> None:
    with pytest.raises(CallError, match="out of memory"):
        run(halting.generate(Prompt("fail"), Sampling(3)))
    with pytest.raises(CallError, match="generated no text"):
        run(halting.generate(Prompt("nothing"), Sampling(3)))
    assert run(halting.generate(Prompt("x"), Sampling(3))).text == "b" * 12


@pytest.mark.parametrize(
    ("question", "sentence"),
    [
        ("too few", "returned 2 texts for 3 questions"),
        ("no list", "returned no texts for 3 questions"),
        ("leave", r"\(backend=tandem-test-halting\): 3"),
    ],
)
def test_texts_that_belong_to_no_question_fail_their_batch(
    halting: RegisteredEngine, question: str, sentence: str
) -> None:
    calls = (halting.generate(Prompt(f"{question} {n}"), Sampling(3)) for n in range(3))
    found = run(results(*calls))
    assert all(isinstance(error, CallError) and re.search(sentence, str(error)) for error in found), found
    assert run(halting.generate(Prompt("x"), Sampling(3))).text == "b" * 12


def test_a_text_of_another_type_fails_its_question_alone(halting: RegisteredEngine) -> None:
    calls = (halting.generate(Prompt(text), Sampling(3)) for text in ("x", "a number", "y"))
    first, second, third = run(results(*calls))
    assert (first.text, third.text) == ("text", "text")
    assert isinstance(second, CallError)
    assert "returned int instead of text" in str(second)


def test_an_interrupted_process_does_not_wait_for_the_model() -> None:
    """A batch that never ends keeps no thread alive that the interpreter waits for."""
    script = """
import asyncio, threading
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.http.registered import RegisteredEngine

began = threading.Event()

@register_model("endless")
class Endless(LM):
    def __init__(self, pretrained): super().__init__()
    def generate_until(self, requests, disable_tqdm=False):
        began.set()
        threading.Event().wait()
    def loglikelihood(self, requests, disable_tqdm=False): ...
    def loglikelihood_rolling(self, requests, disable_tqdm=False): ...

async def interrupted():
    engine = RegisteredEngine("endless", "x", {})
    task = asyncio.ensure_future(engine.generate(Prompt("x"), Sampling(3)))
    while not began.is_set():
        await asyncio.sleep(0.01)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    engine.close()

asyncio.run(interrupted())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_sampled_answers_have_their_own_seeds(tmp_path: Path) -> None:
    """A server gets each call's seed, several calls at once; greedy answers need none."""
    with serving(tiny.save(tmp_path)) as server:
        given = {"base_url": server.url + "/completions", "num_concurrent": 4, "tokenizer_backend": "None"}
        engine = RegisteredEngine("local-completions", "tiny", given)
        calls = (engine.generate(Prompt(f"{n}"), Sampling(3, temperature=0.7, seed=100 + n)) for n in range(6))
        run(together(*calls))
        assert sorted(request["seed"] for request in server.requests) == [100, 101, 102, 103, 104, 105]
        server.requests.clear()
        run(together(*(engine.generate(Prompt(f"{n}"), Sampling(3, seed=7)) for n in range(3))))
        assert {request["seed"] for request in server.requests} == {1234}, "lm_eval's own"
        engine.close()


def test_a_model_that_takes_no_seed_says_so(halting: RegisteredEngine, caplog: pytest.LogCaptureFixture) -> None:
    run(together(*(halting.generate(Prompt(f"{n}"), Sampling(3, temperature=0.7, seed=n)) for n in range(3))))
    assert caplog.text.count("takes no seed") == 1
    assert halting._model.batches == [3]


def test_a_model_of_transformers_grows_as_if_uninterrupted() -> None:
    engine = RegisteredEngine("hf-auto", str(pair.MENTOR), {"dtype": "float32", "device": "cpu", "batch_size": 4})
    questions = [str(row["question"]) + "\nInsights:" for row in problems.rows("math", "test", 6)]

    async def grown(text: str, budgets: tuple[int, ...]) -> str:
        written: tuple[int, ...] = ()
        tokens = 0
        for budget in budgets:
            part = await engine.generate(Prompt(text, written, text), Sampling(budget - tokens))
            written, tokens = written + part.token_ids, tokens + part.new_tokens
            if part.finish_reason == "stop":
                break
        return engine.decode(written)

    whole = run(together(*(grown(text, (30,)) for text in questions)))
    assert run(together(*(grown(text, (10, 18, 30)) for text in questions))) == whole
    assert engine.parameters == sum(p.numel() for p in engine._model.model.parameters())
    with pytest.raises(ContextError, match="window"):
        run(engine.generate(Prompt("x"), Sampling(engine.window + 1)))
    with pytest.raises(EngineError, match="cannot be the intern of a judge"):
        run(engine.score(Prompt("x")))
    engine.close()


def test_a_chat_model_behind_a_server_is_asked_to_continue(tmp_path: Path) -> None:
    with serving(tiny.save(tmp_path), Behaviour(returns_ids=False)) as server:
        given = {"base_url": server.url + "/chat/completions", "num_concurrent": 4, "tokenizer_backend": "None"}
        engine = RegisteredEngine("local-chat-completions", "tiny", given)
        text = engine.render((("user", "How many coins?"),))

        async def grown() -> None:
            first = await engine.generate(Prompt(text, (), "s"), Sampling(6))
            await engine.generate(Prompt(text, first.token_ids, "s"), Sampling(4))

        run(grown())
        first, second = server.requests[-2:]
        assert [turn["role"] for turn in second["messages"]] == ["user", "assistant", "user"]
        assert (first["max_tokens"], second["max_tokens"]) == (6, 4)
        engine.close()


def instances(n: int) -> list[Instance]:
    settings = {"until": [], "max_gen_toks": 20, "do_sample": False}
    rows = problems.rows("math", "test", n)
    return [Instance("generate_until", {}, (str(r["question"]), settings), 0, ("t", i, 1)) for i, r in enumerate(rows)]


@pytest.mark.parametrize("backend", ["dummy", "tandem-test-halting"])
def test_it_is_the_mentor_of_a_local_intern(tmp_path: Path, backend: str) -> None:
    (tmp_path / "w.json").write_text(json.dumps({"request": " Insights:", "open": "\nInsights: ", "close": "\nA: "}))
    intern = {"intern": str(pair.INTERN), "dtype": "float32", "device": "cpu", "batch_size": 8}
    own = {"prompts": str(tmp_path / "w.json"), "efforts": "4:9", "store": str(tmp_path / "s.sqlite")}
    lm = TandemLM(mentor="any", mentor_backend=backend, policy="stage:2", **intern, **own)
    answers = lm.generate_until(instances(5), disable_tqdm=True)
    assert len(answers) == 5
    assert all("tflops" not in answer.metrics for answer in answers)
    assert {record.tokens.mentor_new for record in lm.records} == ({1} if backend == "dummy" else {9})
    assert lm.description["mentor"]["engine"] == f"lm_eval {backend}"
    lm.close()


def test_an_unknown_backend_is_named() -> None:
    with pytest.raises(ArgumentError, match="backend=nope is not known; use one of hf, vllm, openai, llamacpp, or a"):
        TandemLM(mentor="x", mentor_backend="nope", intern="org/small", policy="stage:1")
    with pytest.raises(ArgumentError, match="mentor_backend=dummy needs mentor="):
        TandemLM(mentor_backend="dummy", intern="org/small", policy="stage:1")
