"""The file of answers that `lm-eval-tandem run` writes, and what of an existing one it may replace.

Each row says which run answered it (`RunIdentity`). A file is replaced only by the run that wrote it, asked to answer
the same questions, so that neither questions nor answers of another run are lost.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_tandem._paths import same_path
from lm_eval_tandem.accounting import PRICES
from lm_eval_tandem.engines import Role
from lm_eval_tandem.engines.identity import WITHOUT_EFFECT
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness import run_report
from lm_eval_tandem.harness.ensemble_settings import EnsembleSettings
from lm_eval_tandem.harness.question_rows import ADDED
from lm_eval_tandem.harness.settings import Settings
from lm_eval_tandem.whole_files import replacing

ADVICE = "give another file, or move this one away (finished calls stay in the store)."


@dataclass(frozen=True)
class RunIdentity:
    """What identifies a run in the rows that it writes.

    Attributes
    ----------
    policy
        As in its records.
    models
        The label of each model, by its role or name.
    settings
        A checksum of everything else in the configuration that can change an answer, of 12 hexadecimal digits.
    """

    policy: str
    models: Mapping[str, str]
    settings: str

    @property
    def entries(self) -> dict[str, Any]:
        """What rows hold of it beside their record, which has the policy."""
        return {"models": dict(self.models), "settings": self.settings}

    def difference(self, record: Mapping[str, Any]) -> str:
        """What of a row's record is of another run, in words; "" for nothing. Only what the record says counts."""
        models = record.get("models", self.models)
        if record.get("policy") != self.policy:
            return f"policy={record.get('policy')}, and this run has policy={self.policy}"
        if not isinstance(models, dict | Mapping) or not same_models(models, self.models):
            theirs = " and ".join(map(str, models.values())) if isinstance(models, Mapping) else str(models)
            return f"the models {theirs}, and this run has {' and '.join(self.models.values())}"
        if record.get("settings", self.settings) != self.settings:
            return "other model_args, gen_kwargs, apply_chat_template or system_instruction than this one"
        return ""


def same_models(theirs: Mapping[str, Any], ours: Mapping[str, str]) -> bool:
    """Whether two runs have models of the same names or paths."""
    return theirs.keys() == ours.keys() and all(
        str(theirs[name]) == label or same_path(str(theirs[name]), label) for name, label in ours.items()
    )


def identity_of(settings: Settings | EnsembleSettings, beside: Mapping[str, Any]) -> RunIdentity:
    """The identity of a run.

    Parameters
    ----------
    settings
        Of its model.
    beside
        What else of the configuration changes answers, such as its generation arguments; JSON-serialisable.
    """
    if isinstance(settings, EnsembleSettings):
        more: dict[str, Any] = {
            "scorer": settings.scorer_options,
            "rounds": settings.max_rounds,
            "extract": settings.extract,
        }
    else:
        more = run_report.setting(settings) | {
            "classifier": str(settings.classifier),
            "thresholds": settings.thresholds,
            "step_end": settings.step_end,
        }
    roles = {name: role for name, role in settings.roles.items() if role is not None}
    parts = {
        **more,
        "seed": settings.seed,
        "models": {name: [role.backend, arguments_of(role)] for name, role in roles.items()},
        "beside": dict(beside),
    }
    checksum = hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:12]
    return RunIdentity(str(settings.policy), {name: role.label for name, role in roles.items()}, checksum)


def arguments_of(role: Role) -> dict[str, Any]:
    """The arguments of a model that can change its answers."""
    without = (*WITHOUT_EFFECT, *PRICES)
    return {name: value for name, value in role.arguments.items() if name not in without}


def check_output(output: Path, questions: Path, beside: Collection[Path | None] = ()) -> None:
    """Raise ArgumentError where the output cannot be written, or is another file of the run.

    Parameters
    ----------
    output, questions
        The files.
    beside
        What else the run writes: its store and its ledger.
    """
    if (output.exists() and not output.is_file()) or not output.absolute().parent.is_dir():
        raise ArgumentError(f"--output {output} cannot be written; give a file in a folder that is there.")
    if output.resolve() == questions.resolve():
        raise ArgumentError(f"--output {output} is the input; give another file.")
    if any(path is not None and path.expanduser().resolve() == output.resolve() for path in beside):
        raise ArgumentError(f"--output {output} is also the run's store or ledger; give another file.")


def check_replaceable(output: Path, identity: RunIdentity, returned: Sequence[Mapping[str, Any]]) -> None:
    """Refuse an output that holds anything but answers of the same run to questions of the same input.

    Parameters
    ----------
    output
        The file; it need not exist, and an empty one holds nothing.
    identity
        Of the run.
    returned
        The rows of the whole input, as they come back.

    Raises
    ------
    ArgumentError
        The file holds something else.
    """
    if not output.is_file() or not output.stat().st_size:
        return
    asked = {canonical(fields) for fields in returned}
    for number, row in enumerate(rows_of(output), 1):
        if row is None or not is_answer(row):
            raise ArgumentError(
                f"--output {output} holds something else than answers (line {number}), which would be lost; {ADVICE}"
            )
        other = identity.difference(row["tandem"]) if "tandem" in row else ""
        if other:
            raise ArgumentError(
                f"--output {output} holds answers of another run, which would be lost: it had {other}; {ADVICE}"
            )
        if canonical({name: value for name, value in row.items() if name not in ADDED}) not in asked:
            raise ArgumentError(
                f"--output {output} holds a question (line {number}) that --input does not hold, and whose answer "
                f"would be lost; {ADVICE}"
            )


def rows_of(output: Path) -> Iterator[dict[str, Any] | None]:
    """The objects in the lines of a file; None for a line that holds none."""
    try:
        lines = output.read_bytes().rstrip(b"\n").split(b"\n")
    except OSError as error:
        raise ArgumentError(f"--output {output} cannot be read ({error.strerror}); give another file.") from None
    for line in lines:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield row if isinstance(row, dict) else None


def is_answer(row: Mapping[str, Any]) -> bool:
    """Whether a row is one that `write` may have written: with an answer and its record, or with an error instead."""
    if "error" in row:
        return isinstance(row["error"], str) and "answer" not in row and "tandem" not in row
    return isinstance(row.get("answer"), str) and isinstance(row.get("tandem"), dict)


def canonical(fields: Mapping[str, Any]) -> str:
    """The fields of a row as a text by which they can be compared."""
    return json.dumps(fields, sort_keys=True)


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, atomically."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            f"--output {path} cannot be written ({error.strerror}); make room or give another file and the same store, "
            "where all answers are."
        ) from None
