"""The lm_eval command that made a recorded run, from what its results file has of it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem.reports.sources import harness_files, task_files
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun

PLACE = "FOLDER"
"""What a printed command has for the folder of the new results."""
NOT_REPEATED = ("store",)
"""Model arguments that a command leaves out: a store would give the old answers back."""
SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}
"""The seeds of the harness in the order of --seed, with its defaults."""
DEFAULT_DEVICE = "cuda:0"
"""What the harness records where no --device was given, on machines without one too."""
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


def printed(run: RecordedRun) -> list[str]:
    """Return the command as a user types it."""
    return ["python", "-m", "lm_eval_tandem", "run", *options(run, PLACE)]


def runnable(run: RecordedRun, output: Path) -> list[str]:
    """Return the same for this Python, with the folder for the results."""
    return [sys.executable, "-m", "lm_eval_tandem", "run", *options(run, str(output))]


def options(run: RecordedRun, output: str) -> list[str]:
    """Return the options of `lm_eval run` that repeat a run, with the folder for the results."""
    config, arguments = run.config, repeated_arguments(run)
    if "ledger" in arguments:
        arguments["ledger"] = f"{output}/ledger.jsonl"
    found = ["--model", str(config.get("model"))]
    if arguments:
        found += ["--model_args", argument_text(arguments)]
    found += ["--tasks", ",".join(requested(run))]
    if (folder := include_path(run)) is not None:
        found += ["--include_path", str(folder)]
    if config.get("batch_size"):
        found += ["--batch_size", str(config["batch_size"])]
    if config.get("device") not in (None, DEFAULT_DEVICE):
        found += ["--device", str(config["device"])]
    found += [*documents(run), *prompting(run)]
    if config.get("gen_kwargs"):
        asked = config["gen_kwargs"]
        found += ["--gen_kwargs", asked if isinstance(asked, str) else argument_text(asked)]
    if any(config.get(name, usual) != usual for name, usual in SEEDS.items()):
        found += ["--seed", ",".join(str(config.get(name)) for name in SEEDS)]
    if any(one.get("unsafe_code") for one in run.results["configs"].values()):
        found.append("--confirm_run_unsafe_code")
    return [*found, "--output_path", output, "--log_samples"]


def requested(run: RecordedRun) -> list[str]:
    """Return the tasks and groups to ask for so that the same are graded: a group in place of its tasks."""
    groups = {group: parts for group, parts in (run.results.get("group_subtasks") or {}).items() if parts}
    inside = {part for parts in groups.values() for part in parts}
    tasks = [task for task in sorted(run.task_names) if task not in inside]
    return [*(group for group in groups if group not in inside), *tasks]


def repeated_arguments(run: RecordedRun) -> dict[str, Any]:
    """Return the model arguments, without secrets and without what is not repeated."""
    return {
        name: _CREDENTIALS.sub("", value) if isinstance(value, str) else value
        for name, value in run.arguments.items()
        if name not in NOT_REPEATED and value is not None
    }


def left_out(run: RecordedRun) -> list[str]:
    """Return the model arguments that the command has to do without: keys, tokens and passwords."""
    given = run.config.get("model_args")
    given = harness_files.parse_arguments(given) if isinstance(given, str) else given or {}
    left = set(given) - set(harness_files.model_arguments(given)) - {"model"}
    return sorted(left | {name for name, value in given.items() if _CREDENTIALS.search(str(value))})


def include_path(run: RecordedRun) -> Path | None:
    """Return the folder of the run's task files, where they are neither this package's nor the harness's."""
    own = (config for config in run.results["configs"].values() if task_files.origin(config) == task_files.OWN)
    return next((task_files.source(config).parent for config in own), None)


def documents(run: RecordedRun) -> list[str]:
    """Return which documents were asked: --limit, --samples, or nothing for all."""
    limit = run.config.get("limit")
    if limit is not None:
        return ["--limit", str(int(limit) if float(limit).is_integer() else limit)]
    asked: dict[str, list[int]] = {}
    for task, counts in (run.results.get("n-samples") or {}).items():
        if counts.get("effective") != counts.get("original"):
            samples = run.samples(task)
            if samples is not None:
                asked[task] = sorted({int(sample["doc_id"]) for sample in samples})
    return ["--samples", json.dumps(asked, separators=(",", ":"))] if asked else []


def prompting(run: RecordedRun) -> list[str]:
    """Return the options that shape prompts."""
    results, found = run.results, []
    shots = set((results.get("n-shot") or {}).values())
    if len(shots) == 1 and isinstance(number := shots.pop(), int):
        found += ["--num_fewshot", str(number)]  # 0 as well: the task's own file may say another number
    if results.get("system_instruction"):
        found += ["--system_instruction", str(results["system_instruction"])]
    if results.get("chat_template") or results.get("chat_template_sha"):
        found.append("--apply_chat_template")
        if results.get("fewshot_as_multiturn") is False:
            found += ["--fewshot_as_multiturn", "false"]
    return found


def argument_text(arguments: Mapping[str, Any]) -> str:
    """Return arguments as --model_args and --gen_kwargs take them: name=value, or JSON for what needs it.

    Examples
    --------
    >>> argument_text({"policy": "stage:2", "seed": 7})
    'policy=stage:2,seed=7'
    >>> argument_text({"until": ["."]})
    '{"until": ["."]}'
    """
    if all(is_plain(value) for value in arguments.values()):
        return ",".join(f"{name}={value}" for name, value in arguments.items())
    return json.dumps(dict(arguments), ensure_ascii=False)


def is_plain(value: Any) -> bool:
    """Whether the harness reads a value back as it is from name=value."""
    if not isinstance(value, str):
        return isinstance(value, (bool, int, float))
    special = not value or value != value.strip() or re.search(r"[,'\"(){}\[\]\\]", value)
    return not special and not looks_typed(value)


def looks_typed(text: str) -> bool:
    """Whether the harness would read a text as a number, a truth value or nothing."""
    try:
        float(text)
    except ValueError:
        return text.lower() in ("true", "false", "none")
    return True
