"""The mathematics tasks: their documents, the grading of all responses by both graders, and their metrics.

`_tandem_math` names this module's functions for all tasks; each task's YAML file adds its dataset.
"""

import logging
from collections.abc import Callable
from typing import Any

import datasets
from lm_eval.api.instance import Instance

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading import thought
from lm_eval_tandem.grading.math import answer, grader
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.harness.tasks import ResponseTask

log = logging.getLogger(__name__)

FILTER = "none"
"""Name that the harness gives the only filter, and so the suffix of each metric's name."""
COSTS = ("truncated", "length", "mentor_tokens", "tflops", "dollars", "stage")
"""Metrics that the responses of a tandem have (`response.metrics`); not reported for other models."""
GOLD: dict[str, Callable[[str], str | None]] = {
    "written": lambda text: text.strip(),
    "boxed": answer.boxed,
    "hashed": lambda text: text.rpartition("####")[2].strip() if "####" in text else None,
}
"""How to get the gold answer from a dataset's field: as it is, from a solution's last box, or after its last `####`."""
MAX_SHARE_WITHOUT_GOLD = 0.01
"""Share of documents that may have no gold answer; they are left out with a warning. More are an error."""


class GradedAnswer(str):
    """The answer found in a response, as the sample log shows it ("" for none), with the response's metrics."""

    metrics: dict[str, float]

    @classmethod
    def from_grade(cls, grade: grader.Grade, response: str) -> "GradedAnswer":
        """Combine the grade of a response with the costs that the response of a tandem has."""
        graded = cls(grade.answer or "")
        costs = getattr(response, "metrics", {})
        graded.metrics = {
            "acc": float(grade.verified),
            "acc_normalised": float(grade.normalised),
            "disagree": float(grade.disagree),
            "no_answer": float(grade.answer is None),
            "grader_failed": float(grade.failed),
            **{name: float(costs[name]) for name in COSTS if name in costs},
        }
        return graded


class MathTask(ResponseTask):
    """A task of lm-eval whose documents have the fields `problem` and `gold` besides those of their dataset.

    In the YAML file, `dataset_kwargs` names the dataset's fields: `problem`, the question; `gold`, the answer or a
    solution that ends with it; and `form`, a key of `GOLD`. All responses of a task are graded together, in parallel.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        grader.require()
        super().__init__(config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Load the documents of the split that is evaluated.

        Raises
        ------
        ArgumentError
            The local file or a field is missing, or more than 1 % of the documents have no gold answer.
        """
        config, fields = self.config, dataset_kwargs or {}
        loaded = task_data.load(config.task, config.dataset_path, config.dataset_name, config.test_split)
        rows = loaded[config.test_split]
        documents, without_gold = [], []
        for number, row in enumerate(rows, 1):
            for field in (fields["problem"], fields["gold"]):
                if row.get(field) is None:
                    raise ArgumentError(f"{config.task}: document {number} has no field {field}.")
            gold = GOLD[fields["form"]](str(row[fields["gold"]]))
            if gold:
                documents.append({**row, "problem": row[fields["problem"]], "gold": gold})
            else:
                without_gold.append(number)
        if without_gold:
            message = f"{config.task}: the {fields['gold']} of {len(without_gold)} of {len(rows)} documents, "
            message += f"the first is number {without_gold[0]}, has no {fields['form']} answer"
            if len(without_gold) / len(rows) > MAX_SHARE_WITHOUT_GOLD:
                raise ArgumentError(f"{message}; check the file's fields.")
            log.warning("%s; they are left out.", message)
        self.dataset = {config.test_split: datasets.Dataset.from_list(documents)}

    def apply_filters(self) -> list[Instance]:
        """Grade all responses, as many in parallel as there are cores. This takes the place of lm-eval's filters.

        The filtered responses of each instance are a list of `GradedAnswer`.
        """
        instances: list[Instance] = self.instances
        any_closed = any(thought.closes(response or "") for instance in instances for response in instance.resps)
        pairs = [
            (
                instance.doc["gold"],
                None if is_cut_off(instance.args[0], response, any_closed) else answer.extract(response or ""),
            )
            for instance in instances
            for response in instance.resps
        ]
        grades = iter(grader.grade_all(pairs))
        for instance in instances:
            graded = [GradedAnswer.from_grade(next(grades), response) for response in instance.resps]
            instance.filtered_resps[FILTER] = graded
        return instances


def process_results(_: dict[str, Any], answers: list[GradedAnswer]) -> dict[str, float]:
    """Return a document's metrics: means over its responses, of which there is one unless `repeats` is larger."""
    metrics = [graded.metrics for graded in answers]
    return {name: sum(one[name] for one in metrics) / len(metrics) for name in metrics[0]}


def is_cut_off(prompt: object, response: str | None, any_closed: bool) -> bool:
    """Return whether a response is only part of a thought that the prompt opened.

    Some chat templates end with `<think>` or another opening tag, so the response has none. If it has no closing tag
    either, it is a thought that was cut off, except where the backend removes thoughts itself. In that case no response
    of the run has the closing tag. A tandem never removes thoughts, and marks the answers that reached the token limit.

    Parameters
    ----------
    prompt
        The prompt; anything but text (a chat) opens no thought.
    response
        The response.
    any_closed
        Whether any response of the run has the closing tag.
    """
    if not isinstance(prompt, str) or not thought.ends_inside(prompt):
        return False
    truncated = bool(getattr(response, "metrics", {}).get("truncated", 0))
    return not thought.closes(response or "") and (any_closed or truncated)
