"""The thought of a thinking model, which is no part of its answer."""

from __future__ import annotations

OPEN, CLOSE = "<think>", "</think>"


def final_part(response: str) -> str | None:
    """What the model wrote after thinking; None if its thought was never closed."""
    after = response.rpartition(CLOSE)[2]
    return None if OPEN in after else after
