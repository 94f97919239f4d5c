"""Ledgers: one JSON-lines file per run with a record of every question, joined here to the runs that they belong to."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.digits import mean
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.ledger_checksums import JUDGED_LATER, as_packed, checksum
from lm_eval_tandem.ledger_file import FORMAT
from lm_eval_tandem.reports.sources.files import describe, read_lines
from lm_eval_tandem.reports.sources.runs import MEASURES, Floats, QuestionId, Run, identity


@dataclass(frozen=True)
class Ledger:
    """A ledger file: its header, which describes the run, and by question the records of all repeats."""

    description: Mapping[str, Any]
    records: Mapping[QuestionId, list[dict[str, Any]]]


def join(runs: Iterable[Run], folders: Iterable[Path]) -> list[Run]:
    """Return the runs, each with the records of its ledger if one lies below the folders.

    Raises
    ------
    ArgumentError
        A ledger cannot be read.
    """
    ledgers = [ledger for folder in folders for ledger in read(folder)]
    return [with_records(run, ledgers) for run in runs]


def read(folder: Path) -> list[Ledger]:
    """Return the ledgers below a folder, in order of their paths; other JSON-lines files are passed over."""
    ledgers = []
    for file in sorted([*folder.rglob("*.jsonl"), *folder.rglob("*.jsonl.xz")]):
        if file.name.startswith("samples_"):
            continue
        lines = read_lines(file)
        try:
            description, *records = [json.loads(line) for line in lines]
            if not isinstance(description, dict) or description.pop("format", None) != FORMAT:
                continue  # some other file of the user's
            by_question: dict[QuestionId, list[dict[str, Any]]] = {}
            for record in records:
                by_question.setdefault((record["task"], int(record["doc_id"])), []).append(record)
        except (ValueError, KeyError, TypeError) as error:
            raise ArgumentError(
                f"{file} cannot be read as a ledger ({describe(error)}); run again with the same store, or remove it."
            ) from None
        ledgers.append(Ledger(description, by_question))
    return ledgers


def with_records(run: Run, ledgers: Sequence[Ledger]) -> Run:
    """Return the run with the records and measures of its ledger; as it is if none of the ledgers is its own."""
    for ledger in reversed(ledgers):
        records = records_of(ledger, run) if run.description else None
        if records is not None and belongs(ledger, run, records):
            measures = {**measures_of(records), **run.measures}
            return replace(run, records=tuple(repeats[0] for repeats in records), measures=measures)
    return run


def records_of(ledger: Ledger, run: Run) -> list[list[dict[str, Any]]] | None:
    """Return the records of a run's questions, in their order; None if the ledger lacks some.

    Where some documents alone were asked (`lm_eval --samples`), the harness numbers its requests by their place among
    those, and its samples by their place among all.
    """
    if all(question in ledger.records for question in run.questions):
        return [ledger.records[question] for question in run.questions]
    places: dict[QuestionId, QuestionId] = {}
    for task in {task for task, _ in run.questions}:
        asked = sorted(doc_id for name, doc_id in run.questions if name == task)
        if sorted(doc_id for name, doc_id in ledger.records if name == task) != list(range(len(asked))):
            return None
        places |= {(task, doc_id): (task, place) for place, doc_id in enumerate(asked)}
    return [ledger.records[places[question]] for question in run.questions]


def belongs(ledger: Ledger, run: Run, records: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether a ledger is that of a run: same settings, and the numbers of the results and of the samples."""
    totals = run.description.get("totals") or {}
    if not same_system(ledger.description, run.description) or not has_checksum(ledger, totals):
        return False
    return same_tokens(ledger, totals) and same_measures(run, records)


def same_measures(run: Run, records: Sequence[Sequence[Mapping[str, Any]]]) -> bool:
    """Whether records have the same numbers as the samples of a run, where both have them."""
    recorded = measures_of(records)
    return all(
        np.allclose(run.measures[name], recorded[name], rtol=1e-9, atol=0)  # costs of tiny models are tiny
        for name in MEASURES
        if name in run.measures and name in recorded
    )


def same_system(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether a ledger's header and a run's description name the same models with the same settings."""
    # `thinking` is a model argument that the header of a ledger does not have
    first, second = ({**description, "thinking": None} for description in (one, other))
    return identity(first) == identity(second)


def has_checksum(ledger: Ledger, totals: Mapping[str, Any]) -> bool:
    """Whether a ledger has the checksum that a run's totals have of it, or they have none, as those of older versions.

    The checksum of packed records counts only for records that are packed.
    """
    recorded = totals.get("ledger")
    if recorded is None:
        return True
    if is_whole(ledger, totals):
        return True
    own = records_in_order(ledger)
    return all(map(is_as_packed, own)) and checksum(map(as_packed, own)) == recorded.get("packed")


def is_whole(ledger: Ledger, totals: Mapping[str, Any]) -> bool:
    """Whether every field of every record is as the run wrote it, by the checksum in its totals."""
    return checksum(records_in_order(ledger)) == (totals.get("ledger") or {}).get("whole")


def records_in_order(ledger: Ledger) -> list[dict[str, Any]]:
    """Return the records of a ledger in the order of the file."""
    return [record for repeats in ledger.records.values() for record in repeats]


def is_as_packed(record: Mapping[str, Any]) -> bool:
    """Whether a record has what a packed one has, and no more."""
    judgements = record.get("stages")
    if not isinstance(judgements, list) or not all(isinstance(one, dict) for one in judgements):
        return False
    packed = as_packed(record)
    for judgement, kept in zip(judgements, packed["stages"], strict=True):
        kept |= {name: judgement[name] for name in JUDGED_LATER if name in judgement}
    return packed == {**record, "stages": judgements}


def same_tokens(ledger: Ledger, totals: Mapping[str, Any]) -> bool:
    """Whether the tokens of all records are those of a run's totals, where it has recorded them."""
    recorded = totals.get("tokens") or {}
    own = {name: sum(record["tokens"].get(name, 0) for record in records_in_order(ledger)) for name in recorded}
    return own == dict(recorded)


def measures_of(records: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Floats]:
    """Return the `MEASURES` of ledger records, float64 (Q,) each, without those that some question lacks.

    Parameters
    ----------
    records
        For each of Q questions the records of its repeats, over which means are taken.
    """
    measures = {}
    for name in MEASURES:
        values = [[measure_of(record, name) for record in repeats] for repeats in records]
        if not any(value is None for repeats in values for value in repeats):
            measures[name] = np.array([mean([v for v in repeats if v is not None]) for repeats in values])
    return measures


def measure_of(record: Mapping[str, Any], name: str) -> float | None:
    """Return one of the `MEASURES` of a ledger record; None if the record does not have it."""
    tokens, spent = record["tokens"], record.get("spent") or {}
    if name == "length":
        return float(tokens["mentor_new"] + tokens["intern_new"] + sum(one["new"] for one in spent.values()))
    if spent and name in ("mentor_tokens", "stage"):
        return None
    if name == "mentor_tokens":
        return float(tokens["mentor_new"])
    if name == "seconds":
        return float(record["judge_seconds"] + record["generate_seconds"])
    if name == "truncated":
        return float(record["finish_reason"] == "length")
    value = record.get(name)
    return None if value is None else float(value)
