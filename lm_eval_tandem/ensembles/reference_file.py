"""The reference file: how each model of an ensemble reads questions in general (`training.reference` collects it)."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from lm_eval_tandem._paths import same_path
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.engines import Engine
from lm_eval_tandem.errors import ArgumentError, one_line
from lm_eval_tandem.whole_files import replacing

FORMAT = "tandem-reference/1"
"""Format of a reference file, in its entry `format`."""
COLLECT = "collect it with `lm-eval-tandem collect --reference`"
UNKNOWN = "unknown"
"""The chat template of a reference whose file does not say how the questions were rendered."""
OPTIONAL = {"assessment_mean", "chat_template"}
"""Entries of a model that files need not have."""


@dataclass(frozen=True)
class Reference:
    """How one model reads questions in general.

    Attributes
    ----------
    ppl_mean, ppl_std
        Mean and standard deviation, over the questions, of the perplexity of a question.
    conf_mean, conf_std
        The same of its confidence (`selection.measure`).
    questions
        Number of questions.
    assessment_mean
        Mean of `selection.assess`; None where the model was not asked.
    chat_template
        What `template_of` returned for the questions; `UNKNOWN` where the file does not say. No part of `repr`, by
        which runs are named.

    Raises
    ------
    ArgumentError
        A value is no number, or a standard deviation is not above 0.
    """

    ppl_mean: float
    ppl_std: float
    conf_mean: float
    conf_std: float
    questions: int
    assessment_mean: float | None = None
    chat_template: str | None = field(default=UNKNOWN, repr=False)

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "chat_template":
                if value is not None and not isinstance(value, str):
                    raise ArgumentError(f"{name} of a reference has to be a checksum or null; {COLLECT} anew.")
                continue
            if name == "assessment_mean" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ArgumentError(f"{name} of a reference has to be a finite number, not {value!r}; {COLLECT} anew.")
            if name.endswith("_std") and value <= 0:
                raise ArgumentError(
                    f"{name} of a reference has to be above 0, not {value}; {COLLECT} from two or more questions that "
                    "differ."
                )


def read_reference(path: Path, models: Iterable[str] = ()) -> dict[str, Reference]:
    """Read a reference file.

    Parameters
    ----------
    path
        The file, as `write_reference` writes it.
    models
        Labels of the models that have to be in it.

    Returns
    -------
    dict
        The statistics of every model in the file, by its label.

    Raises
    ------
    ArgumentError
        The file cannot be read, is of another format, or lacks a model.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArgumentError(f"reference={path} cannot be read ({error}); {COLLECT}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT or not isinstance(content.get("models"), dict):
        raise ArgumentError(f"reference={path} is no reference file of the format {FORMAT}; {COLLECT}.")
    names = {one.name for one in fields(Reference)}
    found = {}
    for label, values in content["models"].items():
        if not isinstance(values, dict) or not names - OPTIONAL <= set(values) <= names:
            raise ArgumentError(
                f"reference={path} has to hold {', '.join(sorted(names))} of {label}, and nothing else; {COLLECT} anew."
            )
        try:
            found[label] = Reference(**values)
        except ArgumentError as error:
            raise ArgumentError(f"reference={path} cannot be used for {label}: {error}") from None
    for label in models:
        reference_of(label, found, f"reference={path}")
    return found


def check_replaceable(path: Path, models: Collection[str], description: Mapping[str, Any]) -> None:
    """Refuse a file that is there and holds anything but an earlier reference of the same models and questions.

    Parameters
    ----------
    path
        The file that is to be written.
    models
        The models' labels.
    description
        Its further entries, as far as they are known; others are not compared.

    Raises
    ------
    ArgumentError
        The file would be lost.
    """
    if not path.exists():
        return
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or not isinstance(content.get("models"), dict):
        raise ArgumentError(f"{path} holds no reference, and would be lost; give another folder as --output.")
    there = {**{name: content.get(name) for name in description}, "models": sorted(content["models"])}
    wanted = {**description, "models": sorted(models)}
    other = next((name for name, value in there.items() if value != wanted[name]), None)
    if other is not None:
        raise ArgumentError(
            f"{path} holds a reference of other {other} ({one_line(there[other], 100)}, and not "
            f"{one_line(wanted[other], 100)}), which would be lost; give another folder as --output."
        )


def write_reference(path: Path, models: Mapping[str, Reference], description: Mapping[str, Any]) -> None:
    """Write a reference file, atomically.

    Parameters
    ----------
    path
        The file; its folder is created where it does not exist.
    models
        The statistics, by the model's label.
    description
        Further entries: what was measured, such as {"task": "gsm8k"}.

    Raises
    ------
    ArgumentError
        The file cannot be written.
    """
    content = {"format": FORMAT, **description, "models": {label: asdict(one) for label, one in models.items()}}
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            f"{path} cannot be written ({error.strerror}); give another file for the reference."
        ) from None


def reference_of(label: str, reference: Mapping[str, Reference], source: str = "the reference") -> Reference:
    """The statistics of a model, whose label may be another path to the same folder.

    Parameters
    ----------
    label
        The model.
    reference
        `read_reference`.
    source
        The subject of the error message.

    Raises
    ------
    ArgumentError
        The reference lacks the model.
    """
    known = label if label in reference else next((held for held in reference if same_path(held, label)), None)
    if known is None:
        held = ", ".join(reference) or "no model"
        raise ArgumentError(f"{source} holds statistics of {held}, but not of {label}; {COLLECT} with this model.")
    return reference[known]


def template_of(engine: Engine, question: Question) -> str | None:
    """The chat template in which a model reads a question: SHA-256 of its text, or `UNKNOWN`; None for plain text."""
    if question.messages is None:
        return None
    text = getattr(getattr(engine.lm, "tokenizer", None), "chat_template", None)
    return UNKNOWN if text is None else hashlib.sha256(str(text).encode()).hexdigest()


def other_rendering(reference: Mapping[str, Reference], engines: Mapping[str, Engine], question: Question) -> str:
    """How a question is rendered otherwise than those of a reference, as a sentence; "" where it is not.

    Parameters
    ----------
    reference, engines
        By the model's name.
    question
        One question of the run.
    """
    asked = "as plain text" if question.messages is None else "in the models' chat templates"
    unknown = []
    for name, one in reference.items():
        usual, ours = one.chat_template, template_of(engines[name], question)
        if usual == UNKNOWN:
            unknown.append(name)
        elif usual != ours and (None in (usual, ours) or ours != UNKNOWN):
            another = "in its chat template" if ours is None else "in another chat template"
            return (
                f"how {name} reads questions was measured {'as plain text' if usual is None else another}, and this "
                f"run asks {asked}, so what is selected means little; {COLLECT} as the run asks, with "
                "--apply_chat_template or without."
            )
    if not unknown:
        return ""
    return (
        f"it does not say whether {' and '.join(unknown)} read the questions in a chat template, so it is not known to "
        f"fit this run, which asks {asked}; {COLLECT} anew to be sure."
    )
