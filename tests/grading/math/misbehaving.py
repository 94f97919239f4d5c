"""A grader that hangs, crashes or exhausts memory on some answers, and is Math-Verify on all others."""

from __future__ import annotations

import ctypes
import os
import time

from lm_eval_tandem.grading.math import library

WAYS = ("hang", "spin", "exit", "abort", "segfault", "memory", "raise")


def verify(gold: str, answer: str) -> bool:
    """As `library.verify`, but answers that name a way to misbehave do so."""
    if answer in WAYS:
        misbehave(answer)
    return library.verify(gold, answer)


def misbehave(way: str) -> None:
    """Misbehave in one of the `WAYS`."""
    if way == "hang":
        time.sleep(1000)
    elif way == "spin":
        while True:
            hash(way)
    elif way == "exit":
        os._exit(0)
    elif way == "abort":
        os.abort()
    elif way == "segfault":
        ctypes.string_at(0)
    elif way == "memory":
        blocks = []
        while True:
            blocks.append(b"x" * 2**24)
    raise RecursionError(way)
