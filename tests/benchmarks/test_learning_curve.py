"""`benchmarks/learning_curve.py`: judges of few questions, measured on questions that they have not seen."""

from __future__ import annotations

import numpy as np
import pytest

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.training.dataset import Collected

curve = pytest.importorskip("benchmarks.learning_curve", reason="the tests were copied without benchmarks/")


def questions(n: int, seed: int, told: float) -> Collected:
    """Questions whose answers' entropies tell right from wrong as far as `told`, from 0 (not at all) to 1."""
    random = np.random.default_rng(seed)
    correct = (random.random((n, 2)) < 0.55).astype(float)
    entropy = random.exponential(0.3 + told * (1 - correct)[:, :, None], (n, 2, 16)).astype(np.float32)
    cost = np.tile((1.0, 2.0), (n, 1))
    features = np.zeros((n, 2, 1))
    features[:, 1] = 1
    return Collected(
        ids=[f"t/{q}" for q in range(n)],
        features=features,
        correct=correct,
        cost=cost,
        fallback_cost=cost + 0.5,
        logprob=-entropy,
        entropy=entropy,
        answer_tokens=np.full((n, 2), 16),
        token_cost=0.01,
        agrees=np.where(random.random((n, 2)) < 0.1, 1 - correct, correct),
    )


def test_a_judge_is_measured_on_questions_that_it_has_not_seen() -> None:
    """What tells nothing has an AUC of a half there, however well it fits the questions that it was fitted on."""
    masks = curve.draws(120, 60, 6)
    assert all(mask.sum() == 60 for mask in masks)
    assert any((masks[0] != mask).any() for mask in masks)
    noise, signal = (
        np.median([curve.measure(questions(120, 3, told), mask, "truth", 1.0, "accuracy").auc for mask in masks])
        for told in (0.0, 1.0)
    )
    assert abs(noise - 0.5) < 0.08
    assert signal > 0.9


def test_a_line_for_each_size_and_kind_of_labels() -> None:
    text = curve.table(questions(80, 1, 1.0), [30, 50], 2, ["truth", "mentor"], [0.1], "accuracy")
    lines = [line.split(" | ") for line in text.splitlines()[2:]]
    assert [(line[0].strip("| "), line[1]) for line in lines] == [
        *(("30", "truth"), ("30", "mentor"), ("50", "truth"), ("50", "mentor"))
    ]
    assert text == curve.table(questions(80, 1, 1.0), [30, 50], 2, ["truth", "mentor"], [0.1], "accuracy")
    with pytest.raises(ClassifierError, match="--sizes 70 leaves 10 of 80 questions; leave 20 or more"):
        curve.table(questions(80, 1, 1.0), [70], 2, ["truth"], [0.1], "accuracy")
