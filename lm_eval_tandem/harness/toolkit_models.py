"""The models in a file of the authors' ensemble toolkit or of GaC, as arguments of this package (`toolkit_config`)."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval_tandem.ensembles.scorers import LOGPROB
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.arguments import PAIR, to_bool
from lm_eval_tandem.harness.ensemble_arguments import BUNDLED, to_number, unused

Model = dict[str, Any]
"""A model with its `backend` and arguments, as `models` of `--model ensemble` takes it."""

SPEC = (
    *("path", "engine", "device", "max_memory", "quantization", "enable_thinking", "num_gpus", "padding_side"),
    "think_end_token",
)
"""Keys of a model; the last is no key of theirs, but what the engines here need where a model is to think."""
BACKENDS = {"hf": "hf", "vllm": "vllm", "api": "openai"}
"""What their engines are called here."""
QUANTIZATION: Mapping[str, Model] = {"none": {}, "8bit": {"load_in_8bit": True}, "4bit": {"load_in_4bit": True}}
API = {"base_url": "https://openrouter.ai/api/v1", "api_key_env": "OPENROUTER_API_KEY"}
"""Where their toolkit asks a model of engine api whose path names no server."""
AT_SERVER = re.compile(r"(?P<url>https?://[^/:]+(?::\d+)?(?:/[^:]*)?)(?::(?P<key>.+))?")
"""The rest of `model:url:key`, from the address on."""
ENGINE_OPTIONS = {
    "hf": ("use_eager_attention", "disable_device_map", "use_8bit", "use_4bit", "low_cpu_mem"),
    "vllm": (
        "enforce_eager",
        "disable_chunked_prefill",
        "max_model_len",
        "gpu_memory_utilization",
        "disable_sliding_window",
    ),
    "api": ("timeout", "max_retries"),
}
SAME_NAME = ("enforce_eager", "max_model_len", "gpu_memory_utilization", "disable_sliding_window", "timeout")
"""Options of engines that are called the same here."""
REWARD = ("path", "engine", "device", "weight")
PRM_SCALE = 10.0
"""Their scores of a process reward model are this many times the probabilities that are the scores here."""
SIZE = re.compile(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", re.IGNORECASE)
"""A number of parameters in a model's name: 7B, 0.5b, 135M, 8x7B."""
WEIGHTS = (".safetensors", ".bin", ".gguf")


def section(content: Mapping[str, Any], name: str, known: Collection[str], within: str = "") -> dict[str, Any]:
    """A mapping in a file, without the keys that have no value; empty where it is not given itself.

    Raises
    ------
    ArgumentError
        It is no mapping, or has a key that is not known.
    """
    value = {} if content.get(name) is None else content[name]
    return mapping(value, within + name, known)


def mapping(value: Any, where: str, known: Collection[str]) -> dict[str, Any]:
    """As `section`, of a value that is at hand; `where` is how messages call it, "" for the file itself."""
    if not isinstance(value, Mapping):
        kind = type(value).__name__  # and not the value, in which a key may be
        raise ArgumentError(f"{where} has to be a mapping with {', '.join(known)}, and is of type {kind}.")
    for name in value:
        if name not in known:
            close = get_close_matches(str(name), known, n=1, cutoff=0.5)
            instead = f"did you mean {close[0]}?" if close else "leave it out."
            raise ArgumentError(
                f"the key {f'{where}.{name}' if where else name} is not known; {instead} Known there: "
                f"{', '.join(known) or 'none'}."
            )
    return {str(name): one for name, one in value.items() if one is not None}


def choice(where: str, value: Any, allowed: Collection[str]) -> str:
    """One of some words."""
    if str(value) not in allowed:
        close = get_close_matches(str(value), allowed, n=1)
        hint = f"did you mean {close[0]}? Use" if close else "use"
        raise ArgumentError(f"{where}={value} is not known; {hint} one of {', '.join(allowed)}.")
    return str(value)


def models_of(content: Mapping[str, Any], thinking: Any, without_effect: list[str]) -> list[Model]:
    """The models of `model_specs`, with what `engine_options` says of their engines.

    Parameters
    ----------
    content
        The file.
    thinking
        `debug.enable_thinking`, for models without a value of their own; None where it is not given.
    without_effect
        Gets the keys that have no effect here.
    """
    given = content.get("model_specs")
    if not isinstance(given, list) or not given:
        raise ArgumentError("model_specs has to be a list of models, each with a path.")
    specs = [mapping(spec, f"model_specs[{i}]", SPEC) for i, spec in enumerate(given)]
    engines = {str(spec.get("engine", "hf")) for spec in specs}
    options = engine_options(content, engines, without_effect)
    if thinking is not None:
        specs = [{"enable_thinking": thinking} | spec for spec in specs]
    return [model_of(spec, f"model_specs[{i}]", options, without_effect) for i, spec in enumerate(specs)]


def engine_options(
    content: Mapping[str, Any], engines: Collection[str], without_effect: list[str]
) -> dict[str, dict[str, Any]]:
    """The arguments of each of their engines; `quantization` of hf among them, for models without one of their own."""
    groups = section(content, "engine_options", ENGINE_OPTIONS)
    found: dict[str, dict[str, Any]] = {}
    for engine, known in ENGINE_OPTIONS.items():
        where = f"engine_options.{engine}"
        given = section(groups, engine, known, "engine_options.")
        if given and engine not in engines:
            without_effect.append(where)
            given = {}
        found[engine] = {name: value for name, value in given.items() if name in SAME_NAME}
        flags = ("use_eager_attention", "use_8bit", "use_4bit", "disable_chunked_prefill")
        is_on = {name: to_bool(f"{where}.{name}", given[name]) for name in flags if name in given}
        if is_on.get("use_eager_attention"):
            found[engine]["attn_implementation"] = "eager"
        if is_on.get("use_8bit") and is_on.get("use_4bit"):
            raise ArgumentError(f"{where}.use_8bit and {where}.use_4bit are both true; keep one of them.")
        for bits in ("8bit", "4bit"):
            if is_on.get(f"use_{bits}"):
                found[engine]["quantization"] = bits
        if is_on.get("disable_chunked_prefill"):
            found[engine]["enable_chunked_prefill"] = False
        if "max_retries" in given:
            found[engine]["retries"] = given["max_retries"]
        without_effect += [f"{where}.{name}" for name in ("disable_device_map", "low_cpu_mem") if name in given]
    return found


def model_of(
    spec: Mapping[str, Any], where: str, options: Mapping[str, Mapping[str, Any]], without_effect: list[str]
) -> Model:
    """One model of their layout; `where` is how messages call it."""
    engine = choice(f"{where}.engine", spec.get("engine", "hf"), BACKENDS)
    if not isinstance(spec.get("path"), str) or not spec["path"]:
        raise ArgumentError(f"{where}.path is missing; give the folder, hub id or name of the model.")
    model: Model = {"model": spec["path"], "backend": BACKENDS[engine]}
    if engine == "api":
        model |= at_server(spec["path"], where)
    common = options.get(engine, {})
    model |= {name: value for name, value in common.items() if name != "quantization"}
    if "enable_thinking" in spec:
        model["enable_thinking"] = to_bool(f"{where}.enable_thinking", spec["enable_thinking"])
    if "think_end_token" in spec:
        model["think_end_token"] = str(spec["think_end_token"])
    bits = choice(f"{where}.quantization", spec.get("quantization", common.get("quantization", "none")), QUANTIZATION)
    if bits != "none" and engine != "hf":
        raise ArgumentError(f"{where}.quantization={bits} is only for engine: hf; name a model that is quantised.")
    return model | QUANTIZATION[bits] | placement(spec, engine, where, without_effect)


def at_server(path: str, where: str) -> Model:
    """A model of engine api: its name, or `name:url`, or `name:url:$VARIABLE` with the variable that holds its key."""
    name, found, rest = path.partition(":http")
    if not found:
        return {"model": path, **API}
    parts = AT_SERVER.fullmatch("http" + rest)
    if not name or parts is None:
        raise ArgumentError(f"{where}.path names no model at a server; write model:http://host:port/v1:$KEY_VARIABLE.")
    model = {"model": name, "base_url": parts["url"]}
    if parts["key"] is None:
        return model
    variable = re.fullmatch(r"\$\{?(\w+)\}?", parts["key"])
    if variable is None:
        raise ArgumentError(
            f"{where}.path holds the key of {name}, which would be printed and kept with the results; put it into an "
            f"environment variable and write {name}:{parts['url']}:$VARIABLE."
        )
    return {**model, "api_key_env": variable[1]}


def placement(spec: Mapping[str, Any], engine: str, where: str, without_effect: list[str]) -> Model:
    """Where a model runs: `device`, `max_memory`, `num_gpus` (and `padding_side`, which engines here decide)."""
    found: Model = {}
    if "padding_side" in spec:
        choice(f"{where}.padding_side", spec["padding_side"], ("left", "right"))
        without_effect.append(f"{where}.padding_side")
    if "num_gpus" in spec:
        gpus = to_number(f"{where}.num_gpus", spec["num_gpus"])
        if gpus > 1 and engine != "api":
            found = {"parallelize": True} if engine == "hf" else {"tensor_parallel_size": int(gpus)}
        else:
            without_effect.append(f"{where}.num_gpus")
    if spec.get("device", "auto") != "auto":
        if engine == "hf":
            found["device"] = str(spec["device"])
        else:  # vLLM finds its own, and a server has its own
            without_effect.append(f"{where}.device")
    if "max_memory" not in spec:
        return found
    if engine == "api":
        without_effect.append(f"{where}.max_memory")
        return found
    if engine == "vllm":
        raise ArgumentError(
            f"{where}.max_memory is not for engine: vllm; write engine_options.vllm.gpu_memory_utilization."
        )
    memory = spec["max_memory"]
    if not isinstance(memory, Mapping) or not memory:
        raise ArgumentError(f'{where}.max_memory={memory} has to be a mapping such as {{"0": "10GB", "cpu": "20GB"}}.')
    of_gpus = {str(amount) for device, amount in memory.items() if device != "cpu"}
    if len(of_gpus) > 1:
        raise ArgumentError(
            f"{where}.max_memory gives GPUs different amounts ({', '.join(sorted(of_gpus))}); give the same to all."
        )
    found["parallelize"] = True
    if of_gpus:
        found["max_memory_per_gpu"] = of_gpus.pop()
    if "cpu" in memory:
        found["max_cpu_memory"] = str(memory["cpu"])
    return found


def scorer_of(given: Any, models: Sequence[Model], threshold: Any, without_effect: list[str]) -> dict[str, Any]:
    """The arguments `scorer` and `score_threshold`, from `reward_specs`.

    Parameters
    ----------
    given
        `reward_specs`: a list of one reward model.
    models
        The models of the ensemble.
    threshold
        `score_threshold`, on their scale; None where it is not given.
    without_effect
        Gets the keys that have no effect here.
    """
    if not isinstance(given, list) or len(given) != 1:
        raise ArgumentError(
            f"reward_specs holds {len(given) if isinstance(given, list) else 'no list of'} reward models, and "
            "output_aggregation_method: reward_based takes one; keep one of them."
        )
    spec = mapping(given[0], "reward_specs[0]", REWARD)
    engine = choice("reward_specs[0].engine", spec.get("engine"), ("hf_rm", "hf_gen", "api"))
    path = spec.get("path")
    if not isinstance(path, str) or not path:
        raise ArgumentError("reward_specs[0].path is missing; give the folder, hub id or address of the reward model.")
    if not to_number("reward_specs[0].weight", spec.get("weight", 1.0)) > 0:  # of one, any other weight is the whole
        raise ArgumentError(f"reward_specs[0].weight={spec['weight']} has to be above 0.")
    arguments: dict[str, Any] = {}
    if spec.get("device", "auto") != "auto":
        # The device of a run is that of the scorer too, and of each model that has none of its own.
        if engine == "hf_rm" and all("device" in model for model in models):
            arguments["device"] = str(spec["device"])
        else:
            without_effect.append("reward_specs[0].device")
    if engine == "api":
        if not path.startswith(("http://", "https://")):
            raise ArgumentError("reward_specs[0].path is no address; give one like http://127.0.0.1:8000/v1.")
    elif engine == "hf_gen":
        names = member_names(models)
        if path not in names:
            raise ArgumentError(
                f"reward_specs[0].path={path} of engine: hf_gen is none of the models, which alone rate by their "
                f"log-probabilities here; use one of {', '.join(names)}."
            )
        if threshold is not None:
            raise ArgumentError(
                f"score_threshold={threshold} is on their scale of hf_gen, and the scores here are nats per token; "
                "leave it out, or give score_threshold=… in nats beside ensemble=FILE."
            )
        path = LOGPROB + names[path]
    arguments["scorer"] = path
    if threshold is not None:
        number = to_number("score_threshold", threshold)
        arguments["score_threshold"] = number / PRM_SCALE if engine == "hf_rm" else number
    return arguments


def member_names(models: Sequence[Model]) -> dict[str, str]:
    """The name that `--model ensemble` gives each model, by its path; the first, where a path stands twice."""
    names: dict[str, str] = {}
    taken: list[str] = []
    for model in models:
        taken.append(unused(Path(model["model"]).name, taken))
        names.setdefault(model["model"], taken[-1])
    return names


def by_size(models: Sequence[Model]) -> tuple[list[Model], str]:
    """Two models, the larger one first, and in words how that is known.

    The sizes in their names decide (…-7B); where one has none, the sizes of the weights in their folders; where one is
    no folder either, the first is taken for the larger.
    """
    first, second = (Path(str(BUNDLED.get(model["model"], model["model"]))).expanduser() for model in models)
    named = [size_in(path.name) for path in (first, second)]
    if None not in named:
        sizes, how = named, "by the sizes in their names"
    elif first.is_dir() and second.is_dir():
        sizes, how = [weights_in(path) for path in (first, second)], "by the sizes of their weights"
    else:
        sizes, how = [1.0, 0.0], "because it is named first, since nothing tells their sizes"
    ordered = sorted(zip(sizes, models, strict=True), key=lambda pair: -(pair[0] or 0))  # stable: of equals the first
    return [model for _, model in ordered], how


def size_in(name: str) -> float | None:
    """The largest number of parameters in a model's name, in billions; None where there is none."""
    sizes = [
        int(experts or 1) * float(number) * (1.0 if unit in "bB" else 1e-3)
        for experts, number, unit in SIZE.findall(name)
    ]
    return max(sizes, default=None)


def weights_in(folder: Path) -> float:
    """The size of a folder's weights in bytes."""
    return float(sum(file.stat().st_size for file in folder.iterdir() if file.suffix in WEIGHTS))


def as_roles(mentor: Model, intern: Model) -> dict[str, Any]:
    """Two models as arguments of `--model tandem`."""
    arguments: dict[str, Any] = {}
    for role, model in (("mentor", mentor), ("intern", intern)):
        bundled = PAIR if model["model"] == f"{PAIR}/{role}" else str(BUNDLED.get(model["model"], model["model"]))
        arguments |= {role: bundled}
        arguments |= {f"{role}_{name}": value for name, value in model.items() if name != "model"}
    return arguments
