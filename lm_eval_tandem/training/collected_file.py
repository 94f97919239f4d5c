"""collected.parquet: what `collect` wrote, read as the arrays that fitting takes.

One line per question and stage; the columns are the fields of `rows.Row`. The description of the run (models, efforts,
tasks, versions) is JSON in the file's metadata, under `tandem`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem._paths import same_path
from lm_eval_tandem.cascade.prompts import HANDOFF, SETTING, TEMPLATE
from lm_eval_tandem.engines.drafts import PROMPT_TAIL
from lm_eval_tandem.errors import ClassifierError, one_line
from lm_eval_tandem.judge.features import FEATURE_NAMES, SCHEMA
from lm_eval_tandem.training.costs import ROLES, CostUnit, choose_unit
from lm_eval_tandem.training.dataset import Collected, concatenate
from lm_eval_tandem.training.rows import Row
from lm_eval_tandem.whole_files import replacing

FORMAT = "tandem-collected/1"
NAME = "collected.parquet"
_REQUIRED = {"task", "doc_id", "stage", "judged", "correct", "features", "mentor_tokens", "intern_tokens"}
_LARGE = ("hidden", "prompt_ids")
"""Columns that are read without passing through Python's lists."""
_OPTIONAL = (*_LARGE, "dollars", "alone", "insight", "answer", "target")
"""Columns that are left out when empty."""


def write(path: Path, rows: Sequence[Row], description: dict[str, Any]) -> Path:
    """Write the rows and the description of the run, atomically; returns the path.

    The lines are sorted by task, document and stage: rows come in the order in which questions were finished, which
    differs from run to run, and folds depend on the order of the questions.
    """
    import pyarrow
    import pyarrow.parquet

    rows = sorted(rows, key=lambda row: (row.task, row.doc_id, row.stage))
    floats, integers = pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.int32())
    types = {"agrees": pyarrow.float64(), "answer_logprob": floats, "answer_entropy": floats, "parts": floats}
    types |= {"answer_ids": integers, "prompt_end": integers, "hidden": floats, "prompt_ids": integers}
    of_policy = {"policy": pyarrow.string(), "correct": pyarrow.float64(), "tokens": pyarrow.int64()}
    of_policy |= {"intern_tokens": pyarrow.int64(), "tflops": pyarrow.float64()}
    types |= {"dollars": pyarrow.float64()}
    types |= {"alone": pyarrow.list_(pyarrow.struct(of_policy | {"dollars": pyarrow.float64()}))}
    left_out = {name for name in _OPTIONAL if all(getattr(row, name) is None for row in rows)}
    columns = {
        name: pyarrow.array([getattr(row, name) for row in rows], types.get(name))
        for name in Row.__annotations__
        if name not in left_out
    }
    table = pyarrow.table(columns).replace_schema_metadata({"tandem": json.dumps(description)})
    with replacing(path) as unfinished:
        pyarrow.parquet.write_table(table, unfinished, compression="zstd")
    return path


def read(*paths: Path, cost: str | None = None, objective: str = "accuracy") -> tuple[Collected, dict[str, Any]]:
    """Read one or several collections of the same pair.

    Parameters
    ----------
    *paths
        Folders that `collect` wrote, or the files in them.
    cost, objective
        The unit of the costs, and what they are needed for (see `costs.choose_unit`).

    Returns
    -------
    tuple[Collected, dict]
        All questions, and the description of the first run with the tasks of all.

    Raises
    ------
    ClassifierError
        A file is missing, was not written by `collect`, has another feature schema, or was collected with other models,
        efforts or prompts than the first; or costs are not known in the unit.
    """
    files = [_read_one(path) for path in paths]
    descriptions = [description for _, description in files]
    for path, other in zip(paths, descriptions, strict=True):
        _check_same_setting(path, other, paths[0], descriptions[0])
    unit = choose_unit(descriptions, all("dollars" in columns.columns for columns, _ in files), cost, objective)
    tasks = list(dict.fromkeys(task for other in descriptions for task in other["tasks"]))
    collections = [columns.collected(unit, other.get("guidance") == HANDOFF) for columns, other in files]
    return concatenate(collections), {**descriptions[0], "tasks": tasks}


def _setting(description: dict[str, Any]) -> dict[str, Any]:
    """What collections that are fitted on together have in common."""
    models = {role: description[role]["model"] for role in ROLES}
    return models | {name: description.get(name) for name in (*SETTING, TEMPLATE)}


def _check_same_setting(path: Path, other: dict[str, Any], first_path: Path, first: dict[str, Any]) -> None:
    for (entry, mine), theirs in zip(_setting(first).items(), _setting(other).values(), strict=True):
        if entry in ROLES and same_path(mine, theirs):
            continue
        if mine != theirs and None not in (mine, theirs):  # earlier versions did not write all of them
            raise ClassifierError(
                f"{path} was collected with {entry} {theirs}, but {first_path} with {mine}; "
                "fit on collections of one pair and one set of efforts."
            )


def _read_one(path: Path) -> tuple[_Columns, dict[str, Any]]:
    import pyarrow.parquet

    file = path / NAME if path.is_dir() else path
    if not file.exists():
        raise ClassifierError(f"{file} does not exist; name a folder that `lm-eval-tandem collect` wrote.")
    try:
        table = pyarrow.parquet.read_table(file)
        description = json.loads((table.schema.metadata or {})[b"tandem"])
        efforts = description["efforts"]
        large = {name: table.column(name) for name in _LARGE if name in table.column_names}
        columns = {**table.drop_columns(list(large)).to_pydict(), **large}
        schema = description.get("schema")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = one_line(error, 200)
        raise ClassifierError(
            f"{file} is nothing that `lm-eval-tandem collect` wrote ({reason}); collect first."
        ) from error
    if schema != SCHEMA:
        raise ClassifierError(
            f"{file} holds features of the schema {schema}, but this version reads {SCHEMA}; collect again."
        )
    if not set(columns) >= _REQUIRED:
        raise ClassifierError(f"{file} lacks columns that `lm-eval-tandem collect` writes; collect again.")
    return _Columns(file, columns, len(efforts) + 1), description


class _Columns:
    """The columns of a file, to be arranged by question (Q) and stage (T)."""

    def __init__(self, file: Path, columns: dict[str, Any], stages: int) -> None:
        self.file, self.columns = file, columns
        names = list(zip(columns["task"], columns["doc_id"], strict=True))
        self.questions = {name: row for row, name in enumerate(dict.fromkeys(names))}
        self.shape = len(self.questions), stages
        question = np.array([self.questions[name] for name in names], dtype=int)
        self.cells = question, np.asarray(columns["stage"], dtype=int)
        """Where each line of the file belongs."""
        if not np.isin(self.cells[1], np.arange(stages)).all():
            raise ClassifierError(
                f"{file} holds stage {self.cells[1].max()}, but its efforts make {stages} stages; collect again."
            )

    def array(self, name: str, width: int | None = None, dtype: Any = np.float64, missing: float = np.nan) -> Any:
        """A column as an array (Q, T), or (Q, T, width) for lists; None if it is absent or a line has no value.

        `missing` stands where a stage was not collected, and after the end of a list.
        """
        values = self.columns.get(name)
        if values is None or any(value is None for value in values):
            return None
        array = np.full(self.shape if width is None else (*self.shape, width), missing, dtype=dtype)
        if width is None:
            array[self.cells] = values
            return array
        for q, t, entries in zip(*self.cells, values, strict=True):
            if not all(entry < math.inf for entry in entries):  # A log-probability may be -inf; a NaN is never less.
                task, doc_id = list(self.questions)[q]
                raise ClassifierError(
                    f"{self.file} holds no finite `{name}` of question '{task}/{doc_id}' at stage {t}; check the "
                    "intern's logits for NaN (often a dtype that overflows), and collect again."
                )
            array[q, t, : len(entries)] = entries
        return array

    def collected(self, unit: CostUnit, hands_off: bool) -> Collected:
        """All columns, with costs in a unit; `hands_off` if the mentor's insights are the beginning of its answer."""
        longest = max(map(len, self.columns.get("answer_entropy", [])), default=0)
        parts = self.columns.get("parts")
        mentor, intern = self.array("mentor_tokens"), self.array("intern_tokens")
        judged, finished = np.ones(self.shape, dtype=bool), np.zeros(self.shape, dtype=bool)
        judged[self.cells] = self.columns["judged"]
        finished[self.cells] = self.columns.get("finished", False)
        cost, fallback_cost, token_cost = unit.costs(mentor, intern, self.array("dollars"), finished)
        return Collected(
            ids=[f"{task}/{doc_id}" for task, doc_id in self.questions],
            features=self.array("features", max(map(len, self.columns["features"]), default=len(FEATURE_NAMES))),
            correct=self.array("correct"),
            cost=cost,
            fallback_cost=fallback_cost,
            judged=judged,
            finished=finished if hands_off else None,
            logprob=self.array("answer_logprob", longest, np.float32) if longest else None,
            entropy=self.array("answer_entropy", longest, np.float32) if longest else None,
            answer_tokens=np.nan_to_num(intern, nan=-1).astype(np.int64),
            token_cost=token_cost,
            cost_unit=unit.name,
            agrees=self.agrees(),
            tasks=[task for task, _ in self.questions],
            parts=self.array("parts", len(parts[0])) if parts and parts[0] else None,
            answer_ids=self.array("answer_ids", longest, np.int32, -1) if longest else None,
            prompt_ends=self.array("prompt_end", PROMPT_TAIL, np.int32, -1),
            hidden=self.hidden_states(),
            prompts=self.prompts(),
            others=self.others(unit),
            read_before=unit.read_before(mentor, finished) if hands_off else None,
            begun_cost=unit.generated_by_mentor(mentor[:, -1]) if hands_off else None,
        )

    def agrees(self) -> Any:
        """Agreement with the mentor, float (Q, T), NaN where the mentor's answer states none; None if nothing does."""
        values = self.columns.get("agrees", ())
        if all(value is None for value in values):
            return None
        array = np.full(self.shape, np.nan)
        array[self.cells] = [np.nan if value is None else value for value in values]
        return array

    def others(self, unit: CostUnit) -> dict[str, tuple[Any, Any]]:
        """Grade and cost (Q,) of the policies beside the stages that every question has at a known cost."""
        entries: list[list[dict[str, Any]]] = [[] for _ in range(self.shape[0])]
        for q, found in zip(self.cells[0], self.columns.get("alone", ()), strict=False):
            entries[q] += found or []
        result = {}
        for name in dict.fromkeys(entry["policy"] for entry in entries[0]) if entries else ():
            of_policy = [entry for found in entries for entry in found if entry["policy"] == name]
            costs = np.array([unit.of_policy(entry) for entry in of_policy], dtype=np.float64)
            if len(of_policy) == len(entries) and np.isfinite(costs).all():
                result[name] = np.array([entry["correct"] for entry in of_policy], dtype=np.float64), costs
        return result

    def hidden_states(self) -> Any:
        """Hidden states, float32 (Q, T, D), NaN where a stage was not collected; None without them."""
        column = self.columns.get("hidden")
        if column is None or column.null_count:
            return None
        states = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
        array = np.full((*self.shape, states.shape[1]), np.nan, dtype=np.float32)
        array[self.cells] = states
        return array

    def prompts(self) -> Any:
        """The prompts' tokens, (Q, T) of int32 arrays; None without them."""
        column = self.columns.get("prompt_ids")
        if column is None or column.null_count:
            return None
        array = np.empty(self.shape, dtype=object)
        for q, t, tokens in zip(*self.cells, column, strict=True):
            array[q, t] = tokens.values.to_numpy(zero_copy_only=False)
        return array
