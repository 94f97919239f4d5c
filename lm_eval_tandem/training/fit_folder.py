"""The command `lm-eval-tandem fit`: a classifier's folder from collected questions.

No engine runs here, except to finetune an intern.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import pair
from lm_eval_tandem.cascade.prompts import SETTING, TEMPLATE
from lm_eval_tandem.engines import registry
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.harness.arguments import PAIR
from lm_eval_tandem.judge import artefact
from lm_eval_tandem.training import card
from lm_eval_tandem.training.collected_file import read
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit import fit_sufficiency
from lm_eval_tandem.training.labels import answered_by_mentor
from lm_eval_tandem.training.thresholds import parse_objective

BUNDLED = f"{PAIR}/intern"
"""The name of the bundled intern in collected files."""
BATCH_SIZE = 8
"""Prompts per forward pass while the intern is finetuned."""


def fit(
    paths: Sequence[Path],
    output: Path,
    per: str = "all",
    objective: str = "accuracy",
    cost: str | None = None,
    **how: Any,
) -> list[tuple[Path, dict[str, Any]]]:
    """Fit on collected questions and write the classifier's folder.

    Parameters
    ----------
    paths
        What `collect` wrote, all of one pair.
    output
        The folder; with per="task", the folder of one folder per task.
    per
        "all" (one classifier for all tasks) or "task" (one each).
    objective
        What thresholds are chosen for.
    cost
        The unit of costs, a key of `costs.UNITS`; None for the first that is known for both models.
    **how
        recipe, seed, inputs, model and labels of `fit_sufficiency`; for inputs="lora" also batch_size and device.

    Returns
    -------
    list[tuple[Path, dict]]
        Each folder written, with the report of its fit.

    Raises
    ------
    ArgumentError, ClassifierError
        An argument cannot work, or the questions cannot be fitted on.
    """
    if per not in ("all", "task"):
        raise ArgumentError(f"--per {per} is not known; use all or task.")
    if output.exists() and not output.is_dir():
        raise ArgumentError(f"--output {output} is a file; name a folder for the classifier.")
    parse_objective(objective)
    data, description = read(*paths, cost=cost, objective=objective)
    if how.get("labels") == "mentor":
        data = answered_by_mentor(data)
    if per == "all":
        return [(output, _fit_one(data, description, output, per, objective, how))]
    assert data.tasks is not None
    written = []
    for task in dict.fromkeys(data.tasks):
        rows = np.array([name == task for name in data.tasks], dtype=bool)
        try:
            report = _fit_one(data.subset(rows), {**description, "tasks": [task]}, output / task, per, objective, how)
        except ClassifierError as error:
            raise ClassifierError(f"{task}: {error}") from error
        written.append((output / task, report))
    return written


def _fit_one(
    data: Collected, description: dict[str, Any], output: Path, per: str, objective: str, how: dict[str, Any]
) -> dict[str, Any]:
    """Fit one classifier and write its folder; returns the report."""
    finetune: Any = None
    if how.get("inputs") == "lora":
        finetune = prepare_finetuning(data, description, how.get("batch_size") or BATCH_SIZE, how.get("device"))
    of_fit = {name: value for name, value in how.items() if name not in ("batch_size", "device")}
    fitted = fit_sufficiency(data, objective=objective, finetune=finetune, **of_fit)
    report = fitted.report
    fitted_on = {name: report[name] for name in ("questions", "objective", "cost_unit", "inputs", "model", "labels")}
    fitted_on |= {name: description[name] for name in ("tasks", TEMPLATE, *SETTING) if name in description}
    artefact.save(
        output,
        fitted.estimator,
        fitted.thresholds,
        policy_thresholds=fitted.policy_thresholds,
        pair={role: description[role]["model"] for role in ("mentor", "intern")},
        fitted_on=fitted_on | {"per": per, "report": report},
        recipe=report["recipe"],
        card=card.write(output.name, description, report),
        schema=fitted.schema,
        probe=fitted.probe,
        out_of_fold={"questions": question_keys(data.ids), "scores": fitted.scores.astype(np.float32)},
        adapter=None if finetune is None else finetune.files,
    )
    return report


def prepare_finetuning(data: Collected, description: dict[str, Any], batch_size: int, device: str | None) -> Any:
    """The intern of collected questions, ready to be finetuned (`lora.Finetuning`).

    Raises
    ------
    ClassifierError
        Peft is missing, or the prompts were not collected.
    """
    registry.require_peft("fit --inputs lora")
    data.prompt_tokens()
    intern = description["intern"]
    model, arguments = intern["model"], dict(intern.get("arguments", {}))
    if device is not None:
        arguments["device"] = device
    from lm_eval_tandem.training.lora import Finetuning  # brings torch and peft

    path = str(pair.INTERN) if model == BUNDLED else model
    return Finetuning({**arguments, "pretrained": path}, model, batch_size)


def question_keys(ids: Sequence[str]) -> NDArray[np.uint64]:
    """A hash of each question's id, by which an artefact identifies the questions that it was fitted on."""
    digests = [hashlib.blake2b(name.encode(), digest_size=8).digest() for name in ids]
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)
