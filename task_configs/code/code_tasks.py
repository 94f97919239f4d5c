"""The code tasks: their documents, prompts, filters and metrics.

All responses to a task are graded at once, in the filter, because the sandbox runs as many in parallel as there are
cores. The grading itself is in `lm_eval_tandem/grading/code`.
"""

from collections.abc import Sequence
from typing import Any

import datasets

from lm_eval_tandem.grading.code import grader, sandbox
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.harness.tasks import ResponseTask

__all__ = ["ResponseTask"]


def humaneval(**_: Any) -> dict[str, datasets.Dataset]:
    """Load the 164 documents of HumanEval. Raises SandboxError where the sandbox does not work."""
    return _documents("tandem_humaneval", "openai/openai_humaneval", None)


def mbpp(**_: Any) -> dict[str, datasets.Dataset]:
    """Load the 257 documents of MBPP's sanitized test split. Raises SandboxError where the sandbox does not work."""
    return _documents("tandem_mbpp", "google-research-datasets/mbpp", "sanitized")


def _documents(task: str, path: str, name: str | None) -> dict[str, datasets.Dataset]:
    documents = task_data.load(task, path, name, "test")
    sandbox.require()
    return documents


def humaneval_prompt(doc: dict[str, Any]) -> str:
    """Return the instruction and, in a fence, the function to complete."""
    return (
        "Complete the following Python function. Reply with the whole function, and the imports it needs, "
        f"in one ```python block.\n\n```python\n{doc['prompt'].strip()}\n```\n"
    )


def mbpp_prompt(doc: dict[str, Any]) -> str:
    """Return the problem and its tests, from which the model learns the function's name."""
    tests = "\n".join([*doc["test_imports"], *doc["test_list"]])
    return (
        f"{doc['prompt'].strip()}\n\nYour code should pass these tests:\n\n```python\n{tests}\n```\n\n"
        "Reply with the whole code, and the imports it needs, in one ```python block.\n"
    )


def grade_humaneval(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """Filter of lm-eval: replace every response by its grade, as JSON."""
    return grader.grade_repeats([grader.humaneval(doc) for doc in docs], responses)


def grade_mbpp(responses: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """Filter of lm-eval: replace every response by its grade, as JSON."""
    return grader.grade_repeats([grader.mbpp(doc) for doc in docs], responses)


def process_results(_: dict[str, Any], grades: Sequence[str]) -> dict[str, float]:
    """Return a document's metrics from the grades of its responses."""
    return grader.document_metrics(grades)
