"""Intervals and paired tests: known values, and the results of SciPy and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import roc_auc_score

from lm_eval_tandem.reports.intervals import auc, difference, mcnemar, ratio, wilson
from lm_eval_tandem.training.bootstrap import resampled_means

GRADES = st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=60)


def test_wilson_has_known_values_and_stays_within_bounds() -> None:
    assert wilson(50, 100) == pytest.approx((0.40383, 0.59617), abs=1e-4)
    assert wilson(0, 10)[0] == 0
    assert wilson(10, 10)[1] == pytest.approx(1)
    assert wilson(980, 1000) == pytest.approx((0.96935, 0.98701), abs=1e-4)


@given(st.integers(1, 2000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_that_of_scipy_for_whole_counts(counts: tuple[int, int]) -> None:
    expected = binomtest(*counts).proportion_ci(method="wilson")
    assert wilson(*counts) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_wilson_takes_the_sum_of_partial_grades() -> None:
    (low, high), (lower, _), (_, higher) = wilson(50.5, 100), wilson(50, 100), wilson(51, 100)
    assert lower < low < high < higher


@settings(max_examples=10, deadline=None)
@given(st.lists(st.booleans(), min_size=5, max_size=40))
def test_a_run_does_not_differ_from_itself(right: list[bool]) -> None:
    values = np.array(right, dtype=float)
    low, high = difference(values, values)
    assert low == -high < 0
    assert ratio(values + 1, values + 1) == pytest.approx((1, 1))


@pytest.mark.parametrize("n", [1, 2, 10, 1000])
def test_without_a_question_that_differs_the_interval_is_the_exact_binomial_one(n: int) -> None:
    share = binomtest(0, n).proportion_ci(method="exact").high
    right, wrong = np.ones(n), np.zeros(n)
    assert difference(right, right) == pytest.approx((-share, share))
    assert difference(wrong, wrong) == pytest.approx((-share, share))
    assert difference(right, wrong) == pytest.approx((1 - 2 * share, 1))
    assert difference(wrong, right) == pytest.approx((-1, 2 * share - 1))
    half = np.full(n, 0.5)  # partial credit
    assert difference(half, wrong) == pytest.approx((0.5 - 1.5 * share, 0.5 + 0.5 * share))


def test_the_bootstrap_stays_where_one_question_differs_and_where_scores_have_no_bounds() -> None:
    a, b = np.ones(10), np.ones(10)
    b[3] = 0
    means = resampled_means(np.stack([a, b], axis=1))
    assert difference(a, b) == pytest.approx(tuple(np.quantile(means[:, 0] - means[:, 1], [0.025, 0.975])))
    assert difference(3 * a, a) == (2, 2)


def test_paired_intervals_use_the_pairing() -> None:
    rng = np.random.default_rng(1)
    hard = rng.random(1000)
    a, b = (hard < 0.9).astype(float), (hard < 0.88).astype(float)
    low, high = difference(a, b)
    assert 0 < low < (a - b).mean() < high < 0.04


def test_columns_resampled_in_several_calls_are_still_paired() -> None:
    values = np.random.default_rng(2).random((300, 2))
    together = resampled_means(values)
    assert together[:, :1] == pytest.approx(resampled_means(values[:, :1]), rel=1e-12)
    assert together.mean(axis=0) == pytest.approx(values.mean(axis=0), abs=2e-3)
    assert together.std(axis=0) == pytest.approx(values.std(axis=0) / np.sqrt(300), rel=0.05)


@given(GRADES)
def test_mcnemar_is_the_exact_binomial_test_on_the_questions_that_differ(pairs: list[tuple[bool, bool]]) -> None:
    a, b = (np.array(column, dtype=float) for column in zip(*pairs, strict=True))
    only_a, only_b = int(np.sum(a > b)), int(np.sum(b > a))
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(a, b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_stays_exact_with_thousands_of_differences_and_refuses_partial_grades() -> None:
    a = np.repeat([1.0, 0.0], [2600, 2400])
    assert mcnemar(a, 1 - a) == pytest.approx(binomtest(2600, 5000).pvalue, rel=1e-6)
    assert mcnemar(np.array([0.5]), np.array([1.0])) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 5)), min_size=2, max_size=50))
def test_auc_is_that_of_scikit_learn_ties_included(pairs: list[tuple[bool, int]]) -> None:
    truth, scores = np.array([t for t, _ in pairs], dtype=float), np.array([s for _, s in pairs], dtype=float)
    if truth.min() == truth.max():
        assert auc(truth, scores) is None
    else:
        assert auc(truth, scores) == pytest.approx(roc_auc_score(truth, scores))
