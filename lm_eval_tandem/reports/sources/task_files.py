"""Where the file of a recorded task comes from: this package, the harness, or a folder of the user's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths

PACKAGE, HARNESS, OWN, UNKNOWN = "package", "harness", "own", "unknown"


def source(config: Mapping[str, Any]) -> Path:
    """Return the file that a task was read from, from its configuration in a results file; an empty path for none."""
    return Path(str((config.get("metadata") or {}).get("config_source") or ""))


def origin(config: Mapping[str, Any]) -> str:
    """Return whose file that is: `PACKAGE`, `HARNESS`, `OWN`, or `UNKNOWN` where the results do not say it."""
    file = source(config)
    if file.suffix not in (".yaml", ".yml"):
        return UNKNOWN
    if (_paths.task_configs() / file.parent.name / file.name).is_file():
        return PACKAGE
    of_harness = ("lm_eval", "tasks") in zip(file.parts, file.parts[1:], strict=False)
    return HARNESS if of_harness else OWN
