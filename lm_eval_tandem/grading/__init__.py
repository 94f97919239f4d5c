"""Grading of model responses: answers of mathematics problems (`math`) and programs (`code`).

Both can hang or crash on what a model writes, so each runs in separate processes that can be killed. The tasks in
`task_configs` call `math.grader` and `code.grader`; nothing here depends on lm-evaluation-harness.
"""

from __future__ import annotations

from lm_eval_tandem.errors import TandemError


class GradingError(TandemError):
    """A grader cannot run on this machine: a library is missing, or its processes do not start."""
