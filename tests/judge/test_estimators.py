"""scikit-learn's classifiers stored as arrays: the same probabilities, also after saving and loading."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.artefact import load, save
from lm_eval_tandem.judge.estimators import BoostingJudge, LogisticJudge
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.registry import from_tensors, to_tensors

PAIR = {"mentor": "large", "intern": "small"}

NAMES = input_schemas.names(input_schemas.BOTH)


def signal(rows: int, seed: int = 0, width: int = len(NAMES)) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    X = random.normal(size=(rows, width)) * random.choice([0.1, 1, 50], width)
    return X, (np.sign(X[:, 0]) * X[:, 1] + 0.2 * random.normal(size=rows) > 0).astype(int)


def test_trees_in_arrays_give_exactly_scikit_learns_probabilities() -> None:
    X, y = signal(700)
    for width, trees in ((8, 40), (15, 5), (2, 1)):
        theirs = HistGradientBoostingClassifier(max_iter=trees, max_leaf_nodes=width, random_state=1).fit(X, y)
        ours = BoostingJudge()
        ours.classes_, ours.n_features_in_ = np.array([0, 1]), X.shape[1]
        ours._store_trees(theirs)
        unseen = np.concatenate([X, signal(300, 1)[0], 1e6 * signal(50, 2)[0]])
        np.testing.assert_array_equal(ours.predict_proba(unseen)[:, 1], theirs.predict_proba(unseen)[:, 1])


def test_logistic_regression_gives_scikit_learns_probabilities_up_to_rounding() -> None:
    X, y = signal(400)
    logarithms = FunctionTransformer(lambda values: np.sign(values) * np.log1p(np.abs(values)))
    theirs = make_pipeline(logarithms, StandardScaler(), LogisticRegression(max_iter=5000)).fit(X, y)
    unseen = signal(300, 1)[0]
    found = LogisticJudge().fit(X, y).predict_proba(unseen)
    np.testing.assert_allclose(found, theirs.predict_proba(unseen), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("made", [BoostingJudge, LogisticJudge])
def test_an_artefact_of_either_kind_comes_back_identical(made: Any, tmp_path: Path) -> None:
    X, y = signal(400)
    fitted = made().fit(X, y)
    given: dict[str, Any] = {"pair": PAIR, "fitted_on": {"inputs": "probe"}, "recipe": "default", "card": "#"}
    probe = Probe(64, 0.7)
    save(tmp_path / "a", fitted, (0.5, 0.6), schema=input_schemas.BOTH, probe=probe, **given)
    judge = load(tmp_path / "a", stages=2)
    np.testing.assert_array_equal(judge.estimator.predict_proba(X), fitted.predict_proba(X))
    assert judge.estimator.get_params() == fitted.get_params()
    assert (judge.probe, judge.schema, judge.config["features"]) == (
        probe,
        input_schemas.BOTH,
        list(NAMES),
    )
    with pytest.raises(ClassifierError, match="31 finite numbers"):
        judge.score(X[0, :18])
    with pytest.raises(ClassifierError, match="no probe, which does not go with its schema"):
        save(tmp_path / "b", fitted, (0.5, 0.6), schema=input_schemas.BOTH, **given)
    with pytest.raises(ClassifierError, match="a probe, which does not go with its schema"):
        save(tmp_path / "b", fitted, (0.5, 0.6), probe=probe, **given)
    assert not (tmp_path / "b").exists()


def test_trees_that_do_not_help_held_out_questions_are_dropped() -> None:
    X, y = signal(600)
    random = np.random.default_rng(3)
    judge = BoostingJudge().fit(X, random.permutation(y), groups=np.arange(600) // 4)
    assert len(judge.first_) - 1 < 30


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("left", lambda a: a["left"].__setitem__(0, 0)),
        ("right", lambda a: a["right"].__setitem__(0, 10**6)),
        ("feature", lambda a: a["feature"].__setitem__(0, 99)),
        ("first", lambda a: a["first"].__setitem__(0, 1)),
    ],
)
def test_trees_with_an_endless_path_are_refused(name: str, spoil: Any) -> None:
    X, y = signal(300)
    arrays = {key: value.copy() for key, value in to_tensors(BoostingJudge().fit(X, y)).items()}
    spoil(arrays)
    with pytest.raises(ClassifierError, match="cannot be evaluated"):
        from_tensors("boosting", {}, arrays, X.shape[1])
    del arrays[name]
    with pytest.raises(ClassifierError, match=f"'{name}' as missing"):
        from_tensors("boosting", {}, arrays, X.shape[1])


@pytest.mark.parametrize("made", [BoostingJudge, LogisticJudge])
def test_one_class_and_other_widths_are_refused(made: Any) -> None:
    X, y = signal(100)
    with pytest.raises(ClassifierError, match=r"1 class\(es\)"):
        made().fit(X, np.ones(100))
    with pytest.raises(ValueError, match="X has 3 features"):
        made().fit(X, y).predict_proba(X[:, :3])
