"""Loads the documents of the tasks in `task_configs`, from the Hugging Face hub or from local JSON-lines files.

With the environment variable TANDEM_DATA=<folder>, every task of this project reads `<folder>/<task name>.jsonl`, whose
rows have the fields of the task's dataset on the hub. If a task has no file there, loading it is an error; it never
uses the hub instead.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import datasets

from lm_eval_tandem import errors
from lm_eval_tandem.errors import ArgumentError

VARIABLE = "TANDEM_DATA"
"""Environment variable that names the folder of local files."""
LOCAL_FILES: dict[str, Path] = {}
"""The local files that tasks of this process were read from, by the name of the task."""


def load(task: str, path: str, name: str | None, split: str) -> dict[str, datasets.Dataset]:
    """Load the documents of a task.

    Parameters
    ----------
    task
        The task's name, which is also the name of its local file, without `.jsonl`.
    path
        Id of the dataset on the hub.
    name
        Configuration of the dataset, if it has several.
    split
        Split of the dataset.

    Returns
    -------
    dict of str to Dataset
        The documents under the name of the split, as lm-eval expects them from a task's `custom_dataset`.

    Raises
    ------
    ArgumentError
        TANDEM_DATA is set, and the file is missing, holds no document, or holds a line that is not a JSON object.
    """
    errors.print_plainly()
    folder = os.environ.get(VARIABLE)
    if not folder:
        return {split: datasets.load_dataset(path, name, split=split)}
    file = Path(folder).expanduser() / f"{task}.jsonl"
    if not file.is_file():
        raise ArgumentError(
            f"{VARIABLE}={folder} holds no {file.name}, which the task {task} needs; write the rows of {path}"
            f"{f' ({name})' if name else ''}, split {split}, to it as JSON lines, or unset {VARIABLE} to use the hub."
        )
    rows = _rows(file)
    LOCAL_FILES[task] = file
    return {split: datasets.Dataset.from_list(rows)}


def is_local() -> bool:
    """Whether tasks read local files."""
    return bool(os.environ.get(VARIABLE))


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ArgumentError(f"{file}, line {number}, is not JSON ({error}); each line is one document.") from None
        if not isinstance(row, dict):
            raise ArgumentError(
                f"{file}, line {number}, is not a JSON object; each line is one document with its fields."
            )
        rows.append(row)
    if not rows:
        raise ArgumentError(f"{file} holds no document; each line is one document as a JSON object.")
    return rows
