"""scikit-learn's classifiers as judges: fitted by scikit-learn, kept as arrays, evaluated in numpy.

`LogisticJudge` is the default recipe's; `BoostingJudge` is one of the paper's alternatives. Their probabilities are
scikit-learn's own, which the tests compare. The paper's network is in `mlp`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_array

from lm_eval_tandem.judge.base import Floats, JudgeClassifier, check_two_classes, signed_log
from lm_eval_tandem.judge.splits import stratified_order

ROWS_PER_BATCH = 10_000
"""Rows that go down the trees at once, which bounds the memory."""


class LogisticJudge(JudgeClassifier):
    """Logistic regression on standardised features, by default on their logarithms.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the L2 penalty, positive.
    log_features : bool, default=True
        Whether to take sign(x) log(1 + |x|) of the features first.

    Attributes
    ----------
    mean_, scale_ : ndarray of float64, shape (F,)
        What standardises the features; the scale of a constant one is 1.
    coef_ : ndarray of float64, shape (F,)
        Coefficients of the standardised features.
    intercept_ : ndarray of float64, shape (1,)
        The logit of average features.
    classes_ : ndarray, shape (2,)
        The two labels, sorted.
    n_features_in_ : int
        F.

    Examples
    --------
    >>> judge = LogisticJudge().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
    >>> judge.predict([[0.5], [2.5]]).tolist()
    [0, 1]
    """

    def __init__(self, C: float = 1.0, log_features: bool = True) -> None:
        self.C = C
        self.log_features = log_features

    def fit(self, X: ArrayLike, y: ArrayLike) -> LogisticJudge:
        """Learn from features and labels.

        Parameters
        ----------
        X
            Finite features, shape (N, F).
        y
            Labels of two classes, shape (N,).

        Raises
        ------
        ClassifierError
            The labels are not of two classes.
        """
        from sklearn.linear_model import LogisticRegression

        rows, labels, self.classes_ = _checked(X, y)
        self.n_features_in_ = rows.shape[1]
        rows = self._transformed(rows)
        self.mean_ = rows.mean(axis=0)
        spread = rows.std(axis=0)
        self.scale_ = np.where(spread > 1e-12 * np.maximum(1.0, np.abs(self.mean_)), spread, 1.0)
        fitted = LogisticRegression(C=self.C, max_iter=5000).fit((rows - self.mean_) / self.scale_, labels)
        self.coef_, self.intercept_ = fitted.coef_[0].astype(np.float64), fitted.intercept_.astype(np.float64)
        return self

    def _transformed(self, rows: Floats) -> Floats:
        return signed_log(rows) if self.log_features else rows

    def _logit(self, rows: Floats) -> Floats:
        logit: Floats = ((self._transformed(rows) - self.mean_) / self.scale_) @ self.coef_ + self.intercept_[0]
        return logit


class BoostingJudge(JudgeClassifier):
    """Gradient-boosted trees (scikit-learn's histogram kind), as many as serve held-out questions best.

    Parameters
    ----------
    learning_rate : float, default=0.08
        Weight of each tree, positive.
    max_iter : int, default=200
        The largest number of trees.
    max_leaf_nodes : int, default=15
        Leaves per tree.
    min_samples_leaf : int, default=20
        The fewest rows in a leaf.
    validation_fraction : float, default=0.2
        Share of the questions held out to choose the number of trees.
    seed : int, default=42
        Of that split and of scikit-learn's binning.

    Attributes
    ----------
    start_ : ndarray of float64, shape (1,)
        The logit before the first tree.
    first_ : ndarray of int64, shape (trees + 1,)
        Where the nodes of each tree begin; the last entry is the number of all nodes.
    feature_ : ndarray of int64, shape (nodes,)
        The feature that a node compares, -1 for a leaf.
    threshold_, value_ : ndarray of float64, shape (nodes,)
        A row whose feature is at most the threshold goes left; the value is added to the logit at a leaf.
    left_, right_ : ndarray of int64, shape (nodes,)
        Children of a node, counted from the tree's first node.
    classes_ : ndarray, shape (2,)
        The two labels, sorted.
    n_features_in_ : int
        F.

    Examples
    --------
    >>> import numpy as np
    >>> X = np.arange(200.0).reshape(-1, 1)
    >>> BoostingJudge().fit(X, X[:, 0] > 99).predict([[3.0], [190.0]]).tolist()
    [False, True]
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
        """Learn from features and labels.

        Parameters
        ----------
        X
            Finite features, shape (N, F).
        y
            Labels of two classes, shape (N,).
        groups
            The question of each row, shape (N,), so that no question is split; None for rows that stand alone.

        Raises
        ------
        ClassifierError
            The labels are not of two classes.
        """
        from sklearn.ensemble import HistGradientBoostingClassifier

        rows, labels, self.classes_ = _checked(X, y)
        self.n_features_in_ = rows.shape[1]
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
            # scikit-learn's log_loss gives the same numbers and takes most of a fit for its checks of each call.
            of_label = [each[np.arange(len(target)), target] for each in model.staged_predict_proba(rows[held_out])]
            losses = -np.log(np.maximum(of_label, np.finfo(np.float64).eps)).mean(axis=1)
            del model._predictors[int(np.argmin(losses)) + 1 :]
        self._store_trees(model)
        return self

    def _store_trees(self, model: Any) -> None:
        """Copy the nodes of a fitted scikit-learn model into arrays, one tree after the other."""
        trees = [stage[0].nodes for stage in model._predictors]
        nodes = np.concatenate(trees)
        self.start_ = np.asarray(model._baseline_prediction, dtype=np.float64).reshape(1)
        self.first_ = np.cumsum([0, *map(len, trees)], dtype=np.int64)
        self.feature_ = np.where(nodes["is_leaf"], -1, nodes["feature_idx"]).astype(np.int64)
        self.threshold_ = np.where(nodes["is_leaf"], 0.0, nodes["num_threshold"]).astype(np.float64)
        self.value_ = nodes["value"].astype(np.float64)
        self.left_, self.right_ = nodes["left"].astype(np.int64), nodes["right"].astype(np.int64)

    def _logit(self, rows: Floats) -> Floats:
        batches = [rows[start : start + ROWS_PER_BATCH] for start in range(0, len(rows), ROWS_PER_BATCH)]
        return np.concatenate([self._batch_logit(batch) for batch in batches])

    def _batch_logit(self, rows: Floats) -> Floats:
        """The logits of some rows, which go down all trees together; values are added in the order of the trees."""
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


def _checked(X: ArrayLike, y: ArrayLike) -> tuple[Floats, NDArray[Any], NDArray[Any]]:
    """Finite rows (N, F), labels (N,), and the two classes of the labels."""
    rows: Floats = check_array(X, dtype=np.float64)
    labels = np.asarray(y)
    classes = np.unique(labels)
    check_two_classes(classes)
    return rows, labels, classes
