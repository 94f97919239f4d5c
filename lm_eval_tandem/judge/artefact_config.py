"""config.json of an artefact: how its entries are made from a fitted classifier, and how each of them is checked.

`artefact.save` checks what it is about to write with the same functions as `artefact.load`, so that nothing is saved
that could not be loaded. Every check raises a `ClassifierError` of one sentence that names the file and the next step.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lm_eval_tandem import __version__
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.registry import MODELS, Estimator, Tensors, from_tensors, kind_of

Config = dict[str, Any]

FORMAT_VERSION = 1
ADAPTER = "adapter"
"""The folder of the LoRA adapter, and the entry of config.json that holds the checksums of its files."""
POLICY_THRESHOLDS = "policy_thresholds"
"""The entry with the thresholds of other policies than the cascade; classifiers of version 0.1 have none."""

_ENTRIES: dict[str, type] = {
    "features": list,
    "training": dict,
    "stages": int,
    "thresholds": list,
    "pair": dict,
    "fitted_on": dict,
    "recipe": str,
    "sha256": str,
}
"""The type of each required entry."""
_MLP_ENTRIES: dict[str, type] = {"hidden": list, "log_features": bool}
"""Further entries of an MLP."""


def describe(
    classifier: Estimator,
    thresholds: Sequence[float],
    model: bytes,
    *,
    policy_thresholds: Mapping[str, Sequence[float]],
    pair: Mapping[str, str],
    fitted_on: Mapping[str, Any],
    recipe: str,
    schema: str,
    probe: Probe | None,
    adapter: Mapping[str, bytes] | None,
) -> Config:
    """The entries of config.json; the parameters are those of `artefact.save`, and `model` are the packed arrays."""
    training = classifier.get_params()
    config: Config = {
        "format_version": FORMAT_VERSION,
        "schema": schema,
        "features": list(input_schemas.names(schema)),
        "model": kind_of(classifier),
    }
    if isinstance(classifier, SufficiencyClassifier):
        config |= {"hidden": list(training.pop("hidden")), "log_features": training.pop("log_features")}
        training |= {"validation_accuracy": classifier.validation_accuracy_, "epochs_run": classifier.epochs_run_}
    if probe is not None:
        config["probe"] = probe.to_json()
    if adapter is not None:
        config[ADAPTER] = {name: checksum(content) for name, content in sorted(adapter.items())}
    return config | {
        "training": training,
        "stages": len(thresholds),
        "thresholds": [float(value) for value in thresholds],
        POLICY_THRESHOLDS: {name: [float(value) for value in values] for name, values in policy_thresholds.items()},
        "pair": dict(pair),
        "fitted_on": dict(fitted_on),
        "recipe": recipe,
        "sha256": checksum(model),
        "versions": _versions(),
    }


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def _versions() -> dict[str, str]:
    """The packages that the classifier was fitted with, for a reader of config.json; judging depends on none of it."""
    versions = {"python": platform.python_version(), "lm-eval-tandem": __version__}
    for name in ("numpy", "scikit-learn", "safetensors", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def check_entries(path: Path, config: Config) -> None:
    """Check version, schema and kind of model, and that every entry they require is there with its type."""
    if config.get("format_version") != FORMAT_VERSION:
        raise ClassifierError(
            f"The classifier {path} has format version {config.get('format_version')}, but this lm-eval-tandem reads "
            f"{FORMAT_VERSION}; refit it or install the version that wrote it."
        )
    try:
        input_schemas.names(config.get("schema"))
    except ClassifierError as error:
        raise ClassifierError(
            f"The classifier {path} cannot judge here: {error}; refit it or install the version that wrote it."
        ) from None
    kind = model_kind(config)
    if kind not in MODELS:
        raise ClassifierError(f"{path}/config.json names the model {kind!r}, not one of {', '.join(MODELS)}; refit it.")
    for key, required in (_ENTRIES | (_MLP_ENTRIES if kind == "mlp" else {})).items():
        if type(config.get(key)) is not required:
            raise ClassifierError(f"{path}/config.json needs {key!r} as {required.__name__}; refit the classifier.")


def model_kind(config: Config) -> str:
    """The kind of model; the oldest artefacts, all MLPs, do not name it."""
    kind: str = config.get("model", "mlp")
    return kind


def checked_probe(path: Path, config: Config) -> Probe | None:
    """The probe, which has to be there exactly if the schema has one."""
    if input_schemas.uses_probe(config["schema"]) != ("probe" in config):
        raise ClassifierError(
            f"{path}/config.json has {'a' if 'probe' in config else 'no'} probe, which does not go with its schema "
            f"{config['schema']!r}; refit it."
        )
    try:
        return Probe.from_json(config["probe"]) if "probe" in config else None
    except ClassifierError as error:
        raise ClassifierError(f"{path}/config.json: {error} Refit the classifier.") from None


def check_files(path: Path, config: Config, model: bytes, adapter: Mapping[str, bytes]) -> None:
    """Check that there is an adapter exactly if the schema has one, and all checksums."""
    if input_schemas.uses_adapter(config["schema"]) != bool(adapter):
        raise ClassifierError(
            f"{path}/config.json has {'a' if adapter else 'no'} LoRA adapter, which does not go with its schema "
            f"{config['schema']!r}; refit it."
        )
    files = [(f"{ADAPTER}/{name}", content, config[ADAPTER][name]) for name, content in adapter.items()]
    for name, content, expected in (*files, ("model.safetensors", model, config["sha256"])):
        if checksum(content) != expected:
            raise ClassifierError(
                f"{path}/{name} is corrupted (its checksum differs from config.json); fetch the folder "
                "again or refit it."
            )


def checked_thresholds(path: Path, config: Config) -> tuple[tuple[float, ...], dict[str, tuple[float, ...]]]:
    """The thresholds of the cascade, and those of other policies by name: one per stage, in [0, 1]."""
    others = config.get(POLICY_THRESHOLDS, {})
    if not isinstance(others, dict) or not all(isinstance(values, list) for values in others.values()):
        raise ClassifierError(f"{path}/config.json needs {POLICY_THRESHOLDS!r} as lists by policy; refit it.")
    for thresholds in (config["thresholds"], *others.values()):
        if len(thresholds) != config["stages"] or len(thresholds) < 2:
            raise ClassifierError(
                f"The classifier {path} has {len(thresholds)} thresholds for {config['stages']} stages; it needs one "
                "per stage (stage 0 included) and at least 2, so refit it."
            )
        if not all(type(value) in (int, float) and 0 <= value <= 1 for value in thresholds):
            raise ClassifierError(
                f"The classifier {path} has thresholds {thresholds}; each must be in [0, 1], so refit it."
            )
    return tuple(map(float, config["thresholds"])), {name: tuple(map(float, each)) for name, each in others.items()}


def check_names(path: Path, config: Config) -> None:
    """Check that features and layers are those of the schema, and that the pair names both models."""
    layers = config.get("hidden", [])
    names = list(input_schemas.names(config["schema"]))
    if not all(type(units) is int and units > 0 for units in layers) or config["features"] != names:
        raise ClassifierError(
            f"{path}/config.json names other features or layer sizes than {config['schema']} has; refit it."
        )
    if not all(type(config["pair"].get(role)) is str for role in ("mentor", "intern")):
        raise ClassifierError(
            f"The classifier {path} names the pair {config['pair']}; give both a mentor and an intern."
        )


def restored_estimator(path: Path, config: Config, tensors: Tensors) -> Estimator:
    """The fitted estimator of a checked config and its arrays."""
    kind, parameters = model_kind(config), dict(config["training"])
    if kind == "mlp":
        parameters |= {"hidden": tuple(config.get("hidden", [])), "log_features": config["log_features"]}
    features = len(input_schemas.names(config["schema"]))
    estimator = from_tensors(kind, parameters, tensors, features, f"{path}/model.safetensors")
    if isinstance(estimator, SufficiencyClassifier):
        estimator.validation_accuracy_ = parameters.get("validation_accuracy", float("nan"))
        estimator.epochs_run_ = parameters.get("epochs_run", 0)
    return estimator
