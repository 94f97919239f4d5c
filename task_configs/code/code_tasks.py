"""Documents, prompts and metrics of the code tasks. All replies to a task are graded at once, in the filter."""

from collections.abc import Sequence
from typing import Any

import datasets

from lm_eval_tandem.grading.code import grader, sandbox
from lm_eval_tandem.harness import task_data


def humaneval(**_: Any) -> dict[str, datasets.Dataset]:
    """HumanEval's 164 documents; refuses where code cannot be run safely."""
    return _documents("tandem_humaneval", "openai/openai_humaneval", None)


def mbpp(**_: Any) -> dict[str, datasets.Dataset]:
    """MBPP's sanitized test split, 257 documents; refuses where code cannot be run safely."""
    return _documents("tandem_mbpp", "google-research-datasets/mbpp", "sanitized")


def _documents(task: str, path: str, name: str | None) -> dict[str, datasets.Dataset]:
    documents = task_data.load(task, path, name, "test")
    sandbox.require()
    return documents


def humaneval_prompt(doc: dict[str, Any]) -> str:
    """The function to complete, in a fence, after one sentence."""
    return (
        "Complete the following Python function. Reply with the whole function, and the imports it needs, "
        f"in one ```python block.\n\n```python\n{doc['prompt'].strip()}\n```\n"
    )


def mbpp_prompt(doc: dict[str, Any]) -> str:
    """The problem and its tests, which name the function."""
    tests = "\n".join([*doc["test_imports"], *doc["test_list"]])
    return (
        f"{doc['prompt'].strip()}\n\nYour code should pass these tests:\n\n```python\n{tests}\n```\n\n"
        "Reply with the whole code, and the imports it needs, in one ```python block.\n"
    )


def grade_humaneval(replies: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """A filter: every reply becomes its grade."""
    return grader.grade_repeats([grader.humaneval(doc) for doc in docs], replies)


def grade_mbpp(replies: list[list[str]], docs: list[dict[str, Any]]) -> list[list[str]]:
    """A filter: every reply becomes its grade."""
    return grader.grade_repeats([grader.mbpp(doc) for doc in docs], replies)


def process_results(_: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """The document's metrics from the grades of its replies."""
    return grader.document_metrics(results[0])
