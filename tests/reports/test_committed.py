"""The committed report is what the command makes of the committed runs, file by file."""

from __future__ import annotations

import lzma
import re
from pathlib import Path

import pytest

from lm_eval_tandem.reports.report import report, write

RESULTS = Path(__file__).parents[2] / "results" / "pair"


def test_the_report_of_the_pair_is_made_from_its_runs(tmp_path: Path) -> None:
    if not RESULTS.is_dir():
        pytest.skip("the tests were copied without results/")
    title = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    for file in write(report([RESULTS], title, by="steps"), tmp_path):
        committed = RESULTS / file.relative_to(tmp_path)
        assert committed.read_text(encoding="utf-8") == file.read_text(encoding="utf-8"), committed.name


def test_the_committed_results_are_small_and_show_no_place_of_a_machine() -> None:
    if not RESULTS.is_dir():
        pytest.skip("the tests were copied without results/")
    assert sum(file.stat().st_size for file in RESULTS.parent.rglob("*") if file.is_file()) < 15_000_000
    for file in RESULTS.parent.rglob("*"):
        if file.is_file():
            packed = file.suffix == ".xz"
            text = (lzma.decompress(file.read_bytes()) if packed else file.read_bytes()).decode("utf-8", "replace")
            found = re.search(r"(?<![\w.…])/(home|root|tmp|work|Users|mnt|data)/", text)
            assert not found, f"{file}: {text[max(0, found.start() - 60) : found.end() + 60]}"
