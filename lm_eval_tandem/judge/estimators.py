"""scikit-learn's own classifiers as judges: fitted by scikit-learn, kept as arrays, evaluated in numpy.

So an artefact holds numbers alone, loading runs no code, and another version of scikit-learn judges the same. The
probabilities equal scikit-learn's exactly (tested).
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
from lm_eval_tandem.judge.splits import stratified_order

Floats = NDArray[np.float64]

ROWS = 10_000
"""Rows that are walked down the trees at once."""


class _Judge(ClassifierMixin, BaseEstimator, ABC):
    """What both have in common: two classes, finite inputs, probabilities from a logit."""

    classes_: NDArray[Any]
    n_features_in_: int

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Probabilities of the two classes, float64 (N, 2) in the order of `classes_`, for X of shape (N, F)."""
        check_is_fitted(self, "n_features_in_")
        rows: Floats = check_array(X, dtype=np.float64)
        if rows.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {rows.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input; give the features it was fitted on."
            )
        positive = self.positive(rows)
        return np.stack([1.0 - positive, positive], axis=1)

    def positive(self, rows: Floats) -> Floats:
        """The probability of the second class, float64 (N,), for rows (N, F) that are known to be sound: no checks."""
        found: Floats = expit(self._logit(rows))
        return found

    def predict(self, X: ArrayLike) -> NDArray[Any]:
        """The likelier class of each row of X (N, F), shape (N,)."""
        labels: NDArray[Any] = self.classes_[(self.predict_proba(X)[:, 1] > 0.5).astype(np.int64)]
        return labels

    @abstractmethod
    def _logit(self, rows: Floats) -> Floats:
        """The logit of the second class for checked rows (N, F), float64 (N,)."""

    def _checked(self, X: ArrayLike, y: ArrayLike) -> tuple[Floats, NDArray[Any]]:
        rows: Floats = check_array(X, dtype=np.float64)
        self.classes_ = np.unique(np.asarray(y))
        self.n_features_in_ = rows.shape[1]
        if len(self.classes_) != 2:
            raise ClassifierError(
                f"The labels have {len(self.classes_)} class(es), but a classifier needs exactly two (answers that are "
                "right and answers that are wrong), so collect more questions, harder or easier ones."
            )
        return rows, np.asarray(y)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_class = False
        return tags


class LogisticJudge(_Judge):
    """Logistic regression on standardised inputs, by default of their logarithms (tails of perplexities are heavy).

    C: inverse strength of the L2 penalty, positive, default 1. log_features: take sign(x) log(1 + |x|) first.

    Learned: mean_, scale_, coef_ (float64, (F,) each), intercept_ (float64, (1,)), classes_, n_features_in_.
    """

    def __init__(self, C: float = 1.0, log_features: bool = True) -> None:
        self.C = C
        self.log_features = log_features

    def fit(self, X: ArrayLike, y: ArrayLike) -> LogisticJudge:
        """Learn from X (N, F) and two-valued labels y (N,). Raises ClassifierError for other than two classes."""
        from sklearn.linear_model import LogisticRegression

        rows, labels = self._checked(X, y)
        rows = self._transformed(rows)
        self.mean_ = rows.mean(axis=0)
        spread = rows.std(axis=0)
        self.scale_ = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(self.mean_)), spread, 1.0)
        found = LogisticRegression(C=self.C, max_iter=5000).fit((rows - self.mean_) / self.scale_, labels)
        self.coef_, self.intercept_ = found.coef_[0].astype(np.float64), found.intercept_.astype(np.float64)
        return self

    def _transformed(self, rows: Floats) -> Floats:
        return np.sign(rows) * np.log1p(np.abs(rows)) if self.log_features else rows

    def _logit(self, rows: Floats) -> Floats:
        logit: Floats = ((self._transformed(rows) - self.mean_) / self.scale_) @ self.coef_ + self.intercept_[0]
        return logit


class BoostingJudge(_Judge):
    """Gradient-boosted trees (scikit-learn's histogram kind); the number of trees is chosen on held-out questions.

    learning_rate: positive, default 0.08. max_iter: trees at most, default 200. max_leaf_nodes: default 15.
    min_samples_leaf: default 20. validation_fraction: share of questions held out to say how many trees are best,
    default 0.2. seed: of split and binning, default 42.

    Learned: start_ (float64, (1,)), first_ (int64, (trees + 1,): where each tree's nodes begin), and for all nodes one
    after the other feature_ (int64, -1 for a leaf), threshold_, value_ (float64), left_, right_ (int64, within the
    tree; a row goes left if its feature is at most the threshold), classes_, n_features_in_.
    """

    def __init__(
        self,
        learning_rate: float = 0.08,
        max_iter: int = 200,
        max_leaf_nodes: int = 15,
        min_samples_leaf: int = 20,
        validation_fraction: float = 0.2,
        seed: int = 42,
    ) -> None:
        self.learning_rate = learning_rate
        self.max_iter = max_iter
        self.max_leaf_nodes = max_leaf_nodes
        self.min_samples_leaf = min_samples_leaf
        self.validation_fraction = validation_fraction
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, groups: ArrayLike | None = None) -> BoostingJudge:
        """Learn from X (N, F) and two-valued labels y (N,); groups (N,): the question of each row, never split.

        Raises ClassifierError for other than two classes.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier
        from sklearn.metrics import log_loss

        rows, labels = self._checked(X, y)
        question = np.unique(np.arange(len(labels)) if groups is None else np.asarray(groups), return_inverse=True)[1]
        positive = labels == self.classes_[1]
        order = stratified_order(np.bincount(question, weights=positive), self.seed)
        held_out = np.isin(question, order[:: max(2, round(1 / self.validation_fraction))])
        can_choose = len(np.unique(positive[held_out])) == len(np.unique(positive[~held_out])) == 2
        fitted_on = ~held_out if can_choose else np.ones(len(rows), dtype=bool)
        model = HistGradientBoostingClassifier(
            learning_rate=self.learning_rate,
            max_iter=self.max_iter,
            max_leaf_nodes=self.max_leaf_nodes,
            min_samples_leaf=self.min_samples_leaf,
            early_stopping=False,
            random_state=self.seed,
        ).fit(rows[fitted_on], positive[fitted_on])
        if can_choose:
            target = positive[held_out].astype(np.int64)
            losses = [log_loss(target, given, labels=[0, 1]) for given in model.staged_predict_proba(rows[held_out])]
            del model._predictors[int(np.argmin(losses)) + 1 :]
        self._take_apart(model)
        return self

    def _take_apart(self, model: Any) -> None:
        trees = [stage[0].nodes for stage in model._predictors]
        nodes = np.concatenate(trees)
        self.start_ = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(1)
        self.first_ = np.cumsum([0, *map(len, trees)], dtype=np.int64)
        self.feature_ = np.where(nodes["is_leaf"], -1, nodes["feature_idx"]).astype(np.int64)
        self.threshold_ = np.where(nodes["is_leaf"], 0.0, nodes["num_threshold"]).astype(np.float64)
        self.value_ = nodes["value"].astype(np.float64)
        self.left_, self.right_ = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)

    def _logit(self, rows: Floats) -> Floats:
        return np.concatenate([self._sums(rows[i : i + ROWS]) for i in range(0, len(rows), ROWS)])

    def _sums(self, rows: Floats) -> Floats:
        """The logits of some rows: all trees are walked down at once, and added up in their order."""
        first = self.first_[:-1]
        node = np.broadcast_to(first, (len(rows), len(first))).copy()
        while (inner := self.feature_[node] >= 0).any():
            row, tree = np.nonzero(inner)
            at = node[row, tree]
            goes_left = rows[row, self.feature_[at]] <= self.threshold_[at]
            node[row, tree] = first[tree] + np.where(goes_left, self.left_[at], self.right_[at])
        logit = np.repeat(self.start_, len(rows))
        for values in self.value_[node].T:
            logit += values
        return logit
