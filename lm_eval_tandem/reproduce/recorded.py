"""A run as its results file describes it, and the lm_eval command that made it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files

PLACE = "FOLDER"
"""What a printed command has for the folder of the new results."""
NOT_REPEATED = ("store",)
"""Model arguments that a command leaves out: a store would give the old answers back."""
SEEDS = {"random_seed": 0, "numpy_seed": 1234, "torch_seed": 1234, "fewshot_seed": 1234}
"""The seeds of the harness in the order of --seed, with its defaults."""
DEFAULT_DEVICE = "cuda:0"
"""What the harness records where no --device was given, on machines without one too."""
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")


@dataclass(frozen=True)
class RecordedRun:
    """One run of the harness: a results file, with the samples beside it.

    Attributes
    ----------
    file
        The results file.
    results
        Its content.
    """

    file: Path
    results: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """How the harness was called."""
        config: Mapping[str, Any] = self.results["config"]
        return config

    @property
    def description(self) -> Mapping[str, Any]:
        """What a tandem or ensemble recorded about itself; empty for other models."""
        return self.config.get("tandem") or {}

    @property
    def name(self) -> str:
        """How results call the run."""
        return str(self.description.get("run") or self.results.get("model_name") or self.file.parent.name)

    @property
    def tasks(self) -> list[str]:
        """The tasks that were graded, those of groups one by one."""
        return sorted(self.results["configs"])

    @property
    def requested(self) -> list[str]:
        """The tasks and groups to ask for so that the same are graded: a group in place of its tasks."""
        groups = {group: parts for group, parts in (self.results.get("group_subtasks") or {}).items() if parts}
        inside = {part for parts in groups.values() for part in parts}
        return [*(group for group in groups if group not in inside), *(t for t in self.tasks if t not in inside)]

    @cached_property
    def arguments(self) -> dict[str, Any]:
        """The model arguments, without secrets and without what is not repeated."""
        known = harness_files.model_arguments(self.config.get("model_args"))
        return {
            name: _CREDENTIALS.sub("", value) if isinstance(value, str) else value
            for name, value in known.items()
            if name not in NOT_REPEATED and value is not None
        }

    @property
    def left_out(self) -> list[str]:
        """Model arguments that the command has to do without: keys, tokens and passwords."""
        given = self.config.get("model_args")
        given = harness_files.parse_arguments(given) if isinstance(given, str) else given or {}
        left = set(given) - set(harness_files.model_arguments(given)) - {"model"}
        return sorted(left | {name for name, value in given.items() if _CREDENTIALS.search(str(value))})

    def samples(self, task: str) -> list[dict[str, Any]] | None:
        """The samples of a task, one per question and filter; None where the run kept none."""
        try:
            file = harness_files.find_samples(self.file, task)
        except ArgumentError:
            return None
        return harness_files.load_samples(file)

    def include_path(self) -> Path | None:
        """The folder of the run's task files, where they are neither this package's nor the harness's."""
        for config in self.results["configs"].values():
            source = Path(str((config.get("metadata") or {}).get("config_source") or ""))
            ours = _paths.task_configs() / source.parent.name / source.name
            of_harness = ("lm_eval", "tasks") in zip(source.parts, source.parts[1:], strict=False)
            if source.suffix in (".yaml", ".yml") and not ours.is_file() and not of_harness:
                return source.parent
        return None

    def options(self, output: str) -> list[str]:
        """The options of `lm_eval run` that repeat the run.

        Parameters
        ----------
        output
            The folder for the results.
        """
        config, arguments = self.config, dict(self.arguments)
        if "ledger" in arguments:
            arguments["ledger"] = f"{output}/ledger.jsonl"
        options = ["--model", str(config.get("model"))]
        if arguments:
            options += ["--model_args", argument_text(arguments)]
        options += ["--tasks", ",".join(self.requested)]
        if (folder := self.include_path()) is not None:
            options += ["--include_path", str(folder)]
        if config.get("batch_size"):
            options += ["--batch_size", str(config["batch_size"])]
        if config.get("device") not in (None, DEFAULT_DEVICE):
            options += ["--device", str(config["device"])]
        options += [*self._documents(), *self._prompting()]
        if config.get("gen_kwargs"):
            asked = config["gen_kwargs"]
            options += ["--gen_kwargs", asked if isinstance(asked, str) else argument_text(asked)]
        if any(config.get(name, usual) != usual for name, usual in SEEDS.items()):
            options += ["--seed", ",".join(str(config.get(name)) for name in SEEDS)]
        if any(one.get("unsafe_code") for one in self.results["configs"].values()):
            options.append("--confirm_run_unsafe_code")
        return [*options, "--output_path", output, "--log_samples"]

    def _documents(self) -> list[str]:
        """Which documents were asked: --limit, --samples, or nothing for all."""
        limit = self.config.get("limit")
        if limit is not None:
            return ["--limit", str(int(limit) if float(limit).is_integer() else limit)]
        asked: dict[str, list[int]] = {}
        for task, counts in (self.results.get("n-samples") or {}).items():
            if counts.get("effective") != counts.get("original"):
                samples = self.samples(task)
                if samples is not None:
                    asked[task] = sorted({int(sample["doc_id"]) for sample in samples})
        return ["--samples", json.dumps(asked, separators=(",", ":"))] if asked else []

    def _prompting(self) -> list[str]:
        """The options that shape prompts."""
        results, options = self.results, []
        shots = set((results.get("n-shot") or {}).values())
        if len(shots) == 1 and isinstance(number := shots.pop(), int):
            options += ["--num_fewshot", str(number)]  # 0 as well: the task's own file may say another number
        if results.get("system_instruction"):
            options += ["--system_instruction", str(results["system_instruction"])]
        if results.get("chat_template") or results.get("chat_template_sha"):
            options.append("--apply_chat_template")
            if results.get("fewshot_as_multiturn") is False:
                options += ["--fewshot_as_multiturn", "false"]
        return options

    def printed_command(self) -> list[str]:
        """The command as a user types it."""
        return ["python", "-m", "lm_eval_tandem", "run", *self.options(PLACE)]

    def command(self, output: Path) -> list[str]:
        """The same for this Python."""
        return [sys.executable, "-m", "lm_eval_tandem", "run", *self.options(str(output))]


def read(folder: Path) -> list[RecordedRun]:
    """Return the runs below a folder, the oldest first.

    Raises
    ------
    ArgumentError
        It is no folder, or holds no readable results.
    """
    files = sorted(harness_files.find_results(folder), key=lambda file: (file.name, file))
    return [RecordedRun(file, harness_files.load_results(file)) for file in files]


def argument_text(arguments: Mapping[str, Any]) -> str:
    """Arguments as --model_args and --gen_kwargs take them: name=value with commas between, JSON for what needs it.

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


def join_names(names: Sequence[str], most: int = 5) -> str:
    """Names or numbers in a sentence; of more than `most` the first ones, and how many others there are."""
    shown = [str(name) for name in names[:most]]
    if len(names) > most:
        return f"{', '.join(shown)} and {len(names) - most:,} others"
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
