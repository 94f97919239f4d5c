"""Wall-clock time per question, from a benchmark's JSON file (paper, Table 13).

A file `latency*.json` below the results folders:

    {"format": "tandem-latency/1", "task": "tandem_math500", "pair": "A + B", "engine": "vllm 0.32", "hardware": "…",
     "concurrency": 1, "runs": [{"policy": "cascade", "seconds": [12.1, …], "judge_seconds": [0.2, …]}, …]}

`seconds` holds one number per question, from its submission to its answer: the same questions in the same order in
every run. Optional: `judge_seconds`, as many, or `judge_share`, the part of the time that went into judging; `wall`,
the seconds of the whole run, which is less than the sum where questions ran at once.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.intervals import ratio, resampled_means, span
from lm_eval_tandem.reports.sources.runs import reason
from lm_eval_tandem.reports.sources.study import ORDER, slug
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Section, Table, percent, table

FORMAT = "tandem-latency/1"


def section(folders: Iterable[Path]) -> Section:
    """One table per benchmark."""
    parts: list[Part] = [timed(benchmark, i) for i, benchmark in enumerate(read(folders), 1)]
    if not parts:
        parts = [
            Missing(
                f"Latency needs a benchmark's file latency*.json (format {FORMAT}: task, engine, hardware, "
                "concurrency, and per policy the seconds of each question) in one of the folders; the seconds in "
                "ledgers overlap between questions and are no latencies."
            )
        ]
    return Section("latency", "Wall-clock time per question", "Paper, Table 13.", tuple(parts))


def read(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """The benchmarks below the folders, checked.

    Raises
    ------
    ArgumentError
        A file is none, or its runs are not of the same questions.
    """
    found = []
    for file in sorted(file for folder in folders for file in folder.rglob("latency*.json")):
        try:
            benchmark = json.loads(file.read_text(encoding="utf-8"))
            counts = {len(run["seconds"]) for run in benchmark["runs"]}
            policies = [str(run["policy"]) for run in benchmark["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"{file} cannot be read as latencies ({reason(error)}); its format is {FORMAT}."
            ) from None
        if benchmark.get("format") != FORMAT or len(counts) != 1 or 0 in counts or len(set(policies)) != len(policies):
            raise ArgumentError(
                f"{file} has to be of format {FORMAT}, each policy once, with the seconds of the same questions."
            )
        found.append(benchmark)
    return found


def timed(benchmark: dict[str, Any], number: int) -> Table:
    """Mean, median and 95th percentile of seconds, and how much faster than the mentor alone."""
    runs: Sequence[dict[str, Any]] = sorted(benchmark["runs"], key=lambda run: place(str(run["policy"])))
    mentor = next((np.array(run["seconds"], dtype=float) for run in runs if run["policy"] == "mentor"), None)
    rows: list[list[Cell]] = []
    for run in runs:
        seconds = np.array(run["seconds"], dtype=float)
        row: list[Cell] = [str(run["policy"]), str(len(seconds))]
        row.append(Number(digits.mean(seconds), span(resampled_means(seconds[:, None])[:, 0]), 3))
        row += [Number(float(value), None, 3) for value in np.quantile(seconds, (0.5, 0.95))]
        if mentor is not None:
            row.append(Number(digits.mean(mentor) / digits.mean(seconds), ratio(mentor, seconds), 2))
        else:
            row.append("")
        row.append("" if "wall" not in run else Number(float(run["wall"]) / len(seconds), None, 3))
        judging = run.get("judge_share")
        if "judge_seconds" in run:
            judging = digits.total(run["judge_seconds"]) / digits.total(seconds)
        row.append("" if judging is None else percent(float(judging)))
        rows.append(row)
    told = [f"{name} {benchmark[name]}" for name in ("pair", "engine", "hardware", "concurrency") if name in benchmark]
    columns = ["policy", "questions", "mean (s)", "median (s)", "95th percentile (s)", "times as fast as the mentor"]
    return table(
        f"latency-{number}-{slug(str(benchmark.get('task', '')))}",
        str(benchmark.get("task", "latency")),
        "; ".join(told),
        [*columns, "whole run / questions (s)", "judging, % of the time"],
        rows,
    )


def place(policy: str) -> tuple[int, str]:
    """The order of rows."""
    name = policy.partition(":")[0]
    return (ORDER.index(name) if name in ORDER else len(ORDER)), policy
