"""`benchmarks/top_entropies.py`: its table, with the bundled intern and without a chat template."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lm_eval_tandem import pair
from lm_eval_tandem.pair import problems

top_entropies = pytest.importorskip("benchmarks.top_entropies", reason="the tests were copied without benchmarks/")


def test_more_tokens_leave_less_unknown(tmp_path: Path) -> None:
    questions = tmp_path / "questions.jsonl"
    rows = problems.rows("math", "train", 8)
    questions.write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    whole = json.loads((pair.INTERN / "config.json").read_text())["vocab_size"]
    arguments = [str(pair.INTERN), str(questions), "--limit", "6", "--tokens", "12", "--tops", f"2,20,{whole}"]
    top_entropies.main([*arguments, "--output", str(tmp_path / "t.md")])
    head, _, *lines = (tmp_path / "t.md").read_text().splitlines()
    assert "of 6 answers" in head
    two, twenty, everything = ([float(cell) for cell in line.strip("| ").split(" | ")] for line in lines[2:])
    assert two[1] > twenty[1] >= everything[1]
    assert two[2] > twenty[2] > everything[2]
    assert two[1] <= two[3], "the error is within its bound"
    assert everything[1:] == [0.0, 0.0, 0.0, 0.0, 1.0], "with the whole vocabulary nothing is estimated"
