"""Which ledger is that of a results file, and whether it is as the run wrote it.

A run with a ledger records checksums of its records (`ledger.checksums`), so a change of any field is noticed. Results
of versions before that have none: there everything that both files have is compared, what follows from a record's own
counts is computed again, and the user is told what that leaves out.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_tandem import accounting, ledger
from lm_eval_tandem.accounting import Spent, Tokens
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.ledger_checksums import of_answer
from lm_eval_tandem.reports.sources import ledgers
from lm_eval_tandem.reports.sources.labels import model_name
from lm_eval_tandem.reports.sources.ledgers import Ledger
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.runs import Run, models_of

SAME = 1e-9
"""Largest relative difference between two sums of the same numbers."""
SAME_SECONDS = 6e-3
"""The same for seconds, of which packed ledgers keep three digits."""
RECORD_FIELDS = {field.name for field in dataclasses.fields(Record)}
NESTED = ("tokens", "spent", "stages", "segments", "cached")
"""Fields of a record that are no plain values in the file."""

Answers = Mapping[str, Sequence[Mapping[str, Any]]]
"""Lines of a samples file by filter."""


WHOLE = "its ledger is as the run wrote it: a checksum in the results covers every field of every record"
PACKED = (
    "its ledger was packed: a checksum in the results covers every field that packing keeps, seconds and features to "
    "three digits, but not the scores that packing added to judgements of fixed stages"
)
COMPARED = (
    "its results are from a version that recorded no checksum of the ledger: settings, questions, policy, tokens, "
    "costs, stages, ends, refused tokens and seconds were compared with the results; reasons, judgements, and who "
    "wrote what were not, since the results do not have them"
)
"""What was checked, as the user is told."""


def find(
    run: RecordedRun, tasks: Sequence[tuple[Run, Answers]], ledgers_found: Sequence[Ledger]
) -> tuple[Ledger | None, str]:
    """Return the ledger of a run, None where none was written, and what of it was checked.

    Parameters
    ----------
    run
        The run.
    tasks
        All its tasks: the runs on them as reports read them, and their samples.
    ledgers_found
        All ledgers below the folders that the user named.

    Raises
    ------
    ArgumentError
        The run wrote a ledger, which is missing or was changed.
    """
    if not run.description:
        return None, ""
    own = [ledger for ledger in ledgers_found if ledgers.same_system(ledger.description, run.description)]
    named = run.arguments.get("ledger")
    if not own:
        if named:
            raise ArgumentError(
                f"{run.name} on {', '.join(task.domain for task, _ in tasks)} was run with a ledger, "
                f"{model_name(str(named))}, but none of the folders holds it as it was written; add its folder."
            )
        return None, ""
    faults = []
    for ledger_found in reversed(own):
        found = fault(ledger_found, run, tasks)
        if found is None:
            return ledger_found, checked(ledger_found, run)
        faults.append(found)
    raise ArgumentError(
        f"the ledger of {run.name} is not that of the results {run.file.name}: {faults[0]}; "
        "give both as the run wrote them."
    )


def checked(found: Ledger, run: RecordedRun) -> str:
    """Return what was checked of a ledger without a fault."""
    if run.totals.get("ledger") is None:
        return COMPARED
    return WHOLE if ledgers.is_whole(found, run.totals) else PACKED


def fault(found: Ledger, run: RecordedRun, tasks: Sequence[tuple[Run, Answers]]) -> str | None:
    """Return in a few words why a ledger is not that of a run; None if it is.

    Parameters
    ----------
    found
        A ledger whose header names the same models and settings.
    run, tasks
        As for `find`.
    """
    described = run.description
    if dict(found.description) != dict(described):
        names = sorted(
            name for name in {*found.description, *described} if found.description.get(name) != described.get(name)
        )
        return f"they differ in {', '.join(names)}"
    try:
        return (
            questions_fault(found, tasks)
            or records_fault(found, described)
            or samples_fault(found, tasks)
            or totals_fault(found, run.totals)
            or checksum_fault(found, run.totals)
        )
    except (TypeError, ValueError, KeyError, AttributeError):  # a list, a text or nothing where a number has to be
        return "one of its records has fields of another form than a ledger's"


def checksum_fault(found: Ledger, totals: Mapping[str, Any]) -> str | None:
    """Return whether the records are others than those whose checksum the results have."""
    if ledgers.has_checksum(found, totals):
        return None
    return "a field of a record is another than the run wrote (the checksum in the results differs)"


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
    """Return whether samples and records differ in costs or answers.

    Samples have costs only where the task shows them. Records have checksums of the answers; those of older versions
    only the length of one that several models may have written.
    """
    for run, samples in tasks:
        records = ledgers.records_of(found, run)
        assert records is not None
        if not ledgers.same_measures(run, records):
            return f"the samples of {run.domain} have other costs"
        for sample, repeats in zip(next(iter(samples.values())), records, strict=True):
            responses = responses_of(sample)
            for response, record in zip(responses, repeats, strict=False):
                written = sum(part["characters"] for part in record.get("segments") or [])
                if written and len(response) > written:
                    return f"the answer to {run.domain} {sample['doc_id']} is longer than its record says"
            if not are_recorded(responses, repeats):
                return f"the answer to {run.domain} {sample['doc_id']} in the samples is not the one it recorded"
    return None


def are_recorded(responses: Sequence[str], records: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the answers to a question are those of which its records have checksums, where they have any.

    A run of several processes may answer a question more often than the others, to give all processes equally many,
    and records it once: of such a question every record has to be of one of the answers.
    """
    found = [of_answer(response) for response in responses]
    kept = [record.get("answer_sha256") for record in records]
    if not found or None in kept:
        return True
    return kept == found if len(kept) == len(found) else set(kept) <= set(found)


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
