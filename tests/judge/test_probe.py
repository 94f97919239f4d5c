"""The probe offline is the probe live: what it sees, and what a refusal costs."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from lm_eval_tandem.engines.drafts import PROMPT_TAIL, accepted_draft_tokens, strip_prompt_overlap
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS, PROBE_NAMES, Probe, refusals, statistics

ENTROPIES = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(0, 5, width=32))
PROBES = st.builds(Probe, st.integers(1, 50), st.one_of(st.floats(0.125, 5), st.just(float("inf"))))


@given(ENTROPIES, PROBES)
def test_a_probe_ends_with_its_first_uncertain_token(entropy: np.ndarray, probe: Probe) -> None:
    seen = 0
    while seen < min(len(entropy), probe.tokens):
        seen += 1
        if float(entropy[seen - 1]) > probe.max_entropy:  # as the engines compare it
            break
    assert probe.length(entropy) == seen


FEW = st.lists(st.integers(0, 1), min_size=1, max_size=9)
STAGES = st.lists(st.tuples(FEW, st.integers(0, 9), FEW), min_size=3, max_size=3)


@given(st.lists(STAGES, min_size=1, max_size=4), st.booleans())
def test_what_refusals_cost_is_what_a_walk_along_the_stages_counts(
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
    wasted, at_once, later = refusals(lengths, answers, *((ids, ends) if drafts else (None, None)))
    for q, stages in enumerate(questions):
        draft: list[int] = []
        for t, (tokens, _, prompt) in enumerate(stages):
            n, given = lengths[q, t], list(strip_prompt_overlap(prompt, tuple(draft))) if drafts else []
            begun = tokens[:n]
            first = accepted_draft_tokens(given, begun) if n else 0
            rest, left = tokens[n:], given[n:] if given[:n] == begun else []
            second = accepted_draft_tokens(left, rest) if rest else 0
            assert (wasted[q, t], at_once[q, t], later[q, t]) == (n - first, first + second, second)
            draft = begun or draft


@given(ENTROPIES, PROBES, st.booleans())
def test_statistics_look_at_nothing_behind_the_probe(entropy: np.ndarray, probe: Probe, ended: bool) -> None:
    found = statistics(-entropy, entropy, ended, probe)
    n = probe.length(entropy)
    assert found.shape == (len(PROBE_NAMES),)
    assert np.isfinite(found).all()
    assert found[0] == n >= 1
    changed = entropy.copy()
    changed[n:] = 9.0
    np.testing.assert_array_equal(statistics(-changed, changed, ended, probe), found)
    shorter = statistics(-entropy[:n], entropy[:n], ended and n == len(entropy), probe)
    np.testing.assert_array_equal(shorter, found)


@given(PROBES)
def test_a_probe_survives_json(probe: Probe) -> None:
    assert Probe.read(json.loads(json.dumps(probe.to_json(), allow_nan=False))) == probe


def test_an_impossible_probe_is_refused_in_one_sentence() -> None:
    for wrong in ({"tokens": 0}, {"tokens": MAX_PROBE_TOKENS + 1}, {"tokens": 8, "max_entropy": 0.0}):
        with pytest.raises(ClassifierError, match="A probe's"):
            Probe(**wrong)  # type: ignore[arg-type]
    with pytest.raises(ClassifierError, match="described by tokens and max_entropy"):
        Probe.read({"tokens": 8})
    with pytest.raises(ValueError, match="at least one token"):
        statistics(np.empty(0), np.empty(0), False, Probe(8))
