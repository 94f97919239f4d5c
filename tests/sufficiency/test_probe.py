"""The probe offline is the probe live: what it sees, and what a refusal costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.sufficiency.probe import KEPT, PROBE_NAMES, Probe, statistics

ENTROPIES = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 5, width=32))
PROBES = st.builds(Probe, st.integers(1, 50), st.one_of(st.floats(0.125, 5), st.just(float("inf"))), st.integers(1, 10))


def live(entropy: np.ndarray, probe: Probe) -> int:
    """Tokens that pieces of an answer with these entropies come to (the live loop, without a model)."""
    seen = 0
    while seen < len(entropy) and (piece := probe.next_piece(entropy[:seen])):
        seen += min(piece, len(entropy) - seen)
    return seen


@given(ENTROPIES, PROBES)
def test_a_refusal_costs_what_the_live_loop_generates(entropy: np.ndarray, probe: Probe) -> None:
    assert probe.length(entropy) == live(entropy, probe)


@given(ENTROPIES, PROBES, st.booleans())
def test_statistics_look_at_nothing_behind_the_probe(entropy: np.ndarray, probe: Probe, ended: bool) -> None:
    found = statistics(-entropy, entropy, ended, probe)
    n = probe.length(entropy)
    assert found.shape == (len(PROBE_NAMES),) and np.isfinite(found).all() and found[0] == n >= 1
    changed = entropy.copy()
    changed[n:] = 9.0
    np.testing.assert_array_equal(statistics(-changed, changed, ended, probe), found)
    shorter = statistics(-entropy[:n], entropy[:n], ended and n == len(entropy), probe)
    np.testing.assert_array_equal(shorter, found)


@given(PROBES)
def test_a_probe_survives_json(probe: Probe) -> None:
    assert Probe.read(json.loads(json.dumps(probe.spelled(), allow_nan=False))) == probe


def test_an_impossible_probe_is_refused_in_one_sentence() -> None:
    for wrong in ({"tokens": 0}, {"tokens": KEPT + 1}, {"tokens": 8, "doubt": 0.0}, {"tokens": 8, "piece": 0}):
        with pytest.raises(ClassifierError, match="A probe's"):
            Probe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ClassifierError, match="described by tokens, doubt and piece"):
        Probe.read({"tokens": 8})
    with pytest.raises(ValueError, match="at least one token"):
        statistics(np.empty(0), np.empty(0), False, Probe(8))
