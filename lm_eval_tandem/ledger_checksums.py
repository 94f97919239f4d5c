"""Checksums of a ledger's records, by which a results file knows the ledger that its run wrote, whole or packed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from lm_eval_tandem.digits import significant

PER_TOKEN = ("answer_logprob", "answer_entropy", "parts")
"""Measurements of a judgement that a packed ledger lacks."""
JUDGED_LATER = ("score", "probe_tokens", "judged_by")
"""What `benchmarks/packing.py` writes into the last judgement of a record in which none decided anything."""


DIGITS_OF_ANSWER = 8
"""Hexadecimal digits of an answer's checksum: few, because there is one in each record, and no compression shortens it.
One in four billion changes of a text leaves them as they are."""


def of_answer(text: str) -> str:
    """The checksum of an answer that its record keeps: the first digits of its SHA-256.

    Examples
    --------
    >>> of_answer("#### 5")
    'a429bcc7'
    """
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:DIGITS_OF_ANSWER]


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
    """What a packed ledger surely has of a record: `shortened`, without the scores that packing may add to it."""
    kept = shortened(line)
    if was_fixed(line):
        kept["stages"] = [without(judgement, JUDGED_LATER) for judgement in kept["stages"]]
    return kept


def shortened(line: Mapping[str, Any]) -> dict[str, Any]:
    """A record without measurements of single tokens, and with seconds and features of three digits."""
    judgements = []
    for judgement in line.get("stages") or []:
        kept = without(judgement, PER_TOKEN)
        if kept.get("features"):
            kept["features"] = [three_digits(value) for value in kept["features"]]
        judgements.append(with_short_seconds(kept))
    return {**with_short_seconds(line), "stages": judgements}


def without(fields: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    """The fields of a record or a judgement but for some."""
    return {name: value for name, value in fields.items() if name not in names}


def was_fixed(line: Mapping[str, Any]) -> bool:
    """Whether no judgement of a record decided anything, because the policy had fixed what is done."""
    return line.get("reason") in ("fixed", "alone")


def with_short_seconds(fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a record or a judgement with seconds of three digits."""
    return {name: three_digits(value) if name.endswith("seconds") else value for name, value in fields.items()}


def three_digits(value: float) -> float:
    """A number rounded to three significant digits."""
    return float(significant(value, 3))
