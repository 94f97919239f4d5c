"""The math tasks: documents from the hub or from local files, both graders' scores, what a tandem's answers cost."""

import logging
from collections.abc import Callable
from typing import Any

import datasets
from lm_eval.api.instance import Instance
from lm_eval.api.task import ConfigurableTask

from lm_eval_tandem import errors
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading import thought
from lm_eval_tandem.grading.math import answer, grader
from lm_eval_tandem.harness import task_data

log = logging.getLogger(__name__)

FILTER = "none"
COSTS = ("truncated", "length", "mentor_tokens", "tflops", "dollars", "stage")
"""What a tandem's answers carry (`response.metrics`); left out for other models, which tell nothing of the kind."""
GOLD: dict[str, Callable[[str], str | None]] = {
    "written": lambda text: text.strip(),
    "boxed": answer.boxed,
    "hashed": lambda text: text.rpartition("####")[2].strip() if "####" in text else None,
}
"""How a dataset gives its gold answer: as it is, in the last box of a solution, or after the solution's `####`."""


class Graded(str):
    """The answer found in a response ("" for none), as the sample log shows it, with its metrics."""

    metrics: dict[str, float]

    @classmethod
    def of(cls, grade: grader.Grade, response: str) -> "Graded":
        """The answer of a response with its grades and, of a tandem's, its costs."""
        graded = cls(grade.answer or "")
        told = getattr(response, "metrics", {})
        graded.metrics = {
            "acc": float(grade.verified),
            "acc_normalised": float(grade.normalised),
            "disagree": float(grade.disagree),
            "no_answer": float(grade.answer is None),
            "grader_failed": float(grade.failed),
            **{name: float(told[name]) for name in COSTS if name in told},
        }
        return graded


class MathTask(ConfigurableTask):
    """A task whose documents have `problem` and `gold` besides the dataset's own fields.

    `dataset_kwargs` names the fields: problem, the question; gold, the answer or the solution that ends in it; form,
    a key of `GOLD`. All responses are graded together, in parallel, and repeats count by their mean.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        errors.print_plainly()
        grader.require()
        super().__init__(config={key: value for key, value in config.items() if key != "class"})

    def download(self, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        """Read the documents of the split that is evaluated; up to 1 % without a gold answer are left out, aloud.

        Raises
        ------
        ArgumentError
            The file, or a field, or the gold answer of more documents, is missing.
        """
        config, fields = self.config, dataset_kwargs or {}
        loaded = task_data.load(config.task, config.dataset_path, config.dataset_name, config.test_split)
        rows = loaded[config.test_split]
        documents, without = [], []
        for number, row in enumerate(rows, 1):
            for field in (fields["problem"], fields["gold"]):
                if row.get(field) is None:
                    raise ArgumentError(f"{config.task}: document {number} has no field {field}.")
            gold = GOLD[fields["form"]](str(row[fields["gold"]]))
            if gold:
                documents.append({**row, "problem": row[fields["problem"]], "gold": gold})
            else:
                without.append(number)
        if without:
            lack = f"{config.task}: the {fields['gold']} of {len(without)} of {len(rows)} documents, "
            lack += f"the first is number {without[0]}, shows no {fields['form']} answer"
            if len(without) > len(rows) / 100:
                raise ArgumentError(f"{lack}; check the file's fields.")
            log.warning("%s; they are left out.", lack)
        self.dataset = {config.test_split: datasets.Dataset.from_list(documents)}

    def apply_filters(self) -> list[Instance]:
        """Grade every response, as many at once as there are cores; lists of `Graded` take the place of filters."""
        instances: list[Instance] = self.instances
        closing = any(thought.CLOSE in (response or "") for instance in instances for response in instance.resps)
        found = [
            (
                instance.doc["gold"],
                None if cut_off(instance.args[0], response, closing) else answer.extract(response or ""),
            )
            for instance in instances
            for response in instance.resps
        ]
        grades = iter(grader.grade_all(found))
        for instance in instances:
            instance.filtered_resps[FILTER] = [Graded.of(next(grades), response) for response in instance.resps]
        return instances


def process_results(doc: dict[str, Any], results: list[list[Graded]]) -> dict[str, float]:
    """The document's metrics, each the mean over its responses (one, unless `repeats` is more)."""
    told = [graded.metrics for graded in results[0]]
    return {name: sum(metrics[name] for metrics in told) / len(told) for name in told[0]}


def cut_off(prompt: object, response: str | None, closing: bool) -> bool:
    """Whether a response is nothing but a thought that the prompt opened.

    Some chat templates end in `<think>`, so the response holds no opening tag. Without a closing one it is a thought
    that was cut off, unless the backend takes thoughts away itself: then no response of the run shows the tag
    (`closing` is false). A tandem takes nothing away, and says which of its answers ended at the limit.
    """
    if not isinstance(prompt, str) or prompt.rfind(thought.OPEN) <= prompt.rfind(thought.CLOSE):
        return False
    truncated = bool(getattr(response, "metrics", {}).get("truncated", 0))
    return thought.CLOSE not in (response or "") and (closing or truncated)
