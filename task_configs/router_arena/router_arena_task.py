"""The tasks with RouterArena's prompts: documents from a local copy, and a local grade where the copy has answers."""

from collections.abc import Sequence
from typing import Any

import datasets
from lm_eval.api.instance import Instance

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading.math import answer, grader
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.harness.tasks import ResponseTask

INDEX, PROMPT, ANSWER = "global index", "prompt_formatted", "answer"
"""The fields of a document: the first two as RouterArena's files of prompts have them."""
FILTER = "none"
"""Name that the harness gives the only filter, and so the suffix of each metric's name."""
COSTS = ("truncated", "length", "mentor_tokens", "tflops", "dollars", "stage")
"""Metrics that the responses of a tandem have (`response.metrics`); not reported for other models."""


class FoundAnswer(str):
    """The answer found in a response ("" for none), with the response's metrics."""

    metrics: dict[str, float]


class RouterArenaTask(ResponseTask):
    """A task of lm-eval on prompts of RouterArena.

    In the YAML file, `dataset_kwargs` says whether the documents have answers: `answers: true` or `false`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        if (config.get("dataset_kwargs") or {}).get("answers"):
            grader.require()
        super().__init__(config)

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Load the documents from the local file.

        Raises
        ------
        ArgumentError
            There is no local file, a field is missing, an index occurs twice, or answers are needed and there are none.
        """
        task, has_answers = self.config.task, bool((dataset_kwargs or {}).get("answers"))
        if not task_data.is_local():
            raise ArgumentError(
                f"{task} reads a local copy of RouterArena's prompts; set {task_data.VARIABLE} to a folder with "
                f"{task}.jsonl (task_configs/router_arena/README.md says how to make it)."
            )
        rows = task_data.load(task, "RouteWorks/RouterArena", None, self.config.test_split)[self.config.test_split]
        documents: dict[str, dict[str, str]] = {}
        for number, row in enumerate(rows, 1):
            for field in (INDEX, PROMPT):
                if not row.get(field):
                    raise ArgumentError(f"{task}: document {number} has no field {field!r}.")
            index = str(row[INDEX])
            if index in documents:
                raise ArgumentError(f"{task}: document {number} has the index {index} of an earlier one.")
            gold = row.get(ANSWER) if has_answers else None
            documents[index] = {INDEX: index, PROMPT: str(row[PROMPT]), ANSWER: "" if gold is None else str(gold)}
        if has_answers and not any(document[ANSWER] for document in documents.values()):
            raise ArgumentError(f"{task}: no document has an {ANSWER}; run tandem_router_arena_full, which needs none.")
        self.dataset = {self.config.test_split: datasets.Dataset.from_list(list(documents.values()))}

    def apply_filters(self) -> list[Instance]:
        """Find and grade the answers of all responses. This takes the place of lm-eval's filters."""
        instances: list[Instance] = self.instances
        responses = [(instance.doc[ANSWER], response or "") for instance in instances for response in instance.resps]
        found = [answer.extract(response) for _, response in responses]
        graded = iter(grader.grade_all([(gold, one) for (gold, _), one in zip(responses, found, strict=True) if gold]))
        judged = iter(
            answered(one, next(graded) if gold else None, response)
            for (gold, response), one in zip(responses, found, strict=True)
        )
        for instance in instances:
            instance.filtered_resps[FILTER] = [next(judged) for _ in instance.resps]
        return instances


def answered(found: str | None, grade: grader.Grade | None, response: str) -> FoundAnswer:
    """Return the answer of a response with its metrics; without a grade it counts as wrong, and as ungraded."""
    result = FoundAnswer(found or "")
    costs = getattr(response, "metrics", None) or {}
    result.metrics = {
        "acc": float(grade is not None and grade.verified),
        "ungraded": float(grade is None),
        "answered": float(found is not None),
        **{name: float(costs[name]) for name in COSTS if name in costs},
    }
    return result


def process_results(_: dict[str, Any], answers: Sequence[FoundAnswer]) -> dict[str, float]:
    """Return the metrics of a document that has an answer, or may have one."""
    return answers[0].metrics


def process_ungraded(_: dict[str, Any], answers: Sequence[FoundAnswer]) -> dict[str, float]:
    """Return the metrics of a document without an answer."""
    return {name: value for name, value in answers[0].metrics.items() if name not in ("acc", "ungraded")}
