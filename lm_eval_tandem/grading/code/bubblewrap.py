"""Builds the bubblewrap command line: which parts of this machine a graded program can see.

`sandbox.py` puts this command in front of the interpreter that runs `inside.py`. Everything that is not named here does
not exist inside. The system calls that the kernel refuses are listed in `seccomp.py`.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

from lm_eval_tandem.grading.code import seccomp

LIBRARY_FOLDERS = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib32", "/usr/lib64", "/nix/store")
SYSTEM_FILES = ("/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("null", "zero", "full", "random", "urandom")
PRIVATE_TMP = "/tmp"  # noqa: S108 - a mount point inside the sandbox, not the machine's shared folder
"""The only folder that a graded program can write to: in memory, empty at the start."""
KILLED_FIRST = ("/bin/sh", "-c", 'echo 1000 2>/dev/null >/proc/self/oom_score_adj; exec "$@"', "sh")
"""Prefix of the command: when the machine runs out of memory, the kernel kills these processes before all others.

Otherwise it might choose the process that holds the models.
"""
FIRST_USER_ID, USER_IDS = 65_000, 500
"""Range of user ids that Debian and systemd assign to nobody permanently; a run started by root takes two of them."""


def user_id(number: int) -> int:
    """Return the user id for the sandbox with this running number.

    The kernel counts processes per user and lets root start any number of them, so each sandbox gets its own user.
    """
    return FIRST_USER_ID + number % USER_IDS


def environment(folder: str) -> dict[str, str]:
    """Return all environment variables of a graded program; `folder` is its home and temporary folder."""
    return {
        "HOME": folder,
        "TMPDIR": folder,
        "PATH": "/usr/bin:/bin",
        "LC_ALL": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",
        "PYTHONIOENCODING": "utf-8",
    }


def command(tmp_size: int, information: int, stack: ExitStack) -> tuple[list[str], list[int]]:
    """Build the bubblewrap command that goes in front of an interpreter's command.

    Parameters
    ----------
    tmp_size
        Size of the private temporary folder in bytes.
    information
        File descriptor to which bubblewrap writes which process is the first of the sandbox, see `first_process`.
    stack
        Closes the returned file descriptors when it is closed.

    Returns
    -------
    tuple of list of str and list of int
        The command, and the file descriptors that bubblewrap reads and has to inherit.

    Raises
    ------
    FileNotFoundError
        Bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not installed")
    parts = [program, "--die-with-parent", "--new-session", "--clearenv", *_namespaces()]
    parts += ["--info-fd", str(information)]
    for name, value in environment(PRIVATE_TMP).items():
        parts += ["--setenv", name, value]
    parts += _mounts()
    if "--size" in _supported_options(program):
        parts += ["--size", str(tmp_size), "--perms", "1777", "--tmpfs", PRIVATE_TMP]
    else:  # before version 0.7: a folder that cannot be limited in size stays read-only
        parts += ["--dir", PRIVATE_TMP]
    parts += ["--remount-ro", "/", "--chdir", PRIVATE_TMP]
    call_filter = seccomp.build_filter()
    if call_filter is None:
        return parts, [information]
    reading, writing = os.pipe()
    stack.callback(os.close, reading)
    os.write(writing, call_filter)
    os.close(writing)
    return [*parts, "--seccomp", str(reading)], [information, reading]


def first_process(information: bytes) -> int | None:
    """Return the id of the sandbox's first process, from what bubblewrap has written; None if it has not got that far.

    When this process dies, the kernel kills all others of the sandbox, and only when they are gone does bubblewrap
    itself end. The other way round, it may end before they do.
    """
    try:
        return int(json.loads(information)["child-pid"])
    except (ValueError, KeyError, TypeError):
        return None


def _namespaces() -> list[str]:
    """Options for new namespaces of every kind.

    Root keeps its user namespace, because only there can the process change to the user of its run.
    """
    if os.geteuid() == 0:
        kinds = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try"]
        return [*kinds, "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    return ["--unshare-all", "--unshare-user", "--uid", str(FIRST_USER_ID), "--gid", str(FIRST_USER_ID)]


@functools.cache
def _mounts() -> tuple[str, ...]:
    """Options that mount, read-only, the system's libraries, the interpreter with its library, and a few devices."""
    python, prefix = os.path.realpath(sys.executable), sys.base_prefix
    paths = [*LIBRARY_FOLDERS, *SYSTEM_FILES, *(os.path.join(prefix, name) for name in ("lib", "lib64")), python]
    devices = [f"/dev/{name}" for name in DEVICES]
    parts: list[str] = []
    parents = (parent for path in [*devices, *paths[::-1]] for parent in list(Path(path).parents)[-2::-1])
    for parent in dict.fromkeys(parents):
        if not parent.is_symlink():  # bubblewrap itself would create them so that only root can enter them
            parts += ["--perms", "0755", "--dir", str(parent)]
    for path in dict.fromkeys(paths):
        if os.path.islink(path):
            parts += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            parts += ["--ro-bind", path, path]
    for device in devices:
        parts += ["--dev-bind", device, device]
    return tuple(parts)


@functools.cache
def _supported_options(program: str) -> frozenset[str]:
    """Words of the program's help text, among them the options that this version has."""
    command = [program, "--help"]  # the bubblewrap found on PATH; nothing of it comes from a model
    ended = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603
    return frozenset((ended.stdout + ended.stderr).split())
