"""The benchmark for GPUs, with its tiny models on a CPU: what it measures and says, and that a kill loses nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from command_line import ENVIRONMENT, PATIENCE

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu.py"
pytestmark = pytest.mark.skipif(not PROGRAM.is_file(), reason="the tests were copied without benchmarks/")
TINY = ["--device", "cpu", "--shapes", "tiny", "--engines", "hf", "--in_flight", "1", "2", "--factor", "0.05"]
POLICIES = ["mentor", "cascade", "stage:3", "intern"]
RUNS = [f"hf/tiny/{in_flight}/{policy}" for in_flight in (1, 2) for policy in POLICIES]


def run(*arguments: str, python: tuple[str, ...] = (), code: int = 0, **environment: str) -> str:
    """What the program printed; it has to end with this exit code."""
    done = subprocess.run(
        [sys.executable, *python, str(PROGRAM), *arguments],
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout if code == 0 else done.stderr


def parts(folder: Path) -> dict[str, Any]:
    file = folder / "gpu-cpu.json"
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))["parts"] if file.exists() else {}
    return found


def start_and_kill(folder: Path) -> None:
    """Run the program until it has measured a policy, kill it, and wait for the end of what it has started."""
    command = [sys.executable, str(PROGRAM), *TINY, "--minutes", "20", "--output", str(folder)]
    with subprocess.Popen(command, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        patience = time.monotonic() + PATIENCE
        while not set(RUNS) & set(parts(folder)):
            assert process.poll() is None
            assert time.monotonic() < patience
            time.sleep(0.05)
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    assert started
    _, alive = psutil.wait_procs(started, timeout=PATIENCE)
    assert not alive


@pytest.mark.slow
def test_a_run_that_is_killed_is_continued_until_everything_is_measured(tmp_path: Path) -> None:
    output = run(*TINY, "--minutes", "0", "--output", str(tmp_path))
    assert f"Not measured: entropies, 1/mentor, {'1/' + ', 1/'.join(POLICIES[1:])}" in output
    start_and_kill(tmp_path)
    before = parts(tmp_path)
    output = run(*TINY, "--minutes", "20", "--output", str(tmp_path), "--commit", "abc123")
    after = parts(tmp_path)
    kept = [name for name in before if not name.endswith("/load")]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert set(after) == {"hf/tiny/load", "hf/tiny/entropies", *RUNS}
    for name in RUNS:
        in_flight, policy = name.split("/")[2:]
        measured = after[name]
        assert (measured["policy"], measured["in_flight"], measured["factor"]) == (policy, int(in_flight), 0.05)
        assert len(measured["seconds"]) == int(in_flight)
        assert (measured["mentor_tokens"] > 0) == (policy != "intern")
        assert (measured["intern_tokens"] > 0) == (policy != "mentor")
        assert (measured["judge_share"] > 0) == (policy == "cascade")
        assert measured["gib"] > 0
    assert after["hf/tiny/1/mentor"]["mentor_tokens"] == round(0.05 * 2630)
    assert after["hf/tiny/entropies"]["max_error"] < 1e-4
    assert after["hf/tiny/entropies"]["tokens"] == 999
    assert (tmp_path / "gpu-cpu.md").read_text(encoding="utf-8") in output
    assert output.count("| stage:3 |") == 2
    assert "abc123" in output
    assert "torch" in output
    assert "Not measured" not in output
    assert "has everything" in run(*TINY, "--output", str(tmp_path))


@pytest.mark.slow
def test_why_a_group_could_not_be_measured_is_in_the_table(tmp_path: Path) -> None:
    package = tmp_path / "broken" / "lm_eval" / "__init__.py"
    package.parent.mkdir(parents=True)
    package.write_text("raise ImportError('this installation is broken')\n", encoding="utf-8")
    error = run(*TINY, "--output", str(tmp_path), code=1, PYTHONPATH=str(package.parents[1]))
    assert "Failed: transformers, 4.5M + 0.7M parameters" in error
    table = (tmp_path / "gpu-cpu.md").read_text(encoding="utf-8")
    assert "2/intern (this installation is broken)." in table


@pytest.mark.skipif(psutil.virtual_memory().total > 60 * 2**30, reason="there is memory for models of 32B and 7B")
def test_models_that_do_not_fit_are_left_out_before_they_are_loaded(tmp_path: Path) -> None:
    output = run("--device", "cpu", "--shapes", "large", "--engines", "hf", "--output", str(tmp_path))
    assert "64/intern (both need" in output
    assert not parts(tmp_path)


def test_without_a_gpu_one_sentence_says_what_to_do() -> None:
    error = run(code=1)
    assert len(error.splitlines()) == 1
    assert "finds no GPU" in error
    assert "--device cpu --shapes tiny" in error


def test_a_python_without_the_packages_is_told_what_is_missing() -> None:
    error = run(python=("-S",), code=1)
    assert len(error.splitlines()) == 1
    assert "lm_eval" in error
    assert "torch" in error
    assert "PYTHON=" in error
