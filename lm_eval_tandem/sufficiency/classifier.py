"""The sufficiency classifier as an artefact on disk: JSON and safetensors, so that loading runs no code.

A folder holds config.json (what it is, for which pair, thresholds, checksum), model.safetensors (float32 arrays mean,
scale, weight.0, bias.0, ...; weights are (inputs, units)) and README.md (its card). The estimator is in `mlp.py`.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError
from sklearn.utils.validation import check_is_fitted

from lm_eval_tandem import __version__
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.sufficiency.features import FEATURE_NAMES, SCHEMA
from lm_eval_tandem.sufficiency.mlp import SufficiencyClassifier

__all__ = ["FORMAT_VERSION", "Sufficiency", "SufficiencyClassifier", "load", "save"]

FORMAT_VERSION = 1

_KEYS: dict[str, type] = {
    "features": list,
    "hidden": list,
    "log_features": bool,
    "training": dict,
    "stages": int,
    "thresholds": list,
    "pair": dict,
    "fitted_on": dict,
    "recipe": str,
    "sha256": str,
}


@dataclass(frozen=True)
class Sufficiency:
    """A loaded artefact: the estimator, one threshold per stage (stage 0 first), and what it was made for.

    name: the folder's name. schema: of the features. pair: {"mentor": ..., "intern": ...}. recipe: how it was fitted.
    config: all of config.json.
    """

    estimator: SufficiencyClassifier
    thresholds: tuple[float, ...]
    name: str
    schema: str
    pair: dict[str, str]
    recipe: str
    config: dict[str, Any]

    def score(self, features: NDArray[np.float64]) -> float:
        """s_t in [0, 1]: the probability that the intern answers well, for one feature vector of shape (18,)."""
        if np.shape(features) != (len(FEATURE_NAMES),) or not np.isfinite(features).all():
            raise ClassifierError(
                f"The judge was given an array of shape {np.shape(features)} (or one that is not finite); give the "
                f"{len(FEATURE_NAMES)} finite numbers of one `features(stats, stage)` call."
            )
        return float(self.estimator.predict_proba(np.reshape(features, (1, -1)))[0, 1])


def save(
    folder: str | Path,
    classifier: SufficiencyClassifier,
    thresholds: Sequence[float],
    *,
    pair: Mapping[str, str],
    fitted_on: Mapping[str, Any],
    recipe: str,
    card: str,
) -> None:
    """Write an artefact: config.json, model.safetensors and README.md (the card), each file in one step, config last.

    classifier: fitted on the 18 features with labels 0 and 1. thresholds: in [0, 1], one per stage, stage 0 included.
    pair: {"mentor": name, "intern": name}. fitted_on: anything JSON holds (data set, split, number of questions).
    Raises ClassifierError when something of this does not fit or the folder cannot be written.
    """
    check_is_fitted(classifier, "weights_")
    if list(classifier.classes_) != [0, 1]:
        raise ClassifierError(f"The classifier was fitted on labels {list(classifier.classes_)}; fit it on 0 and 1.")
    tensors = {"mean": classifier.mean_, "scale": classifier.scale_}
    for layer, (weight, bias) in enumerate(zip(classifier.weights_, classifier.biases_, strict=True)):
        tensors |= {f"weight.{layer}": weight, f"bias.{layer}": bias}
    model = safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in tensors.items()})
    training = classifier.get_params()
    config = {
        "format_version": FORMAT_VERSION,
        "schema": SCHEMA,
        "features": list(FEATURE_NAMES),
        "hidden": list(training.pop("hidden")),
        "log_features": training.pop("log_features"),
        "training": training
        | {"validation_accuracy": classifier.validation_accuracy_, "epochs_run": classifier.epochs_run_},
        "stages": len(thresholds),
        "thresholds": [float(value) for value in thresholds],
        "pair": dict(pair),
        "fitted_on": dict(fitted_on),
        "recipe": recipe,
        "sha256": hashlib.sha256(model).hexdigest(),
        "versions": _versions(),
    }
    _restored(Path(folder), config, model)
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ClassifierError(
            f"The pair or fitted_on of {folder} holds what JSON cannot ({error}); pass plain values."
        ) from None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for name, content in (
            ("model.safetensors", model),
            ("README.md", card.encode()),
            ("config.json", text.encode()),
        ):
            temporary = Path(folder) / f".{name}.{os.getpid()}.tmp"
            try:
                temporary.write_bytes(content)
                temporary.replace(Path(folder) / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ClassifierError(
            f"The classifier cannot be written to {folder} ({error.strerror}); give a folder that can."
        ) from None


def _versions() -> dict[str, str]:
    """What the artefact was made with, for a reader of config.json; judging depends on none of it."""
    versions = {"python": platform.python_version(), "lm-eval-tandem": __version__}
    for name in ("numpy", "scikit-learn", "safetensors", "torch"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def load(folder: str | Path, *, stages: int | None = None) -> Sufficiency:
    """Read an artefact that `save` wrote; runs no code of it.

    stages: how many stages the cascade has, stage 0 included, to refuse an artefact for another number (None: any).
    Raises ClassifierError, in one sentence, for everything that keeps the artefact from judging.
    """
    path = Path(folder)
    if not path.is_dir():
        raise ClassifierError(
            f"No classifier at {path}; make one with `lm-eval-tandem collect` and then `lm-eval-tandem fit`, or choose "
            "policy=stage:N, which needs none."
        )
    content = {}
    for name in ("config.json", "model.safetensors"):
        try:
            content[name] = (path / name).read_bytes()
        except OSError as error:
            raise ClassifierError(
                f"The classifier {path} lacks a readable {name} ({error.strerror}); fetch the folder again or refit it."
            ) from None
    try:
        config = json.loads(content["config.json"])
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ClassifierError(f"{path}/config.json is not a JSON object; fetch the folder again or refit it.")
    loaded = _restored(path, config, content["model.safetensors"])
    if stages not in (None, len(loaded.thresholds)):
        raise ClassifierError(
            f"The classifier {path} has thresholds for {len(loaded.thresholds)} stages (stage 0 included), but this "
            f"cascade has {stages}; set as many budgets or refit it."
        )
    return loaded


def _restored(path: Path, config: dict[str, Any], model: bytes) -> Sufficiency:
    """The artefact of a parsed config and the bytes of its arrays, every claim of the config checked."""
    if config.get("format_version") != FORMAT_VERSION:
        raise ClassifierError(
            f"The classifier {path} has format version {config.get('format_version')}, but this lm-eval-tandem reads "
            f"{FORMAT_VERSION}; refit it or install the version that wrote it."
        )
    if config.get("schema") != SCHEMA:
        raise ClassifierError(
            f"The classifier {path} judges features of schema {config.get('schema')!r}, but this lm-eval-tandem "
            f"computes {SCHEMA!r}; refit it or install the version that wrote it."
        )
    for key, form in _KEYS.items():
        if type(config.get(key)) is not form:
            raise ClassifierError(f"{path}/config.json needs {key!r} as {form.__name__}; refit the classifier.")
    if hashlib.sha256(model).hexdigest() != config["sha256"]:
        raise ClassifierError(
            f"{path}/model.safetensors is corrupted (its checksum differs from config.json); fetch the folder "
            "again or refit it."
        )
    try:
        tensors = safetensors.numpy.load(model)
    except SafetensorError as error:
        raise ClassifierError(f"{path}/model.safetensors is not a safetensors file ({error}); refit.") from None
    hidden, thresholds = config["hidden"], config["thresholds"]
    if len(thresholds) != config["stages"] or len(thresholds) < 2:
        raise ClassifierError(
            f"The classifier {path} has {len(thresholds)} thresholds for {config['stages']} stages; it needs one per "
            "stage (stage 0 included) and at least 2, so refit it."
        )
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in thresholds):
        raise ClassifierError(
            f"The classifier {path} has thresholds {thresholds}; each must be in [0, 1], so refit it."
        )
    if not all(type(units) is int and units > 0 for units in hidden) or config["features"] != list(FEATURE_NAMES):
        raise ClassifierError(f"{path}/config.json names other features or layer sizes than {SCHEMA} has; refit it.")
    if not all(type(config["pair"].get(role)) is str for role in ("mentor", "intern")):
        raise ClassifierError(
            f"The classifier {path} names the pair {config['pair']}; give both a mentor and an intern."
        )
    sizes = (len(FEATURE_NAMES), *hidden, 1)
    shapes: dict[str, tuple[int, ...]] = {"mean": sizes[:1], "scale": sizes[:1]}
    for layer, size in enumerate(sizes[1:]):
        shapes |= {f"weight.{layer}": (sizes[layer], size), f"bias.{layer}": (size,)}
    for name in shapes | tensors:
        found = tensors.get(name)
        kind = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
        if (
            found is None
            or found.shape != shapes.get(name)
            or found.dtype != np.float32
            or not np.isfinite(found).all()
        ):
            raise ClassifierError(
                f"{path}/model.safetensors holds {name!r} as {kind}, but config.json asks for finite float32 of "
                f"shape {shapes.get(name)}; refit it."
            )
    if not (tensors["scale"] > 0).all():
        raise ClassifierError(f"{path}/model.safetensors holds a scale of 0 or less, which nothing fits; refit it.")
    training = {key: value for key, value in config["training"].items() if key in SufficiencyClassifier().get_params()}
    estimator = SufficiencyClassifier(**training | {"hidden": tuple(hidden), "log_features": config["log_features"]})
    estimator.mean_, estimator.scale_ = tensors["mean"], tensors["scale"]
    estimator.weights_ = [tensors[f"weight.{layer}"] for layer in range(len(sizes) - 1)]
    estimator.biases_ = [tensors[f"bias.{layer}"] for layer in range(len(sizes) - 1)]
    estimator.classes_, estimator.n_features_in_ = np.array([0, 1]), len(FEATURE_NAMES)
    estimator.validation_accuracy_ = config["training"].get("validation_accuracy")
    estimator.epochs_run_ = config["training"].get("epochs_run")
    return Sufficiency(
        estimator, tuple(map(float, thresholds)), path.resolve().name, SCHEMA, config["pair"], config["recipe"], config
    )
