"""Two processes on one CPU (gloo) answer what one answers, each its share."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from command_line import command, results, run, samples

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launched(folder: Path, processes: int, questions: int, **arguments: Any) -> float:
    """Run the bundled pair in so many processes, results in `out`, the ledger in l.jsonl; seconds of its generation."""
    folder.mkdir()
    line = command("tandem_pair_math", ledger="l.jsonl", **arguments)
    if processes == 2:
        line = [*TWO, "-m", "lm_eval_tandem", *line[line.index("--model") :]]
    line += ["--limit", str(questions)]
    run([*line, "--output_path", "out", "--log_samples", "--device", "cpu"], folder)
    return float(results(folder / "out")["config"]["tandem"]["totals"]["wall_seconds"])


def records(folder: Path) -> list[dict[str, Any]]:
    """The ledger without its clock and header."""
    lines = [json.loads(line) for line in (folder / "l.jsonl").read_text().splitlines()[1:]]
    stages = [[{**look, "seconds": None} for look in line["stages"]] for line in lines]
    return [
        {name: value for name, value in line.items() if "seconds" not in name} | {"stages": looks}
        for line, looks in zip(lines, stages, strict=True)
    ]


def test_two_ranks_give_the_results_and_the_ledger_of_one(tmp_path: Path) -> None:
    """An uneven number: the harness then asks one of them twice, and it has to count once."""
    for processes in (1, 2):
        launched(tmp_path / str(processes), processes, 21, policy="stage:1")
    one, two = (results(tmp_path / name / "out") for name in "12")
    assert two["results"]["tandem_pair_math"] == pytest.approx(one["results"]["tandem_pair_math"])
    assert two["n-samples"] == one["n-samples"]
    assert records(tmp_path / "2") == records(tmp_path / "1")
    totals = [found["config"]["tandem"]["totals"] for found in (one, two)]
    assert [found["questions"] for found in totals] == [21, 21]
    assert totals[1]["tflops"] == totals[0]["tflops"]
    answers = [[sample["resps"][0][0] for sample in samples(tmp_path / name)] for name in "12"]
    assert answers[1] == answers[0]


@pytest.mark.slow
def test_two_ranks_are_faster_than_one(tmp_path: Path) -> None:
    """One thread each, on two cores that nothing else uses; medians of three runs."""
    seconds = {
        processes: sorted(launched(tmp_path / f"{turn}-{processes}", processes, 400) for turn in range(3))[1]
        for processes in (1, 2)
    }
    assert seconds[1] / seconds[2] >= 1.6, seconds
