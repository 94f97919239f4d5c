"""The rows of a RouterArena predictions file, made from the samples and ledger records of a run: one per prompt."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources.files import describe
from lm_eval_tandem.submissions.ledger_check import responses_of
from lm_eval_tandem.submissions.redaction import Redaction
from lm_eval_tandem.submissions.router_arena_models import PricedModel
from lm_eval_tandem.submissions.task_results import TaskResults

INDEX, PROMPT = "global index", "prompt_formatted"
"""The fields of a row in RouterArena's files of prompts."""
ANSWERING, DEAREST = "answering", "dearest"
"""Which model a row names: the one whose answer is returned, or the dearest one that was called."""

Usage = dict[str, tuple[int, int]]
"""Prompt tokens and generated tokens by role."""


def rows_of(
    task: TaskResults,
    models: Mapping[str, PricedModel],
    prediction: str,
    public: Mapping[str, str],
    redaction: Redaction,
) -> list[dict[str, Any]]:
    """The rows of a task.

    Parameters
    ----------
    task
        A run on prompts of RouterArena, with its records.
    models
        The models by role.
    prediction
        `ANSWERING` or `DEAREST`.
    public
        RouterArena's own prompts by their index: what is the same goes out as it is. Empty where they are not known.
    redaction
        Keeps paths, names and keys of this machine out of everything else.

    Raises
    ------
    ArgumentError
        A prompt is not one of RouterArena's, occurs twice, or was answered repeatedly; or the run has no ledger.
    """
    if not task.records:
        raise ArgumentError(
            f"the run on {task.name} has no ledger, which has the tokens and dollars of every prompt; run it again "
            "with ledger=FILE (and store=FILE, so that no answer is generated twice)."
        )
    samples = next(iter(task.samples.values()))
    rows: dict[str, dict[str, Any]] = {}
    for sample, records in zip(samples, task.records, strict=True):
        document = sample.get("doc") or {}
        if INDEX not in document:
            raise ArgumentError(f"{task.name} has a document without the field {INDEX!r}; run tandem_router_arena.")
        index = str(document[INDEX])
        if index in rows or len(records) != 1:
            raise ArgumentError(f"{task.name} has several answers to {index}; RouterArena takes one row per prompt.")
        prompt = str(document[PROMPT])
        if public and public.get(index) != prompt:
            raise ArgumentError(
                f"the prompt {index} of {task.name} is not that of RouterArena's file; run it again on that file."
            )
        rows[index] = {
            INDEX: index,
            "prompt": prompt if public else redaction.text(prompt),
            **row_of(sample, records[0], task, models, prediction, redaction),
        }
    missing = next((index for index in public if index not in rows), None)
    if missing is not None:
        raise ArgumentError(
            f"{task.name} lacks {len(public) - len(rows):,} of RouterArena's {len(public):,} prompts, the first is "
            f"{missing}; run it on all of them."
        )
    return list(rows.values())


def row_of(
    sample: Mapping[str, Any],
    record: Mapping[str, Any],
    task: TaskResults,
    models: Mapping[str, PricedModel],
    prediction: str,
    redaction: Redaction,
) -> dict[str, Any]:
    """What a row says besides its prompt."""
    if record.get("dollars") is None:
        raise ArgumentError(f"the ledger of the run on {task.name} has no dollars; run it again with prices.")
    usage = usage_of(record, models)
    answering = answering_model(record, models)
    named = answering if prediction == ANSWERING else max(usage, key=lambda role: models[role].output)
    answer = redaction.text(next(iter(responses_of(sample)), ""))
    prompt, generated = (sum(counts) for counts in zip(*usage.values(), strict=True))
    grade = task.run.metric == "acc" and sample.get("acc") is not None
    return {
        "prediction": models[named].name,
        "generated_result": {
            "generated_answer": answer,
            "success": bool(answer.strip()),
            "token_usage": {
                "input_tokens": prompt,
                "output_tokens": generated,
                "total_tokens": prompt + generated,
            },
            "usage_by_model": {
                models[role].name: {"input_tokens": one, "output_tokens": other} for role, (one, other) in usage.items()
            },
            "provider": models[named].provider,
            "error": None if answer.strip() else "the answer is empty",
        },
        "cost": float(record["dollars"]),
        "accuracy": float(sample["acc"]) if grade else None,
        "for_optimality": False,
    }


def usage_of(record: Mapping[str, Any], models: Mapping[str, PricedModel]) -> Usage:
    """The tokens of every model that a question called: what it read, without what a cache held, and generated.

    Raises
    ------
    ArgumentError
        Something else than the models was called, of which RouterArena has no name.
    """
    spent, tokens = record.get("spent") or {}, record["tokens"]
    if spent:
        usage = {name: (one["prefill"] + one["judged"], one["new"]) for name, one in spent.items()}
    else:
        usage = {
            "mentor": (tokens["mentor_prefill"], tokens["mentor_new"] + tokens.get("mentor_unused", 0)),
            "intern": (
                tokens["intern_prefill"] + tokens["judge_prefill"],
                tokens["intern_new"] + tokens.get("intern_unused", 0),
            ),
        }
    called = {role: counts for role, counts in usage.items() if any(counts)}
    other = next((role for role in called if role not in models), None)
    if other is not None:
        raise ArgumentError(
            f"the run also called {other}, which is none of its models, and every call has to be on RouterArena's "
            "bill under the name of a model; use an ensemble whose models score each other."
        )
    return called


def answering_model(record: Mapping[str, Any], models: Mapping[str, PricedModel]) -> str:
    """The role of the model whose answer is returned: the one that wrote its last part.

    Raises
    ------
    ArgumentError
        Several models wrote every token together.
    """
    writers = [part["writer"] for part in record.get("segments") or [] if part["characters"]]
    if writers:
        writer = str(writers[-1])
    elif record.get("spent"):
        writer = str((record.get("selected") or [""])[0])
    else:
        writer = "mentor" if record["stage"] < 0 or record["reason"] == "mentor finished" else "intern"
    if writer not in models:
        raise ArgumentError(
            "RouterArena names one model per answer, and the models of this ensemble write every token together; "
            "submit a run whose answers are one model's."
        )
    return writer


def read_prompts(file: Path) -> dict[str, str]:
    """RouterArena's prompts by their index, from a copy of its dataset/router_data.json or another split of it."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {str(row[INDEX]): str(row[PROMPT]) for row in content}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{file} cannot be read ({describe(error)}); give the JSON file that RouterArena's prep_datasets.py writes."
        ) from None
