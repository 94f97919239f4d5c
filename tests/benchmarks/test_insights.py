"""`benchmarks/insights.py`: what insights did to answers, on a few questions written by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from lm_eval_tandem.judge.features import SCHEMA
from lm_eval_tandem.training.collected_file import FORMAT, NAME, write
from lm_eval_tandem.training.rows import Row

insights = pytest.importorskip("benchmarks.insights", reason="the tests were copied without benchmarks/")

CASES = [
    # target, answer alone, insight, answer with it
    ("18", r"\boxed{18}", "9 * 2 = 18", r"so \boxed{18}"),  # right both times, and the insight names it
    ("7", r"\boxed{6}", "two steps: add, then halve", r"\boxed{7}"),  # helped
    ("120", r"\boxed{120}", "the sum is 130", r"\boxed{130}"),  # hurt, and copied
    ("4", r"\boxed{5}", "it is 14", "I do not know"),  # wrong both times, without an answer at last
]


def row(doc: int, stage: int, target: str, answer: str, insight: str) -> Row:
    return Row(
        task="t",
        doc_id=doc,
        stage=stage,
        judged=True,
        correct=float(f"boxed{{{target}}}" in answer),
        agrees=None,
        features=[float(stage)],
        parts=[],
        mentor_tokens=stage * (10 if doc else 4),
        intern_tokens=20,
        truncated=False,
        answer_logprob=[-0.1],
        answer_entropy=[0.1],
        answer_ids=None,
        prompt_end=None,
        alone=None if stage else [{"policy": "mentor", "correct": 1.0, "tokens": 40, "dollars": None}],
        insight=insight,
        answer=answer,
        target=target,
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = []
    for doc, (target, alone, insight, guided) in enumerate(CASES):
        rows += [row(doc, 0, target, alone, ""), row(doc, 1, target, guided, insight)]
    models = {
        "mentor": {"model": "large", "parameters": 1_000_000},
        "intern": {"model": "small", "parameters": 500_000},
    }
    setting = {"efforts": [10], "insights": "cutoff", "guidance": "guided", "tasks": ["t"]}
    (tmp_path / "own").mkdir()
    write(tmp_path / "own" / NAME, rows, {"format": FORMAT, "schema": SCHEMA, **models, **setting})
    return tmp_path / "own"


def test_each_effect_is_counted(folder: Path) -> None:
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in insights.table([folder]).splitlines()]
    header, alone, guided, mentor = lines[0], *lines[2:]
    named = dict(zip(header, guided, strict=True))
    assert named["answered by"] == "intern, stage 1: 10"
    assert named["accuracy, %"].startswith("50.0 [")
    assert (named["helped"], named["hurt"]) == ("1", "1")
    assert float(named["cost of mentor's, %"]) == round(100 * (8.5 + (8.5 + 20) * 0.5) / 40)  # Eq. 12
    assert named["finished, %"] == "25"
    assert named["names answer, %"] == "25"  # 14 is not 4
    assert named["copied, % of wrong"] == "50"
    assert named["no answer, %"] == "25"
    assert dict(zip(header, alone, strict=True))["accuracy, %"].startswith("50.0 [")
    assert dict(zip(header, mentor, strict=True))["accuracy, %"].startswith("100.0 [")


def test_it_runs_as_a_program_and_writes_its_table(folder: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, insights.__file__, folder, "--output", "table.md"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (tmp_path / "table.md").read_text() == done.stdout
    assert done.stdout.count("| own |") == 3
