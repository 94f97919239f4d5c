"""The sufficiency classifier as a folder on disk: JSON and safetensors, so that loading it runs no code.

The folder holds config.json (see `artefact_config`), model.safetensors (the arrays, see `registry`) and README.md (a
card for readers). For hidden states of a finetuned intern there is also the folder adapter with the LoRA weights
(`engines/hf/lora_adapter.py`). `load` returns a `sufficiency.Sufficiency`. `lm-eval-tandem fit` adds
out_of_fold.safetensors: scores of the questions fitted on, by classifiers that had not seen them, for `lm-eval-tandem
thresholds`; judging does not read it. `repository` finds the folder within a model repository.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import artefact_config, input_schemas, repository
from lm_eval_tandem.judge.artefact_config import ADAPTER, FORMAT_VERSION, Config
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.registry import Estimator, Tensors, to_tensors
from lm_eval_tandem.judge.repository import HubRepository
from lm_eval_tandem.judge.sufficiency import Sufficiency
from lm_eval_tandem.whole_files import replacing

__all__ = ["FORMAT_VERSION", "Sufficiency", "SufficiencyClassifier", "load", "save"]

OUT_OF_FOLD = "out_of_fold.safetensors"


def save(
    folder: str | Path,
    classifier: Estimator,
    thresholds: Sequence[float],
    *,
    policy_thresholds: Mapping[str, Sequence[float]] | None = None,
    pair: Mapping[str, str],
    fitted_on: Mapping[str, Any],
    recipe: str,
    card: str,
    schema: str = input_schemas.STATISTICS,
    probe: Probe | None = None,
    out_of_fold: Mapping[str, NDArray[Any]] | None = None,
    adapter: Mapping[str, bytes] | None = None,
) -> None:
    """Write an artefact: each file atomically, config.json last.

    Parameters
    ----------
    folder
        The folder to write into, created if it does not exist.
    classifier
        Fitted on vectors of the schema, with labels 0 and 1.
    thresholds
        In [0, 1], one per stage, stage 0 included.
    policy_thresholds
        As many of other policies than the cascade, by name; None for none.
    pair
        The names of the two models: {"mentor": ..., "intern": ...}.
    fitted_on
        Anything JSON can hold about the data: tasks, number of questions, the report of the fit.
    recipe
        The name of the recipe.
    card
        The text of README.md.
    schema
        The schema of the input vectors.
    probe
        The probe whose features the vectors hold; None for a schema without one.
    out_of_fold
        The arrays of out_of_fold.safetensors; None for no such file.
    adapter
        The files of the LoRA adapter by name, for a schema of hidden states under one.

    Raises
    ------
    ClassifierError
        Something of this is missing, contradicts the schema, or cannot be written.
    """
    folder = Path(folder)
    tensors = to_tensors(classifier)
    if list(classifier.classes_) != [0, 1]:
        raise ClassifierError(f"The classifier was fitted on labels {list(classifier.classes_)}; fit it on 0 and 1.")
    model = _packed(tensors)
    config = artefact_config.describe(
        classifier,
        thresholds,
        model,
        policy_thresholds=policy_thresholds or {},
        pair=pair,
        fitted_on=fitted_on,
        recipe=recipe,
        schema=schema,
        probe=probe,
        adapter=adapter,
    )
    _checked(folder, config, model, adapter or {})
    files = {f"{ADAPTER}/{name}": content for name, content in (adapter or {}).items()}
    if out_of_fold is not None:
        files[OUT_OF_FOLD] = _packed(out_of_fold)
    files |= {"model.safetensors": model, "README.md": card.encode(), "config.json": _config_text(folder, config)}
    _write_files(folder, files)


def _packed(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    return bytes(safetensors.numpy.save({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def _config_text(folder: Path, config: Config) -> bytes:
    try:
        return (json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        raise ClassifierError(
            f"The pair or fitted_on of {folder} holds what JSON cannot ({error}); pass plain values."
        ) from None


def _write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files in their order, each to a temporary file that then takes the name in one step."""
    try:
        for name, content in files.items():
            with replacing(folder / name) as unfinished:
                unfinished.write_bytes(content)
    except OSError as error:
        raise ClassifierError(
            f"The classifier cannot be written to {folder} ({error.strerror}); give a folder that can."
        ) from None


def load(folder: str | Path | HubRepository, *, stages: int | None = None) -> Sufficiency:
    """Read an artefact that `save` wrote; runs no code of it.

    Parameters
    ----------
    folder
        The artefact's folder, or the model repository that holds it: on a hub, or a copy in a folder.
    stages
        The number of stages of the cascade, stage 0 included; None for any.

    Raises
    ------
    ClassifierError
        The artefact cannot judge: missing or corrupted files, another version, entries
        that contradict each other, or thresholds for another number of stages.
    """
    found = repository.find(folder)
    path = found.folder
    if not path.is_dir():
        raise ClassifierError(
            f"No classifier at {path}; make one with `lm-eval-tandem collect` and then `lm-eval-tandem fit`, or choose "
            "policy=stage:N, which needs none."
        )
    content = {name: _read_file(path, name) for name in ("config.json", "model.safetensors")}
    try:
        config = json.loads(content["config.json"])
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise ClassifierError(f"{path}/config.json is not a JSON object; fetch the folder again or refit it.")
    judge = _checked(path, config, content["model.safetensors"], _read_adapter(path, config))
    if stages not in (None, len(judge.thresholds)):
        raise ClassifierError(
            f"The classifier {path} has thresholds for {len(judge.thresholds)} stages (stage 0 included), but this "
            f"cascade has {stages}; give {len(judge.thresholds) - 1} efforts, as it was fitted with, or refit it."
        )
    return replace(judge, origin=found.origin)


def _read_file(path: Path, name: str) -> bytes:
    try:
        return (path / name).read_bytes()
    except OSError as error:
        raise ClassifierError(
            f"The classifier {path} lacks a readable {name} ({error.strerror}); fetch the folder again or refit it."
        ) from None


def _read_adapter(path: Path, config: Config) -> dict[str, bytes]:
    """The files of the adapter by name; empty for a config that names none."""
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


def _checked(path: Path, config: Config, model: bytes, adapter: Mapping[str, bytes]) -> Sufficiency:
    """The artefact of a parsed config.json, the bytes of its arrays and those of its adapter; everything is checked."""
    artefact_config.check_entries(path, config)
    probe = artefact_config.checked_probe(path, config)
    artefact_config.check_files(path, config, model, adapter)
    tensors = _unpacked(path, model)
    thresholds, of_policies = artefact_config.checked_thresholds(path, config)
    artefact_config.check_names(path, config)
    return Sufficiency(
        estimator=artefact_config.restored_estimator(path, config, tensors),
        thresholds=thresholds,
        policy_thresholds=of_policies,
        name=path.resolve().name,
        schema=config["schema"],
        pair=config["pair"],
        recipe=config["recipe"],
        config=config,
        probe=probe,
        adapter=path / ADAPTER if adapter else None,
    )


def _unpacked(path: Path, model: bytes) -> Tensors:
    try:
        return dict(safetensors.numpy.load(model))
    except SafetensorError as error:
        raise ClassifierError(f"{path}/model.safetensors is not a safetensors file ({error}); refit.") from None


def load_out_of_fold(folder: str | Path) -> dict[str, NDArray[Any]]:
    """The arrays of out_of_fold.safetensors; empty if the artefact, or the copy of a repository, has no such file.

    Raises
    ------
    ClassifierError
        The file cannot be read.
    """
    path = repository.find(folder).folder / OUT_OF_FOLD
    try:
        return dict(safetensors.numpy.load(path.read_bytes())) if path.exists() else {}
    except (OSError, SafetensorError) as error:
        raise ClassifierError(f"{path} cannot be read ({error}); fetch the folder again or refit it.") from None
