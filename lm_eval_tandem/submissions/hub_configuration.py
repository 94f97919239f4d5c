"""tandem.yaml of a model repository: the cascade's run as `lm_eval run --config` takes it, for another machine.

The arguments of the run are repeated, but for those that say where something lies or runs on the machine of the run.
What had to be left out is told to the user, since it may change the answers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from lm_eval_tandem.digits import nearest_decimal
from lm_eval_tandem.harness.arguments import ROLES
from lm_eval_tandem.judge.repository import CONFIGURATION, PREFIX
from lm_eval_tandem.submissions import redaction
from lm_eval_tandem.submissions.hub_cascade import PublishedCascade

OF_THE_MACHINE = (
    *("store", "ledger", "record_features", "record_insights", "device", "base_url", "api_key_env"),
    *("batch_size", "max_batch_size"),
    *("threads", "max_concurrency", "num_concurrent", "gpu_memory_utilization", "tensor_parallel_size"),
    *("download_dir", "cache_dir", "offload_folder", "max_memory_per_gpu", "max_cpu_memory"),
)
"""Arguments, also with mentor_ or intern_ before them, that change no answer and belong to the machine of the run."""
REPLACED = ("mentor", "intern", "classifier", "policy", "efforts", "insights", "guidance", "seed", "model")
"""Arguments that the configuration gives anew, from what the run recorded."""
PATH_LIKE = re.compile(r"^(?:[~./]|[A-Za-z]:\\)|/.*/|\.(?:json|jinja|gguf|sqlite|safetensors)$")
"""Values that name a file or folder."""
DIGITS_ALONE = re.compile(r"-?\d+")


def arguments(cascade: PublishedCascade, repository: str) -> tuple[dict[str, Any], list[str]]:
    """The model arguments of the configuration, and the names of those of the run that it cannot repeat.

    Parameters
    ----------
    cascade
        What is published.
    repository
        The repository's id.
    """
    run = cascade.run
    description = run.description
    made: dict[str, Any] = {role: cascade.models[role].argument for role in ROLES}
    made |= {"policy": "cascade", "classifier": f"{PREFIX}{repository}"}
    made["efforts"] = ":".join(map(str, description["efforts"]))
    made |= {name: description[name] for name in ("insights", "guidance", "seed") if name in description}
    left_out = []
    for name, value in run.arguments.items():
        bare = name.removeprefix("mentor_").removeprefix("intern_")
        if bare in OF_THE_MACHINE or name in REPLACED:
            continue
        setting = portable(value)
        if setting is None:
            left_out.append(name)
        else:
            made[name] = setting
    return made, left_out


def portable(value: Any) -> Any:
    """A value as another machine can use it; None for a path, an address, a key, or what is no plain setting.

    Examples
    --------
    >>> portable("bfloat16"), portable("peft/alice/adapter"), portable(0.5)
    ('bfloat16', None, 0.5)
    """
    if isinstance(value, int):
        return value
    if isinstance(value, float):
        return nearest_decimal(value)
    text = str(value)
    names_a_place = "://" in text or PATH_LIKE.search(text) or ("/" in text and Path(text).exists())
    return None if names_a_place or redaction.KEYS.search(text) or len(text) > 300 or "\n" in text else text


def run_entries(cascade: PublishedCascade) -> dict[str, Any]:
    """The entries of the configuration besides the model's: tasks, and what they were asked with."""
    run = cascade.run
    results, config = run.results, run.config
    entries: dict[str, Any] = {"tasks": sorted({comparison.domain for comparison in cascade.comparisons})}
    shots = {count for count in (results.get("n-shot") or {}).values() if isinstance(count, int)}
    if len(shots) == 1:
        entries["num_fewshot"] = shots.pop()  # 0 as well: the task's own file may say another number
    if results.get("chat_template") or results.get("chat_template_sha"):
        entries["apply_chat_template"] = True
        if results.get("fewshot_as_multiturn") is False:
            entries["fewshot_as_multiturn"] = False
    if results.get("system_instruction"):
        entries["system_instruction"] = results["system_instruction"]
    if isinstance(config.get("gen_kwargs"), Mapping) and config["gen_kwargs"]:
        entries["gen_kwargs"] = dict(config["gen_kwargs"])
    size = str(config.get("batch_size") or "")
    entries["batch_size"] = int(size) if DIGITS_ALONE.fullmatch(size) else "auto" if size.startswith("auto") else 1
    return entries | {"log_samples": True, "output_path": "runs"}


def command(cascade: PublishedCascade) -> str:
    """The command that runs the configuration."""
    folder = " --include_path FOLDER" if cascade.own_tasks else ""
    return f"python -m lm_eval_tandem run --config {CONFIGURATION}{folder}"


def own_tasks(cascade: PublishedCascade) -> str:
    """What a reader needs for tasks that neither this package nor lm-eval has, in a sentence."""
    names = cascade.own_tasks
    files = "the file of this task" if len(names) == 1 else "the files of these tasks"
    return (
        f"Neither lm-eval nor lm-eval-tandem has {' and '.join(names)}: FOLDER stands for the folder with {files}, "
        "which this repository does not hold."
    )


def render(cascade: PublishedCascade, repository: str) -> tuple[str, list[str]]:
    """The text of tandem.yaml, and the names of the arguments that were left out (`arguments`)."""
    given, left_out = arguments(cascade, repository)
    entries = run_entries(cascade)
    lines = [
        f"# The cascade of {repository}. To run it: {command(cascade)}",
        "# For the same classifier at any later time, name a commit of the repository in a copy of this file:",
        f"# classifier: {PREFIX}{repository}@COMMIT, with the 40 digits of its page under Files.",
    ]
    if cascade.own_tasks:
        lines.append(f"# {own_tasks(cascade)}")
    if left_out:
        lines.append(f"# Arguments that named something on the machine of the run, left out: {', '.join(left_out)}.")
    if cascade.partly_asked:
        lines.append(
            f"# The figures of the card are of {' and '.join(cascade.partly_asked)}; this file asks all questions. A "
            "line `limit: N` asks the first N."
        )
    ggufs = [model for model in cascade.models.values() if model.argument.endswith(".gguf")]
    lines += [
        f"# {model.argument} is a file{f' of {model.hub_id}' if model.hub_id else ''}; put it beside this one."
        for model in ggufs
    ]
    content = {"model": "tandem", "model_args": given, **entries}
    return "\n".join(lines) + "\n" + yaml.safe_dump(content, sort_keys=False, allow_unicode=True), left_out
