"""Log-likelihoods on llama.cpp: those of `--model hf` with the same weights, by few requests."""

from __future__ import annotations

import json
import logging
import sys
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CacheHook
from lm_eval.models.huggingface import HFLM

import tiny
from command_line import WITHOUT_DEFAULT_TASKS, results, run_forked, samples
from engines.llamacpp.local import EXACT, NEEDS_LLAMACPP, converted, opened
from lm_eval_tandem import pair
from lm_eval_tandem.errors import ArgumentError, ContextError, EngineError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems
from tasks.in_process import lm_eval

pytestmark = NEEDS_LLAMACPP

WINDOW = 120
"""Tokens: enough for a question, too few for two."""
SCRIPTS = ["é", "naïve café", "Ωμέγα", "日本語", "🦙🦙 lama", "e\u0301", "x🦙"]
"""Characters that are several tokens each, at the beginning, in the middle and at the end."""


@pytest.fixture(scope="module", params=["pair", "llama"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "pair":
        return pair.INTERN
    return tiny.save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def file(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return converted(folder, tmp_path_factory.mktemp("gguf"))


@pytest.fixture(scope="module")
def engine(file: Path) -> Iterator[Any]:
    engine = opened(file, max_length=WINDOW)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def theirs(folder: Path) -> HFLM:
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=8, max_length=WINDOW)


def requests_of(*arguments: tuple[Any, ...], kind: str = "loglikelihood") -> list[Instance]:
    return [Instance(kind, {}, one, 0, ("t", i, 1)) for i, one in enumerate(arguments)]


def questions(n: int) -> list[str]:
    return [str(row["question"]) for row in problems.rows("math", "test", n)]


def assert_equal(ours: list[tuple[float, bool]], theirs: list[tuple[float, bool]]) -> None:
    np.testing.assert_allclose([one[0] for one in ours], [one[0] for one in theirs], atol=1e-3)
    assert [one[1] for one in ours] == [one[1] for one in theirs]


def test_hundreds_of_likelihoods_are_those_of_transformers(engine: Any, theirs: HFLM) -> None:
    """Multiple choice, words of several tokens, empty contexts, spaces at either end, and characters in pieces."""
    choices = [(text, f" {n}") for text in questions(20) for n in ("1", "7", "12", "yes", "no")]
    pieces = [(context, text) for context in ("", "He wrote", "日本") for text in SCRIPTS]
    others = [
        *((text[:60], text[60:90]) for text in questions(20)),
        *(("", text[:20]) for text in questions(20)),
        *((f"{text[:30]} ", "coins") for text in questions(10)),
        *(("A: 1\n", f"{n}\n") for n in range(40)),
        *(("A: 1\n", f"{n}\n") for n in range(3)),
        ("x", " y</s>"),
    ]
    asked = requests_of(*choices, *pieces, *others)
    assert len(asked) > 200
    assert_equal(engine.lm.loglikelihood(asked, disable_tqdm=True), theirs.loglikelihood(asked, disable_tqdm=True))


def test_what_a_model_would_write_is_greedy(engine: Any, theirs: HFLM) -> None:
    settings = {"until": [], "max_gen_toks": 6, "do_sample": False}
    asked = requests_of(*((text, settings) for text in questions(6)), kind="generate_until")
    written = theirs.generate_until(asked, disable_tqdm=True)
    pairs = [(text, answer) for text, answer in zip(questions(6), written, strict=True) if answer.strip()]
    found = engine.lm.loglikelihood(requests_of(*pairs), disable_tqdm=True)
    assert_equal(found, theirs.loglikelihood(requests_of(*pairs), disable_tqdm=True))
    assert any(greedy for _, greedy in found)


def test_long_contexts_are_cut_from_the_left_with_a_warning(
    engine: Any, theirs: HFLM, caplog: pytest.LogCaptureFixture
) -> None:
    long = " ".join(questions(6))
    asked = requests_of(*((long[i:], f" {n}") for i in range(3) for n in ("3", "twelve")))
    with caplog.at_level(logging.WARNING):
        ours = engine.lm.loglikelihood(asked, disable_tqdm=True)
    assert caplog.text.count(f"longest input ({WINDOW} tokens)") == len(asked)
    assert_equal(ours, theirs.loglikelihood(asked, disable_tqdm=True))
    with pytest.raises(ContextError, match=rf"exceeds the {WINDOW} tokens .* larger max_length"):
        engine.lm.loglikelihood(requests_of(("x", long)), disable_tqdm=True)


def test_rolling_likelihoods_are_those_of_transformers(engine: Any, theirs: HFLM) -> None:
    texts = [*questions(6), " ".join(questions(5)), *SCRIPTS, ""]
    asked = requests_of(*((text,) for text in texts), kind="loglikelihood_rolling")
    ours = engine.lm.loglikelihood_rolling(asked, disable_tqdm=True)
    np.testing.assert_allclose(ours, theirs.loglikelihood_rolling(asked, disable_tqdm=True), atol=1e-3)


def test_a_window_that_is_all_of_the_servers_leaves_room_for_the_token_after_it(file: Path, folder: Path) -> None:
    """llama-server refuses a prompt as long as its window."""
    engine = opened(file, batch_size=1)
    length = engine.window - 1
    plain = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=1, max_length=length)
    long = " ".join(questions(24))
    assert len(engine.encode(long)) > engine.window
    asked = requests_of((long, " 3"))
    assert_equal(engine.lm.loglikelihood(asked, disable_tqdm=True), plain.loglikelihood(asked, disable_tqdm=True))
    engine.close()


def test_each_token_is_read_once_and_choices_that_a_reply_knows_are_not_asked_for(engine: Any) -> None:
    """Contexts that share their first part, as with examples in front, which llama.cpp's choice of slots would mix."""
    lm, work = engine.lm, engine.work
    shared = questions(1)[0]
    contexts = [f"{shared} {name}: how many coins" for name in ("Ada", "Bob", "Cleo", "Dan", "Eve", "Fay")]
    pairs = [(context, f" {word}") for context in contexts for word in ("coins", "12", "straw and grape")]
    lm.loglikelihood(requests_of(pairs[0]), disable_tqdm=True)  # the check of the server
    before = (work.prefill_tokens, work.calls, work.recomputed_tokens)
    lm.loglikelihood(requests_of(*pairs), disable_tqdm=True)
    continuations = sum(len(lm._encode_pair(*one)[1]) for one in pairs)
    common = len(lm.tok_encode(shared))
    prompts = engine.arguments.batch_size * common + sum(len(lm.tok_encode(one)) - common + 1 for one in contexts)
    assert work.calls - before[1] <= continuations
    assert work.prefill_tokens - before[0] <= prompts + continuations
    assert work.recomputed_tokens - before[2] <= continuations

    letters = requests_of(*((shared, text) for text in top_words(engine, shared)))
    assert len(letters) > 5
    calls = work.calls
    lm.loglikelihood(letters, disable_tqdm=True)
    assert work.calls - calls == 1


def top_words(engine: Any, context: str) -> list[str]:
    """Single tokens among the likeliest after a context, as text that is encoded as these tokens there."""
    from engines.conformance import run as awaited
    from lm_eval_tandem.engines.llamacpp.servers import ServerSession

    async def ask() -> Any:
        servers = engine._servers.reconnected()
        found = await servers.forced(ServerSession(), engine.encode(context), engine.lm.eot_token_id, 12)
        await servers.pool.disconnect()
        return found

    words = {i: engine.lm.tokenizer.decode([i]) for i in awaited(ask()).ids.tolist()}
    return [word for i, word in words.items() if engine.lm._encode_pair(context, word)[1] == [i]]


def test_the_harness_caches_what_is_measured(engine: Any) -> None:
    kept: dict[Any, Any] = {}

    class Kept(CacheHook):
        def add_partial(self, attr: str, req: Any, res: Any) -> None:
            kept[(attr, *req)] = res

    engine.lm.set_cache_hook(Kept(None))
    (found,) = engine.lm.loglikelihood(requests_of(("x", " y")), disable_tqdm=True)
    (rolling,) = engine.lm.loglikelihood_rolling(requests_of(("x y",), kind="loglikelihood_rolling"), disable_tqdm=True)
    engine.lm.set_cache_hook(CacheHook(None))
    assert kept == {("loglikelihood", "x", " y"): found, ("loglikelihood_rolling", "x y"): rolling}


def test_wrong_requests_are_one_sentence(engine: Any, file: Path) -> None:
    with pytest.raises(EngineError, match="no tokens of its own"):
        engine.lm.loglikelihood(requests_of(("x", "")), disable_tqdm=True)
    with pytest.raises(ArgumentError, match=rf"prefix_token_id=99999 is no token .* 0 to {engine._vocabulary - 1}"):
        opened(file, prefix_token_id=99999)


def test_the_prefix_of_an_empty_text_can_be_given(file: Path, folder: Path) -> None:
    other = opened(file, prefix_token_id=7, batch_size=1)
    plain = HFLM(pretrained=str(folder), dtype="float32", device="cpu", prefix_token_id=7)
    asked = requests_of(("", "coins"), ("", "He wrote"))
    assert_equal(other.lm.loglikelihood(asked, disable_tqdm=True), plain.loglikelihood(asked, disable_tqdm=True))
    assert other.encode("") == [7]
    other.close()


class Forcing(BaseHTTPRequestHandler):
    """In front of a real llama-server: it reports the log-probability, 0, of what it has been made to generate."""

    address: str

    def do_GET(self) -> None:
        self._forward(None)

    def do_POST(self) -> None:
        self._forward(self.rfile.read(int(self.headers["Content-Length"])))

    def _forward(self, body: bytes | None) -> None:
        request = urllib.request.Request(self.address + self.path, body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request) as reply:
            answer = json.loads(reply.read())
        if body is not None and "logit_bias" in json.loads(body):
            for one in answer.get("completion_probabilities", ()):
                one["logprob"] = 0.0
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is printed."""


def test_a_running_server_is_used_by_its_address(engine: Any, folder: Path) -> None:
    """Twice the same one, so that its slots are not chosen here."""
    address = engine._server.address
    asked = requests_of(("He wrote", " coins"), ("He wrote", " straw"), ("x", " y"), ("", "é"))
    expected = engine.lm.loglikelihood(asked, disable_tqdm=True)
    other = opened("intern", base_url=f"{address};{address}", tokenizer=str(folder), max_length=WINDOW)
    assert_equal(other.lm.loglikelihood(asked, disable_tqdm=True), expected)
    other.close()


def test_a_server_that_reports_what_it_has_forced_is_refused(engine: Any, folder: Path) -> None:
    handler = type("Handler", (Forcing,), {"address": engine._server.address})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as front:
        thread = threading.Thread(target=front.serve_forever)
        thread.start()
        other = opened("intern", base_url=f"http://127.0.0.1:{front.server_port}", tokenizer=str(folder))
        sentence = r"logit_bias makes follow is reported as 0\.00, and that of the same one as -\d.* use a newer server"
        with pytest.raises(EngineError, match=sentence):
            other.lm.loglikelihood(requests_of(("x", " y")), disable_tqdm=True)
        other.close()
        front.shutdown()
        thread.join()


def test_the_role_that_loglikelihood_names_answers(tmp_path: Path) -> None:
    from engines.llamacpp import to_gguf

    models = {"mentor": pair.MENTOR, "intern": pair.INTERN}
    files = {role: str(to_gguf.save(folder, tmp_path / f"{role}.gguf")) for role, folder in models.items()}
    asked = requests_of(*((text, f" {n}") for text in questions(3) for n in (3, 12)))
    rolling = requests_of((questions(1)[0],), kind="loglikelihood_rolling")
    found = {}
    for role, folder in models.items():
        plain = HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=4)
        lm = TandemLM(policy="stage:1", loglikelihood=role, **files, **EXACT)
        found[role] = lm.loglikelihood(asked, disable_tqdm=True)
        assert_equal(found[role], plain.loglikelihood(asked, disable_tqdm=True))
        np.testing.assert_allclose(
            lm.loglikelihood_rolling(rolling, disable_tqdm=True),
            plain.loglikelihood_rolling(rolling, disable_tqdm=True),
            atol=1e-3,
        )
        lm.close()
    assert found["mentor"] != found["intern"]


def save_choices(folder: Path) -> None:
    """Save the multiple-choice task `choices` into the folder; `--include_path` is its folder `tasks`."""
    rows = [
        {"question": text, "choices": ["3", "12", "forty two"], "answer": i % 3} for i, text in enumerate(questions(8))
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "task": "choices",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "answer",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    (folder / "tasks").mkdir()
    (folder / "tasks" / "choices.yaml").write_text(json.dumps(task))


def test_a_multiple_choice_task_on_the_command_line_has_the_results_of_hf(tmp_path: Path) -> None:
    from engines.llamacpp import to_gguf

    file = to_gguf.save(pair.INTERN, tmp_path / "intern.gguf")
    save_choices(tmp_path)
    asked = ["--tasks", "choices", "--include_path", str(tmp_path / "tasks"), "--log_samples", "--output_path"]
    ours = ["--model", "tandem", "--model_args", f"intern={file},policy=intern,cache_type=f32", "--batch_size", "4"]
    shown = run_forked([sys.executable, "-c", WITHOUT_DEFAULT_TASKS, *ours, *asked, "ours"], tmp_path)
    assert "|choices|" in shown
    theirs = ["--model", "hf", "--model_args", f"pretrained={pair.INTERN},dtype=float32", "--device", "cpu"]
    lm_eval("run", *theirs, *asked, str(tmp_path / "theirs"))
    found = [results(tmp_path / name)["results"]["choices"] for name in ("ours", "theirs")]
    assert found[0] == found[1]
    for one, other in zip(*(samples(tmp_path / name) for name in ("ours", "theirs")), strict=True):
        values = [[float(logprob) for ((logprob, _),) in sample["resps"]] for sample in (one, other)]
        np.testing.assert_allclose(*values, atol=1e-3)
