"""The kinds of classifier that an artefact can hold, and the arrays that each kind is stored as.

To add a kind: a subclass of `base.JudgeClassifier`, a name in `MODELS`, and its arrays in `_LAYOUTS`.
"""

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
Layout = Mapping[str, tuple[str, tuple[int, ...]]]
"""The dtype and shape of each array."""

MODELS: dict[str, type[Any]] = {"mlp": SufficiencyClassifier, "boosting": BoostingJudge, "logistic": LogisticJudge}
"""Every kind, by the name that `fit --model` takes."""

_LAYOUTS: dict[str, dict[str, tuple[str, str]]] = {
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
"""Dtype and length of the arrays of each kind but the MLP; array `x` is the estimator's attribute `x_`."""


def kind_of(estimator: Estimator) -> str:
    """The name of an estimator's kind."""
    return next(name for name, model in MODELS.items() if type(estimator) is model)


def to_tensors(estimator: Estimator) -> Tensors:
    """The arrays of a fitted estimator, by name."""
    check_is_fitted(estimator, "n_features_in_")
    if not isinstance(estimator, SufficiencyClassifier):
        return {name: getattr(estimator, f"{name}_") for name in _LAYOUTS[kind_of(estimator)]}
    tensors = {"mean": estimator.mean_, "scale": estimator.scale_}
    for layer, (weight, bias) in enumerate(zip(estimator.weights_, estimator.biases_, strict=True)):
        tensors |= {f"weight.{layer}": weight, f"bias.{layer}": bias}
    return tensors


def from_tensors(
    kind: str, parameters: Mapping[str, Any], tensors: Tensors, features: int, where: str = "model.safetensors"
) -> Estimator:
    """Rebuild a fitted estimator.

    Parameters
    ----------
    kind
        A key of `MODELS`.
    parameters
        The constructor's parameters; other entries are ignored.
    tensors
        As `to_tensors` returned them.
    features
        The number of features F.
    where
        The file, for error messages.

    Raises
    ------
    ClassifierError
        The arrays are not those of such an estimator for F features.
    """
    model = MODELS[kind]
    estimator: Estimator = model(**{name: value for name, value in parameters.items() if name in model().get_params()})
    if isinstance(estimator, SufficiencyClassifier):
        _restore_mlp(estimator, tensors, features, where)
    else:
        lengths = {"features": features, "one": 1}
        if kind == "boosting":
            lengths |= {"trees": len(tensors.get("first", ())), "nodes": len(tensors.get("feature", ()))}
        layout = {name: (dtype, (lengths[length],)) for name, (dtype, length) in _LAYOUTS[kind].items()}
        _check_layout(tensors, layout, where)
        for name in layout:
            setattr(estimator, f"{name}_", tensors[name])
    if isinstance(estimator, BoostingJudge):
        _check_trees(estimator, features, where)
    if "scale" in tensors and not (tensors["scale"] > 0).all():
        raise ClassifierError(f"{where} holds a scale of 0 or less, which no fit produces; refit it.")
    estimator.classes_, estimator.n_features_in_ = np.array([0, 1]), features
    return estimator


def _restore_mlp(estimator: SufficiencyClassifier, tensors: Tensors, features: int, where: str) -> None:
    sizes = (features, *estimator.hidden, 1)
    layout: dict[str, tuple[str, tuple[int, ...]]] = {name: ("float32", sizes[:1]) for name in ("mean", "scale")}
    for layer, size in enumerate(sizes[1:]):
        layout |= {f"weight.{layer}": ("float32", (sizes[layer], size)), f"bias.{layer}": ("float32", (size,))}
    _check_layout(tensors, layout, where)
    estimator.mean_, estimator.scale_ = tensors["mean"], tensors["scale"]
    estimator.weights_ = [tensors[f"weight.{layer}"] for layer in range(len(sizes) - 1)]
    estimator.biases_ = [tensors[f"bias.{layer}"] for layer in range(len(sizes) - 1)]


def _check_layout(tensors: Tensors, layout: Layout, where: str) -> None:
    """Refuse arrays that are missing, superfluous, of another dtype or shape, or not finite."""
    for name in {**layout, **tensors}:
        tensor = tensors.get(name)
        dtype, shape = layout.get(name, ("nothing", None))
        if tensor is None or tensor.shape != shape or str(tensor.dtype) != dtype or not np.isfinite(tensor).all():
            actual = "missing" if tensor is None else f"{tensor.dtype} of shape {tensor.shape}"
            raise ClassifierError(
                f"{where} holds {name!r} as {actual}, but config.json asks for finite {dtype} of shape "
                f"{shape}; refit it."
            )


def _check_trees(estimator: BoostingJudge, features: int, where: str) -> None:
    """Refuse trees with a path that does not end: children stand after their parent and within their tree."""
    first, nodes = estimator.first_, len(estimator.feature_)
    valid = len(first) > 1 and first[0] == 0 and first[-1] == nodes and bool((np.diff(first) > 0).all())
    if valid:
        sizes = np.diff(first)
        position = np.arange(nodes) - np.repeat(first[:-1], sizes)
        inner = estimator.feature_ >= 0
        valid = bool((estimator.feature_ < features).all() and (estimator.feature_ >= -1).all())
        for child in (estimator.left_, estimator.right_):
            valid &= bool(((child > position) & (child < np.repeat(sizes, sizes)))[inner].all())
    if not valid:
        raise ClassifierError(f"{where} holds trees that cannot be evaluated; fetch the folder again or refit it.")
