"""lm-eval's command line in the process of the test, with the models `tandem` and `replay`.

A process of its own would take seconds to start, and more to index the harness's own tasks, which no test here uses.
"""

from __future__ import annotations

import functools
import sys

import pytest
from lm_eval.api.registry import model_registry, register_model
from lm_eval.tasks import TaskManager

from tasks.replay import Replay


def lm_eval(*arguments: str) -> None:
    """Run `lm_eval` with these arguments; only tasks below its `--include_path` are known."""
    import lm_eval.models  # noqa: F401  its own models must be registered before ours
    from lm_eval.__main__ import cli_evaluate

    from _lm_eval_tandem_hook import register

    register()
    if "replay" not in model_registry:
        register_model("replay")(Replay)
    without_defaults = functools.partialmethod(TaskManager.__init__, include_defaults=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["lm_eval", *arguments])
        patch.setattr(TaskManager, "__init__", without_defaults)
        cli_evaluate()
