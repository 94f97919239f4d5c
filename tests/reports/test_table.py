"""Tables from the harness's files: right intervals, paired comparisons, and a refusal of what cannot be compared."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports import runs, table
from lm_eval_tandem.reports.intervals import difference, ratio, wilson

TANDEM = {"efforts": [1, 2], "version": "0", "recipe": "default", "classifier": "c", "thresholds": [0.5, 0.5, 0.5]}


def write(folder: Path, policy: str, right: list[float], cost: list[float] | None, packed: bool = False) -> None:
    """A run as the harness leaves it: results, and samples in any order."""
    folder.mkdir(parents=True)
    config = {"tandem": {"run": f"tandem-{policy}", "policy": policy, **TANDEM}} if cost else {}
    results = {"config": config, "configs": {"t": {"metric_list": [{"metric": "acc"}]}}, "git_hash": "abc"}
    (folder / "results_2026.json").write_text(json.dumps(results))
    lines = []
    for doc_id, score in enumerate(right):
        line: dict[str, float] = {"doc_id": doc_id, "acc": score}
        if cost:
            line |= {"tflops": cost[doc_id], "length": 10, "mentor_tokens": 5, "stage": 1, "truncated": 0}
        lines.append(json.dumps(line))
    text = "\n".join(reversed(lines)) + "\n"
    if packed:
        (folder / "samples_t_2026.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    else:
        (folder / "samples_t_2026.jsonl").write_text(text)


def test_wilson_has_known_values_and_stays_within_bounds() -> None:
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    assert wilson(0, 10)[0] == 0 and wilson(10, 10)[1] == pytest.approx(1)
    assert wilson(980, 1000) == pytest.approx((0.96935, 0.98701), abs=1e-4)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.booleans(), min_size=5, max_size=40))
def test_a_paired_difference_of_a_run_with_itself_is_nothing(right: list[bool]) -> None:
    values = np.array(right, dtype=float)
    assert difference(values, values) == (0, 0)
    assert ratio(values + 1, values + 1) == pytest.approx((1, 1))


def test_paired_intervals_use_the_pairing() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(1000)
    a, b = (hard < 0.9).astype(float), (hard < 0.88).astype(float)
    low, high = difference(a, b)
    assert 0 < low < (a - b).mean() < high < 0.04


@pytest.mark.parametrize("packed", [False, True])
def test_the_table_compares_with_the_mentor_question_by_question(tmp_path: Path, packed: bool) -> None:
    write(tmp_path / "m", "mentor", [1, 1, 0, 1], [4.0] * 4, packed)
    write(tmp_path / "c", "cascade", [1, 1, 1, 1], [1.0, 1.0, 1.0, 3.0], packed)
    write(tmp_path / "h", "", [0, 0, 0, 1], None, packed)
    shown = table.markdown([tmp_path], "Title")
    rows = {line.split("|")[1].strip(): line for line in shown.splitlines() if line.startswith("| ")}
    assert "100.0 [" in rows["tandem-cascade"] and "| 37.5 [" in rows["tandem-cascade"]
    assert "+25.0 [" in rows["tandem-cascade"] and "75.0 [" in rows["tandem-mentor"]
    assert "25.0 [" in rows["h"] and "commit abc" in shown
    assert list(rows)[1:] == ["tandem-mentor", "tandem-cascade", "h"]


def test_runs_on_different_questions_are_not_compared(tmp_path: Path) -> None:
    write(tmp_path / "m", "mentor", [1, 1, 0], [4.0] * 3)
    write(tmp_path / "c", "cascade", [1, 1], [1.0] * 2)
    with pytest.raises(ArgumentError, match="answered different questions"):
        table.markdown([tmp_path])


def test_a_folder_without_results_or_samples_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="holds no results"):
        runs.read([tmp_path])
    write(tmp_path / "m", "mentor", [1], [4.0])
    (tmp_path / "m" / "samples_t_2026.jsonl").unlink()
    with pytest.raises(ArgumentError, match="--log_samples"):
        runs.read([tmp_path])
