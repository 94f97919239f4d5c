"""The judge itself: a small MLP in scikit-learn's manner (paper, section 3.1).

Only `fit` needs torch; judging is plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_array, check_is_fitted, check_X_y

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.splits import validation_rows

_COUNT = (lambda v: isinstance(v, (int, np.integer)) and bool(v >= 1), "an integer of at least 1")
_ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "hidden": (
        lambda v: isinstance(v, (tuple, list)) and all(map(_COUNT[0], v)),
        "layer sizes of at least 1, (64, 32)",
    ),
    "dropout": (lambda v: isinstance(v, (int, float)) and 0 <= v < 1, "a number from 0 to below 1"),
    "lr": (lambda v: isinstance(v, (int, float)) and v > 0, "a positive number"),
    "epochs": _COUNT,
    "batch_size": _COUNT,
    "patience": _COUNT,
    "validation_fraction": (lambda v: isinstance(v, (int, float)) and 0 < v < 1, "a number between 0 and 1"),
}


class SufficiencyClassifier(ClassifierMixin, BaseEstimator):
    """An MLP with ReLU and dropout that judges feature vectors: is the insight sufficient (label 1) or not (0)?

    hidden: units per hidden layer, default (64, 32). dropout: probability in [0, 1), default 0.3. lr: Adam's step size,
    default 1e-4. epochs: at most so many passes, default 3. batch_size: rows per step, default 32. patience: epochs
    without a better validation part before stopping, default 3. validation_fraction: share of questions kept for
    that, in (0, 1), default 0.3. log_features: take sign(x) log(1 + |x|) of the inputs before standardising (the tails
    of perplexities are heavy), default False. seed: of split, weights, dropout and batch order, default 42.

    Learned: mean_, scale_ (float32, (F,); scale 1 for a constant feature), weights_ (float32, (inputs, units) each),
    biases_, classes_ (the two labels, sorted), n_features_in_, validation_accuracy_ (of the epoch kept), epochs_run_.
    """

    def __init__(
        self,
        hidden: Sequence[int] = (64, 32),
        dropout: float = 0.3,
        lr: float = 1e-4,
        epochs: int = 3,
        batch_size: int = 32,
        patience: int = 3,
        validation_fraction: float = 0.3,
        log_features: bool = False,
        seed: int = 42,
    ) -> None:
        self.hidden = hidden
        self.dropout = dropout
        self.lr = lr
        self.epochs = epochs
        self.batch_size = batch_size
        self.patience = patience
        self.validation_fraction = validation_fraction
        self.log_features = log_features
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> SufficiencyClassifier:
        """Learn from X (N, F) and two-valued labels y (N,); keep the epoch with the best validation accuracy.

        groups: (N,), the question of each row; all rows of a question fall on one side of the split. Without it every
            row is a question of its own. Equal accuracies are told apart by the lower validation loss.
        Raises ClassifierError for a parameter out of range, labels of other than two classes, or too few questions.
        """
        for name, (fits, allowed) in _ALLOWED.items():
            if not fits(value := getattr(self, name)):
                raise ClassifierError(f"SufficiencyClassifier got {name}={value!r}; give {allowed}.")
        checked = check_X_y(X, y, dtype=np.float64)
        rows: NDArray[np.float64] = checked[0]
        check_classification_targets(checked[1])
        self.classes_, labels = np.unique(checked[1], return_inverse=True)
        if len(self.classes_) != 2:
            raise ClassifierError(
                f"The labels have {len(self.classes_)} class(es), but a classifier needs exactly two (answers that are "
                "right and answers that are wrong), so collect more questions, harder or easier ones."
            )
        held_out = validation_rows(labels, groups, self.validation_fraction, self.seed)
        if len(np.unique(labels[~held_out])) != 2 or not held_out.any():
            raise ClassifierError(
                f"Split by question, {len(labels)} rows leave one class only to fit on or nothing to validate on; "
                "collect more questions."
            )
        self.n_features_in_ = rows.shape[1]
        inputs = self._transformed(rows)
        self.mean_ = inputs[~held_out].mean(axis=0).astype(np.float32)
        scale = inputs[~held_out].std(axis=0).astype(np.float32)
        self.scale_ = np.where(scale > 1e-6 * np.abs(self.mean_), scale, np.float32(1))
        inputs = self._standardised(inputs)
        self._train(inputs[~held_out], labels[~held_out], inputs[held_out], labels[held_out])
        return self

    def _train(self, inputs: Any, labels: Any, validation_inputs: Any, validation_labels: Any) -> None:
        """Adam on the cross-entropy of one logit, with early stopping; torch's global random state stays as it was."""
        import torch

        x, validation_x = (torch.from_numpy(a.astype(np.float32)) for a in (inputs, validation_inputs))
        target, validation_target = (torch.from_numpy(a.astype(np.float32)) for a in (labels, validation_labels))
        loss_of = torch.nn.functional.binary_cross_entropy_with_logits
        sizes = (inputs.shape[1], *self.hidden, 1)
        best: tuple[float, float] = (-1.0, 0.0)
        waited = self.epochs_run_ = 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            linear = [torch.nn.Linear(before, after) for before, after in pairwise(sizes)]
            layers: list[torch.nn.Module] = [linear[0]]
            for layer in linear[1:]:
                layers += [torch.nn.ReLU(), torch.nn.Dropout(self.dropout), layer]
            network = torch.nn.Sequential(*layers)
            adam = torch.optim.Adam(network.parameters(), lr=self.lr)
            while self.epochs_run_ < self.epochs and waited < self.patience:
                network.train()
                for rows in torch.randperm(len(x)).split(self.batch_size):
                    adam.zero_grad()
                    loss_of(network(x[rows]).squeeze(1), target[rows]).backward()
                    adam.step()
                network.eval()
                with torch.no_grad():
                    logit = network(validation_x).squeeze(1)
                accuracy = float(((logit > 0) == (validation_target > 0.5)).double().mean())
                reached = (accuracy, -float(loss_of(logit, validation_target)))
                self.epochs_run_ += 1
                waited += 1
                if reached > best:
                    best, waited = reached, 0
                    self.weights_ = [layer.weight.detach().numpy().T.copy() for layer in linear]
                    self.biases_ = [layer.bias.detach().numpy().copy() for layer in linear]
        self.validation_accuracy_ = best[0]

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Probabilities of the two classes, float64 (N, 2) in the order of `classes_`, for X of shape (N, F)."""
        check_is_fitted(self, "weights_")
        values: NDArray[np.float64] = check_array(X, dtype=np.float64)
        if values.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {values.shape[1]} features, but SufficiencyClassifier is expecting {self.n_features_in_} "
                "features as input; give the features it was fitted on."
            )
        positive = self.positive(values)
        return np.stack([1.0 - positive, positive], axis=1)

    def positive(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """The probability of the second class, float64 (N,), for rows (N, F) that are known to be sound: no checks."""
        values = self._standardised(self._transformed(rows))
        for weight, bias in zip(self.weights_[:-1], self.biases_[:-1], strict=True):
            values = np.maximum(values @ weight.astype(np.float64) + bias, 0.0)
        logit = (values @ self.weights_[-1].astype(np.float64) + self.biases_[-1])[:, 0]
        found: NDArray[np.float64] = 0.5 * (1.0 + np.tanh(0.5 * logit))
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likelier class of each row of X (N, F), shape (N,)."""
        sufficient = self.predict_proba(X)[:, 1] > 0.5
        labels: NDArray[Any] = self.classes_[sufficient.astype(np.int64)]
        return labels

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags

    def _transformed(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.sign(X) * np.log1p(np.abs(X)) if self.log_features else X

    def _standardised(self, inputs: NDArray[np.float64]) -> NDArray[np.float64]:
        standardised: NDArray[np.float64] = (inputs - self.mean_.astype(np.float64)) / self.scale_.astype(np.float64)
        return standardised
