"""The file of a ledger: a header with the description of its run, then a line for each question."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lm_eval_tandem._paths import same_path
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.ledger import Record, unique
from lm_eval_tandem.whole_files import replacing

FORMAT = "tandem-ledger/1"


def check_replaceable(path: Path, policy: str, pair: str, models: Mapping[str, str]) -> None:
    """Refuse a file that a run must not replace: another run's ledger, or anything that is no ledger.

    Parameters
    ----------
    path
        The file; it need not exist, and an empty one holds nothing.
    policy, pair
        Those of the run, as in its description.
    models
        The label of each model that the run uses, by its role or name.

    Raises
    ------
    ArgumentError
        The file holds something else than the ledger of the same run.
    """
    if path.is_dir():
        raise ArgumentError(f"ledger={path} is a folder; give the name of a file.")
    if not path.is_file() or not path.stat().st_size:
        return
    advice = "give each run a ledger file of its own, or remove the file."
    head = header(path)
    if head is None:
        raise ArgumentError(f"ledger={path} holds something else than a ledger, which the run would replace; {advice}")
    facts = head.get("models") or {role: head.get(role) for role in ("mentor", "intern")}
    theirs = {name: str(one.get("model")) for name, one in facts.items() if isinstance(one, dict)}
    same_models = all(same_path(theirs.get(role), label) for role, label in models.items())
    if (head.get("policy"), head.get("pair"), set(theirs), same_models) != (policy, pair, set(models), True):
        called = f"policy={head.get('policy')} of {' and '.join(map(str, theirs.values())) or 'other models'}"
        raise ArgumentError(
            f"ledger={path} holds the ledger of another run, {called}, which policy={policy} of "
            f"{' and '.join(models.values())} would replace; {advice}"
        )


def header(path: Path) -> dict[str, Any] | None:
    """The description of the run whose ledger a file is; None for a file that is no ledger."""
    try:
        with path.open(encoding="utf-8") as file:
            head = json.loads(file.readline())
    except (ValueError, RecursionError):
        return None
    except OSError as error:
        raise ArgumentError(f"ledger={path} cannot be read ({error.strerror}); give another file.") from None
    return head if isinstance(head, dict) and head.get("format") == FORMAT else None


def write(path: Path, records: Iterable[Record], run: dict[str, Any]) -> None:
    """Write the ledger of a run atomically.

    Parameters
    ----------
    path
        The file: a header line, then one line per question, in the order of their keys.
    records
        The records; of repeated questions the last one counts.
    run
        The description of the run, for the header.
    """
    with replacing(path) as unfinished, unfinished.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, **run}) + "\n")
        for line in lines_of(records):
            file.write(json.dumps(line) + "\n")


def lines_of(records: Iterable[Record]) -> Iterator[dict[str, Any]]:
    """The lines of a ledger's file after its header, each question once, in the order of their keys."""
    return (rounded(asdict(record)) for record in sorted(unique(records), key=lambda record: record.key))


def rounded(record: dict[str, Any]) -> dict[str, Any]:
    """A record for the file: measurements to seven digits, as many as float32 has, and seconds to a microsecond.

    That halves the file. Hidden states and prompts are left out.
    """
    times = {name: round(value, 6) for name, value in record.items() if name.endswith("seconds")}
    judgements = []
    for whole in record["stages"]:
        judgement = {name: value for name, value in whole.items() if name not in ("hidden", "prompt_ids")}
        if judgement["insight"] is None:
            del judgement["insight"]
        measurements = {
            name: [seven_digits(value) for value in values]
            for name, values in judgement.items()
            if isinstance(values, list) and name not in ("answer_ids", "prompt_end")
        }
        judgements.append({**judgement, "seconds": round(judgement["seconds"], 6), **measurements})
    for name in ("segments", "spent", "selected", "selection_scores", "response_scores", "cached", "answer_sha256"):
        if not record[name]:
            del record[name]
    scores: dict[str, Any] = {
        name: {model: None if score is None else seven_digits(score) for model, score in record[name].items()}
        for name in ("selection_scores", "response_scores")
        if name in record
    }
    return {**record, **times, **scores, "stages": judgements}


def seven_digits(value: float) -> float:
    """A measurement with as many digits as float32 has."""
    return float(f"{value:.7g}")
