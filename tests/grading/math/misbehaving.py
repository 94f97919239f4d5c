"""A grader that hangs, crashes or eats memory on some answers, and otherwise is the real one."""

from __future__ import annotations

import ctypes
import os
import time

from lm_eval_tandem.grading.math import grader

WAYS = ("hang", "spin", "exit", "abort", "segfault", "memory", "raise")


def verify(gold: str, answer: str) -> bool:
    """As `math.verify`, but for answers that name a way to misbehave."""
    if answer in WAYS:
        misbehave(answer)
    return grader.verify(gold, answer)


def misbehave(way: str) -> None:
    """Do what the word says."""
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
        eaten = []
        while True:
            eaten.append(b"x" * 2**24)
    raise RecursionError(way)
