"""Who wrote which tokens of a joint answer (`Completion.turns`): lengths of runs by the gate alone and by all."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby


def turns_of(joint: Sequence[bool]) -> tuple[int, ...]:
    """The turns of tokens of which each was written by all models together (True) or by the gate alone (False).

    Examples
    --------
    >>> turns_of([True, True, False])
    (0, 2, 1)
    >>> turns_of([False, True])
    (1, 1)
    """
    lengths = tuple(len(list(run)) for _, run in groupby(joint))
    return (0, *lengths) if joint and joint[0] else lengths


def part_of_turns(turns: Sequence[int], start: int, end: int) -> tuple[int, ...]:
    """The turns of the tokens from `start` to `end` of an answer.

    Examples
    --------
    >>> part_of_turns((3, 4, 2), 4, 8)
    (0, 3, 1)
    """
    joint = [bool(i % 2) for i, length in enumerate(turns) for _ in range(length)]
    return turns_of(joint[start:end])
