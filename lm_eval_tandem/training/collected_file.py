"""collected.parquet: what `collect` wrote, read as the arrays that fitting takes.

One line per question and stage; the columns are the fields of `rows.Row`. The description of the run (models, efforts,
tasks, versions) is JSON in the file's metadata, under `tandem`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.engines.drafts import PROMPT_TAIL
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.features import FEATURE_NAMES, SCHEMA
from lm_eval_tandem.training.dataset import Collected, concatenate
from lm_eval_tandem.training.rows import Row

FORMAT = "tandem-collected/1"
NAME = "collected.parquet"
_REQUIRED = {"task", "doc_id", "stage", "judged", "correct", "features", "mentor_tokens", "intern_tokens"}
_LARGE = ("hidden", "prompt_ids")
"""Columns that are left out when empty, and read without passing through Python's lists."""


def write(path: Path, rows: Sequence[Row], description: dict[str, Any]) -> Path:
    """Write the rows and the description of the run, atomically; returns the path."""
    import pyarrow
    import pyarrow.parquet

    floats, integers = pyarrow.list_(pyarrow.float32()), pyarrow.list_(pyarrow.int32())
    types = {"agrees": pyarrow.float64(), "answer_logprob": floats, "answer_entropy": floats, "parts": floats}
    types |= {"answer_ids": integers, "prompt_end": integers, "hidden": floats, "prompt_ids": integers}
    left_out = {name for name in _LARGE if all(getattr(row, name) is None for row in rows)}
    columns = {
        name: pyarrow.array([getattr(row, name) for row in rows], types.get(name))
        for name in Row.__annotations__
        if name not in left_out
    }
    table = pyarrow.table(columns).replace_schema_metadata({"tandem": json.dumps(description)})
    unfinished = path.with_name(path.name + ".unfinished")
    pyarrow.parquet.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)
    return path


def read(*paths: Path) -> tuple[Collected, dict[str, Any]]:
    """Read one or several collections of the same pair.

    Parameters
    ----------
    *paths
        Folders that `collect` wrote, or the files in them.

    Returns
    -------
    tuple[Collected, dict]
        All questions, and the description of the first run with the tasks of all.

    Raises
    ------
    ClassifierError
        A file is missing, was not written by `collect`, has another feature schema, or was collected with other models,
        efforts or prompts than the first.
    """
    collections = [_read_one(path) for path in paths]
    description = collections[0][1]
    for path, (_, other) in zip(paths, collections, strict=True):
        _check_same_setting(path, other, paths[0], description)
    tasks = list(dict.fromkeys(task for _, other in collections for task in other["tasks"]))
    return concatenate([data for data, _ in collections]), {**description, "tasks": tasks}


def _check_same_setting(path: Path, other: dict[str, Any], first_path: Path, first: dict[str, Any]) -> None:
    for entry in ("mentor", "intern", "efforts", "insights", "guidance"):
        mine, theirs = (
            each[entry]["model"] if entry in ("mentor", "intern") else each[entry] for each in (first, other)
        )
        if mine != theirs:
            raise ClassifierError(
                f"{path} was collected with {entry} {theirs}, but {first_path} with {mine}; "
                "fit on collections of one pair and one set of efforts."
            )


def _read_one(path: Path) -> tuple[Collected, dict[str, Any]]:
    import pyarrow.parquet

    file = path / NAME if path.is_dir() else path
    try:
        table = pyarrow.parquet.read_table(file)
        description = json.loads((table.schema.metadata or {})[b"tandem"])
        efforts, sizes = description["efforts"], [description[role]["parameters"] for role in ("mentor", "intern")]
        large = {name: table.column(name) for name in _LARGE if name in table.column_names}
        columns = {**table.drop_columns(list(large)).to_pydict(), **large}
        schema = description.get("schema")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClassifierError(
            f"{file} is nothing that `lm-eval-tandem collect` wrote ({reason}); collect first."
        ) from error
    if schema != SCHEMA:
        raise ClassifierError(
            f"{file} holds features of the schema {schema}, but this version reads {SCHEMA}; collect again."
        )
    if not set(columns) >= _REQUIRED:
        raise ClassifierError(f"{file} lacks columns that `lm-eval-tandem collect` writes; collect again.")
    return _Columns(columns, len(efforts) + 1).collected(sizes), description


class _Columns:
    """The columns of a file, to be arranged by question (Q) and stage (T)."""

    def __init__(self, columns: dict[str, Any], stages: int) -> None:
        self.columns = columns
        names = list(zip(columns["task"], columns["doc_id"], strict=True))
        self.questions = {name: row for row, name in enumerate(dict.fromkeys(names))}
        self.shape = len(self.questions), stages
        question = np.array([self.questions[name] for name in names], dtype=int)
        self.cells = question, np.asarray(columns["stage"], dtype=int)
        """Where each line of the file belongs."""

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
            array[q, t, : len(entries)] = entries
        return array

    def collected(self, parameters: Sequence[int | None]) -> Collected:
        """All columns; `parameters` are those of mentor and intern, 1 in the place of an unknown number."""
        longest = max(map(len, self.columns.get("answer_entropy", [])), default=0)
        parts = self.columns.get("parts")
        mentor, intern = self.array("mentor_tokens"), self.array("intern_tokens")
        known = [1 if size is None else size for size in parameters]
        judged = np.ones(self.shape, dtype=bool)
        judged[self.cells] = self.columns["judged"]
        return Collected(
            ids=[f"{task}/{doc_id}" for task, doc_id in self.questions],
            features=self.array("features", len(FEATURE_NAMES)),
            correct=self.array("correct"),
            cost=_tflops(mentor, intern, known),
            fallback_cost=_tflops(mentor[:, -1:], intern, known),
            judged=judged,
            logprob=self.array("answer_logprob", longest, np.float32) if longest else None,
            entropy=self.array("answer_entropy", longest, np.float32) if longest else None,
            answer_tokens=np.nan_to_num(intern, nan=-1).astype(np.int64),
            token_cost=float(_tflops(0, 1, known)),
            agrees=self.array("agrees"),
            tasks=[task for task, _ in self.questions],
            parts=self.array("parts", len(parts[0])) if parts and parts[0] else None,
            answer_ids=self.array("answer_ids", longest, np.int32, -1) if longest else None,
            prompt_ends=self.array("prompt_end", PROMPT_TAIL, np.int32, -1),
            hidden=self.hidden_states(),
            prompts=self.prompts(),
        )

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


def _tflops(mentor_tokens: Any, intern_tokens: Any, parameters: Sequence[int]) -> Any:
    """Eq. 12 for numbers or arrays of generated tokens."""
    return tflops(Tokens(mentor_new=mentor_tokens, intern_new=intern_tokens), parameters[0], parameters[1])
