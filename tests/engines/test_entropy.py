"""Entropies from what a server hands on."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_tandem.engines.entropy import EntropyMethod, entropy_bounds, estimate_entropy
from lm_eval_tandem.errors import ArgumentError


@given(st.lists(st.floats(-20, 20), min_size=2, max_size=60), st.integers(1, 59))
def test_the_true_entropy_lies_within_the_bounds(logits: list[float], k: int) -> None:
    logprobs = np.array(logits) - np.logaddexp.reduce(logits)
    true = -(np.exp(logprobs) * logprobs).sum()
    top = np.sort(logprobs)[::-1][None, :k]
    least, most = entropy_bounds(top, len(logits))
    assert least[0] - 1e-6 <= true <= most[0] + 1e-6
    assert least[0] <= estimate_entropy(top, len(logits))[0] + 1e-5
    if k >= len(logits):
        assert most[0] - least[0] < 1e-6


def test_exact_entropies_are_read_where_they_are_marked() -> None:
    rows = SimpleNamespace(logprobs=[-1.0, -0.5, 2.0, -3.0, -0.1, -4.0], token_ids=[7, 8, -1, 5, 6, 9])
    logprob, entropy, measured = EntropyMethod().read(rows, 100)
    assert logprob.tolist() == [-1.0, -3.0]
    assert entropy[0] == 2.0
    assert measured.tolist() == [True, False]


def test_no_rows_are_no_tokens() -> None:
    logprob, entropy, measured = EntropyMethod().read(SimpleNamespace(logprobs=[], token_ids=[]), 100)
    assert len(logprob) == len(entropy) == len(measured) == 0


@pytest.mark.parametrize("text", ["topk", "topk:0", "topk:x", "exact:3", "all"])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(ArgumentError, match="use exact, or topk:K"):
        EntropyMethod.parse(text)


@pytest.mark.parametrize("text", ["exact", "topk:20"])
def test_it_is_written_as_it_is_read(text: str) -> None:
    assert str(EntropyMethod.parse(text)) == text
