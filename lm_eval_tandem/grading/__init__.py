"""Grading of what models answer: mathematics (`math`) and code, each in processes that can be killed."""

from __future__ import annotations

from lm_eval_tandem.errors import TandemError


class GradingError(TandemError):
    """A grader that cannot run here: its library is missing or its processes do not start."""
