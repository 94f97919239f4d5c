"""The file of results of Every Eval Ever: one model on one task, with every metric, its interval, and its settings.

Field names are those of `eval.schema.json`, version 0.3.0. All `additional_details` and `details` map names to text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm_eval_tandem import __version__, digits
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.reports.sources.runs import MEASURES
from lm_eval_tandem.submissions.metrics import metric
from lm_eval_tandem.submissions.models import PROJECT, UNKNOWN, Identity, Part, slug
from lm_eval_tandem.submissions.redaction import short, shorts
from lm_eval_tandem.submissions.sources import Score, SubmittedRun, TaskResults
from lm_eval_tandem.training.bootstrap import RESAMPLES, Interval, central_interval, resampled_means

LEVEL = 0.95
SETTINGS = (
    *("policy", "efforts", "insights", "guidance", "prompts", "thinking", "seed", "loglikelihood", "recipe"),
    *("classifier", "thresholds", "selection", "aggregation"),
)
"""What a tandem or an ensemble recorded about itself that goes out as it is."""
JUDGE = ("sha256", "schema", "model", "tasks", "labels", "per")
"""The same of its classifier."""
FACTS = ("parameters", "dtype", "window", "revision", "sha", "sha256", "commit", "resume", "entropy")
"""The same of each model."""
TOTALS = ("questions", "length", "tflops", "bill_tflops", "dollars_per_1000", "truncated", "refused_tokens")
"""The same of a whole run's totals, beside those that are taken apart."""
TYPED = {"temperature": "temperature", "top_p": "top_p", "top_k": "top_k"}
"""Generation arguments that have a field of their own, here and there."""
LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What the harness calls the longest answer, the first one counting most."""
SHOWN_ARGUMENTS = (
    *("mentor", "intern", "models", "pretrained", "model", "peft", "revision", "dtype", "backend", "mentor_backend"),
    *("intern_backend", "policy", "efforts", "classifier", "thresholds", "insights", "guidance", "prompts", "thinking"),
    *("loglikelihood", "seed", "selection", "aggregation", "count", "max_length", "enable_thinking", "quantization"),
)
"""Model arguments that the command shows."""
NO_HUB_DATASETS = ("json", "csv", "parquet", "text", "arrow", "pandas", "xml", "webdataset", "imagefolder")
"""Values of `dataset_path` that are readers of files."""
DATASET = re.compile(r"[\w-][\w.-]*(?:/[\w.-]+)?", re.ASCII)


def results_file(
    submitted: SubmittedRun,
    task: TaskResults,
    model: Identity,
    organization: str,
    relationship: str,
    now: float,
    samples: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """Return the content of the file of results.

    Parameters
    ----------
    submitted, task
        The run, and the task of it.
    model
        What it was of.
    organization, relationship
        Who ran it, and its relation to the models' developers.
    now
        The time of the export in seconds since 1970.
    samples
        `detailed_evaluation_results`: the file of samples; None without one.
    """
    scores = all_scores(task)
    between = intervals(scores)
    content: dict[str, Any] = {
        "schema_version": "0.3.0",
        "evaluation_id": evaluation_id(submitted, task, model),
        "retrieved_timestamp": str(int(now)),
        **({"evaluation_timestamp": text} if (text := timestamp(submitted)) else {}),
        "source_metadata": {
            "source_name": "lm-evaluation-harness",
            "source_type": "evaluation_run",
            "source_organization_name": organization,
            "evaluator_relationship": relationship,
            "additional_details": {"exported_by": f"{PROJECT} {__version__}", **totals(submitted)},
        },
        "eval_library": {
            "name": "lm_eval",
            "version": short(submitted.results.get("lm_eval_version")) or UNKNOWN,
            "additional_details": versions(submitted),
        },
        "model_info": model_info(submitted, model),
        "evaluation_results": [
            result(submitted, task, score, between.get(id(score)), score is task.grade) for score in scores
        ],
    }
    return content | ({"detailed_evaluation_results": dict(samples)} if samples else {})


def evaluation_id(submitted: SubmittedRun, task: TaskResults, model: Identity) -> str:
    """Return task, model, what distinguishes this run from others of the model, and the time of the run."""
    description = submitted.description
    names = ("efforts", "guidance", "thresholds") if model.is_system else ("policy",)
    variant = "_".join(text for name in names if (text := short(description.get(name) or "")))
    if variant in ("mentor", "intern"):
        variant = ""
    return "/".join(part for part in (task.name, model.id, variant, timestamp(submitted) or UNKNOWN) if part)


def timestamp(submitted: SubmittedRun) -> str:
    """Return when a run began, in seconds since 1970; "" if the harness did not record it."""
    date = submitted.results.get("date")
    return repr(float(date)) if isinstance(date, (int, float)) else ""


def result_id(task: str, score: Score) -> str:
    """Return the id of a metric's result, to which its rows of samples point."""
    return f"{task}/{score.filter}/{score.metric}"


def evaluation_name(task: str, score: Score) -> str:
    """Return the name of an evaluation as the board's own converter has it: the task, and the filter if it has one."""
    return task if score.filter == "none" else f"{task}/{score.filter}"


def all_scores(task: TaskResults) -> list[Score]:
    """Return the harness's metrics, and then the costs that the ledger knows and the task does not show."""
    shown = {score.metric for score in task.scores}
    measures = task.run.measures
    added = [
        Score(name, "none", digits.mean(measures[name]), None, False, measures[name])
        for name in MEASURES
        if name in measures and name not in shown
    ]
    return [*task.scores, *added]


def result(
    submitted: SubmittedRun, task: TaskResults, score: Score, between: Interval | None, is_grade: bool
) -> dict[str, Any]:
    """Return one entry of `evaluation_results`; that of the grade also has the costs, as text."""
    details: dict[str, Any] = {"score": score.value, "uncertainty": uncertainty(task, score, between)}
    if is_grade:
        details["details"] = {f"mean_{name}": repr(digits.mean(values)) for name, values in task.run.measures.items()}
    return {
        "evaluation_result_id": result_id(task.name, score),
        "evaluation_name": evaluation_name(task.name, score),
        "source_data": source_data(task),
        "metric_config": metric_config(score),
        "score_details": details,
        "generation_config": generation_config(submitted, task),
    }


def metric_config(score: Score) -> dict[str, Any]:
    """Return what a metric is; one without known bounds has no type of scores, as from the board's own converter."""
    what = metric(score.metric)
    named = {
        "metric_id": what.id,
        "metric_name": what.name,
        "metric_kind": what.kind,
        "metric_unit": what.unit,
        "evaluation_description": what.description,
    }
    config: dict[str, Any] = {name: text for name, text in named.items() if text}
    config["lower_is_better"] = not score.higher_is_better
    if what.bounds is None:
        return config | {"additional_details": {"bounds_status": UNKNOWN, "harness_metric": score.metric}}
    low, high = (bound if math.isfinite(bound) else "Infinity" for bound in what.bounds)
    return config | {
        "score_type": "continuous",
        "min_score": low,
        "max_score": high,
        "additional_details": {"harness_metric": score.metric},
    }


def uncertainty(task: TaskResults, score: Score, between: Interval | None) -> dict[str, Any]:
    """Return the harness's standard error and our 95 % interval, by the methods of the report."""
    found: dict[str, Any] = {"num_samples": len(task.run.questions)}
    if score.standard_error is not None:
        found["standard_error"] = {"value": score.standard_error, "method": "lm_eval"}
    if between is None:
        return found
    is_proportion = metric(score.metric).is_proportion
    method = "Wilson" if is_proportion else "bootstrap over questions, percentiles"
    low, high = between
    found["confidence_interval"] = {"lower": low, "upper": high, "confidence_level": LEVEL, "method": method}
    return found if is_proportion else found | {"num_bootstrap_samples": RESAMPLES}


def intervals(scores: Sequence[Score]) -> dict[int, Interval]:
    """Return the 95 % interval of each mean by the score's `id`: Wilson's of a share, otherwise by bootstrap."""
    found = {}
    resampled = []
    for score in scores:
        if score.values is None:
            continue
        if metric(score.metric).is_proportion:
            found[id(score)] = wilson(digits.total(score.values), len(score.values))
        else:
            resampled.append((score, score.values))
    if resampled:
        means = resampled_means(np.stack([values for _, values in resampled], axis=1))
        found |= {id(score): central_interval(means[:, place]) for place, (score, _) in enumerate(resampled)}
    return found


def source_data(task: TaskResults) -> dict[str, Any]:
    """Return which data set the questions are from, and which of its questions where they are not all."""
    path = str(task.config.get("dataset_path") or "")
    if not DATASET.fullmatch(path) or path in NO_HUB_DATASETS or "custom_dataset" in task.config:
        return {"dataset_name": task.name, "source_type": "other"}
    split = task.config.get("test_split") or task.config.get("validation_split")
    found: dict[str, Any] = {"dataset_name": task.name, "source_type": "hf_dataset", "hf_repo": path}
    if split and short(split):
        found["hf_split"] = short(split)
    if task.available is not None:
        found["samples_number"] = int(task.available)
        if task.available != len(task.run.questions):
            found["sample_ids"] = [str(doc_id) for _, doc_id in task.run.questions]
    subset = short(task.config.get("dataset_name") or "")
    return found | ({"additional_details": {"config": subset}} if subset else {})


def generation_config(submitted: SubmittedRun, task: TaskResults) -> dict[str, Any]:
    """Return how answers were generated: arguments of the task, and over them those of the command line."""
    arguments = dict(task.config.get("generation_kwargs") or {}) | given_arguments(submitted)
    typed: dict[str, Any] = {
        name: number for name, field in TYPED.items() if (number := number_of(arguments.get(field))) is not None
    }
    if "temperature" not in typed and str(arguments.get("do_sample")) == "False":
        typed["temperature"] = 0.0
    limit = next((number for name in LIMITS if (number := number_of(arguments.get(name))) is not None), None)
    if limit is not None and limit >= 1:
        typed["max_tokens"] = int(limit)
    template = task.config.get("doc_to_text")
    if isinstance(template, str) and not template.lstrip().startswith("def "):
        typed["prompt_template"] = template
    typed["execution_command"] = command(submitted, task)
    others = {name: value for name, value in arguments.items() if name not in (*TYPED, *LIMITS)}
    until = others.pop("until", None)
    more = {
        "do_sample": others.get("do_sample"),
        "until": " | ".join(repr(text) for text in ([until] if isinstance(until, str) else until or [])) or None,
        "num_fewshot": (submitted.results.get("n-shot") or {}).get(task.name, task.config.get("num_fewshot")),
        "repeats": task.config.get("repeats"),
        "output_type": task.config.get("output_type"),
        "task_version": (submitted.results.get("versions") or {}).get(task.name),
        "task_hash": (submitted.results.get("task_hashes") or {}).get(task.name),
        "chat_template_sha": submitted.results.get("chat_template_sha"),
        "system_instruction_sha": submitted.results.get("system_instruction_sha"),
        **{name: submitted.config.get(name) for name in ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")},
    }
    texts = {name: str(value) for name, value in more.items() if value is not None and name == "until"}
    return {"generation_args": typed, "additional_details": shorts({**more, "until": None}) | texts}


def given_arguments(submitted: SubmittedRun) -> dict[str, Any]:
    """Return the generation arguments of the command line (`--gen_kwargs`)."""
    given = submitted.config.get("gen_kwargs") or {}
    return harness_files.parse_arguments(given) if isinstance(given, str) else dict(given)


def number_of(value: Any) -> float | None:
    """Return a generation argument as a number; None if it is none."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) and not isinstance(value, bool) else None


def command(submitted: SubmittedRun, task: TaskResults) -> str:
    """Return the command of a run, with the arguments that say what ran, and none that says where."""
    given = submitted.config.get("model_args")
    arguments = harness_files.parse_arguments(given) if isinstance(given, str) else dict(given or {})
    if submitted.description:
        arguments.pop("model", None)  # the package adds it: the run's name
    shown = shorts({name: arguments[name] for name in SHOWN_ARGUMENTS if name in arguments})
    words = [f"lm_eval --model {short(submitted.config.get('model')) or UNKNOWN}"]
    if shown:
        words.append(f"--model_args {','.join(f'{name}={value}' for name, value in shown.items())}")
    words.append(f"--tasks {task.name}")
    shots = (submitted.results.get("n-shot") or {}).get(task.name)
    if isinstance(shots, int):
        words.append(f"--num_fewshot {shots}")
    if submitted.results.get("chat_template_sha"):
        words.append("--apply_chat_template")
    given = {name: short(submitted.config.get(name)) for name in ("batch_size", "limit") if submitted.config.get(name)}
    words += [f"--{name} {value}" for name, value in given.items() if value]
    if generation := shorts(given_arguments(submitted)):
        words.append(f"--gen_kwargs {','.join(f'{name}={value}' for name, value in generation.items())}")
    return " ".join([*words, "--log_samples"])


def model_info(submitted: SubmittedRun, model: Identity) -> dict[str, Any]:
    """Return what is known of the model, or of the system and each of its models."""
    details = {
        "deployment_type": model.common("deployment", UNKNOWN),
        "model_availability": model.common("availability", UNKNOWN),
    }
    for part in model.parts:
        details |= part_details(part, model.is_system)
    details |= shorts({name: submitted.description.get(name) for name in SETTINGS})
    judge = submitted.description.get("judge") or {}
    details |= shorts({f"classifier_{name}": judge.get(name) for name in JUDGE})
    info: dict[str, Any] = {"name": model.name, "id": model.id, "developer": model.developer}
    if platform := model.joined("platform"):
        info["inference_platform"] = platform
    if engine := model.joined("engine"):
        version = model.joined("version")
        info["inference_engine"] = {"name": engine, **({"version": version} if version else {})}
    return info | {"additional_details": details}


def part_details(part: Part, in_system: bool) -> dict[str, str]:
    """Return what is known of one model, in a system under names that begin with its role."""
    prefix = f"{slug(short(part.role) or 'model')}_" if in_system else ""
    named = {name: part.facts.get(name) for name in FACTS}
    prices = part.facts.get("prices") or {}
    named |= {f"price_{kind}_usd_per_million_tokens": prices.get(kind) for kind in ("input", "cached", "output")}
    found = shorts({f"{prefix}{name}": value for name, value in named.items()})
    if not in_system:
        return found
    own = {
        "model": f"{part.developer}/{part.name}" if part.developer else part.name,
        "engine": part.engine,
        "engine_version": part.version,
        "platform": part.platform,
        "deployment_type": part.deployment,
        "model_availability": part.availability,
    }
    return {f"{prefix}{name}": text for name, text in own.items() if text} | found


def totals(submitted: SubmittedRun) -> dict[str, str]:
    """Return what the whole run did, on all its tasks, as the results file has it."""
    recorded = (submitted.config.get("tandem") or {}).get("totals") or {}
    plain = {f"total_{name}": recorded.get(name) for name in TOTALS}
    plain |= {f"total_{name}": count for name, count in (recorded.get("tokens") or {}).items()}
    plain |= {f"total_stage_share_{stage}": share for stage, share in (recorded.get("stage_share") or {}).items()}
    for name, spent in (recorded.get("models") or {}).items():
        plain |= {f"total_{slug(short(name) or 'model')}_{what}": value for what, value in spent.items()}
    return {name: repr(value) for name, value in plain.items() if isinstance(value, (int, float))}


def versions(submitted: SubmittedRun) -> dict[str, str]:
    """Return the versions of what ran, besides the harness and the engines."""
    description = submitted.description
    recorded: Mapping[str, Any] = description.get("versions") or {}
    found = {f"version_{name}": value for name, value in recorded.items()}
    named = {"lm_eval_tandem": description.get("version"), "git_commit": submitted.results.get("git_hash")}
    return shorts({**named, **found})


def unknown_bounds(task: TaskResults) -> Sequence[str]:
    """Return the metrics of a task whose bounds are not known."""
    return sorted({score.metric for score in task.scores if metric(score.metric).bounds is None})
