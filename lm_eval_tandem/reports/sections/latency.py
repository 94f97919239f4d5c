"""Wall-clock time per question, from the JSON files of a benchmark (paper, Table 13).

`benchmarks/latency.py` writes such files; any other benchmark may. A file `latency*.json` below the results folders:

    {"format": "tandem-latency/1", "task": "tandem_math500", "pair": "A + B", "engine": "vllm 0.32", "hardware": "…",
     "concurrency": 1, "runs": [{"policy": "cascade", "seconds": [12.1, …], "judge_seconds": [0.2, …]}, …]}

`seconds` holds one number per question, from its submission to its answer, for the same questions in the same order in
every run. Optional are `judge_seconds`, of the same length, or `judge_share`, the share of the time spent on judging;
and `wall`, the seconds of the whole run, which is less than the sum of `seconds` if questions ran at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.intervals import ratio
from lm_eval_tandem.reports.sources.files import describe
from lm_eval_tandem.reports.sources.grouping import policy_rank
from lm_eval_tandem.reports.sources.labels import slug
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Floats
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Table, make_table, percent
from lm_eval_tandem.training.bootstrap import central_interval, resampled_means

FORMAT = "tandem-latency/1"


def latency(data: ReportData) -> list[Part]:
    """Return one table per benchmark below the report's folders, or what such a file has to be."""
    return latency_parts(data.folders)


def latency_parts(folders: Iterable[Path]) -> list[Part]:
    """Return one table per benchmark below some folders, or what such a file has to be."""
    parts: list[Part] = [table(benchmark, number) for number, benchmark in enumerate(read(folders), 1)]
    return parts or [
        Missing(
            f"Latency needs the file latency*.json of a benchmark (format {FORMAT}: task, engine, hardware, "
            "concurrency, and for each policy the seconds of every question) in one of the folders. The seconds in "
            "ledgers are no latencies, because questions overlap in time."
        )
    ]


def read(folders: Iterable[Path]) -> list[dict[str, Any]]:
    """Return the contents of the benchmark files below some folders, sorted by path.

    Raises
    ------
    ArgumentError
        A file is not of this format, or its runs are not on the same questions.
    """
    benchmarks = []
    for file in sorted(file for folder in folders for file in folder.rglob("latency*.json")):
        try:
            benchmark = json.loads(file.read_text(encoding="utf-8"))
            counts = {len(run["seconds"]) for run in benchmark["runs"]}
            policies = [str(run["policy"]) for run in benchmark["runs"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"{file} cannot be read as latencies ({describe(error)}); its format has to be {FORMAT}."
            ) from None
        if benchmark.get("format") != FORMAT or len(counts) != 1 or 0 in counts or len(set(policies)) != len(policies):
            raise ArgumentError(
                f"{file} has to be of format {FORMAT}, with each policy once and the seconds of the same questions."
            )
        benchmarks.append(benchmark)
    return benchmarks


def table(benchmark: Mapping[str, Any], number: int) -> Table:
    """Return one row per policy of a benchmark; `number` counts the benchmarks of the report."""
    runs = sorted(benchmark["runs"], key=lambda run: (policy_rank(str(run["policy"])), str(run["policy"])))
    mentor = next((np.array(run["seconds"], dtype=float) for run in runs if run["policy"] == "mentor"), None)
    details = ("pair", "engine", "hardware", "concurrency")
    return make_table(
        f"latency-{number}-{slug(str(benchmark.get('task', '')))}",
        str(benchmark.get("task", "latency")),
        "; ".join(f"{name}: {benchmark[name]}" for name in details if name in benchmark),
        [
            "policy",
            "questions",
            "mean (s)",
            "median (s)",
            "95th percentile (s)",
            "times as fast as the mentor",
            "whole run / questions (s)",
            "judging, % of the time",
        ],
        [policy_row(run, mentor) for run in runs],
    )


def policy_row(run: Mapping[str, Any], mentor: Floats | None) -> list[Cell]:
    """Return the row of one policy; `mentor`: the seconds (Q,) of the mentor alone, None if it was not measured."""
    seconds = np.array(run["seconds"], dtype=float)
    interval = central_interval(resampled_means(seconds[:, None])[:, 0])
    median, slowest = (Number(float(value), None, 3) for value in np.quantile(seconds, (0.5, 0.95)))
    speed: Cell = ""
    if mentor is not None:
        speed = Number(digits.mean(mentor) / digits.mean(seconds), ratio(mentor, seconds), 2)
    wall: Cell = "" if "wall" not in run else Number(float(run["wall"]) / len(seconds), None, 3)
    judging = run.get("judge_share")
    if "judge_seconds" in run:
        judging = digits.total(run["judge_seconds"]) / digits.total(seconds)
    return [
        str(run["policy"]),
        str(len(seconds)),
        Number(digits.mean(seconds), interval, 3),
        median,
        slowest,
        speed,
        wall,
        "" if judging is None else percent(float(judging)),
    ]
