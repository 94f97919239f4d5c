"""The benchmarks of latency and of judging: their tables, their files, and the report of a latency file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import MACHINE_REPORT_LEFT_OUT, PATIENCE
from lm_eval_tandem.reports.sections import latency
from lm_eval_tandem.reports.table import Table

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the tests were copied without benchmarks/")


def bench(folder: Path, *more: str) -> str:
    """Run the latency benchmark with transformers on tiny models, and return what it printed."""
    sizes = ["--mentor", "2e5", "--intern", "1e5", "--vocabulary", "1000", "--scale", "0.02"]
    return printed(str(BENCHMARKS / "latency.py"), *sizes, *more, "--output", str(folder))


def printed(*arguments: str) -> str:
    """Run Python with these arguments and return what it printed."""
    ran = subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return ran.stdout


def test_the_report_shows_a_benchmark_s_file_as_random_weights(tmp_path: Path) -> None:
    bench(tmp_path, "--questions", "3", "--policies", "mentor,cascade")
    (shown,) = latency.latency_parts([tmp_path])
    assert isinstance(shown, Table)
    assert [str(cells[0]) for cells in shown.rows] == ["mentor", "cascade"]
    assert str(shown.rows[0][1]) == "3"
    assert "random weights" in shown.caption
    assert "transformers" in shown.caption


@pytest.mark.slow
def test_a_sweep_has_every_point_and_stays_out_of_the_report(tmp_path: Path) -> None:
    output = bench(tmp_path, "--questions", "2,3", "--in_flight", "1,2", "--policies", "cascade", "--apart")
    points = json.loads((tmp_path / "sweep-questions-in_flight-hf.json").read_text(encoding="utf-8"))
    sizes = [(len(point["runs"][0]["seconds"]), point["concurrency"]) for point in points]
    assert sizes == [(2, 1), (2, 2), (3, 1), (3, 2)]
    assert all(point["mentor_part_alone"] > 0 and point["intern_part_alone"] > 0 for point in points)
    assert output.count("of that throughput") == 4
    assert not list(tmp_path.glob("latency*"))


@pytest.mark.slow
def test_what_judging_adds_is_measured_against_the_same_answers_without_a_judge(tmp_path: Path) -> None:
    """The script itself fails if the answers differ."""
    file, script = tmp_path / "judge.md", str(BENCHMARKS / "judge.py")
    program = f"{MACHINE_REPORT_LEFT_OUT}\nimport runpy\nrunpy.run_path({script!r}, run_name='__main__')"
    options = ["--questions", "6", "--batch_sizes", "1,4", "--repeats", "2", "--output", str(file)]
    output = printed("-c", program, *options)
    assert file.read_text(encoding="utf-8") == output
    rows = [line.split("|") for line in output.splitlines() if line.startswith(("| 1 ", "| 4 "))]
    assert len(rows) == 2
    assert all(0 < float(row[2]) < 100 for row in rows)
