"""Whether a ledger is that of a results file: the same settings, questions, answers, policy, and the same totals.

A results file names no checksum of its ledger, so everything that both record is compared, and what follows from a
record's own counts is computed again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_tandem import accounting, ledger
from lm_eval_tandem.accounting import Spent, Tokens
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.reports.sources import ledgers
from lm_eval_tandem.reports.sources.ledgers import Ledger
from lm_eval_tandem.reports.sources.runs import Run, models_of

SAME = 1e-9
"""Largest relative difference between two sums of the same numbers."""
SAME_SECONDS = 6e-3
"""The same for seconds, of which packed ledgers keep three digits."""
RECORD_FIELDS = {field.name for field in dataclasses.fields(Record)}
NESTED = ("tokens", "spent", "stages", "segments")
"""Fields of a record that are no plain values in the file."""

Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Lines of a samples file by filter."""


def fault(found: Ledger, results: Mapping[str, Any], tasks: Sequence[tuple[Run, Answers]]) -> str | None:
    """Return in a few words why a ledger is not that of a results file; None if it is.

    Parameters
    ----------
    found
        A ledger whose header names the same models and settings.
    results
        The results file.
    tasks
        All tasks of the results file: their runs as reports read them, and their samples.
    """
    described = dict(results["config"].get("tandem") or {})
    totals = described.pop("totals", None)
    if dict(found.description) != described:
        names = sorted(
            name for name in {*found.description, *described} if found.description.get(name) != described.get(name)
        )
        return f"they differ in {', '.join(names)}"
    return (
        questions_fault(found, tasks)
        or records_fault(found, described)
        or samples_fault(found, tasks)
        or totals_fault(found, totals or {})
    )


def questions_fault(found: Ledger, tasks: Sequence[tuple[Run, Answers]]) -> str | None:
    """Return whether the ledger has other questions than the samples."""
    for run, _ in tasks:
        if ledgers.records_of(found, run) is None:
            return f"the samples of {run.domain} have questions that it does not have"
    asked = sum(len(run.questions) for run, _ in tasks)
    if len(found.records) != asked:
        return f"it has {len(found.records):,} questions, the samples {asked:,}"
    return None


def records_fault(found: Ledger, described: Mapping[str, Any]) -> str | None:
    """Return whether a record has another policy than the run, or a cost that does not follow from its tokens."""
    parameters = {name: facts.get("parameters") for name, facts in models_of(described).items()}
    for (task, doc_id), repeats in found.records.items():
        for record in repeats:
            where = f"its record of {task} {doc_id}"
            if record.get("policy") != described.get("policy"):
                return f"{where} has the policy {record.get('policy')}"
            try:
                made = record_of(record)
            except (TypeError, KeyError, AttributeError):
                return f"{where} has other fields than a ledger"
            if not same(made.bill, bill_of(made, parameters)):
                return f"the bill of {where.removeprefix('its ')} does not follow from its tokens"
    return None


def bill_of(record: Record, parameters: Mapping[str, int | None]) -> float | None:
    """Return the bill of a record's tokens in TFLOPs; None if a model's number of parameters is not known."""
    if record.spent:
        return accounting.sum_all(*(spent.priced(parameters.get(name)).bill for name, spent in record.spent.items()))
    if None in parameters.values():
        return record.bill
    return accounting.bill(record.tokens, parameters.get("mentor") or 0, parameters.get("intern") or 0)


def samples_fault(found: Ledger, tasks: Sequence[tuple[Run, Answers]]) -> str | None:
    """Return whether samples and records differ in costs, or in the length of an answer that several may have written.

    Samples have costs only where the task shows them.
    """
    for run, samples in tasks:
        records = ledgers.records_of(found, run)
        assert records is not None
        if not ledgers.belongs(found, run, records):
            return f"the samples of {run.domain} have other costs"
        for sample, repeats in zip(next(iter(samples.values())), records, strict=True):
            for response, record in zip(responses_of(sample), repeats, strict=False):
                written = sum(part["characters"] for part in record.get("segments") or [])
                if written and len(response) > written:
                    return f"the answer to {run.domain} {sample['doc_id']} is longer than its record says"
    return None


def responses_of(sample: Mapping[str, Any]) -> list[str]:
    """Return the texts that a sample's question got, one per repeat; [] where the answers are no texts."""
    responses = sample.get("resps") or []
    texts = [text for texts in responses for text in (texts if isinstance(texts, list) else [texts])]
    return texts if all(isinstance(text, str) for text in texts) else []


def totals_fault(found: Ledger, totals: Mapping[str, Any]) -> str | None:
    """Return whether the sums and means of the records differ from those in the results file."""
    sums = ledger.totals(record_of(record) for repeats in found.records.values() for record in repeats)
    for name, value in sums.items():
        if name in totals and not same(value, totals[name], SAME_SECONDS if name.endswith("seconds") else SAME):
            return f"its {name} is {value}, that of the results {totals[name]}"
    return None


def same(one: Any, other: Any, tolerance: float = SAME) -> bool:
    """Whether two figures, or two mappings of figures, are the same but for the last bits; None is its own only.

    A count that one side does not name, as older versions did not, is 0.
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(same(one.get(name, 0), other.get(name, 0), tolerance) for name in {*one, *other})
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=tolerance)


def record_of(line: Mapping[str, Any]) -> Record:
    """Return the record of a ledger's line, without its judgements and segments, which no total counts."""
    plain = {name: value for name, value in line.items() if name in RECORD_FIELDS and name not in NESTED}
    spent = {name: Spent(**one) for name, one in (line.get("spent") or {}).items()}
    return Record(**plain, tokens=Tokens(**line["tokens"]), spent=spent)
