"""Values of sampling that mean nothing are refused in one sentence, before any engine sees them."""

from __future__ import annotations

from typing import Any

import pytest

from lm_eval_tandem.engines import Sampling
from lm_eval_tandem.errors import ArgumentError


@pytest.mark.parametrize(
    "given",
    [
        {"top_p": 1.5},
        {"top_p": 0.0},
        {"top_p": -0.1},
        {"top_k": -2},
        {"min_p": 1.5},
        {"min_p": -0.1},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": -1.0},
        {"top_p": float("nan")},
    ],
)
def test_a_value_without_a_meaning_is_refused(given: dict[str, Any]) -> None:
    (name,) = given
    with pytest.raises(ArgumentError, match=f"^{name}=.* has to be .*; leave it out for the model's own default"):
        Sampling(5, temperature=1.0, **given)


@pytest.mark.parametrize(
    "given",
    [
        {"top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0},
        {"top_p": 1e-3, "top_k": -1, "min_p": 1.0, "repetition_penalty": 0.5},
        {},
    ],
)
def test_the_ends_of_each_range_are_allowed(given: dict[str, Any]) -> None:
    Sampling(5, temperature=1.0, **given)


def test_greedy_decoding_does_not_look_at_values_of_sampling() -> None:
    Sampling(5, top_p=0.0, top_k=-5, min_p=7.0)
    with pytest.raises(ArgumentError, match="repetition_penalty"):
        Sampling(5, repetition_penalty=0.0)
