"""Whether a samples file is that of the results file beside it: the same questions, grades and standard errors.

The harness writes one checksum of all documents, prompts and targets of a task into the results, and three of each
question into the samples. Packed samples have none; of those the numbers alone are compared.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem.digits import mean
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.reports.sources.files import read_lines
from lm_eval_tandem.reports.sources.runs import Floats

CHECKSUMS = ("doc_hash", "prompt_hash", "target_hash")
"""What a sample has of its question, in the order in which the harness joins them."""
SAME = 1e-6
"""Largest relative difference between a figure in a results file and that of its samples: two ways to add."""
AS_WRITTEN = "give the files as the harness wrote them."


def check_questions(results_file: Path, results: Mapping[str, Any], task: str) -> None:
    """Refuse samples of other documents, prompts or targets than the results were computed from.

    Raises
    ------
    ArgumentError
        The checksums of the samples do not give that of the results.
    """
    expected = (results.get("task_hashes") or {}).get(task)
    lines = [json.loads(line) for line in read_lines(harness_files.find_samples(results_file, task))]
    parts = [line.get(name) for line in lines for name in CHECKSUMS]
    if expected is None or None in parts:
        return
    if harness_files.checksum("".join(map(str, parts))) != expected:
        raise ArgumentError(
            f"{results_file} was computed from other documents or prompts of {task} than those of the samples file "
            f"beside it; {AS_WRITTEN}"
        )


def check_mean(where: str, metric: str, value: Any, error: Any, samples: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a mean, or its standard error, that the samples do not give.

    Parameters
    ----------
    where
        Results file and task, as the sentence begins.
    metric
        Name of the metric, which the task aggregates by its mean.
    value, error
        The mean and its standard error in the results; None where they have none.
    samples
        Lines of the samples file that the mean is of; one without the metric does not count, as with the harness.

    Raises
    ------
    ArgumentError
        They differ.
    """
    graded = [sample[metric] for sample in samples if sample.get(metric) is not None]
    if not graded or not all(isinstance(one, (bool, int, float)) and math.isfinite(one) for one in graded):
        return
    values = np.array(graded, dtype=np.float64)
    if not is_close(value, mean(values)):
        raise ArgumentError(
            f"{where} has {metric}={value}, but the samples beside it have {mean(values)}; {AS_WRITTEN}"
        )
    if isinstance(error, (int, float)) and math.isfinite(error) and not is_close(error, standard_error(values), values):
        raise ArgumentError(
            f"{where} has the standard error {error} for {metric}, but the samples beside it have "
            f"{standard_error(values)}; {AS_WRITTEN}"
        )


def is_close(given: Any, computed: float, values: Floats | None = None) -> bool:
    """Whether a figure of the results is the one computed, but for the last bits of the numbers that were added."""
    scale = 0.0 if values is None else float(np.max(np.abs(values)))
    return isinstance(given, (int, float)) and math.isclose(given, computed, rel_tol=SAME, abs_tol=1e-12 + SAME * scale)


def standard_error(values: Floats) -> float:
    """Return the standard error of a mean as the harness has it: by the deviation of a sample; 0 of a single number."""
    return float(np.std(values, ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else 0.0
