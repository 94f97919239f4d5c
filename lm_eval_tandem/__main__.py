"""`python -m lm_eval_tandem …`: the command line of lm-eval, with the model and the package's tasks known to it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths, errors


def include_our_tasks() -> None:
    """Let every later `TaskManager` also read the package's tasks; tasks of the same name that its caller adds win."""
    from lm_eval.tasks import TaskManager

    original = TaskManager.__init__
    ours = _paths.task_configs()

    @functools.wraps(original)
    def with_ours(
        self: TaskManager, verbosity: Any = None, include_path: Any = None, *args: Any, **options: Any
    ) -> None:
        asked = include_path if isinstance(include_path, (list, tuple)) else [include_path]
        others = [path for path in asked if path and Path(path).resolve() != ours]
        original(self, verbosity, [ours, *others], *args, **options)

    TaskManager.__init__ = with_ours  # type: ignore[method-assign]  # lm-eval offers no other way in


def main() -> None:
    """Run lm-eval's command line (`run`, `ls`, `validate`) on `sys.argv`."""
    errors.print_plainly()

    import lm_eval.models  # noqa: F401  its own models must be registered before ours
    from lm_eval.__main__ import cli_evaluate

    from _lm_eval_tandem_hook import register

    register()
    include_our_tasks()
    cli_evaluate()


if __name__ == "__main__":
    main()
