"""Replies that are malformed, broken off or unusual, through the whole cascade: no wrong answer, no traceback.

Each kind of reply in `strange_replies` comes from a real server, to a request without and with a stream.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from lm_eval.api.instance import Instance

pytest.importorskip("openai", reason="the package openai is not installed")

import tiny
from command_line import WITHOUT_DEFAULT_TASKS, save_task
from engines.http.openai_server import Behaviour, ModelServer, serving
from engines.http.strange_replies import BROKEN, ODD, RIGHT, WRONG, Strange
from lm_eval_tandem.errors import EngineError
from lm_eval_tandem.harness.model import TandemLM


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.save(tmp_path_factory.mktemp("model"))
    wording = {"request": " Insights:", "open": "\nInsights: ", "close": "\nAnswer: "}  # a tiny window needs short ones
    (folder / "wording.json").write_text(json.dumps(wording))
    return folder


class Setup:
    """A server, and the cascade with its mentor there and a store."""

    def __init__(self, folder: Path, server: ModelServer, store: Path) -> None:
        self.server, self.store = server, store
        self.lm = TandemLM(
            mentor="tiny",
            mentor_backend="openai",
            mentor_base_url=server.url,
            mentor_retries=1,
            intern=str(folder),
            prompts=str(folder / "wording.json"),
            policy="stage:2",
            efforts="9:14",
            dtype="float32",
            device="cpu",
            batch_size=4,
            store=str(store),
        )

    def answer(self, *questions: str) -> list[str]:
        settings = {"until": [], "max_gen_toks": 8, "do_sample": False}
        requests = [Instance("generate_until", {}, (q, settings), 0, ("t", i, 1)) for i, q in enumerate(questions)]
        return [str(answer) for answer in self.lm.generate_until(requests, disable_tqdm=True)]

    def reply_with(self, strange: Strange) -> None:
        self.server.behaviour.raw_replies = {"strange": strange.packets}


@pytest.fixture(scope="module", params=["single", "streamed"])
def setup(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Setup]:
    with serving(folder, Behaviour(returns_ids=request.param == "single")) as server:
        setup = Setup(folder, server, tmp_path_factory.mktemp("store") / "store.sqlite")
        assert setup.lm.engines["mentor"].resume == {"single": "ids", "streamed": "stream"}[request.param]
        yield setup
        setup.lm.close()


def stored(path: Path) -> list[str]:
    """The texts of all completions in a store."""
    with sqlite3.connect(path) as db:
        values = [json.loads(value) for (value,) in db.execute("SELECT value FROM finished")]
    return [value["text"] for value in values if "text" in value]


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_reply_fails_its_question_alone(setup: Setup, kind: str) -> None:
    setup.reply_with(BROKEN[kind])
    before = len(setup.lm.records)
    with pytest.raises(EngineError) as caught:
        setup.answer(f"{kind}, coins", f"strange: {kind}", f"{kind}, lanterns")
    assert re.match(
        rf"1 of 3 questions failed \(t #1\), the first of them because tiny: .*({BROKEN[kind].sentence})",
        str(caught.value),
    ), caught.value
    assert sorted(record.doc_id for record in setup.lm.records[before:]) == [0, 2]
    assert not [text for text in stored(setup.store) if WRONG in text]


@pytest.mark.parametrize("kind", ODD)
def test_an_answer_in_an_unusual_form_is_read(setup: Setup, kind: str) -> None:
    setup.reply_with(ODD[kind])
    before = stored(setup.store)
    assert len(setup.answer(f"{kind}, coins", f"strange: {kind}")) == 2
    new = Counter(stored(setup.store)) - Counter(before)
    assert {RIGHT, RIGHT + "😀"} & set(new), new


def test_a_run_of_the_harness_ends_with_the_number_of_failed_questions(folder: Path, tmp_path: Path) -> None:
    """All kinds in one run."""
    questions = [f"kind {n}: how many coins?" for n in range(len(BROKEN))] + [f"well {n}: coins?" for n in range(9)]
    save_task(tmp_path, questions)

    def run(server: ModelServer) -> subprocess.CompletedProcess[str]:
        arguments = {
            "mentor": "tiny",
            "mentor_backend": "openai",
            "mentor_base_url": server.url,
            "mentor_retries": 1,
            "mentor_extra_body": {"top_k": 1, "min_p": 0.0},
            "intern": str(folder),
            "policy": "stage:2",
            "efforts": "9:14",
            "dtype": "float32",
            "prompts": str(folder / "wording.json"),
            "store": str(tmp_path / "store.sqlite"),
            "ledger": str(tmp_path / "ledger.jsonl"),
        }
        command = [sys.executable, "-c", WITHOUT_DEFAULT_TASKS, "--model", "tandem", "--model_args"]
        command += [json.dumps(arguments), "--tasks", "coins", "--include_path", str(tmp_path / "tasks")]
        environment = {**os.environ, "HF_HOME": str(tmp_path / "hf")}
        return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False)

    with serving(folder, Behaviour(returns_ids=False)) as server:
        server.behaviour.raw_replies = {f"kind {n}:": BROKEN[kind].packets for n, kind in enumerate(BROKEN)}
        done = run(server)
        failed = f"{len(BROKEN)} of {len(questions)} questions failed"
        assert (done.returncode, "Traceback" in done.stderr, failed in done.stderr) == (1, False, True), done.stderr[
            -3000:
        ]
        assert server.requests[-1]["top_k"] == 1
        records = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
        assert sum("doc_id" in record for record in records) == 9
        assert not [text for text in stored(tmp_path / "store.sqlite") if WRONG in text]
