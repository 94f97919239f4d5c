"""The sufficiency classifier as an artefact on disk: JSON and safetensors, so that loading runs no code.

A folder holds config.json (what it is, what it is shown, for which pair, thresholds, checksums), model.safetensors (its
arrays, see `registry.py`), README.md (its card), for hidden states of a finetuned intern the folder adapter (LoRA
weights and their JSON, see `engines/hf/lora_adapter.py`) and, where it was fitted by the command line,
out_of_fold.safetensors (scores of the questions it was fitted on, by classifiers that had not seen them; judging does
not need it).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from lm_eval_tandem import __version__
from lm_eval_tandem.engines import DEFAULT_VIEW, ScoringView
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.judge.probe import Probe, statistics
from lm_eval_tandem.judge.registry import MODELS, Estimator, kind_of, restored, tensors_of

__all__ = ["FORMAT_VERSION", "Sufficiency", "SufficiencyClassifier", "load", "save"]

FORMAT_VERSION = 1
SCORES = "out_of_fold.safetensors"
ADAPTER = "adapter"
"""The folder of the LoRA adapter, and the entry of config.json with the checksums of its files."""

_KEYS: dict[str, type] = {
    "features": list,
    "training": dict,
    "stages": int,
    "thresholds": list,
    "pair": dict,
    "fitted_on": dict,
    "recipe": str,
    "sha256": str,
}


_MLP_KEYS: dict[str, type] = {"hidden": list, "log_features": bool}


class Measured(Protocol):
    """An answer that the intern has begun: natural logarithms for each of its first n tokens, and how it ended."""

    @property
    def logprob(self) -> NDArray[np.float32]: ...

    @property
    def entropy(self) -> NDArray[np.float32]: ...

    @property
    def finish_reason(self) -> str: ...


@dataclass(frozen=True)
class Sufficiency:
    """A loaded artefact: the estimator, one threshold per stage (stage 0 first), and what it was made for.

    name: the folder's name. schema: of the features. pair: {"mentor": ..., "intern": ...}. recipe: how it was fitted.
    config: all of config.json. probe: how far the answer is begun before it is judged; None for not at all.
    adapter: the folder of the LoRA adapter that the intern reads with; None for none.
    """

    estimator: Estimator
    thresholds: tuple[float, ...]
    name: str
    schema: str
    pair: dict[str, str]
    recipe: str
    config: dict[str, Any]
    probe: Probe | None = None
    adapter: Path | None = None

    @property
    def reads_prompt(self) -> bool:
        """Whether it sees the prompt's statistics or hidden state, for which the intern has to read it as a judge."""
        return self.schema != input_schemas.PROBE

    @property
    def width(self) -> int | None:
        """D, the numbers of the hidden state that it sees; None where it sees none."""
        return input_schemas.width(self.schema)

    @property
    def view(self) -> ScoringView:
        """How the intern has to look at a prompt for it."""
        if self.width is None:
            return DEFAULT_VIEW
        return ScoringView(True, None if self.adapter is None else checksum_of(self.config[ADAPTER]))

    def look(self, features: NDArray[np.float64], begun: Measured | None = None) -> NDArray[np.float64]:
        """What the judge sees.

        features: the 18 statistics of a prompt, its hidden state, (D,), where that is what it sees, or the stage
            alone, (1,), where it does not read the prompt.
        begun: the answer as far as the probe goes; None for a classifier that does not probe.
        """
        if self.probe is None:
            return input_schemas.vectors(self.schema, features, None)
        if begun is None:
            raise ClassifierError(f"The classifier {self.name} judges an answer that was begun, and none was given.")
        seen = statistics(begun.logprob, begun.entropy, bool(begun.finish_reason), self.probe)
        return input_schemas.vectors(self.schema, features, seen)

    def score(self, features: NDArray[np.float64]) -> float:
        """s_t in [0, 1]: the probability that the intern answers well, for one vector as `look` returns it."""
        width = self.estimator.n_features_in_
        if np.shape(features) != (width,) or not all(map(math.isfinite, np.asarray(features).tolist())):
            raise ClassifierError(
                f"The judge was given an array of shape {np.shape(features)} (or one that is not finite); give the "
                f"{width} finite numbers of one look at a prompt (schema {self.schema})."
            )
        # Checked above; scikit-learn's own checks would take most of the judge's time.
        return float(self.estimator.positive(np.reshape(features, (1, -1)))[0])


def save(
    folder: str | Path,
    classifier: Estimator,
    thresholds: Sequence[float],
    *,
    pair: Mapping[str, str],
    fitted_on: Mapping[str, Any],
    recipe: str,
    card: str,
    schema: str = input_schemas.STATISTICS,
    probe: Probe | None = None,
    out_of_fold: Mapping[str, NDArray[Any]] | None = None,
    adapter: Mapping[str, bytes] | None = None,
) -> None:
    """Write an artefact, each file in one step, config.json last.

    classifier: fitted on vectors of the schema with labels 0 and 1. thresholds: in [0, 1], one per stage, stage 0
    included. pair: {"mentor": name, "intern": name}. fitted_on: anything JSON holds (data set, split, number of
    questions). probe: as the classifier was fitted with. out_of_fold: arrays for out_of_fold.safetensors.
    adapter: the files of the LoRA adapter by name, where the schema is of hidden states under one.
    Raises ClassifierError when something of this does not fit or the folder cannot be written.
    """
    tensors = tensors_of(classifier)
    if list(classifier.classes_) != [0, 1]:
        raise ClassifierError(f"The classifier was fitted on labels {list(classifier.classes_)}; fit it on 0 and 1.")
    model = _packed(tensors)
    training = classifier.get_params()
    config: dict[str, Any] = {
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
        config[ADAPTER] = {name: hashlib.sha256(content).hexdigest() for name, content in sorted(adapter.items())}
    config |= {
        "training": training,
        "stages": len(thresholds),
        "thresholds": [float(value) for value in thresholds],
        "pair": dict(pair),
        "fitted_on": dict(fitted_on),
        "recipe": recipe,
        "sha256": hashlib.sha256(model).hexdigest(),
        "versions": _versions(),
    }
    _restored(Path(folder), config, model, adapter or {})
    try:
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ClassifierError(
            f"The pair or fitted_on of {folder} holds what JSON cannot ({error}); pass plain values."
        ) from None
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        if adapter is not None:
            (Path(folder) / ADAPTER).mkdir(exist_ok=True)
        files = {"model.safetensors": model, "README.md": card.encode(), "config.json": text.encode()}
        if out_of_fold is not None:
            files = {SCORES: _packed(out_of_fold), **files}
        files = {**{f"{ADAPTER}/{name}": content for name, content in (adapter or {}).items()}, **files}
        for name, content in files.items():
            temporary = (Path(folder) / name).with_name(f".{Path(name).name}.{os.getpid()}.tmp")
            try:
                temporary.write_bytes(content)
                temporary.replace(Path(folder) / name)
            finally:
                temporary.unlink(missing_ok=True)
    except OSError as error:
        raise ClassifierError(
            f"The classifier cannot be written to {folder} ({error.strerror}); give a folder that can."
        ) from None


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def out_of_fold_of(folder: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of out_of_fold.safetensors; none where the artefact has no such file.

    Raises ClassifierError for a file that cannot be read.
    """
    path = Path(folder) / SCORES
    try:
        return dict(safetensors.numpy.load(path.read_bytes())) if path.exists() else {}
    except (OSError, SafetensorError) as error:
        raise ClassifierError(f"{path} cannot be read ({error}); fetch the folder again or refit it.") from None


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
    loaded = _restored(path, config, content["model.safetensors"], _adapter_files(path, config))
    if stages not in (None, len(loaded.thresholds)):
        raise ClassifierError(
            f"The classifier {path} has thresholds for {len(loaded.thresholds)} stages (stage 0 included), but this "
            f"cascade has {stages}; set as many budgets or refit it."
        )
    return loaded


def _adapter_files(path: Path, config: dict[str, Any]) -> dict[str, bytes]:
    """The files of the adapter that a parsed config names, by name; none where it names none."""
    listed = config.get(ADAPTER, {})
    if not isinstance(listed, dict) or not all(Path(name).name == name for name in listed):
        raise ClassifierError(f"{path}/config.json needs {ADAPTER!r} as names of files with checksums; refit it.")
    try:
        return {name: (path / ADAPTER / name).read_bytes() for name in listed}
    except OSError as error:
        raise ClassifierError(
            f"The classifier {path} lacks a file of its LoRA adapter ({error.strerror}: {error.filename}); fetch the "
            "folder again or refit it."
        ) from None


def checksum_of(files: Mapping[str, str]) -> str:
    """One checksum of several files with checksums of their own."""
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()


def _restored(path: Path, config: dict[str, Any], model: bytes, adapter: Mapping[str, bytes]) -> Sufficiency:
    """The artefact of a parsed config, the bytes of its arrays and those of its adapter, every claim checked."""
    if config.get("format_version") != FORMAT_VERSION:
        raise ClassifierError(
            f"The classifier {path} has format version {config.get('format_version')}, but this lm-eval-tandem reads "
            f"{FORMAT_VERSION}; refit it or install the version that wrote it."
        )
    try:
        names = input_schemas.names(config.get("schema"))
    except ClassifierError as error:
        raise ClassifierError(
            f"The classifier {path} cannot judge here: {error}; refit it or install the version that wrote it."
        ) from None
    kind = config.get("model", "mlp")
    if kind not in MODELS:
        raise ClassifierError(f"{path}/config.json names the model {kind!r}, not one of {', '.join(MODELS)}; refit it.")
    for key, form in (_KEYS | (_MLP_KEYS if kind == "mlp" else {})).items():
        if type(config.get(key)) is not form:
            raise ClassifierError(f"{path}/config.json needs {key!r} as {form.__name__}; refit the classifier.")
    if input_schemas.probing(config["schema"]) != ("probe" in config):
        raise ClassifierError(
            f"{path}/config.json has {'a' if 'probe' in config else 'no'} probe, which does not go with its schema "
            f"{config['schema']!r}; refit it."
        )
    try:
        probe = Probe.read(config["probe"]) if "probe" in config else None
    except ClassifierError as error:
        raise ClassifierError(f"{path}/config.json: {error} Refit the classifier.") from None
    if input_schemas.adapted(config["schema"]) != bool(adapter):
        raise ClassifierError(
            f"{path}/config.json has {'a' if adapter else 'no'} LoRA adapter, which does not go with its schema "
            f"{config['schema']!r}; refit it."
        )
    for name, content in adapter.items():
        if hashlib.sha256(content).hexdigest() != config[ADAPTER][name]:
            raise ClassifierError(
                f"{path}/{ADAPTER}/{name} is corrupted (its checksum differs from config.json); fetch the folder "
                "again or refit it."
            )
    if hashlib.sha256(model).hexdigest() != config["sha256"]:
        raise ClassifierError(
            f"{path}/model.safetensors is corrupted (its checksum differs from config.json); fetch the folder "
            "again or refit it."
        )
    try:
        tensors = safetensors.numpy.load(model)
    except SafetensorError as error:
        raise ClassifierError(f"{path}/model.safetensors is not a safetensors file ({error}); refit.") from None
    hidden, thresholds = config.get("hidden", []), config["thresholds"]
    if len(thresholds) != config["stages"] or len(thresholds) < 2:
        raise ClassifierError(
            f"The classifier {path} has {len(thresholds)} thresholds for {config['stages']} stages; it needs one per "
            "stage (stage 0 included) and at least 2, so refit it."
        )
    if not all(type(value) in (int, float) and 0 <= value <= 1 for value in thresholds):
        raise ClassifierError(
            f"The classifier {path} has thresholds {thresholds}; each must be in [0, 1], so refit it."
        )
    if not all(type(units) is int and units > 0 for units in hidden) or config["features"] != list(names):
        raise ClassifierError(
            f"{path}/config.json names other features or layer sizes than {config['schema']} has; refit it."
        )
    if not all(type(config["pair"].get(role)) is str for role in ("mentor", "intern")):
        raise ClassifierError(
            f"The classifier {path} names the pair {config['pair']}; give both a mentor and an intern."
        )
    parameters = dict(config["training"])
    if kind == "mlp":
        parameters |= {"hidden": tuple(hidden), "log_features": config["log_features"]}
    estimator = restored(kind, parameters, tensors, len(names), f"{path}/model.safetensors")
    if isinstance(estimator, SufficiencyClassifier):
        estimator.validation_accuracy_ = parameters.get("validation_accuracy", float("nan"))
        estimator.epochs_run_ = parameters.get("epochs_run", 0)
    return Sufficiency(
        estimator,
        tuple(map(float, thresholds)),
        path.resolve().name,
        config["schema"],
        config["pair"],
        config["recipe"],
        config,
        probe,
        path / ADAPTER if adapter else None,
    )
