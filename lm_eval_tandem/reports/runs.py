"""The harness's result and sample files of a run, read back question by question."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ArgumentError

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """One run on one task.

    name: of the run, e.g. tandem-pair-cascade. score: the task's first metric, by document id.
    columns: tandem's own figures per question (length, mentor_tokens, tflops, stage, truncated), by document id;
        empty for another model.
    """

    name: str
    task: str
    policy: str
    config: dict[str, Any]
    commit: str
    doc_ids: tuple[int, ...]
    score: Floats
    columns: dict[str, Floats]


COLUMNS = ("length", "mentor_tokens", "tflops", "stage", "truncated")


def read(folders: Iterable[Path]) -> list[Run]:
    """Every run below the folders, the newest of each name and task, sorted by task and name.

    Raises:
        ArgumentError: a folder holds no results, or results without their samples.
    """
    found: dict[tuple[str, str], Run] = {}
    for folder in folders:
        files = sorted(folder.rglob("results_*.json"), key=lambda file: file.name)
        if not files:
            raise ArgumentError(
                f"{folder} holds no results of the harness; run it with --output_path and --log_samples."
            )
        for file in files:
            for run in of_file(file):
                found[run.task, run.name] = run
    return [found[key] for key in sorted(found)]


def of_file(file: Path) -> list[Run]:
    """The runs, one per task, of one results file."""
    results = json.loads(file.read_text(encoding="utf-8"))
    config = results["config"]
    runs = []
    for task, settings in results["configs"].items():
        metric = settings["metric_list"][0]["metric"]
        lines = [json.loads(line) for line in samples_of(file, task)]
        lines.sort(key=lambda line: line["doc_id"])
        tandem = config.get("tandem") or {}
        runs.append(
            Run(
                name=tandem.get("run", file.parent.name),
                task=task,
                policy=tandem.get("policy", ""),
                config=config,
                commit=str(results.get("git_hash") or "unknown"),
                doc_ids=tuple(line["doc_id"] for line in lines),
                score=column(lines, metric),
                columns={name: column(lines, name) for name in COLUMNS if all(name in line for line in lines)},
            )
        )
    return runs


def samples_of(file: Path, task: str) -> list[str]:
    """The lines of the samples file that lies beside a results file, plain or gzipped."""
    plain = file.with_name(f"samples_{task}_{file.stem.removeprefix('results_')}.jsonl")
    packed = plain.with_name(plain.name + ".gz")
    if packed.is_file():
        return gzip.decompress(packed.read_bytes()).decode().splitlines()
    if plain.is_file():
        return plain.read_text(encoding="utf-8").splitlines()
    raise ArgumentError(f"{file} has no samples of {task} beside it; run the harness with --log_samples.")


def column(lines: Sequence[dict[str, Any]], name: str) -> Floats:
    """One figure of every question."""
    return np.array([float(line[name]) for line in lines])
