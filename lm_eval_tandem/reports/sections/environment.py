"""What a report ends with: models, engines, classifiers and versions of the runs, and repeated runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_tandem.digits import colon_separated
from lm_eval_tandem.reports.sources.labels import model_name, without_paths
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import models_of

LIBRARIES = ("torch", "transformers", "vllm", "openai", "xllamacpp")
"""Libraries whose versions an engine records."""


def environment(data: ReportData) -> list[str]:
    """Return one line per fact, sorted, each once, and one for each run that no table shows."""
    lines: set[str] = set()
    for run in data.runs:
        description = run.description
        lines |= {f"{name}: {model(facts)}" for name, facts in models_of(description).items()}
        if run.model is not None:
            parameters = f", {run.model.parameters:,} parameters" if run.model.parameters else ""
            lines.add(f"{run.name}: {without_paths(run.model.name)}{parameters}")
        if "classifier" in description:
            lines.add(classifier(description))
        if "efforts" in description:
            efforts = ":".join(map(str, description["efforts"]))
            lines.add(f"efforts {efforts} mentor tokens; lm-eval-tandem {description['version']}")
        lines.add(f"commit {run.commit}")
        lines.add(f"{run.domain}: accuracy is the metric {run.metric}")
    return sorted(lines) + [left.sentence(names=True) for left in data.left_out] + without_pair(data)


def without_pair(data: ReportData) -> list[str]:
    """Return a line on each run that is in no comparison, because its model is none of those of the pairs."""
    compared = {(run.domain, run.identity) for one in data.comparisons for run in one.runs}
    compared |= {(part.run.domain, part.run.identity) for one in data.comparisons for part in one.partial}
    return [
        f"{run.name} on {run.domain} is in no table: its model "
        f"({', '.join(without_paths(facts['model']) for facts in models_of(run.description).values())}) is none of the "
        "pairs that ran on this task; report it alone."
        for run in data.runs
        if (run.domain, run.identity) not in compared
    ]


def classifier(description: Mapping[str, Any]) -> str:
    """Return a line on the classifier of a run."""
    thresholds = description.get("thresholds")
    chosen = "one set per task" if thresholds is None else colon_separated(thresholds)
    name = model_name(description["classifier"])
    return f"classifier: {name}, recipe {description['recipe']}, thresholds {chosen}"


def model(facts: Mapping[str, Any]) -> str:
    """Return a line on a model and the engine that ran it."""
    versions = ", ".join(f"{name} {facts[name]}" for name in LIBRARIES if facts.get(name))
    parts = [
        model_name(facts["model"]),
        f"{facts['parameters']:,} parameters" if facts.get("parameters") else "",
        f"{facts.get('engine', '')}{f' ({versions})' if versions else ''}",
        str(facts.get("dtype") or "").removeprefix("torch."),
        str(facts.get("device") or ""),
    ]
    return ", ".join(part for part in parts if part)
