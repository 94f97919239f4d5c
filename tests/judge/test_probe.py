"""The probe of collected answers is the probe of a running cascade: its features, and what a refusal costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lm_eval_tandem.engines.drafts import PROMPT_TAIL, accepted_draft_tokens, strip_prompt_overlap
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS, PROBE_FEATURE_NAMES, Probe, count_probe_tokens, probe_features

ENTROPIES = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 5, width=32))
PROBES = st.builds(Probe, st.integers(1, 50), st.one_of(st.floats(0.125, 5), st.just(float("inf"))))


@given(ENTROPIES, PROBES)
def test_a_probe_ends_with_its_first_uncertain_token(entropy: np.ndarray, probe: Probe) -> None:
    length = 0
    while length < min(len(entropy), probe.tokens):
        length += 1
        if float(entropy[length - 1]) > probe.max_entropy:  # as the engines compare it
            break
    assert probe.length(entropy) == length


FEW = st.lists(st.integers(0, 1), min_size=1, max_size=9)
STAGES = st.lists(st.tuples(FEW, st.integers(0, 9), FEW), min_size=3, max_size=3)


@given(st.lists(STAGES, min_size=1, max_size=4), st.booleans())
def test_the_cost_of_refusals_is_what_counting_stage_by_stage_gives(
    questions: list[list[tuple[list[int], int, list[int]]]], drafts: bool
) -> None:
    """Each question: per stage the answer's tokens, how many its probe takes (0: no probe), and the prompt's."""
    answers = np.array([[len(ids) for ids, _, _ in stages] for stages in questions])
    lengths = np.array([[min(probe, len(ids)) for ids, probe, _ in stages] for stages in questions])
    ends = np.array(
        [[([-1] * PROMPT_TAIL + prompt)[-PROMPT_TAIL:] for *_, prompt in stages] for stages in questions],
        dtype=np.int32,
    )
    ids = np.full((*answers.shape, answers.max()), -1, dtype=np.int32)
    for q, stages in enumerate(questions):
        for t, (tokens, *_) in enumerate(stages):
            ids[q, t, : len(tokens)] = tokens
    wasted, at_once, later = count_probe_tokens(lengths, answers, *((ids, ends) if drafts else (None, None)))
    for q, stages in enumerate(questions):
        draft: list[int] = []
        for t, (tokens, _, prompt) in enumerate(stages):
            n, given = lengths[q, t], list(strip_prompt_overlap(prompt, tuple(draft))) if drafts else []
            started = tokens[:n]
            first = accepted_draft_tokens(given, started) if n else 0
            rest, left = tokens[n:], given[n:] if given[:n] == started else []
            second = accepted_draft_tokens(left, rest) if rest else 0
            assert (wasted[q, t], at_once[q, t], later[q, t]) == (n - first, first + second, second)
            draft = started or draft


@given(ENTROPIES, PROBES, st.booleans())
def test_features_ignore_every_token_after_the_probe(entropy: np.ndarray, probe: Probe, ended: bool) -> None:
    vector = probe_features(-entropy, entropy, ended, probe)
    n = probe.length(entropy)
    assert vector.shape == (len(PROBE_FEATURE_NAMES),)
    assert np.isfinite(vector).all()
    assert vector[0] == n >= 1
    changed = entropy.copy()
    changed[n:] = 9.0
    np.testing.assert_array_equal(probe_features(-changed, changed, ended, probe), vector)
    shorter = probe_features(-entropy[:n], entropy[:n], ended and n == len(entropy), probe)
    np.testing.assert_array_equal(shorter, vector)


@given(PROBES)
def test_a_probe_survives_json(probe: Probe) -> None:
    assert Probe.from_json(json.loads(json.dumps(probe.to_json(), allow_nan=False))) == probe


def test_an_impossible_probe_is_refused_in_one_sentence() -> None:
    for wrong in ({"tokens": 0}, {"tokens": MAX_PROBE_TOKENS + 1}, {"tokens": 8, "max_entropy": 0.0}):
        with pytest.raises(ClassifierError, match="A probe's"):
            Probe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ClassifierError, match="described by tokens and max_entropy"):
        Probe.from_json({"tokens": 8})
    with pytest.raises(ValueError, match="at least one token"):
        probe_features(np.empty(0), np.empty(0), False, Probe(8))
