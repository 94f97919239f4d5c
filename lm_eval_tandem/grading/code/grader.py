"""Grading of code: from a problem of HumanEval or MBPP and a reply to a verdict, many at a time; pass@k."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from lm_eval_tandem.grading.code import sandbox
from lm_eval_tandem.grading.code.extraction import called_names, extract
from lm_eval_tandem.grading.code.sandbox import Limits, Program, SandboxError

PAUSES = (0.5, 2.0, 8.0)
"""Seconds to wait before a sandbox that does not start is tried again; a grade is never made up instead."""


@dataclass(frozen=True)
class Problem:
    """What a reply is graded against.

    Attributes
    ----------
        names: functions or classes that the reply has to define.
        tests: source of the tests, which call them.
        prompt: head of the function to complete, or "".
        before: trusted source that the tests need.
    """

    names: tuple[str, ...]
    tests: str
    prompt: str = ""
    before: str = ""


@dataclass(frozen=True)
class Grade:
    """One reply's grade.

    Attributes
    ----------
        outcome: "passed", "failed", "error", "timeout" (see `sandbox.Verdict`) or "no_answer" (no code in the reply).
        detail: what went wrong, in words.
        isolation: the level that the code ran at, also where there was none to run.
        seconds: wall clock.
        code: what ran, or None.
    """

    outcome: str
    detail: str
    isolation: str
    seconds: float
    code: str | None


def humaneval(doc: Mapping[str, Any]) -> Problem:
    """A problem with the fields of openai/openai_humaneval. Its tests may use helpers of the prompt, as given there."""
    name = doc["entry_point"]
    return Problem((name,), f"{doc['test']}\ncheck({name})\n", prompt=doc["prompt"], before=doc["prompt"])


def mbpp(doc: Mapping[str, Any]) -> Problem:
    """A problem with the fields of google-research-datasets/mbpp, sanitized or full."""
    before = "\n".join(doc["test_imports"]) if "test_imports" in doc else doc.get("test_setup_code", "")
    tests = "\n".join(doc["test_list"])
    return Problem(called_names(tests, before), tests, before=before)


def grade(problem: Problem, reply: str, limits: Limits | None = None) -> Grade:
    """Extract, run, and say how it ended.

    Raises
    ------
    SandboxError
        The sandbox does not start, after several attempts.
    """
    sources = extract(reply, problem.names, problem.prompt)
    if sources is None:
        return Grade("no_answer", "the reply holds no code", sandbox.isolation(), 0.0, None)
    verdict = _run(Program(sources, problem.tests, problem.names, problem.before), limits)
    return Grade(verdict.outcome, verdict.detail, verdict.isolation, round(verdict.seconds, 3), sources[-1])


def _run(program: Program, limits: Limits | None) -> sandbox.Verdict:
    for pause in PAUSES:
        try:
            return sandbox.run(program, limits)
        except SandboxError:
            time.sleep(pause)
    return sandbox.run(program, limits)


def grade_all(problems: Sequence[Problem], replies: Sequence[str], limits: Limits | None = None) -> list[Grade]:
    """Grade every reply against the problem at its place, as many at a time as there are cores."""
    with ThreadPoolExecutor(sandbox.CORES, thread_name_prefix="grading") as pool:
        waiting = [pool.submit(grade, problem, reply, limits) for problem, reply in zip(problems, replies, strict=True)]
        try:
            return [grade.result() for grade in waiting]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)  # on Ctrl-C: what has not begun does not begin


def grade_repeats(problems: Sequence[Problem], replies: Sequence[Sequence[str]]) -> list[list[str]]:
    """Grade several replies to each problem: grades as JSON, with the reply's own `metrics` if it has any.

    JSON, because the harness writes what a filter makes of a reply into its samples as text.
    """
    flat = [(problem, reply) for problem, answers in zip(problems, replies, strict=True) for reply in answers]
    grades = iter(grade_all([problem for problem, _ in flat], [reply for _, reply in flat]))
    graded = []
    for answers in replies:
        rows = [asdict(next(grades)) for _ in answers]
        for row, reply in zip(rows, answers, strict=True):
            if costs := getattr(reply, "metrics", None):
                row["metrics"] = dict(costs)
        graded.append([json.dumps(row) for row in rows])
    return graded


KS = (2, 5, 10, 20, 50, 100)
"""The k of pass@k beside pass@1; one appears where a task's `repeats` reach it."""


def figures(graded: Sequence[str]) -> dict[str, float]:
    """A document's metrics, from the grades of its replies: means, and pass@k as far as there are k of them."""
    grades = [json.loads(row) for row in graded]
    count = len(grades)
    passed = sum(row["outcome"] == "passed" for row in grades)
    found = {
        "acc": passed / count,
        "no_answer": sum(row["outcome"] == "no_answer" for row in grades) / count,
        "timeout": sum(row["outcome"] == "timeout" for row in grades) / count,
        "sandboxed": sum(row["isolation"] == "bubblewrap" for row in grades) / count,
    }
    found |= {f"pass@{k}": pass_at_k(count, passed, k) for k in KS if k <= count}
    costs = [row["metrics"] for row in grades if "metrics" in row]
    if len(costs) == count:
        found |= {name: sum(row[name] for row in costs) / count for name in costs[0]}
    return found


def pass_at_k(count: int, passed: int, k: int) -> float:
    """Unbiased estimate of the chance that at least one of k replies passes, from `count` replies of which some did.

    That is 1 - C(count - passed, k) / C(count, k) (Chen et al., 2021, arXiv 2107.03374, eq. 1).

    Raises
    ------
    ValueError
        K is not among 1..count, or passed not among 0..count.
    """
    if not (0 < k <= count and 0 <= passed <= count):
        raise ValueError(f"pass@{k} needs 1 <= k <= count and 0 <= passed <= count, not count={count}, passed={passed}")
    return 1.0 - math.comb(count - passed, k) / math.comb(count, k)
