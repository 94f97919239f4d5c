"""From collected questions to a judge: both recipes, the report, and what cannot be fitted on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_tandem.engines import TokenStats
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.sufficiency.classifier import load, save
from lm_eval_tandem.sufficiency.features import features
from lm_eval_tandem.sufficiency.fit import RECIPES, Collected, fit_sufficiency

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


def collected(questions: int, seed: int = 0) -> Collected:
    """Questions of different hardness; insight makes them easier, and what the intern reads less surprising."""
    random = np.random.default_rng(seed)
    vectors, ease = np.empty((questions, 4, 18)), random.normal(0, 1.2, questions)[:, None] + [-0.6, 0.0, 0.6, 1.2]
    for question, stage in np.ndindex(questions, 4):
        tokens = 30 + 15 * stage + int(random.integers(20))
        entropy = random.gamma(2.0, np.exp(-0.7 * ease[question, stage]), tokens).astype(np.float32)
        logprob = -random.exponential(entropy).astype(np.float32)
        logprob[0] = entropy[0] = np.nan
        vectors[question, stage] = features(TokenStats(logprob, entropy, 0, 0.0), stage)
    correct = ease + random.normal(0, 0.2, ease.shape) > 0
    cost = np.array([1.0, 2.0, 4.0, 7.0]) + random.random((questions, 1))
    return Collected([f"q{n}" for n in range(questions)], vectors, correct, cost, np.repeat(cost[:, -1:], 4, axis=1))


@pytest.fixture(scope="module")
def data() -> Collected:
    return collected(240)


def test_the_default_recipe_judges_well_out_of_sample(data: Collected, tmp_path: Path) -> None:
    classifier, thresholds, report = fit_sufficiency(data, "default", "cost@accuracy>=always_high-0.02", 42)
    assert len(thresholds) == 4 and report["thresholds"] == list(thresholds)
    assert report["questions"] == report["questions_out_of_sample"] == 240
    assert all(stage["auc"] > 0.9 and stage["f1"] > 0.7 for stage in report["stages"])
    assert sum(stage["share_answered"] for stage in report["stages"]) == pytest.approx(1)
    assert report["always_high"] == report["fixed"][3]
    assert report["always_high"]["accuracy"] == pytest.approx(data.correct[:, 3].mean())
    assert report["fixed"][1]["cost"] == pytest.approx(data.cost[:, 1].mean())
    assert report["cascade"]["accuracy"] >= report["always_high"]["accuracy"] - 0.02 - 1e-9
    assert report["cascade"]["cost"] < 0.8 * report["always_high"]["cost"]
    assert abs(report["cascade"]["accuracy_cross_fitted"] - report["cascade"]["accuracy"]) < 0.05
    assert json.loads(json.dumps(report, allow_nan=False)) == report

    unseen = collected(100, seed=1)
    rows, labels = unseen.features.reshape(-1, 18), unseen.correct.ravel()
    assert (classifier.predict(rows) == labels).mean() > 0.8
    pair = {"mentor": "large", "intern": "small"}
    save(tmp_path / "c", classifier, thresholds, pair=pair, fitted_on={"report": report}, recipe="default", card="#")
    judge = load(tmp_path / "c", stages=4)
    assert judge.thresholds == thresholds
    assert judge.score(rows[0]) == pytest.approx(classifier.predict_proba(rows)[0, 1], abs=1e-12)


def test_the_paper_recipe_chooses_on_the_thirty_percent(data: Collected) -> None:
    classifier, thresholds, report = fit_sufficiency(data, "paper", "accuracy", 42)
    assert report["questions_out_of_sample"] == pytest.approx(0.3 * 240, abs=1)
    wanted: dict[str, Any] = {"hidden": (64, 32), "dropout": 0.3, "lr": 1e-4, "epochs": 3, "validation_fraction": 0.3}
    assert wanted.items() <= classifier.get_params().items()
    assert not classifier.log_features and classifier.epochs_run_ <= 3
    assert all(0.05 <= threshold <= 0.95 for threshold in thresholds)


def test_the_same_data_makes_the_same_judge() -> None:
    small = collected(60)
    first, second = (fit_sufficiency(small, "default", "accuracy", 7) for _ in range(2))
    assert first[1:] == second[1:]
    for one, other in zip(first[0].weights_, second[0].weights_, strict=True):
        np.testing.assert_array_equal(one, other)


def test_an_objective_that_four_fifths_cannot_meet_has_no_cross_fitted_figures() -> None:
    small = collected(40)
    with pytest.raises(ClassifierError, match="No thresholds reach") as refusal:
        fit_sufficiency(small, "default", "accuracy@cost<=0.1", 42)
    cheapest = float(str(refusal.value).split("the cheapest cost ")[1].split(",")[0])
    _, _, report = fit_sufficiency(small, "default", f"accuracy@cost<={cheapest + 1e-4}", 42)
    assert report["cascade"]["cost"] == pytest.approx(cheapest, rel=1e-4)
    assert report["cascade"]["cost_cross_fitted"] is report["cascade"]["accuracy_cross_fitted"] is None


def with_nan(data: Collected) -> Collected:
    broken = data.features.copy()
    broken[7, 2, 3] = np.nan
    return dataclasses.replace(data, features=broken)


def test_what_cannot_be_fitted_on_is_refused_in_one_sentence(data: Collected) -> None:
    part = dataclasses.replace
    cases: list[tuple[Collected, str]] = [
        (collected(19), "19 question"),
        (part(data, correct=np.ones((240, 4))), "All 960 answers are right.*harder"),
        (part(data, correct=np.zeros((240, 4))), "All 960 answers are wrong.*easier"),
        (part(data, features=data.features[:, :3]), "features of shape"),
        (part(data, features=data.features[:, :1], correct=data.correct[:, :1]), "at least one more"),
        (part(data, cost=data.cost[:, :3]), "`cost` has shape"),
        (with_nan(data), "'q7'.*stage 2.*1 question"),
        (part(data, ids=["same"] * 240), "'same' was collected twice"),
    ]
    for given, words in cases:
        with pytest.raises(ClassifierError, match=words) as refusal:
            fit_sufficiency(given, "default", "accuracy", 42)
        assert "\n" not in str(refusal.value)
    with pytest.raises(ClassifierError, match=", ".join(RECIPES)):
        fit_sufficiency(data, "best", "accuracy", 42)
    with pytest.raises(ClassifierError, match="objective 'speed'"):
        fit_sufficiency(data, "default", "speed", 42)
