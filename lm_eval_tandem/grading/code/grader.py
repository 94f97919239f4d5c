"""Grades code: from a problem of HumanEval or MBPP and a response to an outcome, many in parallel; pass@k.

The code tasks call `grade_repeats` for all responses of a task at once, and `document_metrics` for each document.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lm_eval_tandem.grading.code import sandbox
from lm_eval_tandem.grading.code.extraction import borrowed_imports, called_names, extract, runnable
from lm_eval_tandem.grading.code.sandbox import Limits, Program, SandboxError

PAUSES = (0.5, 2.0, 8.0)
"""Seconds to wait before each further attempt, after a sandbox has not started.

When all attempts fail the run ends, because a missing verdict must not count as a wrong answer.
"""
PASS_AT = (2, 5, 10, 20, 50, 100)
"""The k of pass@k besides pass@1; each is reported where a task's `repeats` is at least k."""


@dataclass(frozen=True)
class Problem:
    """What a response is graded against.

    Attributes
    ----------
    names
        Functions or classes that the response has to define.
    tests
        Source of the tests, which call them.
    prompt
        Source that ends with the head of the function to complete, or "".
    setup
        Trusted source that the tests need.
    """

    names: tuple[str, ...]
    tests: str
    prompt: str = ""
    setup: str = ""


@dataclass(frozen=True)
class Grade:
    """The grade of one response.

    Attributes
    ----------
    outcome
        "passed", "failed", "error" or "timeout" (see `sandbox.Verdict`), or "no_answer" if it holds no code.
    detail
        What went wrong, in words.
    isolation
        The isolation level at which code runs, also where there was none to run.
    seconds
        Wall clock of the run.
    code
        The code that ran; None if there was none.
    """

    outcome: str
    detail: str
    isolation: str
    seconds: float
    code: str | None


def humaneval(doc: Mapping[str, Any]) -> Problem:
    """Make a problem from a row of openai/openai_humaneval; its tests may use helpers that the prompt defines."""
    name = doc["entry_point"]
    return Problem((name,), f"{doc['test']}\ncheck({name})\n", prompt=doc["prompt"], setup=runnable(doc["prompt"]))


def mbpp(doc: Mapping[str, Any]) -> Problem:
    """Make a problem from a row of google-research-datasets/mbpp, of its sanitized or its full configuration.

    Some tests use a module that only the row's own solution imports.
    """
    setup = "\n".join(doc["test_imports"]) if "test_imports" in doc else doc.get("test_setup_code", "")
    tests, solution = "\n".join(doc["test_list"]), doc.get("code", "")
    if imports := borrowed_imports(called_names(tests, setup), solution):
        setup = f"{setup}\n{imports}"
    return Problem(called_names(tests, setup, solution), tests, setup=setup)


def grade(problem: Problem, response: str, limits: Limits | None = None) -> Grade:
    """Find the code in a response and run it against the problem's tests.

    Raises
    ------
    SandboxError
        The sandbox does not start, after several attempts.
    """
    sources = extract(response, problem.names, problem.prompt)
    if sources is None:
        return Grade("no_answer", "the response holds no code", sandbox.isolation_level(), 0.0, None)
    verdict = _run_with_retries(Program(sources, problem.tests, problem.names, problem.setup), limits)
    code = "\n".join(source for source in sources if source != runnable(problem.prompt))
    return Grade(verdict.outcome, verdict.detail, verdict.isolation, round(verdict.seconds, 3), code)


def _run_with_retries(program: Program, limits: Limits | None) -> sandbox.Verdict:
    for pause in PAUSES:
        try:
            return sandbox.run(program, limits)
        except SandboxError:
            time.sleep(pause)
    return sandbox.run(program, limits)


def grade_all(problems: Sequence[Problem], responses: Sequence[str], limits: Limits | None = None) -> list[Grade]:
    """Grade the i-th response against the i-th problem, as many in parallel as there are cores."""
    with ThreadPoolExecutor(sandbox.CORES, thread_name_prefix="grading") as pool:
        pending = [
            pool.submit(grade, problem, response, limits) for problem, response in zip(problems, responses, strict=True)
        ]
        try:
            return [future.result() for future in pending]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # after Ctrl-C or an error, no further run starts


def grade_repeats(problems: Sequence[Problem], responses: Sequence[Sequence[str]]) -> list[list[str]]:
    """Grade several responses to each problem.

    Parameters
    ----------
    problems
        One per document.
    responses
        The responses to each problem. Those of a tandem have an attribute `metrics` (a dict of floats).

    Returns
    -------
    list of list of str
        One JSON object per response: the fields of `Grade`, and "metrics" where the response has them. It is text,
        because the harness writes a filter's result to the sample log as text.
    """
    flat = [(problem, response) for problem, group in zip(problems, responses, strict=True) for response in group]
    grades = iter(grade_all([problem for problem, _ in flat], [response for _, response in flat]))
    graded = []
    for group in responses:
        rows = [asdict(next(grades)) for _ in group]
        for row, response in zip(rows, group, strict=True):
            if costs := getattr(response, "metrics", None):
                row["metrics"] = dict(costs)
        graded.append([json.dumps(row) for row in rows])
    return graded


def document_metrics(graded: Sequence[str]) -> dict[str, float]:
    """Compute the metrics of one document from the grades of its responses.

    Parameters
    ----------
    graded
        The document's part of the result of `grade_repeats`.

    Returns
    -------
    dict of str to float
        Means over the responses; pass@k for every k in `PASS_AT` up to their number; and the means of the responses'
        own metrics, if all responses have them.
    """
    grades = [json.loads(row) for row in graded]
    count = len(grades)
    passed = sum(row["outcome"] == "passed" for row in grades)
    metrics = {
        "acc": passed / count,
        "no_answer": sum(row["outcome"] == "no_answer" for row in grades) / count,
        "timeout": sum(row["outcome"] == "timeout" for row in grades) / count,
        "sandboxed": sum(row["isolation"] == "bubblewrap" for row in grades) / count,
    }
    metrics |= {f"pass@{k}": pass_at_k(count, passed, k) for k in PASS_AT if k <= count}
    costs = [row["metrics"] for row in grades if "metrics" in row]
    if len(costs) == count:
        metrics |= {name: sum(row[name] for row in costs) / count for name in costs[0]}
    return metrics


def pass_at_k(count: int, passed: int, k: int) -> float:
    """Estimate, without bias, the probability that at least one of k responses passes.

    The estimate is 1 - C(count - passed, k) / C(count, k) (Chen et al., 2021, arXiv:2107.03374, Eq. 1).

    Parameters
    ----------
    count
        Number of responses.
    passed
        Number of responses that passed.
    k
        From 1 to `count`.

    Raises
    ------
    ValueError
        `k` is not in 1..count, or `passed` is not in 0..count.

    Examples
    --------
    >>> pass_at_k(4, 1, 2)
    0.5
    """
    if not (0 < k <= count and 0 <= passed <= count):
        raise ValueError(f"pass@{k} needs 1 <= k <= count and 0 <= passed <= count, not count={count}, passed={passed}")
    return 1.0 - math.comb(count - passed, k) / math.comb(count, k)
