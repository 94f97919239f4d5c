"""`.eval_results/*.yaml` of a model repository: results on benchmarks that are registered on the Hugging Face Hub.

The form is `eval_results.yaml` of github.com/huggingface/hub-docs: a list of entries, which `huggingface_hub` reads as
`EvalResultEntry`. Values are in percent, as all entries on these leaderboards are.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import yaml

from lm_eval_tandem.digits import mean, nearest_decimal
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.submissions.hub_cascade import PublishedCascade
from lm_eval_tandem.submissions.hub_registry import GRADES, Benchmark, benchmark_of
from lm_eval_tandem.submissions.sources import SubmittedRun
from lm_eval_tandem.submissions.task_results import TaskResults

FOLDER = ".eval_results"


def render(cascade: PublishedCascade, repository: str) -> tuple[dict[str, str], list[str]]:
    """The files by their paths in the repository, and a line on every domain that gets none.

    Parameters
    ----------
    cascade
        What is published.
    repository
        The repository's id.
    """
    files: dict[str, str] = {}
    lines = []
    for comparison in cascade.comparisons:
        benchmark = benchmark_of(comparison.domain)
        fault = fault_of(comparison, benchmark)
        if benchmark is None or fault is not None:
            lines.append(f"{comparison.domain} gets no {FOLDER}: {fault}")
            continue
        taken = f"{FOLDER}/{benchmark.file}.yaml" in files
        path = f"{FOLDER}/{benchmark.file}{f'_{comparison.domain}' if taken else ''}.yaml"
        files[path] = yaml.safe_dump([entry(cascade, comparison, benchmark, repository)], sort_keys=False)
    return files, lines


def fault_of(comparison: Comparison, benchmark: Benchmark | None) -> str | None:
    """Why the cascade's result on a domain is none of a registered benchmark; None if it is one."""
    run = comparison.cascades[0]
    if benchmark is None:
        return "it is no benchmark that is registered on the Hub."
    if run.metric not in GRADES:
        return f"{benchmark.dataset} ranks by accuracy, and these runs were graded by {run.metric}."
    if comparison.n_questions != benchmark.questions:
        return f"{comparison.n_questions:,} questions were asked, and {benchmark.dataset} has {benchmark.questions:,}."
    return None


def entry(cascade: PublishedCascade, comparison: Comparison, benchmark: Benchmark, repository: str) -> dict[str, Any]:
    """One entry: the cascade's accuracy on a benchmark."""
    run = comparison.cascades[0]
    tasks = {task for task, _ in run.questions}
    parts = [(submitted, task) for submitted, task in cascade.runs if task.name in tasks]
    return {
        "dataset": {"id": benchmark.dataset, "task_id": benchmark.task},
        "value": nearest_decimal(100 * mean(run.grades)),
        "date": max(day(submitted) for submitted, _ in parts),
        "source": {"url": f"https://huggingface.co/{repository}", "name": "Model card"},
        "notes": notes(cascade, comparison.domain, parts),
    }


def day(submitted: SubmittedRun) -> str:
    """The day of a run in UTC, as ISO 8601 has it."""
    stamp = submitted.results.get("date")
    if isinstance(stamp, (int, float)):
        return datetime.fromtimestamp(stamp, UTC).date().isoformat()
    return submitted.file.stem.removeprefix("results_")[:10]


def notes(cascade: PublishedCascade, domain: str, parts: list[tuple[SubmittedRun, TaskResults]]) -> str:
    """How the questions were asked and graded, and that two models answered them."""
    shots = sorted({str((submitted.results.get("n-shot") or {}).get(task.name, "?")) for submitted, task in parts})
    grade = parts[0][1].grade
    metric = parts[0][1].run.metric
    graded = metric if grade is None or grade.filter == "none" else f"{metric} ({grade.filter})"
    return (
        f"lm-evaluation-harness task {domain}, {'/'.join(shots)}-shot, {graded}; a cascade of two models: "
        f"{cascade.mentor.name} guides {cascade.intern.name}"
    )
