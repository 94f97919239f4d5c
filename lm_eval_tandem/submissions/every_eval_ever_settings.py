"""What a file of results of Every Eval Ever says of the model, of the data, and of the way a run was made.

Only what is named here goes out (`redaction.short`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from lm_eval_tandem.harness.run_report import checksum
from lm_eval_tandem.judge.artefact_config import ADAPTER
from lm_eval_tandem.reports.sources import harness_files, task_files
from lm_eval_tandem.submissions.models import UNKNOWN, Identity, Part, slug
from lm_eval_tandem.submissions.redaction import short, shorts
from lm_eval_tandem.submissions.sources import SubmittedRun
from lm_eval_tandem.submissions.task_results import TaskResults

SETTINGS = (
    *("policy", "efforts", "insights", "guidance", "prompts", "thinking", "seed", "loglikelihood", "recipe"),
    *("classifier", "thresholds", "selection", "aggregation"),
)
"""What a tandem or an ensemble recorded about itself that goes out as it is."""
JUDGE = ("sha256", "schema", "model", "tasks", "labels", "per")
"""The same of its classifier."""
FACTS = ("parameters", "dtype", "window", "revision", "sha", "sha256", "commit", "resume", "entropy")
"""The same of each model."""
TOTALS = {
    "questions": "total_questions",
    "length": "mean_length",
    "tflops": "mean_tflops",
    "bill_tflops": "mean_bill_tflops",
    "refused_tokens": "mean_refused_tokens",
    "dollars_per_1000": "dollars_per_1000_questions",
    "truncated": "share_truncated",
}
"""The same of a whole run's totals, beside those that are taken apart, and by what each of them is its name here."""
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
        "questions": task.asked or None,
        "limit": submitted.config.get("limit"),
        "repeats": task.config.get("repeats"),
        "output_type": task.config.get("output_type"),
        "task_version": (submitted.results.get("versions") or {}).get(task.name),
        "task_hash": (submitted.results.get("task_hashes") or {}).get(task.name),
        "chat_template_sha": submitted.results.get("chat_template_sha"),
        "system_instruction_sha": submitted.results.get("system_instruction_sha"),
        **{name: submitted.config.get(name) for name in ("random_seed", "numpy_seed", "torch_seed", "fewshot_seed")},
    }
    texts = {name: str(more.pop(name)) for name in ("until", "questions") if more[name] is not None}
    return {"generation_args": typed, "additional_details": shorts(more) | texts}


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
    words += [f"--include_path {folder}" for folder in task_folders(task)]
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


def task_folders(task: TaskResults) -> list[str]:
    """Return the folders with the task's files that `lm_eval` needs, as a command names them without paths."""
    named = {task_files.PACKAGE: "task_configs", task_files.OWN: "FOLDER"}
    origins = [task_files.origin(part.config) for part in (task.parts or (task,))]
    return [folder for origin, folder in named.items() if origin in origins]


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
    if judge.get(ADAPTER):
        details["classifier_adapter_sha256"] = str(checksum(judge[ADAPTER]))
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
    for argument, adapter in (part.facts.get("adapters") or {}).items():
        named |= {f"{argument}_{what}": adapter.get(what) for what in ("name", "sha256", "commit")}
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
    """Return what the whole run did, on all its tasks, as the results file has it.

    Names begin with what a figure is: `mean_` per question, `share_` of the questions, `total_` over all of them.
    """
    recorded = submitted.totals
    plain = {name: recorded.get(entry) for entry, name in TOTALS.items()}
    if not recorded.get("models"):  # the counts of mentor and intern are 0 in an ensemble, and a model may be called so
        plain |= {f"total_{name}": count for name, count in (recorded.get("tokens") or {}).items()}
    plain |= {f"share_stage_{stage}": share for stage, share in (recorded.get("stage_share") or {}).items()}
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
