"""Watches the processes of a run from outside: whether they want a CPU, and whether they are gone."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lm_eval_tandem.grading.code.pipes import Reader

LOOK_SECONDS = 0.25
"""Seconds between two looks at whether a run is idle."""
ASK_SECONDS = 0.05
"""Longest time until the end of a process is noticed."""


class Watch:
    """Waits for a run, and gives it up when it is idle for too long or evades its limits.

    Parameters
    ----------
    pids
        Ids of the first process of each sandbox of the run.
    reader
        Reads what the run prints. A program that waits for this process to read is not idle.
    idle_seconds, wall_seconds
        See `sandbox.Limits`.
    """

    def __init__(self, pids: list[int], reader: Reader, idle_seconds: float, wall_seconds: float) -> None:
        self.pids, self.reader, self.idle_seconds, self.wall_seconds = pids, reader, idle_seconds, wall_seconds
        self.end = time.monotonic() + wall_seconds
        self.idle = 0.0

    def wait(self, ended: Callable[[], bool]) -> str:
        """Read until `ended()` is true; return why the run was given up before that, or ""."""
        while not self.reader.wait(ended, LOOK_SECONDS, step=ASK_SECONDS):
            if not any(map(is_active, self.pids)) and not self.reader.unread:
                self.idle += LOOK_SECONDS  # not the time that has passed: a busy machine delays this process too
            if self.idle >= self.idle_seconds:
                return f"idle for {self.idle_seconds:g} s"
            if time.monotonic() >= self.end:
                return f"no verdict after {self.wall_seconds:g} s"
        return ""


def is_active(pid: int) -> bool:
    """Whether a process or one of its descendants runs or waits for a CPU.

    Where the system does not say this (macOS), each process counts as idle; where it does not tell the descendants
    (Linux without CONFIG_PROC_CHILDREN), as active.
    """
    pids = [pid]
    while pids:
        for thread in Path(f"/proc/{pids.pop()}/task").glob("*"):
            try:
                if (thread / "stat").read_text(errors="replace").rpartition(")")[2].split()[0] == "R":
                    return True
                pids += map(int, (thread / "children").read_text().split())
            except ProcessLookupError:
                continue
            except FileNotFoundError:
                if thread.exists():
                    return True
    return False


def is_gone(pid: int) -> bool:
    """Whether a process has ended; its parent may not have noticed yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0] in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return True
