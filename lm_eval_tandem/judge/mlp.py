"""The paper's sufficiency classifier: a small neural network with scikit-learn's interface (section 3.1).

Only `fit` needs torch; judging is plain numpy. The other kinds of classifier are in `estimators`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_X_y

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.base import Floats, JudgeClassifier, check_two_classes, signed_log
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
"""Per parameter, whether a value is allowed, and the allowed values in words."""


class SufficiencyClassifier(JudgeClassifier):
    """A multilayer perceptron with ReLU and dropout, which tells sufficient insight (label 1) from insufficient (0).

    Parameters
    ----------
    hidden : sequence of int, default=(64, 32)
        Units of each hidden layer.
    dropout : float, default=0.3
        Dropout probability after each hidden layer, in [0, 1).
    lr : float, default=1e-4
        Adam's learning rate.
    epochs : int, default=3
        The largest number of passes over the training part.
    batch_size : int, default=32
        Rows per training step.
    patience : int, default=3
        Epochs without a better result on the validation part before training stops.
    validation_fraction : float, default=0.3
        Share of the questions in the validation part, in (0, 1).
    log_features : bool, default=False
        Whether to take sign(x) log(1 + |x|) of the features before standardising them.
    seed : int, default=42
        Of split, initial weights, dropout and batch order.

    Attributes
    ----------
    mean_, scale_ : ndarray of float32, shape (F,)
        What standardises the features, learned on the training part; the scale of a constant one is 1.
    weights_ : list of ndarray of float32, shape (inputs, units) each
        Weights of each layer.
    biases_ : list of ndarray of float32, shape (units,) each
        Biases of each layer.
    classes_ : ndarray, shape (2,)
        The two labels, sorted.
    n_features_in_ : int
        F.
    validation_accuracy_ : float
        Of the epoch that was kept.
    epochs_run_ : int
        The number of epochs until training stopped.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.random.default_rng(0).normal(size=(400, 18))
    >>> classifier = SufficiencyClassifier(lr=1e-2, epochs=20).fit(X, X[:, 0] > 0)
    >>> classifier.predict_proba(X).shape
    (400, 2)
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

    def fit(
        self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None, held_out: ArrayLike | None = None
    ) -> SufficiencyClassifier:
        """Learn from features and labels; the epoch with the best validation accuracy is kept.

        Among epochs of equal accuracy the one with the lower validation loss is kept.

        Parameters
        ----------
        X
            Finite features, shape (N, F).
        y
            Labels of two classes, shape (N,).
        groups
            The question of each row, shape (N,): all rows of a question fall on one side of the split. None if every
            row is a question of its own.
        held_out
            The validation part, bool (N,), in the place of a split by `validation_fraction` and `groups`.

        Raises
        ------
        ClassifierError
            A parameter is out of range, the labels are not of two classes, or there are too few questions to split.
        """
        for name, (fits, allowed) in _ALLOWED.items():
            if not fits(value := getattr(self, name)):
                raise ClassifierError(f"SufficiencyClassifier got {name}={value!r}; give {allowed}.")
        checked = check_X_y(X, y, dtype=np.float64)
        rows: Floats = checked[0]
        check_classification_targets(checked[1])
        self.classes_, labels = np.unique(checked[1], return_inverse=True)
        check_two_classes(self.classes_)
        if held_out is None:
            held_out = validation_rows(labels, groups, self.validation_fraction, self.seed)
        held_out = np.asarray(held_out, dtype=np.bool_)
        if held_out.shape != labels.shape:
            raise ClassifierError(
                f"{held_out.shape} marks of the validation part were given for {labels.shape} labels; give one per row."
            )
        if len(np.unique(labels[~held_out])) != 2 or not held_out.any():
            raise ClassifierError(
                f"Split by question, {len(labels)} rows leave one class only to fit on or nothing to validate on; "
                "collect more questions."
            )
        inputs = self._transformed(rows)
        self.mean_ = inputs[~held_out].mean(axis=0).astype(np.float32)
        scale = inputs[~held_out].std(axis=0).astype(np.float32)
        self.scale_ = np.where(scale > 1e-6 * np.abs(self.mean_), scale, np.float32(1))
        inputs = self._standardised(inputs)
        self._train(inputs[~held_out], labels[~held_out], inputs[held_out], labels[held_out])
        self.n_features_in_ = rows.shape[1]
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

    def positive_probability(self, rows: Floats) -> Floats:
        """The probability of the second class (N,), for rows (N, F) that the caller has checked."""
        # The logistic function by tanh: scipy's expit would differ in the last bit from scores on record.
        probability: Floats = 0.5 * (1.0 + np.tanh(0.5 * self._logit(rows)))
        return probability

    def _logit(self, rows: Floats) -> Floats:
        values = self._standardised(self._transformed(rows))
        for weight, bias in zip(self.weights_[:-1], self.biases_[:-1], strict=True):
            values = np.maximum(values @ weight.astype(np.float64) + bias, 0.0)
        logit: Floats = (values @ self.weights_[-1].astype(np.float64) + self.biases_[-1])[:, 0]
        return logit

    def _transformed(self, rows: Floats) -> Floats:
        return signed_log(rows) if self.log_features else rows

    def _standardised(self, inputs: Floats) -> Floats:
        standardised: Floats = (inputs - self.mean_.astype(np.float64)) / self.scale_.astype(np.float64)
        return standardised
