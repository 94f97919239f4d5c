"""Thresholds: the cascade's decisions, the grid and the choice against brute force, and scores out of fold."""

from __future__ import annotations

import itertools
import time
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.splits import stratified_order
from lm_eval_tandem.training.cross_fitting import out_of_fold
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.recipes import FINE_GRID
from lm_eval_tandem.training.threshold_grid import GRID, evaluate_grid
from lm_eval_tandem.training.thresholds import Objective, best_thresholds, choose_thresholds, parse_objective

SMALL_GRID = (0.1, 0.5, 0.55, 0.9)


def outcomes(questions: int, stages: int, seed: int, on_grid: bool = False, finishes: bool = False) -> Outcomes:
    """Random outcomes with costs that grow by stage.

    `on_grid` puts scores exactly on grid values; `finishes` lets the mentor finish some answers itself.
    """
    random = np.random.default_rng(seed)
    scores = random.choice([0, *GRID, 1], (questions, stages)) if on_grid else random.random((questions, stages))
    correct = (random.random((questions, stages)) < scores).astype(np.float64)
    cost = random.integers(1, 9, (questions, stages)).cumsum(axis=1).astype(np.float64)
    finished = (random.random((questions, stages)) < 0.2).cumsum(axis=1) > 0 if finishes else None
    return Outcomes(scores, correct, cost, cost[:, -1:] + random.integers(0, 3, (questions, stages)), finished)


@st.composite
def some_outcomes(draw: st.DrawFn) -> Outcomes:
    questions, stages, seed = draw(st.integers(1, 25)), draw(st.integers(1, 3)), draw(st.integers(0, 9999))
    return outcomes(questions, stages, seed, draw(st.booleans()), draw(st.booleans()))


def of(scores: list[float], **given: Any) -> Outcomes:
    """One question; costs 1, 2, ... when stopping, 101, 102, ... when falling back."""
    stages = len(scores)
    values = {"correct": np.zeros((1, stages)), "cost": np.arange(1, stages + 1)[None]} | given
    return Outcomes(np.array([scores]), fallback_cost=np.linspace(101, 100 + stages, stages)[None], **values)


def test_the_grid_is_the_papers() -> None:
    assert GRID[0] == 0.05
    assert GRID[-1] == 0.95
    assert len(GRID) == 19
    assert GRID[5] == 0.3


@pytest.mark.parametrize(
    ("scores", "thresholds", "stage", "cost"),
    [
        ([0.9, 0.9, 0.9], (0.5, 0.5, 0.5), 0, 1),  # the first that passes
        ([0.4, 0.6, 0.9], (0.5, 0.5, 0.5), 1, 2),
        ([0.5, 0.5, 0.5], (0.5, 0.5, 0.5), 0, 101),  # a score equal to its threshold does not pass; first maximum
        ([0.1, 0.4, 0.3], (0.5, 0.5, 0.5), 1, 102),  # none passes: the highest score
        ([0.6, 0.1, 0.2], (0.7, 0.5, 0.1), 2, 3),  # a later pass beats an earlier higher score
    ],
)
def test_the_cascade_stops_as_the_paper_says(
    scores: list[float], thresholds: tuple[float, ...], stage: int, cost: float
) -> None:
    found = simulate(of(scores), thresholds)
    assert [float(values[0]) for values in found] == [stage, 0, cost]


@settings(deadline=None)
@given(some_outcomes(), st.randoms(use_true_random=False))
def test_simulate_is_the_algorithm_written_as_a_loop(data: Outcomes, random: Any) -> None:
    thresholds = [random.choice(GRID) for _ in range(data.scores.shape[1])]
    stage, correct, cost = simulate(data, thresholds)
    for question, scores in enumerate(data.scores):
        finished = np.zeros(len(scores), dtype=bool) if data.finished is None else data.finished[question]
        passing = [t for t, score in enumerate(scores) if score > thresholds[t] or finished[t]]
        expected = passing[0] if passing else scores.tolist().index(max(scores))
        assert stage[question] == expected
        assert correct[question] == data.correct[question, expected]
        assert cost[question] == (data.cost if passing else data.fallback_cost)[question, expected]


@settings(deadline=None)
@given(some_outcomes())
def test_the_grid_is_simulate_for_every_combination(data: Outcomes) -> None:
    stages = data.scores.shape[1]
    accuracy, cost = evaluate_grid(data, SMALL_GRID)
    assert accuracy.shape == cost.shape == (len(SMALL_GRID),) * stages
    for index in itertools.product(range(len(SMALL_GRID)), repeat=stages):
        _, correct, spent = simulate(data, [SMALL_GRID[i] for i in index])
        assert accuracy[index] == pytest.approx(correct.mean())
        assert cost[index] == pytest.approx(spent.mean())


def best_by_brute_force(data: Outcomes, objective: str, grid: tuple[float, ...] = SMALL_GRID) -> tuple[float, ...]:
    kind, number = parse_objective(objective)
    candidates = []
    for thresholds in itertools.product(grid, repeat=data.scores.shape[1]):
        _, correct, spent = simulate(data, thresholds)
        accuracy, cost = round(correct.mean(), 9), round(spent.mean(), 9)
        if kind == "accuracy@cost" and cost > number + 1e-9:
            continue
        if kind == "cost@accuracy" and accuracy < data.correct[:, -1].mean() - number - 1e-9:
            continue
        key = (cost, -accuracy) if kind == "cost@accuracy" else (-accuracy, cost)
        candidates.append((*key, thresholds))
    return min(candidates)[-1] if candidates else ()


@settings(deadline=None)
@given(some_outcomes(), st.sampled_from(["accuracy", "cost@accuracy>=always_high-0.1", "accuracy@cost<=12"]))
def test_the_choice_is_what_brute_force_finds(data: Outcomes, objective: str) -> None:
    expected = best_by_brute_force(data, objective)
    if expected:
        assert choose_thresholds(data, objective, SMALL_GRID) == expected
    else:
        with pytest.raises(ClassifierError, match="No thresholds reach"):
            choose_thresholds(data, objective, SMALL_GRID)


@settings(deadline=None)
@given(some_outcomes(), st.sampled_from(["accuracy", "cost@accuracy>=always_high-0.1", "accuracy@cost<=12"]))
def test_a_last_resort_takes_what_no_stage_has_passed(data: Outcomes, objective: str) -> None:
    """Its threshold does not count, and what always answering from the highest stage reaches stays the same."""
    questions, stages = data.scores.shape
    random = np.random.default_rng(questions)
    own, price = (random.random(questions) < 0.7).astype(float), random.integers(5, 30, questions).astype(float)
    more = data.with_last_resort(own, price, highest=-2)
    assert more.always_high == data.always_high
    values = []
    for limits in itertools.product(SMALL_GRID, repeat=stages):
        stopped = data.passed(limits).any(axis=1)
        _, correct, cost = simulate(data, limits)
        expected = np.where(stopped, correct, own), np.where(stopped, cost, price)
        for last in (0.0, 1.0):
            found = simulate(more, (*limits, last))[1:]
            np.testing.assert_array_equal(found, expected)
        values.append((round(expected[0].mean(), 9), round(expected[1].mean(), 9)))
    best = best_thresholds(more, parse_objective(objective), SMALL_GRID)
    reached = (round(best.accuracy, 9), round(best.cost, 9))
    assert reached in values
    if objective == "accuracy":
        assert reached == min(values, key=lambda value: (-value[0], value[1]))
    if best.lack > 0:
        assert len(choose_thresholds(more, objective, SMALL_GRID, must_reach=False)) == stages + 1
        with pytest.raises(ClassifierError, match="No thresholds reach"):
            choose_thresholds(more, objective, SMALL_GRID)


OBJECTIVES = ["accuracy", "cost@accuracy>=always_high-0.1", "accuracy@cost<=12"]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 9), st.integers(1, 25), st.integers(0, 9999), st.sampled_from(OBJECTIVES))
def test_the_choice_for_up_to_eight_efforts_is_what_brute_force_finds(
    stages: int, questions: int, seed: int, objective: str
) -> None:
    data = outcomes(questions, stages, seed)
    grid = SMALL_GRID if stages <= 3 else (0.3, 0.7)
    expected = best_by_brute_force(data, objective, grid)
    if expected:
        assert choose_thresholds(data, objective, grid) == expected


def key_of(data: Outcomes, goal: Objective, thresholds: tuple[float, ...]) -> tuple[float, float]:
    """What the objective minimises, first what is lacking of its target."""
    _, correct, cost = simulate(data, thresholds)
    if goal.kind == "accuracy@cost":
        return round(max(0.0, cost.mean() - goal.number), 8), -correct.mean()
    if goal.kind == "cost@accuracy":
        return round(max(0.0, data.correct[:, -1].mean() - goal.number - correct.mean()), 8), cost.mean()
    return 0.0, -correct.mean()


@settings(deadline=None, max_examples=20)
@given(st.integers(2, 6), st.integers(2, 40), st.integers(0, 9999), st.sampled_from(OBJECTIVES), st.integers(9, 2000))
def test_a_search_ends_where_no_single_threshold_does_better(
    stages: int, questions: int, seed: int, objective: str, most: int
) -> None:
    data, goal = outcomes(questions, stages, seed), parse_objective(objective)
    found = best_thresholds(data, goal, GRID, most)
    lack, reached = key_of(data, goal, found.thresholds)
    assert found.lack == pytest.approx(lack, abs=1e-7)
    for stage in range(stages):
        for value in GRID:
            other = (*found.thresholds[:stage], value, *found.thresholds[stage + 1 :])
            assert key_of(data, goal, other) >= (lack, reached - 1e-8)


@pytest.mark.parametrize("stages", range(2, 10))
@pytest.mark.parametrize("grid", [GRID, FINE_GRID])
def test_one_to_eight_efforts_have_thresholds(stages: int, grid: tuple[float, ...]) -> None:
    data = outcomes(200, stages, 4)
    for objective in ("accuracy", "cost@accuracy>=always_high-0.05"):
        chosen = choose_thresholds(data, objective, grid)
        assert len(chosen) == stages
        assert set(chosen) <= set(grid)
        correct = simulate(data, chosen)[1].mean()
        always_high = data.correct[:, -1].mean()
        assert correct >= (always_high if objective == "accuracy" else always_high - 0.05) - 1e-9


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_search_comes_close_to_the_best_of_all(objective: str) -> None:
    goal = parse_objective(objective)
    for seed in range(3):
        data = outcomes(150, 4, seed)
        searched, best = (best_thresholds(data, goal, GRID, most) for most in (10_000, 20_000_000))
        assert searched.lack == best.lack == 0
        lost = best.accuracy - searched.accuracy if goal.kind != "cost@accuracy" else searched.cost / best.cost - 1
        assert -1e-9 <= lost <= 0.02


def test_ties_go_to_the_lower_cost_and_then_to_lower_thresholds() -> None:
    cheap = of([0.7, 0.8], correct=np.ones((1, 2)))
    assert choose_thresholds(cheap, "accuracy") == (0.05, 0.05)
    dear = of([0.7, 0.8], correct=np.ones((1, 2)), cost=np.array([[5, 2]]))
    assert choose_thresholds(dear, "accuracy") == (0.7, 0.05)


def test_targets_steer_between_cost_and_accuracy() -> None:
    data = outcomes(500, 4, 3)
    best, cheap = (
        simulate(data, choose_thresholds(data, aim)) for aim in ("accuracy", "cost@accuracy>=always_high - 0.02")
    )
    assert cheap[1].mean() >= data.correct[:, -1].mean() - 0.02 - 1e-9
    assert cheap[2].mean() < best[2].mean()
    capped = simulate(data, choose_thresholds(data, f"accuracy@cost<={cheap[2].mean()}"))
    assert capped[2].mean() <= cheap[2].mean() + 1e-9
    assert capped[1].mean() >= cheap[1].mean()


def test_a_target_out_of_reach_names_the_nearest() -> None:
    with pytest.raises(ClassifierError, match="the cheapest cost 1, so raise it"):
        choose_thresholds(of([0.96, 0.2]), "accuracy@cost<=0.5")
    right_last = of([1.0, 0.2], correct=np.array([[0, 1]]))
    with pytest.raises(ClassifierError, match=r"the nearest reach 0\.0000, so allow always_high-1\.0000"):
        choose_thresholds(right_last, "cost@accuracy>=always_high-0.5")
    assert choose_thresholds(right_last, "cost@accuracy>=always_high-1.0") == (0.05, 0.05)


@pytest.mark.parametrize(
    "objective", ["", "cost", "accuracy@cost<=", "accuracy@cost<=-1", "cost@accuracy>=0.8", "accuracy!"]
)
def test_an_unknown_objective_lists_the_known(objective: str) -> None:
    with pytest.raises(ClassifierError, match="accuracy@cost<=NUMBER"):
        choose_thresholds(of([0.5, 0.5]), objective)


def test_inputs_that_do_not_fit_are_refused() -> None:
    one = np.ones((2, 2))
    with pytest.raises(ClassifierError, match="shape"):
        Outcomes(one, one, one, one[:1])
    with pytest.raises(ClassifierError, match="NaN"):
        Outcomes(one, one, one * np.nan, one)
    with pytest.raises(ClassifierError, match="from 0 to 1"):
        Outcomes(one * 2, one, one, one)
    with pytest.raises(ClassifierError, match=r"1 threshold\(s\) were given for 2 stages"):
        simulate(of([0.5, 0.5]), (0.5,))
    for grid in ((), (0.5, 0.5), (0.1, 1.1)):
        with pytest.raises(ClassifierError, match="strictly increasing"):
            evaluate_grid(of([0.5, 0.5]), grid)
    with pytest.raises(ClassifierError, match="at most 10 values"):
        evaluate_grid(outcomes(5, 7, 0), GRID)


def test_ten_thousand_questions_take_seconds() -> None:
    data = outcomes(10_000, 4, 0)
    start = time.process_time()
    thresholds = choose_thresholds(data, "accuracy")
    assert time.process_time() - start < 10
    accuracy, cost = evaluate_grid(data)
    _, correct, spent = simulate(data, thresholds)
    assert correct.mean() == pytest.approx(accuracy.max())
    assert spent.mean() == pytest.approx(cost[tuple(GRID.index(value) for value in thresholds)])


class Memory:
    """A classifier that is certain of every row it was fitted on and of no other."""

    fits: ClassVar[list[tuple[set[float], set[int]]]] = []

    def fit(self, X: NDArray[np.float64], y: NDArray[np.int64], groups: NDArray[np.int64]) -> Memory:
        self.classes_, self.rows = np.array([0, 1]), set(X[:, 0].tolist())
        self.fits.append((self.rows, set(groups.tolist())))
        return self

    def predict_proba(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        known = np.array([value in self.rows for value in X[:, 0]], dtype=np.float64)
        return np.stack([1 - known, known], axis=1)


def test_scores_come_from_classifiers_that_never_saw_the_question() -> None:
    Memory.fits.clear()
    X = np.zeros((23, 4, 18))
    X[:, :, 0] = np.arange(23 * 4).reshape(23, 4)
    y = np.random.default_rng(0).integers(0, 2, (23, 4))
    scores = out_of_fold(Memory, X, y, folds=5)
    assert scores.shape == (23, 4)
    assert not scores.any()
    assert len(Memory.fits) == 5
    for rows, groups in Memory.fits:
        assert rows == {4.0 * question + stage for question in groups for stage in range(4)}
    assert all(sum(question in groups for _, groups in Memory.fits) == 4 for question in range(23))


def test_any_scikit_learn_classifier_will_do_and_scores_keep_their_place() -> None:
    from sklearn.linear_model import LogisticRegression

    random = np.random.default_rng(1)
    X = random.normal(size=(60, 3, 18))
    y = X[:, :, 4] > 0
    scores = out_of_fold(LogisticRegression, X, y, folds=3)
    assert ((scores > 0.5) == y).mean() > 0.85
    np.testing.assert_array_equal(scores, out_of_fold(LogisticRegression, X, y, folds=3))


def test_folds_that_cannot_be_made_are_refused() -> None:
    with pytest.raises(ClassifierError, match="from 2 to 3"):
        out_of_fold(Memory, np.zeros((3, 2, 18)), np.zeros((3, 2)), folds=4)
    with pytest.raises(ClassifierError, match="out_of_fold got X"):
        out_of_fold(Memory, np.zeros((3, 18)), np.zeros((3, 2)))


@settings(deadline=None)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=50), st.integers(0, 9))
def test_a_stratified_order_sorts_by_difficulty_and_loses_nobody(positives: list[int], seed: int) -> None:
    order = stratified_order(positives, seed)
    assert sorted(order.tolist()) == list(range(len(positives)))
    assert (np.diff(np.array(positives)[order]) >= 0).all()
