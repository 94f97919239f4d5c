"""Runs code in interpreters of their own, where nothing of the test run has been imported yet."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path


def python(code: str, *options: str, path: Sequence[Path] = (), cwd: Path | None = None, timeout: float = 1200) -> str:
    """Run code in an interpreter of its own, with `path` in front of its module search path; what it printed."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    code = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n" + textwrap.dedent(code)
    command = [sys.executable, *options, "-c", code]
    ended = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=cwd, timeout=timeout, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
