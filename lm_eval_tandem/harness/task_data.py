"""Documents of the tasks: from the hub, or with one setting from JSON-lines files on this machine.

`TANDEM_DATA=<folder>` makes every task of this project read `<folder>/<task name>.jsonl`, whose rows have the fields of
the task's dataset on the hub. A task without a file there refuses; it never goes to the hub behind the user's back.
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


def load(task: str, path: str, name: str | None, split: str) -> dict[str, datasets.Dataset]:
    """The documents of a task as `{split: documents}`, which is what lm-eval's `custom_dataset` returns.

    Parameters
    ----------
    task
        The task's name, which is also that of its local file without `.jsonl`.
    path
        Dataset id on the hub.
    name
        Configuration of that dataset, if it has several.
    split
        Split of that dataset.

    Raises
    ------
    ArgumentError
        TANDEM_DATA is set, and the file is missing, empty or not JSON lines.
    """
    errors.print_plainly()
    folder = os.environ.get(VARIABLE)
    if not folder:
        return {split: datasets.load_dataset(path, name, split=split)}
    file = Path(folder).expanduser() / f"{task}.jsonl"
    if not file.is_file():
        raise ArgumentError(
            f"{VARIABLE}={folder} holds no {file.name}, which {task} reads there; put the rows of {path}"
            f"{f' ({name})' if name else ''}, split {split}, into it as JSON lines, or unset {VARIABLE} to use the hub."
        )
    return {split: datasets.Dataset.from_list(_rows(file))}


def _rows(file: Path) -> list[dict[str, Any]]:
    rows = []
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
