"""Checksums of a ledger's records, by which a results file knows the ledger that its run wrote, whole or packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from lm_eval_tandem.digits import significant

PER_TOKEN = ("answer_logprob", "answer_entropy", "parts")
"""Measurements of a judgement that `benchmarks/packing.py` leaves out."""
JUDGED_LATER = ("score", "probe_tokens", "judged_by")
"""What it writes into judgements that decided nothing."""


def checksums(lines: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """The checksums that a results file has of the ledger of its run.

    Parameters
    ----------
    lines
        The records in their order in the file.

    Returns
    -------
    dict
        "whole": of every field of every record; "packed": of what is left of them where a ledger was packed.
    """
    whole = list(lines)
    return {"whole": checksum(whole), "packed": checksum(map(as_packed, whole))}


def checksum(lines: Iterable[Mapping[str, Any]]) -> str:
    """The SHA-256 of records, whatever the order of their fields."""
    digest = hashlib.sha256()
    for line in lines:
        digest.update(json.dumps(line, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def as_packed(line: Mapping[str, Any]) -> dict[str, Any]:
    """What a packed ledger has of a record: no measurements of single tokens, seconds and features to three digits.

    Scores of judgements that decided nothing are left out here, since packing adds them.
    """
    left_out = (*PER_TOKEN, *(JUDGED_LATER if line.get("reason") in ("fixed", "alone") else ()))
    judgements = []
    for judgement in line.get("stages") or []:
        kept = {name: value for name, value in judgement.items() if name not in left_out}
        if kept.get("features"):
            kept["features"] = [three_digits(value) for value in kept["features"]]
        judgements.append(with_short_seconds(kept))
    return {**with_short_seconds(line), "stages": judgements}


def with_short_seconds(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record or a judgement with seconds of three digits."""
    return {name: three_digits(value) if name.endswith("seconds") else value for name, value in fields.items()}


def three_digits(value: float) -> float:
    """A number rounded to three significant digits."""
    return float(significant(value, 3))
