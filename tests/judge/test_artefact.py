"""The classifier learns, follows scikit-learn's conventions, and its artefact comes back identical or not at all."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import check_estimator

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.artefact import SufficiencyClassifier, load, save
from lm_eval_tandem.judge.features import FEATURE_NAMES, SCHEMA
from lm_eval_tandem.judge.splits import validation_rows

torch = pytest.importorskip("torch")
torch.set_num_threads(1)

PAIR = {"mentor": "large", "intern": "small"}
THRESHOLDS = (0.9, 0.8, 0.7, 0.6)
QUICK: dict[str, Any] = {"lr": 3e-3, "epochs": 15}


def signal(
    questions: int, seed: int, heavy: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[Any]]:
    """Rows of 4 stages per question; features 0 and 9 carry the label. Returns X, y, question numbers."""
    random = np.random.default_rng(seed)
    X = random.normal(size=(questions * 4, 18))
    y = (X[:, 0] - X[:, 9] + 0.3 * random.normal(size=len(X)) > 0).astype(np.int64)
    return (np.exp(4 * X) if heavy else X), y, np.repeat(np.arange(questions), 4)


@pytest.fixture(scope="module")
def fitted() -> SufficiencyClassifier:
    return SufficiencyClassifier(**QUICK).fit(*signal(300, 0))


@pytest.fixture
def artefact(fitted: SufficiencyClassifier, tmp_path: Path) -> Path:
    folder = tmp_path / "judge"
    save(folder, fitted, THRESHOLDS, pair=PAIR, fitted_on={"questions": 300}, recipe="default", card="# A judge\n")
    return folder


@pytest.mark.parametrize("heavy", [False, True])
def test_it_finds_a_real_signal_in_rows_it_never_saw(heavy: bool) -> None:
    classifier = SufficiencyClassifier(**QUICK, log_features=heavy).fit(*signal(300, 0, heavy))
    X, y, _ = signal(200, 1, heavy)
    assert roc_auc_score(y, classifier.predict_proba(X)[:, 1]) > 0.95
    assert classifier.score(X, y) > 0.85
    assert classifier.validation_accuracy_ > 0.85


def test_it_follows_the_conventions_of_an_estimator(fitted: SufficiencyClassifier) -> None:
    X, y, _ = signal(50, 2)
    copy = clone(fitted)
    assert copy.get_params() == fitted.get_params()
    assert not hasattr(copy, "weights_")
    assert copy.set_params(lr=0.1).lr == 0.1
    assert fitted.n_features_in_ == 18
    assert fitted.classes_.tolist() == [0, 1]
    probabilities = fitted.predict_proba(X)
    assert probabilities.shape == (200, 2)
    assert probabilities.dtype == np.float64
    np.testing.assert_allclose(probabilities.sum(axis=1), 1)
    np.testing.assert_array_equal(fitted.predict(X), probabilities.argmax(axis=1))
    with pytest.raises(NotFittedError):
        copy.predict_proba(X)
    with pytest.raises(ValueError, match="17 features"):
        fitted.predict_proba(X[:, 1:])
    with pytest.raises(ValueError, match="NaN"):
        fitted.predict_proba(np.full((1, 18), np.nan))
    named = SufficiencyClassifier().fit(X, np.where(y, "yes", "no"))
    assert set(named.predict(X)) <= {"no", "yes"}
    assert named.classes_.tolist() == ["no", "yes"]


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_own_checks_pass_but_for_the_kind_of_error() -> None:
    refusals = ("check_classifiers_one_label", "check_classifier_not_supporting_multiclass", "check_fit2d_1sample")
    check_estimator(
        SufficiencyClassifier(epochs=20, lr=1e-2),
        expected_failed_checks=dict.fromkeys(refusals, "refused with a ClassifierError, not a ValueError"),
    )


def test_numpy_judges_as_torch_does(fitted: SufficiencyClassifier) -> None:
    X, _, _ = signal(50, 3)
    values = torch.from_numpy((X - fitted.mean_) / fitted.scale_)
    for layer, (weight, bias) in enumerate(zip(fitted.weights_, fitted.biases_, strict=True)):
        values = (values.relu() if layer else values) @ torch.from_numpy(weight).double() + torch.from_numpy(bias)
    np.testing.assert_allclose(fitted.predict_proba(X)[:, 1], torch.sigmoid(values)[:, 0].numpy(), atol=1e-12)


def test_two_fits_are_equal_and_leave_the_global_random_state_alone(fitted: SufficiencyClassifier) -> None:
    torch.manual_seed(7)
    state = torch.get_rng_state()
    np.random.seed(1)
    again = SufficiencyClassifier(**QUICK).fit(*signal(300, 0))
    assert torch.equal(state, torch.get_rng_state())
    for one, other in zip([*fitted.weights_, *fitted.biases_], [*again.weights_, *again.biases_], strict=True):
        np.testing.assert_array_equal(one, other)
    assert again.epochs_run_ == fitted.epochs_run_
    other = SufficiencyClassifier(**QUICK, seed=1).fit(*signal(300, 0))
    assert not np.array_equal(other.weights_[0], fitted.weights_[0])


def test_standardisation_is_learned_on_the_training_part_only() -> None:
    X, y, groups = signal(60, 4)
    held_out = validation_rows(y, groups)
    moved = X.copy()
    moved[held_out] += 100
    classifier = SufficiencyClassifier(epochs=1).fit(moved, y, groups)
    np.testing.assert_allclose(classifier.mean_, X[~held_out].mean(axis=0), atol=1e-5)
    X[:, 5] = 3.0
    assert SufficiencyClassifier(epochs=1).fit(X, y, groups).scale_[5] == 1


def test_it_stops_early_and_keeps_the_best_epoch() -> None:
    X, y, groups = signal(100, 5)
    noise = np.random.default_rng(0).permutation(y)
    stopped = SufficiencyClassifier(lr=1e-2, epochs=200, patience=3).fit(X, noise, groups)
    assert stopped.epochs_run_ < 200
    held_out = validation_rows(noise, groups)
    assert stopped.score(X[held_out], noise[held_out]) == stopped.validation_accuracy_
    as_long = SufficiencyClassifier(lr=1e-2, epochs=stopped.epochs_run_ - 3, patience=3).fit(X, noise, groups)
    np.testing.assert_array_equal(as_long.weights_[0], stopped.weights_[0])


@given(st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=5), min_size=4, max_size=60), st.integers(0, 99))
def test_no_question_is_on_both_sides_and_the_sides_are_alike(answers: list[list[int]], seed: int) -> None:
    y = np.concatenate([np.array(labels) for labels in answers])
    groups = np.repeat([f"q{number}" for number in range(len(answers))], [len(labels) for labels in answers])
    shuffle = np.random.default_rng(seed).permutation(len(y))
    held_out = validation_rows(y[shuffle], groups[shuffle], 0.3, seed)
    assert not set(groups[shuffle][held_out]) & set(groups[shuffle][~held_out])
    assert abs(len(set(groups[shuffle][held_out])) - 0.3 * len(answers)) <= 1
    for positives in range(6):
        alike = {f"q{number}" for number, labels in enumerate(answers) if sum(labels) == positives}
        assert abs(len(alike & set(groups[shuffle][held_out])) - 0.3 * len(alike)) <= 1


BAD = [("hidden", (64, 0)), ("hidden", 64), ("dropout", 1.0), ("lr", 0), ("epochs", 0), ("batch_size", 2.5)]


@pytest.mark.parametrize(("name", "value"), [*BAD, ("patience", 0), ("validation_fraction", 1.0)])
def test_parameters_out_of_range_are_refused(name: str, value: Any) -> None:
    with pytest.raises(ClassifierError, match=re.escape(f"{name}={value!r}; give ")):
        SufficiencyClassifier(**{name: value}).fit(*signal(10, 0))


def test_labels_that_teach_nothing_are_refused() -> None:
    X, y, groups = signal(10, 0)
    with pytest.raises(ClassifierError, match="1 class"):
        SufficiencyClassifier().fit(X, np.ones_like(y), groups)
    with pytest.raises(ClassifierError, match="3 class"):
        SufficiencyClassifier().fit(X, np.arange(len(y)) % 3, groups)
    with pytest.raises(ClassifierError, match="nothing to validate on"):
        SufficiencyClassifier().fit(X[:4], [0, 1, 0, 1], [0, 0, 0, 0])
    with pytest.raises(ClassifierError, match="one per row"):
        SufficiencyClassifier().fit(X, y, groups[:-1])


def test_a_saved_judge_comes_back_identical(fitted: SufficiencyClassifier, artefact: Path) -> None:
    judge = load(artefact, stages=4)
    X, _, _ = signal(50, 6)
    np.testing.assert_array_equal(judge.estimator.predict_proba(X), fitted.predict_proba(X))
    assert judge.score(X[0]) == pytest.approx(fitted.predict_proba(X[:1])[0, 1], abs=1e-15)
    assert judge.estimator.get_params() == fitted.get_params()
    assert (judge.thresholds, judge.name, judge.schema, judge.pair) == (THRESHOLDS, "judge", SCHEMA, PAIR)
    assert judge.recipe == "default"
    assert judge.config["fitted_on"] == {"questions": 300}
    assert judge.config["features"] == list(FEATURE_NAMES)
    assert "numpy" in judge.config["versions"]
    assert sorted(path.name for path in artefact.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert (artefact / "README.md").read_text() == "# A judge\n"
    again = artefact.with_name("again")
    save(again, judge.estimator, judge.thresholds, pair=PAIR, fitted_on={}, recipe="default", card="")
    assert (again / "model.safetensors").read_bytes() == (artefact / "model.safetensors").read_bytes()
    for features, sentence in ((X[:2], "18 finite"), (X[0, :5], "18 finite"), (np.full(18, np.nan), "logits for NaN")):
        with pytest.raises(ClassifierError, match=sentence):
            judge.score(features)


def test_judging_needs_no_torch(artefact: Path) -> None:
    code = (
        "import sys\n"
        "from lm_eval_tandem.judge.artefact import load\n"
        f"print(0 <= load({str(artefact)!r}).score([0.0] * 18) <= 1, 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False"]


def rewritten(**changes: Any) -> Callable[[Path], None]:
    """Change entries of config.json; a value of None removes the entry."""

    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(kept))

    return change


def corrupted(folder: Path) -> None:
    content = bytearray((folder / "model.safetensors").read_bytes())
    content[-1] ^= 1
    (folder / "model.safetensors").write_bytes(content)


def reweighted(**changes: Any) -> Callable[[Path], None]:
    """Other arrays under a checksum that is right for them; None removes the array."""

    def change(folder: Path) -> None:
        tensors = safetensors.numpy.load_file(folder / "model.safetensors")
        arrays = {name: array for name, array in (tensors | changes).items() if array is not None}
        model = safetensors.numpy.save(arrays)
        (folder / "model.safetensors").write_bytes(model)
        rewritten(sha256=hashlib.sha256(model).hexdigest())(folder)

    return change


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "lacks a readable config.json"),
    "no model": (lambda folder: (folder / "model.safetensors").unlink(), "lacks a readable model.safetensors"),
    "invalid JSON": (lambda folder: (folder / "config.json").write_text("{"), "not a JSON object"),
    "binary JSON": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "not a JSON object"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "not a JSON object"),
    "a corrupt byte": (corrupted, "corrupted"),
    "another format": (rewritten(format_version=2), "format version 2"),
    "no format": (rewritten(format_version=None), "format version None"),
    "another schema": (rewritten(schema="hidden/1"), "'hidden/1'.*'statistics-18/1'"),
    "a missing entry": (rewritten(thresholds=None), "'thresholds' as list"),
    "other features": (rewritten(features=["mean_ppl"]), "other features"),
    "too few thresholds": (rewritten(thresholds=[0.5, 0.5, 0.5]), "3 thresholds for 4 stages"),
    "one threshold": (rewritten(thresholds=[0.5], stages=1), "1 thresholds for 1 stages"),
    "a threshold above 1": (rewritten(thresholds=[0.5, 0.5, 0.5, 1.5]), r"in \[0, 1\]"),
    "a threshold that is none": (rewritten(thresholds=[0.5, 0.5, 0.5, float("nan")]), r"in \[0, 1\]"),
    "half a pair": (rewritten(pair={"mentor": "large"}), "mentor and an intern"),
    "other layers": (rewritten(hidden=[64, 16]), "weight.1"),
    "a layer of no size": (rewritten(hidden=[64, 0]), "layer sizes"),
    "a missing array": (reweighted(**{"bias.1": None}), "'bias.1' as missing"),
    "an array too many": (reweighted(extra=np.zeros(1, np.float32)), "'extra'"),
    "a NaN": (reweighted(mean=np.full(18, np.nan, np.float32)), "'mean'"),
    "another dtype": (reweighted(mean=np.zeros(18)), "float64"),
    "a scale of 0": (reweighted(scale=np.zeros(18, np.float32)), "scale"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_broken_artefact_is_refused_in_one_sentence(artefact: Path, case: str) -> None:
    spoil, words = REFUSALS[case]
    spoil(artefact)
    with pytest.raises(ClassifierError, match=words) as refusal:
        load(artefact)
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")


def test_a_missing_folder_or_another_number_of_stages_says_what_to_do(artefact: Path, tmp_path: Path) -> None:
    with pytest.raises(ClassifierError, match=r"collect.*fit.*policy=stage:N"):
        load(tmp_path / "nowhere")
    with pytest.raises(ClassifierError, match=r"4 stages.*has 3; give 3 efforts, as it was fitted with, or refit it"):
        load(artefact, stages=3)


def test_what_could_not_be_loaded_is_not_saved(fitted: SufficiencyClassifier, tmp_path: Path) -> None:
    def attempt(classifier: SufficiencyClassifier = fitted, **changes: Any) -> None:
        thresholds = changes.pop("thresholds", THRESHOLDS)
        given: dict[str, Any] = {"pair": PAIR, "fitted_on": {}, "recipe": "paper", "card": ""} | changes
        save(tmp_path / "judge", classifier, thresholds, **given)

    X, y, groups = signal(30, 0)
    with pytest.raises(ClassifierError, match=r"in \[0, 1\]"):
        attempt(thresholds=(0.5, 2.0))
    with pytest.raises(ClassifierError, match="mentor and an intern"):
        attempt(pair={})
    with pytest.raises(ClassifierError, match="JSON cannot"):
        attempt(fitted_on={"path": Path()})
    with pytest.raises(ClassifierError, match="labels"):
        attempt(SufficiencyClassifier().fit(X, np.where(y, "yes", "no"), groups))
    with pytest.raises(ClassifierError, match="'mean'"):
        attempt(SufficiencyClassifier().fit(X[:, :3], y, groups))
    with pytest.raises(NotFittedError):
        attempt(SufficiencyClassifier())
    assert not (tmp_path / "judge").exists()
    (tmp_path / "judge").write_text("a file")
    with pytest.raises(ClassifierError, match="cannot be written"):
        attempt()
