"""Cross-fitted figures: on questions that nothing can tell apart they show no more than chance."""

from __future__ import annotations

import dataclasses
from functools import partial

import numpy as np
import pytest

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.training.choose_inputs import InputChoice
from lm_eval_tandem.training.cross_fitting import cross_fitted_outcomes
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit import fit_sufficiency
from lm_eval_tandem.training.recipes import RECIPES

LONGEST = 60
SEEDS = 40


def noise(seed: int, questions: int = 80, stages: int = 4) -> Collected:
    """Grades drawn by coin, so that every rule to choose a stage is worth one half."""
    random = np.random.default_rng(seed)
    shape = questions, stages
    features = random.normal(size=(*shape, 18))
    features[:, :, 17] = np.arange(stages)
    length = random.integers(5, LONGEST, shape)
    entropy = random.exponential(0.5, (*shape, LONGEST)).astype(np.float32)
    entropy[np.arange(LONGEST) >= length[:, :, None]] = np.nan
    cost = np.arange(1.0, stages + 1) + random.random((questions, 1))
    return Collected(
        [f"q{n}" for n in range(questions)],
        features,
        random.integers(0, 2, shape).astype(np.float64),
        cost,
        np.repeat(cost[:, -1:], stages, axis=1),
        logprob=-entropy,
        entropy=entropy,
        answer_tokens=length,
        token_cost=0.001,
    )


@pytest.mark.slow
def test_on_pure_noise_the_cross_fitted_accuracy_is_that_of_a_coin() -> None:
    reports = [fit_sufficiency(noise(seed), "default", "accuracy", 42).report["cascade"] for seed in range(SEEDS)]
    reached = np.array([report["accuracy_cross_fitted"] for report in reports])
    half = 2.58 * reached.std(ddof=1) / np.sqrt(SEEDS)  # a 99 % interval
    assert reached.mean() - half < 0.5 < reached.mean() + half
    chosen = np.array([report["accuracy"] for report in reports])
    assert chosen.mean() > 0.55, "choosing and measuring on the same questions was expected to flatter"


def test_no_label_of_a_held_out_question_has_a_part_in_the_choice_of_inputs() -> None:
    data = noise(3)
    labels = data.correct.astype(np.int64)
    held_out = np.arange(80) % 5 == 0
    choices = []
    for other in (labels, np.where(held_out[:, None], 1 - labels, labels)):
        given = dataclasses.replace(data, correct=other.astype(np.float64))
        choosing = InputChoice(given, other, RECIPES["default"].inputs, "accuracy", 42)
        choices.append(choosing.best(~held_out))
    assert choices[0] == choices[1]


def test_thresholds_of_a_fold_are_chosen_as_the_recipe_chooses_its_own() -> None:
    """The paper's are not centred."""
    rule, objective, differing = RECIPES["paper"], "accuracy", 0
    for seed in range(4):
        data = noise(seed, 100, 3)
        made = fit_sufficiency(data, "paper", objective, 42, model="logistic")
        scored = ~np.isnan(made.scores[:, 0])
        outcomes = data.subset(scored).outcomes(made.scores[scored], None)
        own, other = (
            [figure.mean() for figure in cross_fitted_outcomes(outcomes, partial(how.choose, objective=objective), 42)]
            for how in (rule, dataclasses.replace(rule, centred=not rule.centred))
        )
        assert [made.report["cascade"][f"{name}_cross_fitted"] for name in ("accuracy", "cost")] == own
        differing += own != other
    assert differing, "this data cannot tell the two apart"


@pytest.mark.parametrize("stages", [2, 5, 7, 9])
@pytest.mark.parametrize("recipe", ["paper", "default"])
def test_a_judge_is_fitted_for_one_to_eight_efforts(stages: int, recipe: str) -> None:
    made = fit_sufficiency(noise(2, 40, stages), recipe, "accuracy", 42, inputs="statistics")
    assert len(made.thresholds) == len(made.report["fixed"]) == stages
    assert made.report["cascade"]["accuracy_cross_fitted"] is not None


def test_the_inputs_of_a_fold_are_chosen_where_its_few_questions_miss_the_objective() -> None:
    """As few questions and a coarse grid may, although the thresholds of all other questions reach it."""
    data = noise(3)
    choosing = InputChoice(data, data.correct.astype(np.int64), RECIPES["default"].inputs, "accuracy@cost<=0.1", 42)
    everyone = np.ones(80, dtype=np.bool_)
    with pytest.raises(ClassifierError, match="No thresholds reach"):
        choosing.best(everyone)
    assert choosing.best(everyone, must_reach=False)[0] in RECIPES["default"].inputs
