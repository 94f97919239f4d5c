"""Ledgers, read back and joined to the runs that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.digits import mean
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.ledger import FORMAT
from lm_eval_tandem.reports.sources.runs import COLUMNS, Floats, Key, Run, identity, lines_of, reason


@dataclass(frozen=True)
class Ledger:
    """The records of a run, by question; repeats of a question lie together."""

    name: str
    about: Mapping[str, Any]
    records: Mapping[Key, list[dict[str, Any]]]


def joined(runs: Iterable[Run], folders: Iterable[Path]) -> list[Run]:
    """The runs, each with the records of its ledger, if one of those below the folders is.

    Raises
    ------
    ArgumentError
        A ledger cannot be read.
    """
    ledgers = [ledger for folder in folders for ledger in ledgers_below(folder)]
    return [with_ledger(run, ledgers) for run in runs]


def ledgers_below(folder: Path) -> list[Ledger]:
    """The ledgers below a folder, in order of their paths."""
    files = sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.xz")])
    found = []
    for file in files:
        if file.name.startswith("samples_"):
            continue
        lines = lines_of(file)
        try:
            about, *records = [json.loads(line) for line in lines]
            if not isinstance(about, dict) or about.pop("format", None) != FORMAT:
                continue  # some other JSON-lines file of the user's
            by_key: dict[Key, list[dict[str, Any]]] = {}
            for record in records:
                by_key.setdefault((record["task"], int(record["doc_id"])), []).append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"{file} cannot be read as a ledger ({reason(error)}); run again with the same store, or take it away."
            ) from None
        found.append(Ledger(file.name, about, by_key))
    return found


def with_ledger(run: Run, ledgers: Sequence[Ledger]) -> Run:
    """The run with the records of its ledger: one of the same run whose figures are those of its samples."""
    for ledger in reversed(ledgers):
        if run.about and belongs(ledger, run):
            records = [ledger.records[key] for key in run.keys]
            columns = {**figures(records), **run.columns}
            return replace(run, records=tuple(found[0] for found in records), columns=columns)
    return run


def belongs(ledger: Ledger, run: Run) -> bool:
    """Whether a ledger is that of a run: the same settings, every question, the same stages and costs."""
    ours = {**run.about, "thinking": None}
    if identity({**ledger.about, "thinking": None}) != identity(ours):
        return False
    if not all(key in ledger.records for key in run.keys):
        return False
    told = figures([ledger.records[key] for key in run.keys])
    return all(
        np.allclose(run.columns[name], told[name], rtol=1e-9)
        for name in COLUMNS
        if name in run.columns and name in told
    )


def figures(records: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Floats]:
    """A ledger's figures per question, means over its repeats; those that some question lacks are left out."""

    def one(record: Mapping[str, Any], name: str) -> float | None:
        tokens = record["tokens"]
        if name == "length":
            return float(tokens["mentor_new"] + tokens["intern_new"])
        if name == "mentor_tokens":
            return float(tokens["mentor_new"])
        if name == "truncated":
            return float(record["finish_reason"] == "length")
        value = record.get(name)
        return None if value is None else float(value)

    found = {}
    for name in COLUMNS:
        values = [[one(record, name) for record in repeats] for repeats in records]
        if not any(value is None for repeats in values for value in repeats):
            found[name] = np.array([mean([v for v in repeats if v is not None]) for repeats in values])
    return found
