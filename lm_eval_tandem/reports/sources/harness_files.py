"""The files of lm-evaluation-harness: results_*.json, and beside each samples_*.jsonl with one line per question."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem.digits import significant
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources.files import describe, read_lines

SECRETS = ("token", "key", "password")
"""Endings of model arguments that no report may show."""
NO_SECRETS = ("think_end_token",)
"""Arguments with such an ending, also with mentor_ or intern_ before them, that change answers and are no secret."""


def find_results(folder: Path) -> list[Path]:
    """Return the results files below a folder, sorted by path.

    Raises
    ------
    ArgumentError
        It is not a folder, or holds no results file.
    """
    if not folder.is_dir():
        raise ArgumentError(f"{folder} is not a folder; give the one that lm_eval got as --output_path.")
    files = sorted(folder.rglob("results_*.json"))
    if not files:
        raise ArgumentError(
            f"{folder} holds no results of the harness; run lm_eval with --output_path and --log_samples."
        )
    return files


def load_results(file: Path) -> dict[str, Any]:
    """Return the content of a results file.

    Raises
    ------
    ArgumentError
        The file is not readable as one.
    """
    try:
        results = json.loads(file.read_text(encoding="utf-8"))
        tasks, config = results["configs"], results["config"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArgumentError(
            f"{file} cannot be read as results of lm_eval ({describe(error)}); run it again or remove the file."
        ) from None
    if not isinstance(tasks, dict) or not isinstance(config, dict):
        raise ArgumentError(f"{file} holds no task configurations; run lm_eval again or remove the file.")
    return dict(results)


def model_arguments(arguments: Any) -> dict[str, Any]:
    """Return the model arguments of a run, without secrets and without `model`, which the package adds itself.

    Parameters
    ----------
    arguments
        `config.model_args` of a results file: a string "name=value,…", a mapping, or None.
    """
    if isinstance(arguments, str):
        arguments = parse_arguments(arguments)
    return {
        name: value
        for name, value in (arguments or {}).items()
        if name != "model" and (str(name).endswith(NO_SECRETS) or not str(name).lower().endswith(SECRETS))
    }


def parse_arguments(text: str) -> dict[str, Any]:
    """Return model arguments as the command line had them: name=value with commas between, or a JSON object.

    A comma stands between two arguments only where the next one begins with a name and "="; others belong to a value.
    """
    if text.lstrip().startswith("{"):
        try:
            return dict(json.loads(text))
        except ValueError:
            return {}  # a report is none the worse without them
    pairs = re.split(r",(?=\s*[A-Za-z_]\w*=)", text)
    return {name.strip(): value for name, found, value in (pair.partition("=") for pair in pairs) if found}


def command_flags(results: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the flags of the lm_eval command besides model and task that another run has to repeat."""
    config = results["config"]
    flags: list[str] = []
    if results.get("chat_template") or results.get("chat_template_sha"):
        flags.append("--apply_chat_template")
    if config.get("batch_size"):
        flags.append(f"--batch_size {config['batch_size']}")
    if config.get("limit"):
        flags.append(f"--limit {significant(config['limit'], 6)}")
    if config.get("gen_kwargs"):
        pairs = config["gen_kwargs"]
        text = pairs if isinstance(pairs, str) else ",".join(f"{name}={value}" for name, value in pairs.items())
        flags.append(f"--gen_kwargs {text}")
    return tuple(flags)


def read_samples(
    results_file: Path, task: str, task_config: Mapping[str, Any], metric: str | None
) -> tuple[list[dict[str, Any]], str]:
    """Return the samples of a task, one per question in order of document ids, and the metric that grades them.

    Parameters
    ----------
    results_file
        The results file beside which the samples lie.
    task, task_config
        Name of the task, and its entry in `configs` of the results file.
    metric
        NAME or NAME,FILTER; None for the task's first metric and first filter.

    Raises
    ------
    ArgumentError
        There are no readable samples, or they have no such metric or filter.
    """
    requested, _, requested_filter = (metric or "").partition(",")
    name = requested or first_metric(results_file, task, task_config)
    samples = load_samples(find_samples(results_file, task))
    filters = list(dict.fromkeys(str(sample.get("filter", "none")) for sample in samples))
    if requested_filter and requested_filter not in filters:
        raise ArgumentError(f"--metric {metric}: {task} has no filter {requested_filter}; it has {', '.join(filters)}.")
    kept = [sample for sample in samples if str(sample.get("filter", "none")) == (requested_filter or filters[0])]
    ungraded = next((sample for sample in kept if name not in sample), None)
    if ungraded is not None:
        known = ", ".join(ungraded.get("metrics", ())) or "none"
        raise ArgumentError(f"--metric {name}: {task} has no such metric in its samples; it has {known}.")
    return kept, name


def first_metric(results_file: Path, task: str, task_config: Mapping[str, Any]) -> str:
    """Return the name of a task's first metric; tasks that are Python classes may record none."""
    try:
        return str(task_config["metric_list"][0]["metric"])
    except (KeyError, IndexError, TypeError):
        raise ArgumentError(f"{results_file} names no metric of {task}; give one with --metric NAME.") from None


def find_samples(results_file: Path, task: str) -> Path:
    """Return the samples file of a task beside a results file, plain or compressed (xz)."""
    plain = results_file.with_name(f"samples_{task}_{results_file.stem.removeprefix('results_')}.jsonl")
    compressed = plain.with_name(plain.name + ".xz")
    file = compressed if compressed.is_file() else plain
    if not file.is_file():
        raise ArgumentError(f"{results_file} has no samples of {task} beside it; run lm_eval with --log_samples.")
    return file


def load_samples(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a samples file, sorted by document id."""
    try:
        samples = [json.loads(line) for line in read_lines(file)]
        return sorted(samples, key=lambda sample: int(sample["doc_id"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{file} cannot be read as samples ({describe(error)}); run lm_eval again.") from None


def document_checksum(sample: Mapping[str, Any]) -> str:
    """Return the checksum of a sample's document, as the harness computes it; "" if the sample does not have it.

    It is computed wherever the document is there, since compressed samples have no checksums.
    """
    if isinstance(sample.get("doc"), dict):
        return checksum(json.dumps(sample["doc"], indent=2, ensure_ascii=False))
    return str(sample.get("doc_hash") or "")


def prompt_checksum(sample: Mapping[str, Any]) -> str:
    """Return the checksum of a sample's prompt, the first if there are several; "" if the sample does not have it."""
    prompt = first_argument(sample)
    return str(sample.get("prompt_hash") or "") if prompt is None else checksum(prompt)


def first_prompt(sample: Mapping[str, Any]) -> str | None:
    """Return the text of a sample's prompt, of messages their contents; None if the sample does not have it."""
    prompt = first_argument(sample)
    if prompt is None or not prompt.startswith("[{"):
        return prompt
    try:
        return "\n".join(str(message["content"]) for message in json.loads(prompt))
    except (ValueError, KeyError, TypeError):
        return prompt  # a text that only looks like messages


def first_argument(sample: Mapping[str, Any]) -> str | None:
    """Return the first argument of a sample's first request: its prompt, or messages as JSON."""
    prompt = ((sample.get("arguments") or {}).get("gen_args_0") or {}).get("arg_0")
    if isinstance(prompt, list) and len(prompt) == 1:  # the harness wraps messages
        prompt = prompt[0]
    return prompt if isinstance(prompt, str) else None


def checksum(text: str) -> str:
    """Return the SHA-256 of a text in hexadecimal digits, as the harness computes it."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
