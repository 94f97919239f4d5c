"""The decision rule of Algorithm 1: strictly above the threshold, and the earliest maximum if nothing passes."""

from __future__ import annotations

import numpy as np

from lm_eval_tandem.judge.decision import fallback_stage, passes


def test_a_score_passes_only_above_its_threshold() -> None:
    assert passes(0.51, 0.5)
    assert not passes(0.5, 0.5)
    assert passes([[0.4, 0.9], [0.6, 0.2]], [0.5, 0.5]).tolist() == [[False, True], [True, False]]


def test_the_fallback_is_the_earliest_stage_with_the_highest_score() -> None:
    assert fallback_stage([0.1, 0.4, 0.4, 0.2]) == 1
    assert fallback_stage(np.array([[0.3, 0.3], [0.1, 0.2]])).tolist() == [0, 1]
