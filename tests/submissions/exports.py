"""What the tests of exports for Every Eval Ever have in common: the command, and the files that it reads and writes."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lm_eval_tandem import cli

TASK, CODE = "tandem_pair_math", "tandem_pair_code"
QUESTIONS = 6
PRICES = {
    **{"mentor_price_input": 2, "mentor_price_cached": 0.5, "mentor_price_output": 8},
    **{"intern_price_input": 0.4, "intern_price_cached": 0.1, "intern_price_output": 1.6},
}
OPTIONS = ("--organization", "Test Lab", "--relationship", "other", "--developer", "planet")

VALIDATOR = "TANDEM_EEE_VALIDATOR"
"""The variable with the path of the board's own program, every_eval_ever."""

Exported = dict[Path, tuple[dict[str, Any], list[dict[str, Any]]]]


def submit(output: Path, *results: Path, options: Sequence[str] = OPTIONS) -> None:
    cli.main(["submit", "every_eval_ever", *map(str, results), "--output", str(output), *options])


def refused(capsys: pytest.CaptureFixture[str], output: Path, *results: Path, options: Sequence[str] = OPTIONS) -> str:
    """Return the sentence with which an export is refused; it leaves no file."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        submit(output, *results, options=options)
    assert ended.value.code == 1
    assert not [file for file in output.rglob("*") if file.is_file()]
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0, message
    return message.removeprefix("lm-eval-tandem: error: ")


def only(exported: Exported) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (found,) = exported.values()
    return found


def by_metric(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {result["evaluation_result_id"].rpartition("/")[2]: result for result in results["evaluation_results"]}


def file_of(folder: Path, pattern: str) -> Path:
    (file,) = folder.rglob(pattern)
    return file


def change(file: Path, how: Callable[[list[Any]], Any]) -> None:
    """Change the lines of a JSON-lines file."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    how(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def without_checksums(run: Path) -> None:
    """Take the checksums of ledger and answers from a run, which earlier versions did not record."""

    def without_answers(lines: list[Any]) -> None:
        for line in lines[1:]:
            del line["answer_sha256"]

    change(run / "ledger.jsonl", without_answers)
    file = file_of(run, "results_*")
    content = json.loads(file.read_text())
    del content["config"]["tandem"]["totals"]["ledger"]
    file.write_text(json.dumps(content))


def needs_validator(test: Callable[..., None]) -> Callable[..., None]:
    """Mark a test that needs the board's own program."""
    skipped = pytest.mark.skipif(VALIDATOR not in os.environ, reason=f"{VALIDATOR} names no every_eval_ever")
    marked: Callable[..., None] = pytest.mark.slow(skipped(test))
    return marked


def validate(output: Path) -> None:
    """Let the board's own program check every file of an export; it may find neither errors nor warnings."""
    program = [os.environ[VALIDATOR], "validate", "--format", "json", "data/*/*/*/*.json*"]
    done = subprocess.run(program, cwd=output, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    reports = json.loads(done.stdout)
    assert len(reports) == sum(1 for file in output.rglob("*.json*") if file.is_file())
    assert not [report for report in reports if not report["valid"] or report["warnings"]]
