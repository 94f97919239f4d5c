"""The program of a worker process of `pool.Pool`: per line of input, one request in JSON, one call, one reply in JSON.

A worker ends by itself when its parent process has ended, even during a call: an idle worker reaches the end of its
input; in a busy or sleeping one a thread watches the parent; and one that is stuck in C code reaches the CPU limit that
each call sets.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, BinaryIO

try:
    import resource
except ImportError:  # Windows has no such module; there the pool's time limit alone ends a call
    resource = None  # type: ignore[assignment]

EXTRA_CPU_SECONDS = 1
"""CPU seconds that a call may use beyond its limit, because the kernel counts whole ones."""
WATCH_SECONDS = 1.0
"""Seconds between two checks whether the parent process still exists."""


def serve(parent: int, prepare: str, memory: int) -> None:
    """Answer requests until the input ends.

    Parameters
    ----------
    parent
        Process id of the pool's process.
    prepare
        "module:function" to call before the first request; "" for nothing.
    memory
        Limit of the address space in bytes.
    """
    requests, replies = _private_streams()
    threading.Thread(target=_exit_with_parent, args=(parent,), daemon=True).start()
    _limit("RLIMIT_AS", memory)
    _limit("RLIMIT_CORE", 0)
    _reply(replies, _call(prepare) if prepare else json.dumps({"value": None}))
    for line in requests:
        request = json.loads(line)
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + request["limit"]) + EXTRA_CPU_SECONDS)
        _reply(replies, _call(request["target"], *request["arguments"]))


def import_function(target: str) -> Callable[..., Any]:
    """Import and return the function that "package.module:name" refers to."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """Return the two pipes to the pool, and redirect the standard streams to the null device.

    Otherwise a library that prints would write between the replies.
    """
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    return requests, replies


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _limit(name: str, value: int) -> None:
    """Lower the soft limit of this name, where the system has it."""
    if resource is None:
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):  # not every system accepts every limit (macOS refuses RLIMIT_AS)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _call(target: str, *arguments: Any) -> str:
    """Call the target and return the reply as JSON: its value, or its exception in words."""
    try:
        return json.dumps({"value": import_function(target)(*arguments)})
    except BaseException as error:  # SystemExit too: whatever the call raises is reported
        return json.dumps({"failed": f"{type(error).__name__}: {error}"[:500]})


def _reply(replies: BinaryIO, text: str) -> None:
    replies.write(text.encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
