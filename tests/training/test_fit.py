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
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.artefact import load, save
from lm_eval_tandem.judge.features import features
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.registry import to_tensors
from lm_eval_tandem.training import card
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit import fit_sufficiency
from lm_eval_tandem.training.outcomes import simulate
from lm_eval_tandem.training.recipes import RECIPES

torch = pytest.importorskip("torch")
torch.set_num_threads(1)


LONGEST = 40


def collected(questions: int, seed: int = 0) -> Collected:
    """Questions of different hardness; insight makes them easier, and the prompt less surprising."""
    random = np.random.default_rng(seed)
    vectors, answers = np.empty((questions, 4, 18)), np.full((2, questions, 4, LONGEST), np.nan, dtype=np.float32)
    length = random.integers(10, LONGEST + 20, (questions, 4))
    ease = random.normal(0, 1.2, questions)[:, None] + [-0.6, 0.0, 0.6, 1.2]
    for question, stage in np.ndindex(questions, 4):
        tokens = 30 + 15 * stage + int(random.integers(20))
        entropy = random.gamma(2.0, np.exp(-0.35 * ease[question, stage]), tokens).astype(np.float32)
        logprob = -random.exponential(entropy).astype(np.float32)
        logprob[0] = entropy[0] = np.nan
        vectors[question, stage] = features(TokenStats(logprob, entropy, 0, 0.0), stage)
        n = min(LONGEST, int(length[question, stage]))
        nats = random.gamma(2.0, np.exp(-2.0 * ease[question, stage]) / 4, n)
        answers[:, question, stage, :n] = -random.exponential(nats), nats
    correct = ease + random.normal(0, 0.2, ease.shape) > 0
    cost = np.array([1.0, 2.0, 4.0, 7.0]) + random.random((questions, 1))
    return Collected(
        [f"q{n}" for n in range(questions)],
        vectors,
        correct,
        cost,
        np.repeat(cost[:, -1:], 4, axis=1),
        logprob=answers[0],
        entropy=answers[1],
        answer_tokens=length,
        token_cost=0.005,
        agrees=np.where(random.random(correct.shape) < 0.03, ~correct, correct).astype(float),
    )


@pytest.fixture(scope="module")
def data() -> Collected:
    return collected(240)


def test_the_default_recipe_judges_well_out_of_sample(data: Collected, tmp_path: Path) -> None:
    made = fit_sufficiency(data, "default", "cost@accuracy>=always_high-0.02", 42)
    classifier, thresholds, report = made.estimator, made.thresholds, made.report
    assert len(thresholds) == 4
    assert report["thresholds"] == list(thresholds)
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
    assert made.probe is not None
    assert report["probe"] == made.probe.to_json()
    assert made.schema in (input_schemas.PROBE, input_schemas.BOTH)
    assert report["calibration"]["brier"] < 0.1
    assert report["calibration"]["ece"] < 0.1
    assert sum(part["count"] for part in report["calibration"]["bins"]) == 960

    unseen = collected(100, seed=1)
    vectors = unseen.inputs(made.schema, made.probe)
    rows, labels = vectors.reshape(-1, vectors.shape[2]), np.ravel(unseen.correct)
    assert (classifier.predict(rows) == labels).mean() > 0.8
    given: dict[str, Any] = {"pair": {"mentor": "large", "intern": "small"}, "recipe": "default", "card": "#"}
    given |= {"fitted_on": {"report": report}, "schema": made.schema, "probe": made.probe}
    save(tmp_path / "c", classifier, thresholds, **given)
    judge = load(tmp_path / "c", stages=4)
    assert judge.thresholds == thresholds
    assert judge.score(rows[0]) == pytest.approx(classifier.predict_proba(rows)[0, 1], abs=1e-12)


def test_the_paper_recipe_chooses_on_the_thirty_percent(data: Collected) -> None:
    made = fit_sufficiency(data, "paper", "accuracy", 42)
    assert made.report["questions_out_of_sample"] == pytest.approx(0.3 * 240, abs=1)
    assert np.isnan(made.scores).any(axis=1).sum() == 240 - made.report["questions_out_of_sample"]
    classifier = made.estimator
    assert isinstance(classifier, SufficiencyClassifier)
    assert (made.schema, made.probe) == (
        input_schemas.STATISTICS,
        None,
    )
    wanted: dict[str, Any] = {"hidden": (64, 32), "dropout": 0.3, "lr": 1e-4, "epochs": 3, "validation_fraction": 0.3}
    assert wanted.items() <= classifier.get_params().items()
    assert not classifier.log_features
    assert classifier.epochs_run_ <= 3
    assert all(0.05 <= threshold <= 0.95 for threshold in made.thresholds)


@pytest.mark.parametrize("model", ["mlp", "boosting", "logistic"])
def test_the_same_data_gives_the_same_judge(model: str) -> None:
    """The logistic one with its choice of inputs, which is the same for all models."""
    small, inputs = collected(60), None if model == "logistic" else "statistics"
    first, second = (fit_sufficiency(small, "default", "accuracy", 7, model=model, inputs=inputs) for _ in range(2))
    assert first.thresholds == second.thresholds
    assert first.report == second.report
    for name, array in to_tensors(first.estimator).items():
        np.testing.assert_array_equal(array, to_tensors(second.estimator)[name])


def test_each_policy_has_the_thresholds_that_serve_it_best(data: Collected, tmp_path: Path) -> None:
    """A mentor that is always right takes all that is not certain, and the cascade has nobody to leave it to."""
    right, cost = np.ones(len(data.ids)), np.full(len(data.ids), 20.0)
    with_mentor = dataclasses.replace(data, others={"mentor": (right, cost)})
    made = fit_sufficiency(with_mentor, inputs="statistics")
    escalate, once = made.policy_thresholds["escalate"], made.policy_thresholds["llm_cascade"]
    assert made.report["policy_thresholds"] == {"llm_cascade": list(once), "escalate": list(escalate)}
    assert len(escalate) == len(once) == 4
    outcomes = with_mentor.outcomes(made.scores, None)

    def escalated(thresholds: tuple[float, ...]) -> float:
        _, correct, _ = simulate(outcomes, thresholds)
        return float(np.where(outcomes.passed(thresholds).any(axis=1), correct, right).mean())

    assert escalated(escalate) > escalated(made.thresholds)
    assert "escalate" not in fit_sufficiency(data, inputs="statistics").policy_thresholds

    save(
        tmp_path / "judge",
        made.estimator,
        made.thresholds,
        policy_thresholds=made.policy_thresholds,
        pair={"mentor": "a", "intern": "b"},
        fitted_on={},
        recipe="default",
        card="",
    )
    judge = load(tmp_path / "judge", stages=4)
    assert judge.thresholds == judge.for_policy("cascade").thresholds == made.thresholds
    assert judge.for_policy("escalate").thresholds == escalate
    config = json.loads((tmp_path / "judge" / "config.json").read_text())
    for broken in ({"escalate": [0.5]}, {"escalate": [0.5, 0.5, 0.5, 2]}, {"escalate": "0.5"}, [0.5]):
        (tmp_path / "judge" / "config.json").write_text(json.dumps(config | {"policy_thresholds": broken}))
        with pytest.raises(ClassifierError, match="refit it"):
            load(tmp_path / "judge")


def test_labels_of_the_mentor_give_escalate_thresholds_without_a_grade(data: Collected) -> None:
    wrong = np.zeros(len(data.ids)), np.full(len(data.ids), 20.0)
    right = np.ones(len(data.ids)), np.full(len(data.ids), 20.0)
    one, other = (
        fit_sufficiency(dataclasses.replace(data, others={"mentor": alone}), inputs="statistics", labels="mentor")
        for alone in (wrong, right)
    )
    assert one.policy_thresholds == other.policy_thresholds


def test_no_probe_is_chosen_where_none_is_worth_its_tokens(data: Collected) -> None:
    dear = dataclasses.replace(data, token_cost=50.0)
    made = fit_sufficiency(dear, "default", "cost@accuracy>=always_high-0.2", 42, model="logistic")
    assert (made.probe, made.schema, made.report["inputs"]) == (None, input_schemas.STATISTICS, "statistics")


def test_labels_of_the_mentor_use_no_grade(data: Collected) -> None:
    """Grades may be anything, even missing, and the judge stays the same."""
    blind = dataclasses.replace(data, correct=np.random.default_rng(0).random(data.correct.shape))
    made, again = (
        fit_sufficiency(one, "default", "accuracy", model="logistic", labels="mentor") for one in (data, blind)
    )
    assert made.thresholds == again.thresholds
    assert made.report == again.report
    np.testing.assert_array_equal(made.scores, again.scores)
    with pytest.raises(ClassifierError, match="--labels mentor needs the mentor's own answers"):
        fit_sufficiency(dataclasses.replace(data, agrees=None), labels="mentor")


def test_questions_that_the_mentor_leaves_open_are_left_out(data: Collected, caplog: pytest.LogCaptureFixture) -> None:
    """A mentor that errs may state no final value, and what nobody can agree with is no label."""
    assert data.agrees is not None
    agrees = np.array(data.agrees, dtype=float)
    agrees[[3, 8]] = np.nan
    rest = np.ones(len(data.ids), dtype=bool)
    rest[[3, 8]] = False
    how = {"inputs": "statistics", "labels": "mentor"}
    made = fit_sufficiency(dataclasses.replace(data, agrees=agrees), **how)
    assert f"2 of {len(data.ids)} questions are left out" in caplog.text
    assert made.report == fit_sufficiency(data.subset(rest), **how).report


def test_a_refused_probe_costs_its_tokens_and_an_accepted_one_nothing(data: Collected) -> None:
    probe = Probe(16)
    tokens = data.probe_all(probe)[1]
    scores = np.tile([0.1, 0.2, 0.9, 0.3], (240, 1))
    outcomes = data.outcomes(scores, probe)
    _, _, cost = simulate(outcomes, (0.5, 0.5, 0.5, 0.5))
    np.testing.assert_allclose(cost, data.cost[:, 2] + 0.005 * tokens[:, :2].sum(axis=1))
    _, _, cost = simulate(outcomes, (0.95, 0.95, 0.95, 0.95))  # none passes: the third continues from its tokens
    np.testing.assert_allclose(cost, data.fallback_cost[:, 2] + 0.005 * tokens[:, [0, 1, 3]].sum(axis=1))


def test_an_objective_that_four_fifths_cannot_meet_has_no_cross_fitted_figures() -> None:
    small, how = collected(40), {"model": "logistic", "inputs": "statistics"}
    with pytest.raises(ClassifierError, match="No thresholds reach") as refusal:
        fit_sufficiency(small, "default", "accuracy@cost<=0.1", 42, **how)
    cheapest = float(str(refusal.value).split("the cheapest cost ")[1].split(",")[0])
    report = fit_sufficiency(small, "default", f"accuracy@cost<={cheapest + 1e-4}", 42, **how).report
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
    for name, words in (("inputs", "statistics, probe"), ("model", "mlp, boosting"), ("labels", "truth, mentor")):
        with pytest.raises(ClassifierError, match=f"{name}=x is not known; give one of {words}"):
            fit_sufficiency(data, **{name: "x"})
    with pytest.raises(ClassifierError, match="collect again"):
        fit_sufficiency(part(data, entropy=None))
    with pytest.raises(ClassifierError, match="objective 'speed'"):
        fit_sufficiency(data, "default", "speed", 42)


def test_what_the_mentor_has_finished_is_neither_fitted_on_nor_judged() -> None:
    """At the last stage it has finished every answer, at the one before a third."""
    data = collected(120)
    finished = np.zeros(data.correct.shape, dtype=bool)
    finished[:, 3] = finished[::3, 2] = True
    data = dataclasses.replace(data, finished=finished, judged=~finished)
    turned = dataclasses.replace(data, correct=np.where(finished, 1 - data.correct, data.correct))
    vectors = data.features.reshape(-1, 18)
    one, other = (
        fit_sufficiency(given, inputs="statistics").estimator.predict_proba(vectors) for given in (data, turned)
    )
    np.testing.assert_array_equal(one, other, "grades of what was not judged were learned from")

    report = fit_sufficiency(data, inputs="probe").report
    assert (report["stages"][-1]["auc"], report["stages"][-1]["share_correct"]) == (None, None)
    assert sum(part["count"] for part in report["calibration"]["bins"]) == (~finished).sum()
    roles = {"mentor": {"model": "large"}, "intern": {"model": "small"}}
    setting = {"efforts": [1, 2, 3], "insights": "cutoff", "guidance": "handoff", "version": "1", "tasks": ["train"]}
    assert "| 3 |  |  |  |  |  |" in card.write("judge", {**roles, **setting}, report)
