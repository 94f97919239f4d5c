"""The code tasks through lm-eval's own command line: offline, from local files, with any model."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from grading.code.styles import after_thought, module
from lm_eval_tandem import _paths
from lm_eval_tandem.pair import INTERN
from shared_data import rows
from tasks.in_process import lm_eval
from tasks.replay import Replay

TASKS = _paths.task_configs()
REPLAY = str(Path(__file__).with_name("replay.py"))
CASCADE_ARGUMENTS = {"length", "mentor_tokens", "tflops", "stage", "truncated"}
HUMANEVAL = [
    {
        "task_id": f"Own/{i}",
        "prompt": f'def add_{i}(a, b):\n    """Add."""\n',
        "canonical_solution": "    return a + b\n",
        "test": "def check(f):\n    assert f(1, 2) == 3\n",
        "entry_point": f"add_{i}",
    }
    for i in range(2)
]
MBPP = [
    {
        "task_id": 1,
        "prompt": "Write a function to halve.",
        "code": "def half(a):\n    return a / 2",
        "test_imports": ["import math"],
        "test_list": ["assert math.isclose(half(2), 1.0)", "assert half(3) == 1.5"],
    }
]
BOTH = "tandem_humaneval,tandem_mbpp"

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"),
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with local files for both tasks; the gold replies to them lie beside it, in `gold.json`."""
    folder = tmp_path / "data"
    folder.mkdir()
    for task, documents in {"tandem_humaneval": HUMANEVAL, "tandem_mbpp": MBPP}.items():
        (folder / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    gold = {row["prompt"].strip(): module(row) for row in HUMANEVAL}
    gold[MBPP[0]["prompt"]] = f"<think>\nEasy.\n</think>\n```python\n{MBPP[0]['code']}\n```"
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    return folder


def run(program: list[str], data: Path, *options: str, ok: bool = True, **environment: str) -> str:
    """Run a command line in a process of its own; what it printed."""
    command = [sys.executable, *program, *options, "--include_path", str(TASKS)]
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "TANDEM_DATA": str(data), **environment}
    ended = subprocess.run(command, capture_output=True, text=True, env=settings, timeout=1200, check=False)
    printed = ended.stdout + ended.stderr
    assert (ended.returncode == 0) == ok, printed
    return printed


def results(folder: Path) -> dict[str, Any]:
    """The newest results file below a folder."""
    found: dict[str, Any] = json.loads(max(folder.rglob("results_*.json")).read_text())["results"]
    return found


def metrics(task: dict[str, Any]) -> dict[str, float]:
    """The metrics of a task, without the filter in their names."""
    return {name.removesuffix(",none"): value for name, value in task.items() if name.endswith(",none")}


def samples(folder: Path, task: str) -> list[dict[str, Any]]:
    """The newest logged samples of a task."""
    file = max(folder.rglob(f"samples_{task}_*.jsonl"))
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def evaluate(model: LM, *tasks: str, folder: Path = TASKS, **options: Any) -> dict[str, Any]:
    """The results of the function that the command line calls, in this process."""
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    options = {"confirm_run_unsafe_code": True, "bootstrap_iters": 0, **options}
    found: dict[str, Any] = simple_evaluate(model, tasks=list(tasks), task_manager=manager, **options)
    return found


@needs_bubblewrap
@pytest.mark.parametrize(
    ("template", "own_process"),
    [(["--apply_chat_template"], False), pytest.param([], True, marks=pytest.mark.slow)],
    ids=["chat", "plain"],
)
def test_gold_replies_score_one_and_their_grades_name_the_isolation(
    data: Path, tmp_path: Path, template: list[str], own_process: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, out = tmp_path / "gold.json", tmp_path / "out"
    options = ["--model", "replay", "--model_args", f"gold={gold}", "--tasks", BOTH, *template]
    options += ["--output_path", str(out), "--log_samples", "--confirm_run_unsafe_code"]
    if own_process:
        run([REPLAY, "run"], data, *options)
    else:
        monkeypatch.setenv("TANDEM_DATA", str(data))
        lm_eval("run", *options, "--include_path", str(TASKS))
    for task in BOTH.split(","):
        found = metrics(results(out)[task])
        assert (found["acc"], found["no_answer"], found["timeout"], found["sandboxed"]) == (1.0, 0.0, 0.0, 1.0)
        assert not CASCADE_ARGUMENTS & set(found)
        assert not any(name.startswith("pass@") for name in found)
        for sample in samples(out, task):
            grade = json.loads(sample["filtered_resps"][0][0])
            assert (grade["outcome"], grade["isolation"]) == ("passed", "bubblewrap")
            assert grade["code"]


def test_the_harness_requires_a_confirmation(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_DATA", str(data))
    monkeypatch.setenv("TANDEM_SANDBOX", "process")
    for task in BOTH.split(","):
        with pytest.raises(ValueError, match="marked as unsafe"):
            evaluate(Replay(str(tmp_path / "gold.json")), task, confirm_run_unsafe_code=False)


@pytest.mark.slow
def test_without_bubblewrap_it_ends_with_one_sentence(data: Path, tmp_path: Path) -> None:
    options = ["--model", "replay", "--model_args", f"gold={tmp_path / 'gold.json'}", "--confirm_run_unsafe_code"]
    printed = run([REPLAY, "run"], data, *options, "--tasks", "tandem_humaneval", ok=False, PATH=str(tmp_path))
    assert printed.splitlines()[-1].startswith("tandem: error: ")
    assert "apt-get install bubblewrap" in printed
    assert "Traceback" not in printed


def test_the_results_report_that_code_ran_in_a_plain_subprocess(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TANDEM_DATA", str(data))
    monkeypatch.setenv("TANDEM_SANDBOX", "process")
    found = evaluate(Replay(str(tmp_path / "gold.json")), "tandem_humaneval")
    figures = metrics(found["results"]["tandem_humaneval"])
    assert (figures["acc"], figures["sandboxed"]) == (1.0, 0.0)
    for sample in found["samples"]["tandem_humaneval"]:
        assert json.loads(sample["filtered_resps"][0][0])["isolation"] == "process"


@needs_bubblewrap
def test_repeats_give_pass_at_k(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TANDEM_DATA", str(data))
    task = "include: tandem_humaneval.yaml\ntask: repeated\nrepeats: 4\n"
    task += "generation_kwargs: {do_sample: true, until: []}\n"
    folder = tmp_path / "tasks"
    shutil.copytree(TASKS / "code", folder)
    (folder / "repeated.yaml").write_text(task)
    wrong, right = "    return None\n", "    return a + b\n"
    gold = {row["prompt"].strip(): [wrong, right, "I do not know.", wrong] for row in HUMANEVAL}
    (tmp_path / "gold.json").write_text(json.dumps(gold))
    found = evaluate(Replay(str(tmp_path / "gold.json")), "repeated", folder=folder)
    figures = metrics(found["results"]["repeated"])
    assert (figures["acc"], figures["pass@2"], figures["no_answer"]) == (0.25, 0.5, 0.25)
    assert "pass@5" not in figures


@needs_bubblewrap
@pytest.mark.parametrize("template", [True, False])
def test_the_costs_of_a_tandem_are_reported(data: Path, monkeypatch: pytest.MonkeyPatch, template: bool) -> None:
    from lm_eval_tandem.harness.model import TandemLM

    monkeypatch.setenv("TANDEM_DATA", str(data))
    tandem = TandemLM(dtype="float32", device="cpu")
    try:
        options = {"gen_kwargs": "max_gen_toks=16", "apply_chat_template": template}
        found = evaluate(tandem, *BOTH.split(","), **options)["results"]
    finally:
        tandem.close()
    for task in BOTH.split(","):
        figures = metrics(found[task])
        assert figures["acc"] == 0.0
        assert figures["sandboxed"] == 1.0
        assert set(figures) >= CASCADE_ARGUMENTS


@needs_bubblewrap
@pytest.mark.slow
@pytest.mark.parametrize("template", [["--apply_chat_template"], []])
@pytest.mark.parametrize("model", ["hf", "tandem"])
def test_the_command_line_with_real_models(data: Path, tmp_path: Path, model: str, template: list[str]) -> None:
    out = tmp_path / "out"
    arguments = f"pretrained={INTERN},dtype=float32" if model == "hf" else "dtype=float32"
    options = ["--model", model, "--model_args", arguments, "--tasks", BOTH, "--device", "cpu", *template]
    options += ["--gen_kwargs", "max_gen_toks=64", "--output_path", str(out), "--confirm_run_unsafe_code"]
    run(["-m", "lm_eval_tandem" if model == "tandem" else "lm_eval", "run"], data, *options)
    for task in BOTH.split(","):
        found = metrics(results(out)[task])
        assert found["acc"] == 0.0
        assert found["sandboxed"] == 1.0
        assert CASCADE_ARGUMENTS & set(found) == (CASCADE_ARGUMENTS if model == "tandem" else set())


@needs_bubblewrap
@pytest.mark.slow
def test_all_of_humaneval_scores_one_when_its_solutions_are_replayed(tmp_path: Path) -> None:
    docs = rows("humaneval.jsonl")
    folder, out = tmp_path / "data", tmp_path / "out"
    folder.mkdir()
    (folder / "tandem_humaneval.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (tmp_path / "gold.json").write_text(json.dumps({doc["prompt"].strip(): after_thought(doc) for doc in docs}))
    options = ["--model", "replay", "--model_args", f"gold={tmp_path / 'gold.json'}", "--tasks", "tandem_humaneval"]
    options += ["--apply_chat_template", "--confirm_run_unsafe_code", "--output_path", str(out)]
    run([REPLAY, "run"], folder, *options)
    found = results(out)["tandem_humaneval"]
    assert found["sample_len"] == 164
    assert metrics(found)["acc"] == 1.0
