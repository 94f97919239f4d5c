"""The real command line in a process of its own: how a test types it, and what it finds afterwards."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import forked
from lm_eval_tandem import _paths

LM_EVAL = Path(sys.executable).with_name("lm_eval")
MACHINE_REPORT_LEFT_OUT = """
from torch.utils import collect_env
collect_env.get_pretty_env_info = lambda: "left out by the tests"
"""
"""With every result the harness saves a report of the machine: pip's list of packages and the like, seconds of work."""
DEFAULT_TASKS_LEFT_OUT = """
import functools
from lm_eval.tasks import TaskManager
original = TaskManager.__init__
TaskManager.__init__ = functools.wraps(original)(
    lambda self, *args, **options: original(self, *args, **{**options, "include_defaults": False})
)
"""
"""The harness's own task files: reading them takes longer than most runs here."""
MAIN = """
from lm_eval_tandem.__main__ import main
main()
"""
BARE_MAIN = """
from lm_eval.__main__ import cli_evaluate
cli_evaluate()
"""
WITHOUT_DEFAULT_TASKS = MACHINE_REPORT_LEFT_OUT + DEFAULT_TASKS_LEFT_OUT + MAIN
"""`python -m lm_eval_tandem`, without both."""
BARE_WITHOUT_DEFAULT_TASKS = MACHINE_REPORT_LEFT_OUT + DEFAULT_TASKS_LEFT_OUT + BARE_MAIN
"""`lm_eval`, without both; it finds the model through the wheel's import hook."""
PATIENCE = 1200
"""Seconds; only a process that hangs takes as long, however busy the machine is."""
ENVIRONMENT = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


def command(task: str, model: str = "tandem", bare: bool = False, **arguments: Any) -> list[str]:
    """The command line; `bare` is `lm_eval` itself, which finds the model through the wheel's import hook."""
    program = [str(LM_EVAL)] if bare else [sys.executable, "-c", WITHOUT_DEFAULT_TASKS]
    given = ",".join(f"{name}={value}" for name, value in arguments.items())
    tasks = ["--include_path", str(_paths.task_configs())] if bare else []
    return [*program, "--model", model, "--model_args", given, "--tasks", task, "--batch_size", "16", *tasks]


def options_of(arguments: Sequence[str]) -> list[str]:
    """The options of a command, for a run in this process: one to compare with need not start a process of its own."""
    options = arguments[list(arguments).index("--model") :]
    return ["run", "--include_path", str(_paths.task_configs()), *options, "--device", "cpu"]


def save_task(folder: Path, questions: Sequence[str]) -> None:
    """Save the task `coins`, which asks these questions, into the folder; `--include_path` is its folder `tasks`."""
    task = {
        "task": "coins",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_target": "x",
        "generation_kwargs": {"until": [], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    }
    (folder / "rows.jsonl").write_text("".join(json.dumps({"question": text}) + "\n" for text in questions))
    (folder / "tasks").mkdir()
    (folder / "tasks" / "coins.yaml").write_text(json.dumps(task))


def run(arguments: Sequence[str], folder: Path, code: int = 0) -> str:
    """What the command printed; it has to end with the exit code."""
    done = subprocess.run(arguments, cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def forked_at_once(arguments: Sequence[str], folder: Path) -> forked.Process:
    """Start the command, which has to be one of this Python, in a fork that has the libraries imported."""
    assert arguments[0] == sys.executable
    return forked.Process(arguments[1:], folder, ENVIRONMENT, Path(tempfile.mkdtemp(dir=folder)))


def run_forked(arguments: Sequence[str], folder: Path, code: int = 0) -> str:
    """As `run`, in a fork."""
    process = forked_at_once(arguments, folder)
    ended = process.wait(PATIENCE)
    assert ended == code, process.printed() + process.complained()
    return process.printed() if code == 0 else process.complained()


def results(folder: Path) -> dict[str, Any]:
    (file,) = folder.rglob("results_*.json")
    return dict(json.loads(file.read_text()))


def samples(folder: Path) -> list[dict[str, Any]]:
    (file,) = folder.rglob("samples_*.jsonl")
    return sorted(map(json.loads, file.read_text().splitlines()), key=lambda sample: sample["doc_id"])


def entries(path: Path) -> int:
    """Finished generations in a store that another process writes; none while it is being made."""
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return int(db.execute("SELECT count(*) FROM finished").fetchone()[0])
    except sqlite3.OperationalError:
        return 0
