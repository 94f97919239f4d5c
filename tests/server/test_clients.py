"""The clients that people use, against the running server: openai, llm, curl, and lm-eval's own."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")
pytest.importorskip("openai")

import openai

import command_line
from bundled import COMMON
from lm_eval_tandem import _paths, pair
from server.serving import EASY, HARD, Served, serving

MESSAGES: Any = [{"role": "user", "content": HARD}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def answer(server: Served) -> str:
    return str(server.chat(HARD)["choices"][0]["message"]["content"])


def test_openai(server: Served, answer: str) -> None:
    client = openai.OpenAI(base_url=server.api, api_key="none")
    reply = client.chat.completions.create(model="tandem", messages=MESSAGES)
    assert reply.choices[0].message.content == answer
    assert reply.usage.tandem["policy"] == "cascade"
    assert "tandem/mentor" in [model.id for model in client.models.list()]
    assert client.models.retrieve("tandem/mentor").id == "tandem/mentor"
    assert client.completions.create(model="tandem", prompt=HARD).choices[0].text == answer
    extra = {"tandem": {"insights": True}}
    reply = client.chat.completions.create(model="tandem", messages=MESSAGES, extra_body=extra)
    message: Any = reply.choices[0].message
    assert message.reasoning_content
    for turn in (message, message.model_dump()):  # as clients keep a conversation
        reply = client.chat.completions.create(model="tandem", messages=[*MESSAGES, turn, *MESSAGES], max_tokens=4)
        assert reply.choices[0].message.content
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    tool: Any = {"type": "function", "function": {"name": "f", "parameters": {}}}
    with pytest.raises(openai.BadRequestError, match="tools is not supported"):
        client.chat.completions.create(model="tandem", messages=MESSAGES, tools=[tool])
    client.close()


def test_openai_streams(server: Served, answer: str) -> None:
    with openai.OpenAI(base_url=server.api, api_key="none") as client:
        options: Any = {"include_usage": True}
        stream = client.chat.completions.create(
            model="tandem",
            messages=MESSAGES,
            stream=True,
            stream_options=options,
            extra_body={"tandem": {"events": True}},
        )
        chunks = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == answer
        assert chunks[-1].usage.completion_tokens > 0
        assert [chunk.tandem["type"] for chunk in chunks if hasattr(chunk, "tandem")][-1] == "answer"
        pieces = client.completions.create(model="tandem", prompt=HARD, stream=True)
        assert "".join(piece.choices[0].text for piece in pieces) == answer


def test_openai_asynchronously(server: Served, answer: str) -> None:
    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=server.api, api_key="none") as client:
            whole = client.chat.completions.create(model="tandem", messages=MESSAGES)

            async def streamed() -> str:
                stream = await client.chat.completions.create(model="tandem", messages=MESSAGES, stream=True)
                return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

            replies = await asyncio.gather(whole, streamed(), streamed())
            return [replies[0].choices[0].message.content or "", replies[1], replies[2]]

    assert asyncio.run(ask()) == [answer] * 3


def test_curl(server: Served, answer: str) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    body = json.dumps({"model": "tandem", "messages": MESSAGES})
    command = ["curl", "-sf", f"{server.api}/chat/completions", "-H", "Content-Type: application/json", "-d", body]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == answer
    streamed = json.dumps({"model": "tandem", "messages": MESSAGES, "stream": True})
    done = subprocess.run([*command[:-1], streamed, "-N"], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("options", [[], ["--no-stream"]])
def test_llm(server: Served, answer: str, tmp_path: Path, options: list[str]) -> None:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: mine\n  model_name: tandem\n  api_base: {server.api}\n  api_key_name: none\n"
    )
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}
    command = [sys.executable, "-m", "llm", "prompt", "-m", "mine", "--no-log", "--key", "none", *options, HARD]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=command_line.PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip("\n") == answer.strip("\n")


def lm_eval(folder: Path, task: str, name: str, limit: int, *options: str, **arguments: Any) -> dict[str, Any]:
    """The scores of a run of lm-eval, and its answers."""
    given = ",".join(f"{argument}={value}" for argument, value in arguments.items())
    run = [sys.executable, "-c", command_line.WITHOUT_DEFAULT_TASKS, "--model", name, "--model_args", given]
    run += ["--tasks", task, "--limit", str(limit), "--log_samples", "--output_path", str(folder), *options]
    run += ["--include_path", str(_paths.task_configs())]
    command_line.run_forked(run, folder)
    scores = command_line.results(folder)["results"][task]
    samples = {sample["doc_id"]: sample["resps"] for sample in command_line.samples(folder)}
    return {"acc": scores["acc,none"], "answers": samples}


def same_scores_as_the_harness(server: Served, folder: Path, limit: int) -> None:
    folders = {name: folder / name for name in ("tandem", "chat", "completions")}
    for one in folders.values():
        one.mkdir()
    task = "tandem_pair_math"
    here = lm_eval(folders["tandem"], task, "tandem", limit, "--batch_size", "16", policy="cascade")
    reached = {"model": "tandem", "num_concurrent": 16, "tokenizer": pair.INTERN}
    chat = lm_eval(
        folders["chat"],
        task,
        "local-chat-completions",
        limit,
        "--apply_chat_template",
        base_url=f"{server.api}/chat/completions",
        **{**reached, "tokenizer": None},
    )
    completions = lm_eval(
        folders["completions"], task, "local-completions", limit, base_url=f"{server.api}/completions", **reached
    )
    assert here["acc"] > 0.9
    assert chat == here
    assert completions == here


def test_lm_eval_gives_the_scores_of_the_harness(server: Served, tmp_path: Path) -> None:
    same_scores_as_the_harness(server, tmp_path, 12)


@pytest.mark.slow
def test_lm_eval_gives_the_scores_of_the_harness_on_200_questions(server: Served, tmp_path: Path) -> None:
    same_scores_as_the_harness(server, tmp_path, 200)


def test_lm_eval_gives_the_likelihoods_of_the_harness(server: Served, tmp_path: Path) -> None:
    rows = [
        {"question": EASY, "choices": [" Steps: 1)", " Answer: 5", " x"], "answer": 0},
        {"question": "Ada starts with", "choices": [" 34 coins", " a cat"], "answer": 0},
    ]
    task = {
        "task": "tandem_choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "choices.yaml").write_text(json.dumps(task))
    found = {}
    for model, arguments in {
        "tandem": {**COMMON, "policy": "cascade"},
        "local-completions": {
            "model": "tandem", "base_url": f"{server.api}/completions", "tokenizer": pair.INTERN, "num_concurrent": 2
        },
    }.items():  # fmt: skip
        folder = tmp_path / model
        folder.mkdir()
        given = ",".join(f"{name}={value}" for name, value in arguments.items())
        run = [sys.executable, "-c", command_line.WITHOUT_DEFAULT_TASKS, "--model", model, "--model_args", given]
        run += ["--tasks", "tandem_choices", "--include_path", str(tmp_path / "tasks"), "--log_samples"]
        command_line.run_forked([*run, "--output_path", str(folder)], folder)
        found[model] = [
            (float(value), str(greedy))
            for sample in command_line.samples(folder)
            for ((value, greedy),) in sample["resps"]
        ]
    assert [one[1] for one in found["tandem"]] == [one[1] for one in found["local-completions"]]
    assert [one[0] for one in found["tandem"]] == pytest.approx(
        [one[0] for one in found["local-completions"]], abs=1e-3
    )
