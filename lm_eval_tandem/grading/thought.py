"""Separates the thought of a reasoning model, between `<think>` and `</think>`, from its final response."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def final_part(response: str) -> str | None:
    """The text after the last `</think>`, or None if a thought was opened there and never closed.

    A response without any tag is its own final part.

    Examples
    --------
    >>> final_part("<think>Is it 3?</think>It is 4.")
    'It is 4.'
    >>> final_part("<think>Is it 3?") is None
    True
    """
    after = response.rpartition(CLOSE)[2]
    return None if OPEN in after else after
