"""Configuration files of the authors' ensemble toolkit (Ensemble-Hub) and of GaC, read as arguments of this package.

Each key works, or is refused in one sentence that says what to write instead; keys that change no answer here (the
server's address, what is logged, …) are named in one warning. A key without a value counts as not given, and what is
not given has this package's default. `output_aggregation_method: progressive` and `switch` are policies of
`--model tandem` here, for which the larger model is the mentor (`toolkit_models.by_size`).
"""

from __future__ import annotations

import json
import logging
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness import toolkit_methods as methods
from lm_eval_tandem.harness.arguments import to_whole_number
from lm_eval_tandem.harness.ensemble_arguments import to_share, to_weights
from lm_eval_tandem.harness.toolkit_models import choice, mapping, model_of, models_of, section

log = logging.getLogger(__name__)

SECTIONS = ("server", "debug", "model_specs", "reward_specs", "ensemble", "engine_options", "model_stats")
DEBUG = ("show_input_details", "show_output_details", "show_attribution", "save_results", "enable_thinking")
GAC = ("CONFIG_API_SERVER", "NORM_TYPE_API_SERVER", "THRESHOLD_API_SERVER")
GAC_MODEL = ("weight", "name", "score", "priority", "max_memory", "num_gpus", "quantization")


@dataclass(frozen=True)
class ToolkitRun:
    """What a file asks for, in this package's terms.

    Attributes
    ----------
    model
        "ensemble" or "tandem".
    arguments
        The model arguments.
    generation
        The generation arguments, as `--gen_kwargs` takes them.
    thinks
        Whether a model is to think, for which it needs its chat template.
    without_effect
        Keys of the file that change nothing here.
    note
        What else to know of how the file was read, as a sentence; "" for nothing.
    """

    model: str
    arguments: dict[str, Any]
    generation: dict[str, Any]
    thinks: bool
    without_effect: tuple[str, ...]
    note: str = ""

    @property
    def outside(self) -> str:
        """What `lm_eval` takes outside of the model arguments, as it is typed; "" for nothing."""
        parts = [f"--gen_kwargs {shlex.quote(json.dumps(self.generation))}"] if self.generation else []
        return " ".join([*parts, *(["--apply_chat_template"] if self.thinks else [])])

    def warn(self, path: Path) -> None:
        """Log how the file was read, as far as that is not obvious."""
        if self.without_effect:
            log.warning("%s: these keys have no effect here: %s", path, ", ".join(dict.fromkeys(self.without_effect)))
        if self.note:
            log.warning("%s: %s", path, self.note)


def is_toolkit_config(content: Mapping[str, Any]) -> bool:
    """Whether the content of a YAML file has the layout of the authors' toolkit or of GaC."""
    return "model_specs" in content or GAC[0] in content


def arguments_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """The arguments of `--model ensemble`; what `lm_eval` takes outside of them is named in a warning.

    Parameters
    ----------
    content
        What the file holds (`is_toolkit_config`).
    path
        The file, as messages call it.

    Raises
    ------
    ArgumentError
        A key is not known or cannot work here, or the file is one for `--model tandem`.
    """
    found = read(content, path)
    if found.model == "tandem":
        given = ",".join(f"{name}={value}" for name, value in found.arguments.items())
        raise ArgumentError(
            f"{path}: output_aggregation_method: {content['ensemble']['output_aggregation_method']} is a policy of "
            f"--model tandem here; type `--model tandem --model_args {shlex.quote(given)} {found.outside}".rstrip()
            + f"`, or `lm-eval-tandem run {path}`."
        )
    found.warn(path)
    if found.outside:
        log.warning("%s also sets what is no model argument; add %s", path, found.outside)
    return found.arguments


def run_of(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """A file as a configuration of `lm-eval-tandem run`: `model`, `model_args`, `gen_kwargs`, `apply_chat_template`.

    As in their toolkit, a plain question is asked in the chat templates where a model thinks.

    Raises
    ------
    ArgumentError
        A key is not known or cannot work here.
    """
    found = read(content, path)
    found.warn(path)
    return {
        "model": found.model,
        "model_args": found.arguments,
        "gen_kwargs": found.generation,
        "apply_chat_template": found.thinks,
    }


def generation_of(content: Mapping[str, Any]) -> dict[str, Any]:
    """The generation arguments that a file sets, as `--gen_kwargs` takes them; its seed is a model argument here.

    Raises
    ------
    ArgumentError
        A key is not known or cannot work here.

    Examples
    --------
    >>> generation_of({"ensemble": {"generation": {"max_tokens": 64, "stop_strings": ["Q:"]}}})
    {'max_gen_toks': 64, 'until': ['Q:']}
    """
    return {} if GAC[0] in content else methods.generation(section(content, "ensemble", methods.ENSEMBLE))


def read(content: Mapping[str, Any], path: Path) -> ToolkitRun:
    """Read a file; messages begin with its path."""
    try:
        return read_gac(content) if GAC[0] in content else read_toolkit(content)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None


def read_toolkit(content: Mapping[str, Any]) -> ToolkitRun:
    """Read a file of the authors' toolkit."""
    given = mapping(content, "", SECTIONS)
    without_effect = ["server"] if section(given, "server", ("host", "port")) else []
    debug = section(given, "debug", DEBUG)
    without_effect += [f"debug.{name}" for name in debug if name != "enable_thinking"]
    models = models_of(given, debug.get("enable_thinking"), without_effect)
    ensemble = section(given, "ensemble", methods.ENSEMBLE)
    generation = methods.generation(ensemble)
    selection = methods.selection(ensemble, given.get("model_stats"), without_effect)
    rewards = given.get("reward_specs")
    is_tandem = methods.method_of(ensemble) in methods.POLICIES
    note = ""
    if is_tandem:
        arguments, note = methods.policy(ensemble, models, selection, without_effect)
        without_effect += ["reward_specs"] * bool(rewards)
    else:
        arguments = {"models": models, **selection}
        arguments |= methods.aggregation(ensemble, models, selection, rewards, without_effect)
    seed = section(ensemble, "generation", methods.GENERATION_KEYS, "ensemble.").get("seed")
    if seed is not None:
        arguments["seed"] = to_whole_number("generation.seed", seed)
    thinks = any(model.get("enable_thinking") for model in models)
    return ToolkitRun("tandem" if is_tandem else "ensemble", arguments, generation, thinks, tuple(without_effect), note)


def read_gac(content: Mapping[str, Any]) -> ToolkitRun:
    """Read a file of GaC: its primary model becomes the first, which decides alone where it is confident."""
    given = mapping(content, "", GAC)
    entries = given.get(GAC[0])
    if not isinstance(entries, list) or not entries:
        raise ArgumentError(f"{GAC[0]} has to be a list of models, each with a weight (its folder or hub id).")
    entries = [mapping(entry, f"{GAC[0]}[{i}]", GAC_MODEL) for i, entry in enumerate(entries)]
    norm = choice(GAC[1], given.get(GAC[1], "average"), ("average", "score"))
    without_effect: list[str] = []
    priorities, models, scores = list[str](), list[dict[str, Any]](), list[Any]()
    for i, entry in enumerate(entries):
        where = f"{GAC[0]}[{i}]"
        if not isinstance(entry.get("weight"), str):
            raise ArgumentError(f"{where}.weight has to be the folder or hub id of a model.")
        priority = entry.get("priority", "supportive")
        priorities.append(choice(f"{where}.priority", priority, ("primary", "supportive")))
        spec = {"path": entry["weight"]} | {name: entry[name] for name in GAC_MODEL[4:] if name in entry}
        model = model_of(spec, where, {}, without_effect)
        models.append(model | ({"name": str(entry["name"])} if "name" in entry else {}))
        scores.append(entry.get("score"))
    if priorities.count("primary") > 1:
        raise ArgumentError(f"{GAC[0]} has several models of priority: primary; keep one, and make others supportive.")
    first = priorities.index("primary") if "primary" in priorities else 0
    order = [first, *(i for i in range(len(models)) if i != first)]
    arguments: dict[str, Any] = {"models": [models[i] for i in order], "aggregation": "gac"}
    if norm == "score":
        if None in scores:
            raise ArgumentError(f"{GAC[1]}: score needs a score of every model in {GAC[0]}; give them, or average.")
        arguments["weights"] = to_weights(f"{GAC[0]}.score", [scores[i] for i in order])
    elif any(score is not None for score in scores):
        without_effect.append(f"{GAC[0]}.score")
    if GAC[2] in given and "primary" in priorities:
        arguments["threshold"] = to_share(GAC[2], given[GAC[2]])
    elif GAC[2] in given:
        without_effect.append(GAC[2])
    return ToolkitRun("ensemble", arguments, {}, False, tuple(without_effect))
