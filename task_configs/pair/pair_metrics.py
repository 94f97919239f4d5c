"""Documents and metrics of the tasks for the bundled pair."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets

from lm_eval_tandem.harness.tasks import ResponseTask

__all__ = ["ResponseTask", "dataset", "process_results"]

_NUMBER = re.compile(r"\s*([-+]?\d+)(?![\d.,]*\d)")


def dataset(file: str, **_: Any) -> dict[str, datasets.Dataset]:
    """Load a JSON-lines file beside this module as the split `test`; lm-eval's other arguments are not needed."""
    lines = (Path(__file__).parent / file).read_text(encoding="utf-8").splitlines()
    return {"test": datasets.Dataset.from_list([json.loads(line) for line in lines])}


def extract(response: str) -> int | None:
    """Return the integer right after the last `Answer:`; no other number counts."""
    _, marker, rest = response.rpartition("Answer:")
    match = _NUMBER.match(rest) if marker else None
    return int(match[1]) if match else None


def process_results(doc: dict[str, Any], responses: Sequence[str]) -> dict[str, float]:
    """Return `acc` and `no_answer`, and the metrics that the response of a tandem has (`response.metrics`).

    A question costs this tiny pair millionths of a TFLOP, and lm-eval prints four decimals, so the cost is also
    reported in MFLOPs as `mflops`.
    """
    response = responses[0]
    answer = extract(response)
    metrics = {"acc": float(answer == int(doc["answer"])), "no_answer": float(answer is None)}
    costs = getattr(response, "metrics", None) or {}
    metrics |= costs
    if "tflops" in costs:
        metrics["mflops"] = 1e6 * costs["tflops"]
    return metrics
