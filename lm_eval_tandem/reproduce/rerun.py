"""Runs a recorded run again, and compares scores and answers question by question."""

from __future__ import annotations

import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import ArgumentError, TandemError, one_line
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reproduce import harness_command

LOG = "lm_eval.log"
"""What a run printed, in its folder."""
SAME = 1e-9
"""Relative difference up to which two scores are the same; sums of the same numbers may differ in their last bits."""

Key = tuple[int, str]
"""Document and filter."""


def new_folder(folder: Path) -> Path:
    """Return a folder for new results, made if it is not there.

    Raises
    ------
    ArgumentError
        It holds something.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ArgumentError(f"{folder} holds something already; name a new folder with --output.")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_again(run: RecordedRun, folder: Path) -> RecordedRun:
    """Run the command of a run, with the results in a folder, and return the new run.

    Raises
    ------
    TandemError
        The command failed; what it printed is in the folder.
    """
    folder.mkdir(parents=True)
    log = folder / LOG
    with log.open("w", encoding="utf-8") as printed:
        ended = subprocess.run(  # noqa: S603 - this interpreter and this package, no shell; the user asked for it
            harness_command.runnable(run, folder), stdout=printed, stderr=subprocess.STDOUT, check=False
        )
    files = sorted(folder.rglob("results_*.json"))
    if ended.returncode or not files:
        raise TandemError(
            f"{run.name} could not be run again ({last_line(log)}); {log} has all that was printed, and the "
            "differences above may say why."
        )
    return RecordedRun(files[-1], harness_files.load_results(files[-1]))


def last_line(log: Path) -> str:
    """Return the last line of what a command printed."""
    lines = [line for line in re.split(r"[\r\n]+", log.read_text(encoding="utf-8", errors="replace")) if line.strip()]
    return one_line(lines[-1]).rstrip(".") if lines else "it printed nothing"


def compare(then: RecordedRun, now: RecordedRun) -> tuple[list[str], bool]:
    """Return a sentence for each task of a run, and whether everything is as it was."""
    compared = [compare_task(then, now, task) for task in sorted(then.task_names)]
    return [sentence for sentence, _ in compared], all(same for _, same in compared)


def compare_task(then: RecordedRun, now: RecordedRun, task: str) -> tuple[str, bool]:
    """Return a sentence that says which answers and scores of a task differ, and whether none does."""
    old_scores, new_scores = scores(then, task), scores(now, task)
    changed = [name for name, value in old_scores.items() if not is_same(value, new_scores.get(name))]
    scored = [f"{name} was {old_scores[name]:g} and is {text(new_scores.get(name))}" for name in changed]
    old, new = answers(then, task), answers(now, task)
    if old is None:
        parts = scored or [f"all {len(old_scores):,} scores are as they were"]
        return f"{task}: {'; '.join(parts)}; the old run kept no samples, so no answers are compared.", not changed
    differing = sorted({document for document, name in old if old[document, name] != (new or {}).get((document, name))})
    asked = len({document for document, _ in old})
    if not differing and not changed:
        return f"{task}: all {asked:,} answers and all {len(old_scores):,} scores are as they were.", True
    told = f"{len(differing):,} of {asked:,} answers differ"
    if differing:
        told += f" (documents {join_names([str(one) for one in differing])})"
    return f"{task}: {'; '.join([told, *scored])}.", False


def scores(run: RecordedRun, task: str) -> dict[str, float]:
    """Return the scores of a task by metric and filter, without standard errors."""
    entries: Mapping[str, Any] = (run.results.get("results") or {}).get(task) or {}
    return {
        name: float(value)
        for name, value in entries.items()
        if "," in name and "_stderr" not in name and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def answers(run: RecordedRun, task: str) -> dict[Key, Any] | None:
    """Return the responses to each question of a task; None where the run kept none."""
    samples = run.samples(task)
    if samples is None:
        return None
    return {(int(sample["doc_id"]), str(sample.get("filter", "none"))): sample.get("resps") for sample in samples}


def is_same(then: float, now: float | None) -> bool:
    """Whether a score is as it was, but for its last bits."""
    return now is not None and (then == now or math.isclose(then, now, rel_tol=SAME))


def text(value: float | None) -> str:
    """A score as a sentence has it."""
    return "missing" if value is None else f"{value:g}"


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Return names or numbers in a sentence; of more than `most` the first ones, and how many others there are."""
    shown = [str(name) for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most:,} others"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
