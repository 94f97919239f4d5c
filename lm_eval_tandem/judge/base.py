"""The base class of the judges' classifiers: scikit-learn's interface over a logit that plain numpy computes.

A classifier fits with whatever library it likes, and keeps what it learned as arrays. So an artefact holds numbers
alone, loading it runs no code, and another version of the library judges the same.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_array, check_is_fitted

from lm_eval_tandem.errors import ClassifierError

Floats = NDArray[np.float64]


class JudgeClassifier(ClassifierMixin, BaseEstimator, ABC):
    """A classifier of two classes: insufficient (first) and sufficient (second).

    Attributes
    ----------
    classes_
        The two labels, sorted.
    n_features_in_
        The number of features F seen in `fit`.
    """

    classes_: NDArray[Any]
    n_features_in_: int

    def predict_proba(self, X: ArrayLike) -> Floats:
        """The probabilities of both classes.

        Parameters
        ----------
        X
            Finite features, shape (N, F).

        Returns
        -------
        NDArray[numpy.float64]
            Shape (N, 2), columns in the order of `classes_`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            The classifier is not fitted.
        ValueError
            X has another number of features, or a value that is not finite.
        """
        check_is_fitted(self, "n_features_in_")
        rows: Floats = check_array(X, dtype=np.float64)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input; give the features it was fitted on."
            )
        positive = self.positive_probability(rows)
        return np.stack([1.0 - positive, positive], axis=1)

    def positive_probability(self, rows: Floats) -> Floats:
        """The probability of the second class (N,), for rows (N, F) that the caller has checked."""
        probability: Floats = expit(self._logit(rows))
        return probability

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The more probable class of each row of X (N, F), shape (N,)."""
        sufficient = self.predict_proba(X)[:, 1] > 0.5
        labels: NDArray[Any] = self.classes_[sufficient.astype(np.int64)]
        return labels

    @abstractmethod
    def _logit(self, rows: Floats) -> Floats:
        """The logit of the second class (N,), for checked rows (N, F)."""

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


def check_two_classes(classes: NDArray[Any]) -> None:
    """Refuse labels that are not of two classes.

    Raises
    ------
    ClassifierError
        There is another number of classes.
    """
    if len(classes) != 2:
        raise ClassifierError(
            f"The labels have {len(classes)} class(es), but a classifier needs exactly two (answers that are "
            "right and answers that are wrong), so collect more questions, harder or easier ones."
        )


def signed_log(values: Floats) -> Floats:
    """sign(x) log(1 + |x|), elementwise: shortens the heavy tails of perplexities and keeps the order."""
    return np.sign(values) * np.log1p(np.abs(values))
