"""Documents and metrics of the pair's tasks."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

_NUMBER = re.compile(r"\s*([-+]?\d+)(?![\d.,]*\d)")


def dataset(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """The documents of a JSONL file beside this one, as the split `test`; what the harness adds is not needed."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def extract(response: str) -> int | None:
    """The integer right after the last `Answer:`; no other number counts."""
    _, cue, rest = response.rpartition("Answer:")
    found = _NUMBER.match(rest) if cue else None
    return int(found[1]) if found else None


def process_results(doc: dict[str, Any], results: Sequence[str]) -> dict[str, float]:
    """`acc` and `no_answer`, and what a tandem's response says of its own making (`response.metrics`), if it does.

    The table shows four decimals and a question of this tiny pair costs millionths of a TFLOP, hence `mflops` too.
    """
    response = results[0]
    answer = extract(response)
    figures = {"acc": float(answer == int(doc["answer"])), "no_answer": float(answer is None)}
    costs = getattr(response, "metrics", None) or {}
    figures |= costs
    if "tflops" in costs:
        figures["mflops"] = 1e6 * costs["tflops"]
    return figures
