"""The 18 statistics: their order, their algebra, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from lm_eval_tandem.engines import TokenStats
from lm_eval_tandem.judge.features import FEATURE_NAMES, SCHEMA, features

LOGPROBS = st.floats(min_value=-30, max_value=0, width=32)
ENTROPIES = st.floats(min_value=0, max_value=12, width=32)
TOKENS = st.lists(st.tuples(LOGPROBS, ENTROPIES), min_size=2, max_size=120)


def stats(logprob: object, entropy: object) -> TokenStats:
    return TokenStats(np.asarray(logprob, dtype=np.float32), np.asarray(entropy, dtype=np.float32), 0, 0.0)


def by_name(vector: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(FEATURE_NAMES, vector.tolist(), strict=True))


def test_there_are_18_names_in_the_order_of_the_paper() -> None:
    assert SCHEMA == "statistics-18/1"
    summary = ("mean", "std", "median", "max", "min", "p25", "p75")
    assert FEATURE_NAMES[:7] == tuple(f"{name}_ppl" for name in summary)
    assert FEATURE_NAMES[7:14] == tuple(f"{name}_entropy" for name in summary)
    assert FEATURE_NAMES[14:] == ("trend_ppl", "trend_entropy", "tokens", "stage")


def test_a_prompt_worked_out_by_hand() -> None:
    vector = features(stats([np.nan, *-np.log([1.0, 2.0, 3.0, 6.0])], [np.nan, 0.5, 1.0, 1.5, 3.0]), stage=2)
    assert vector.shape == (18,)
    assert vector.dtype == np.float64
    ppl_std, entropy_std = np.sqrt(14 / 4), np.sqrt(3.5 / 4)
    expected = [3, ppl_std, 2.5, 6, 1, 1.75, 3.75, 1.5, entropy_std, 1.25, 3, 0.5, 0.875, 1.875, 0, 0, 5, 2]
    np.testing.assert_allclose(vector, expected, rtol=1e-6)


@given(TOKENS, st.integers(0, 5))
def test_all_entries_follow_their_definition(tokens: list[tuple[float, float]], stage: int) -> None:
    logprob, entropy = (np.array(column, dtype=np.float64) for column in zip(*tokens, strict=True))
    found = by_name(features(stats(logprob, entropy), stage))
    for suffix, values in (("ppl", np.exp(-logprob)), ("entropy", entropy)):
        ordered, k = np.sort(values), min(20, len(values))
        expected = {
            "mean": values.sum() / len(values),
            "std": np.sqrt(((values - values.mean()) ** 2).sum() / len(values)),
            "median": np.median(values),
            "max": ordered[-1],
            "min": ordered[0],
            "p25": np.quantile(values, 0.25),
            "p75": np.quantile(values, 0.75),
            "trend": sum(values[-k:]) / k - sum(values[:k]) / k,
        }
        for name, value in expected.items():
            assert found[f"{name}_{suffix}"] == pytest.approx(value, rel=1e-9, abs=1e-9 * ordered[-1])
    assert (found["tokens"], found["stage"]) == (len(tokens), stage)


@given(TOKENS, st.randoms(use_true_random=False))
def test_the_order_of_tokens_matters_to_the_trends_only(tokens: list[tuple[float, float]], random: object) -> None:
    shuffled = list(tokens)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    before, after = (features(stats(*zip(*these, strict=True)), 1) for these in (tokens, shuffled))
    rest = [index for index, name in enumerate(FEATURE_NAMES) if not name.startswith("trend")]
    np.testing.assert_allclose(before[rest], after[rest], rtol=1e-9, atol=1e-9)


@given(TOKENS, ENTROPIES)
def test_an_undefined_first_token_only_counts(tokens: list[tuple[float, float]], entropy: float) -> None:
    logprobs, entropies = zip(*tokens, strict=True)
    alone = features(stats(logprobs, entropies), 0)
    for first in (np.nan, entropy):
        led = features(stats([np.nan, *logprobs], [first, *entropies]), 0)
        np.testing.assert_array_equal(np.delete(led, 16), np.delete(alone, 16))
        assert led[16] == alone[16] + 1


@given(st.integers(41, 200), st.floats(0.125, 4, width=32))
def test_the_trend_compares_20_tokens_at_each_end(tokens: int, step: float) -> None:
    entropy = np.zeros(tokens)
    entropy[-20:] = step
    found = by_name(features(stats(-np.log1p(entropy), entropy), 1))
    assert found["trend_entropy"] == pytest.approx(step)
    assert found["trend_ppl"] == pytest.approx(step, rel=1e-5)
    mirrored = by_name(features(stats(-np.log1p(entropy[::-1]), entropy[::-1]), 1))
    assert mirrored["trend_entropy"] == -found["trend_entropy"]


def test_a_short_prompt_has_no_trend() -> None:
    vector = by_name(features(stats([np.nan, -1, -2, -3], [np.nan, 1, 2, 3]), 0))
    assert vector["trend_ppl"] == vector["trend_entropy"] == 0


def test_an_impossible_token_leaves_everything_finite_in_float32_too() -> None:
    vector = features(stats([np.nan, -1e30, -np.inf, -0.1], [np.nan, 1, 1, 1]), 0)
    assert np.isfinite(vector).all()
    assert np.isfinite(vector.astype(np.float32)).all()


@pytest.mark.parametrize(
    ("logprob", "entropy", "stage", "words"),
    [
        ([], [], 0, "0 token"),
        ([np.nan], [np.nan], 0, "1 token"),
        ([-1.0], [1.0], 0, "1 token"),
        ([-1, -1], [1, 1, 1], 0, "shapes"),
        ([np.nan, -1, np.nan], [np.nan, 1, 1], 0, "Token 2 of 3"),
        ([np.nan, np.nan], [np.nan, np.nan], 0, "Token 1 of 2"),
        ([-1, -1], [1, np.inf], 0, "Token 1 of 2"),
        ([-1, np.inf], [1, 1], 0, "Token 1 of 2"),
        ([-1, -1], [1, 1], -1, "Stage -1"),
    ],
)
def test_what_cannot_be_judged_is_refused(logprob: list[float], entropy: list[float], stage: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        features(stats(logprob, entropy), stage)
