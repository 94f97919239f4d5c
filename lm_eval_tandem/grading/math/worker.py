"""The process behind a `pool.Pool`: reads one JSON request per line, calls what it names, writes one JSON reply.

It ends by itself when its parent is gone, even in the middle of a call: an idle one sees the end of its input, a busy
or sleeping one is watched by a thread, and one stuck in C code runs into the CPU limit that each call sets.
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
except ImportError:  # not on Windows: there the pool's wall clock alone limits a call
    resource = None  # type: ignore[assignment]

GRACE = 2
"""CPU seconds beyond its time limit after which the kernel ends a call that its pool could not end."""


def serve(parent: int, prepare: str, memory: int) -> None:
    """Answer requests until the input ends. prepare: what to call first (may be ""); memory: address space in bytes."""
    requests, replies = _private_streams()
    threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    _limit("RLIMIT_AS", memory)
    _limit("RLIMIT_CORE", 0)
    _reply(replies, _outcome(prepare) if prepare else json.dumps({"value": None}))
    for line in requests:
        request = json.loads(line)
        _limit("RLIMIT_CPU", math.ceil(time.process_time() + request["limit"]) + GRACE)
        _reply(replies, _outcome(request["target"], *request["arguments"]))


def named(target: str) -> Callable[..., Any]:
    """The function behind "package.module:name"."""
    module, _, name = target.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function


def _private_streams() -> tuple[BinaryIO, BinaryIO]:
    """The pipes to the pool; the standard streams go nowhere, so that no library can write between the replies."""
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)
    return requests, replies


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def _limit(name: str, value: int) -> None:
    if resource is None:
        return
    kind = getattr(resource, name)
    hard = resource.getrlimit(kind)[1]
    with contextlib.suppress(ValueError, OSError):  # a system may refuse a limit (macOS: RLIMIT_AS)
        resource.setrlimit(kind, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _outcome(target: str, *arguments: Any) -> str:
    try:
        return json.dumps({"value": named(target)(*arguments)})
    except BaseException as error:  # SystemExit too: whatever a call does, the pool learns of it
        return json.dumps({"failed": f"{type(error).__name__}: {error}"[:500]})


def _reply(replies: BinaryIO, text: str) -> None:
    replies.write(text.encode() + b"\n")
    replies.flush()


if __name__ == "__main__":
    serve(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
