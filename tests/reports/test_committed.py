"""The committed page of results is what the report prints from the committed runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from lm_eval_tandem.reports import table

RESULTS = Path(__file__).parents[2] / "results" / "pair"


def test_the_page_of_the_pair_is_made_from_its_runs() -> None:
    if not RESULTS.is_dir():
        pytest.skip("the tests were copied without results/")
    title = (RESULTS / "README.md").read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
    assert table.markdown([RESULTS], title) == (RESULTS / "README.md").read_text(encoding="utf-8")
