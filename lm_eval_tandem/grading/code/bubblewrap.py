"""The command line of bubblewrap: what of this machine a graded program sees."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from lm_eval_tandem.grading.code import seccomp

LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store")
FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("null", "zero", "full", "random", "urandom")
FIRST_TO_DIE = ("/bin/sh", "-c", 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")
"""When the machine runs out of memory, the kernel ends these first and not the process that holds the models."""
FIRST_USER, USERS = 65_000, 500
"""User numbers that Debian and systemd give to nobody for long; a run as root takes two of them."""


def user_number(count: int) -> int:
    """The user of one sandbox. The kernel counts processes per user and lets root start any number of them."""
    return FIRST_USER + count % USERS


def environment(folder: str) -> dict[str, str]:
    """All that a graded program finds in its environment."""
    return {
        "HOME": folder,
        "TMPDIR": folder,
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
    }


def command(tmp_size: int, stack: ExitStack) -> tuple[list[str], list[int]]:
    """The command in front of an interpreter's, and the descriptors it reads, which `stack` closes.

    Raises
    ------
    FileNotFoundError
        Bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not installed")
    parts = [program, "--die-with-parent", "--new-session", "--clearenv", *_namespaces()]
    for name, value in environment("/tmp").items():
        parts += ["--setenv", name, value]
    parts += _visible()
    if "--size" in _options(program):
        parts += ["--size", str(tmp_size), "--perms", "1777", "--tmpfs", "/tmp"]
    else:
        parts += ["--dir", "/tmp"]
    parts += ["--remount-ro", "/", "--chdir", "/tmp"]
    refused = seccomp.program()
    if refused is None:
        return parts, []
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    os.write(writing, refused)
    os.close(writing)
    return [*parts, "--seccomp", str(reading)], [reading]


def _namespaces() -> list[str]:
    """New ones of every kind. Root keeps its own user namespace, where alone it can become the run's user."""
    if os.geteuid() == 0:
        kinds = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        return [*kinds, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return ["--unshare-all", "--unshare-user", "--uid", str(FIRST_USER), "--gid", str(FIRST_USER)]


@functools.cache
def _visible() -> tuple[str, ...]:
    """Read-only: the system's libraries, the interpreter and its standard library, a few devices."""
    python, prefix = os.path.realpath(sys.executable), sys.base_prefix
    folders = [*LIBRARIES, *FILES, *(os.path.join(prefix, name) for name in ("lib", "lib64")), python]
    parts: list[str] = []
    for parent in dict.fromkeys(parent for folder in folders[::-1] for parent in list(Path(folder).parents)[-2::-1]):
        if not parent.is_symlink():  # by itself, bubblewrap makes those of a private folder private
            parts += ["--perms", "0755", "--dir", str(parent)]
    for folder in dict.fromkeys(folders):
        if os.path.islink(folder):
            parts += ["--symlink", os.readlink(folder), folder]
        elif os.path.exists(folder):
            parts += ["--ro-bind", folder, folder]
    for device in DEVICES:
        parts += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return tuple(parts)


@functools.cache
def _options(program: str) -> frozenset[str]:
    ended = subprocess.run([program, "--help"], capture_output=True, text=True, check=False)
    return frozenset((ended.stdout + ended.stderr).split())
