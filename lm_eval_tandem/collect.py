"""Collecting what a classifier is fitted on: the harness run once per stage, the mentor's text shared.

Labels are the grades that the task itself gives to the intern's answer under the insights of each stage. Questions are
joined by task and document id. A killed collection goes on from its store.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem import _paths, ledger
from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.sufficiency.features import FEATURE_NAMES, SCHEMA
from lm_eval_tandem.sufficiency.fit import Collected

FORMAT = "tandem-collected/1"
FILE = "collected.parquet"


@dataclass
class Row:
    """One question at one stage."""

    task: str
    doc_id: int
    stage: int
    judged: bool
    """False where the mentor had ended before: the cascade does not judge such a stage again."""
    correct: float
    features: list[float]
    mentor_tokens: int
    intern_tokens: int
    truncated: bool


def collect(arguments: dict[str, Any], tasks: Sequence[str], output: Path, include: Sequence[str], **run: Any) -> Path:
    """Run every stage over the tasks and write one Parquet file into the folder `output`; returns its path.

    arguments: as `--model_args`, without policy, store and ledger. include: folders with more task files.
    run: limit, apply_chat_template, system_instruction, num_fewshot, gen_kwargs, metric (the grade to learn;
        by default the task's first).
    """
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    from lm_eval_tandem.model import TandemLM

    for name in ("policy", "store", "ledger", "record_features"):
        if name in arguments:
            raise ArgumentError(f"collect sets {name} itself; leave {name}={arguments[name]} out of --model_args.")
    metric = run.pop("metric", None)
    folders = [str(_paths.task_configs()), *include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    output.mkdir(parents=True, exist_ok=True)
    lm = TandemLM(**arguments, policy="stage:1", store=output / "store.sqlite", record_features=True)
    rows: list[Row] = []
    for stage in range(len(lm.settings.efforts) + 1):
        lm.use(f"stage:{stage}")
        results = simple_evaluate(model=lm, tasks=list(tasks), task_manager=manager, bootstrap_iters=0, **run)
        assert results is not None
        first = {task: config["metric_list"][0]["metric"] for task, config in results["configs"].items()}
        metrics = {task: metric or first[task] for task in first}
        rows += joined(lm.records, results["samples"], stage, metrics)
    description = {**lm.description, "tasks": list(tasks), "format": FORMAT, "schema": SCHEMA, "policy": "collect"}
    lm.close()
    return write(output / FILE, rows, description)


def joined(
    records: Sequence[Record], samples: dict[str, list[dict[str, Any]]], stage: int, metrics: dict[str, str]
) -> list[Row]:
    """The records of one stage with the grade (`metrics[task]`) that the task gave, by task and document id."""
    grades: dict[tuple[str, int], float] = {}
    for task, logged in samples.items():
        for sample in logged:
            name = metrics[task]
            if name not in sample:
                raise ArgumentError(f"metric={name} is none of {task}'s; use one of {', '.join(sample['metrics'])}.")
            grades[task, sample["doc_id"]] = float(sample[name])
    rows = []
    for record in ledger.unique(records):
        look = record.stages[-1]
        assert look.features is not None
        rows.append(
            Row(
                task=record.task,
                doc_id=record.doc_id,
                stage=stage,
                judged=not record.mentor_ended_before,
                correct=grades[record.task, record.doc_id],
                features=look.features,
                mentor_tokens=record.tokens.mentor_new,
                intern_tokens=record.tokens.intern_new,
                truncated=record.finish_reason == "length",
            )
        )
    return rows


def write(path: Path, rows: Sequence[Row], description: dict[str, Any]) -> Path:
    """Write the rows as Parquet, atomically; what ran stands in the file's metadata under `tandem`."""
    import pyarrow
    import pyarrow.parquet

    columns = {name: [getattr(row, name) for row in rows] for name in Row.__annotations__}
    table = pyarrow.table(columns).replace_schema_metadata({"tandem": json.dumps(description)})
    unfinished = path.with_name(path.name + ".unfinished")
    pyarrow.parquet.write_table(table, unfinished)
    unfinished.replace(path)
    return path


def read(path: Path) -> tuple[Collected, dict[str, Any]]:
    """What `collect` wrote, as fitting takes it, and the description of the run.

    Raises:
        ClassifierError: the file is missing, none of ours, of another feature schema, or lacks stages.
    """
    import pyarrow.parquet

    file = path / FILE if path.is_dir() else path
    try:
        table = pyarrow.parquet.read_table(file)
        description = json.loads((table.schema.metadata or {})[b"tandem"])
    except (OSError, ValueError, KeyError) as error:
        raise ClassifierError(
            f"{file} is nothing that `lm-eval-tandem collect` wrote ({error}); collect first."
        ) from error
    if description.get("schema") != SCHEMA:
        raise ClassifierError(
            f"{file} holds features of the schema {description.get('schema')}, but this version reads {SCHEMA}; "
            "collect again."
        )
    stages = len(description["efforts"]) + 1
    parameters = [description[role]["parameters"] for role in ("mentor", "intern")]
    found: dict[tuple[str, int], dict[int, Row]] = {}
    for values in table.to_pylist():
        row = Row(**values)
        found.setdefault((row.task, row.doc_id), {})[row.stage] = row
    shape = len(found), stages
    judged = np.ones(shape, dtype=bool)
    collected = Collected(
        ids=[f"{task}/{doc_id}" for task, doc_id in found],
        features=np.full((*shape, len(FEATURE_NAMES)), np.nan),
        correct=np.full(shape, np.nan),
        cost=np.full(shape, np.nan),
        fallback_cost=np.full(shape, np.nan),
        judged=judged,
    )
    for q, by_stage in enumerate(found.values()):
        last = by_stage.get(stages - 1)
        for t, row in by_stage.items():
            collected.features[q, t] = row.features
            collected.correct[q, t] = row.correct
            judged[q, t] = row.judged
            collected.cost[q, t] = tflops_of(row.mentor_tokens, row.intern_tokens, parameters)
            if last is not None:
                collected.fallback_cost[q, t] = tflops_of(last.mentor_tokens, row.intern_tokens, parameters)
    return collected, description


def tflops_of(mentor_tokens: int, intern_tokens: int, parameters: Sequence[int]) -> float:
    """Eq. 12 for so many tokens of each role."""
    return tflops(Tokens(mentor_new=mentor_tokens, intern_new=intern_tokens), parameters[0], parameters[1])
