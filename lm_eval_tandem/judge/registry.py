"""The kinds of classifier that an artefact can hold, and how each is laid out in arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.estimators import BoostingJudge, LogisticJudge
from lm_eval_tandem.judge.mlp import SufficiencyClassifier

Estimator = SufficiencyClassifier | LogisticJudge | BoostingJudge
Tensors = dict[str, NDArray[Any]]

MODELS: dict[str, type[Any]] = {"mlp": SufficiencyClassifier, "boosting": BoostingJudge, "logistic": LogisticJudge}
"""By the name that `fit --model` takes."""

_ARRAYS: dict[str, dict[str, tuple[str, str]]] = {
    "logistic": {
        "mean": ("float64", "features"),
        "scale": ("float64", "features"),
        "coef": ("float64", "features"),
        "intercept": ("float64", "one"),
    },
    "boosting": {
        "start": ("float64", "one"),
        "first": ("int64", "trees"),
        "feature": ("int64", "nodes"),
        "threshold": ("float64", "nodes"),
        "value": ("float64", "nodes"),
        "left": ("int64", "nodes"),
        "right": ("int64", "nodes"),
    },
}
"""Type and length of the arrays of each kind but the MLP; array `x` is the estimator's `x_`."""


def kind_of(estimator: Estimator) -> str:
    """The name of an estimator's kind."""
    return next(name for name, made in MODELS.items() if type(estimator) is made)


def tensors_of(estimator: Estimator) -> Tensors:
    """A fitted estimator's arrays, by name."""
    check_is_fitted(estimator, "n_features_in_")
    if not isinstance(estimator, SufficiencyClassifier):
        return {name: getattr(estimator, f"{name}_") for name in _ARRAYS[kind_of(estimator)]}
    tensors = {"mean": estimator.mean_, "scale": estimator.scale_}
    for layer, (weight, bias) in enumerate(zip(estimator.weights_, estimator.biases_, strict=True)):
        tensors |= {f"weight.{layer}": weight, f"bias.{layer}": bias}
    return tensors


def restored(
    kind: str, parameters: Mapping[str, Any], tensors: Tensors, features: int, where: str = "model.safetensors"
) -> Estimator:
    """A fitted estimator of its parameters and arrays, every claim checked.

    Raises
    ------
    ClassifierError
        The arrays are not those of such an estimator for so many features.
    """
    made = MODELS[kind]
    estimator: Estimator = made(**{name: value for name, value in parameters.items() if name in made().get_params()})
    if isinstance(estimator, SufficiencyClassifier):
        _restore_mlp(estimator, tensors, features, where)
    else:
        lengths = {"features": features, "one": 1}
        if kind == "boosting":
            lengths |= {"trees": len(tensors.get("first", ())), "nodes": len(tensors.get("feature", ()))}
        _check(tensors, {name: (kind, (lengths[of],)) for name, (kind, of) in _ARRAYS[kind].items()}, where)
        for name in _ARRAYS[kind]:
            setattr(estimator, f"{name}_", tensors[name])
    if isinstance(estimator, BoostingJudge):
        _check_trees(estimator, features, where)
    if "scale" in tensors and not (tensors["scale"] > 0).all():
        raise ClassifierError(f"{where} holds a scale of 0 or less, which nothing fits; refit it.")
    estimator.classes_, estimator.n_features_in_ = np.array([0, 1]), features
    return estimator


def _restore_mlp(estimator: SufficiencyClassifier, tensors: Tensors, features: int, where: str) -> None:
    sizes = (features, *estimator.hidden, 1)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {name: ("float32", sizes[:1]) for name in ("mean", "scale")}
    for layer, size in enumerate(sizes[1:]):
        shapes |= {f"weight.{layer}": ("float32", (sizes[layer], size)), f"bias.{layer}": ("float32", (size,))}
    _check(tensors, shapes, where)
    estimator.mean_, estimator.scale_ = tensors["mean"], tensors["scale"]
    estimator.weights_ = [tensors[f"weight.{layer}"] for layer in range(len(sizes) - 1)]
    estimator.biases_ = [tensors[f"bias.{layer}"] for layer in range(len(sizes) - 1)]


def _check(tensors: Tensors, wanted: Mapping[str, tuple[str, tuple[int, ...]]], where: str) -> None:
    for name in {**wanted, **tensors}:
        found = tensors.get(name)
        kind, shape = wanted.get(name, ("nothing", None))
        if found is None or found.shape != shape or str(found.dtype) != kind or not np.isfinite(found).all():
            is_there = "missing" if found is None else f"{found.dtype} of shape {found.shape}"
            raise ClassifierError(
                f"{where} holds {name!r} as {is_there}, but config.json asks for finite {kind} of shape "
                f"{shape}; refit it."
            )


def _check_trees(estimator: BoostingJudge, features: int, where: str) -> None:
    """Every walk down a tree ends: children stand after their parent and within their tree."""
    first, nodes = estimator.first_, len(estimator.feature_)
    fits = len(first) > 1 and first[0] == 0 and first[-1] == nodes and bool((np.diff(first) > 0).all())
    if fits:
        sizes = np.diff(first)
        place = np.arange(nodes) - np.repeat(first[:-1], sizes)
        inner = estimator.feature_ >= 0
        fits = bool((estimator.feature_ < features).all() and (estimator.feature_ >= -1).all())
        for child in (estimator.left_, estimator.right_):
            fits &= bool(((child > place) & (child < np.repeat(sizes, sizes)))[inner].all())
    if not fits:
        raise ClassifierError(f"{where} holds trees that cannot be walked down; fetch the folder again or refit it.")
