"""`Fact`: one thing that a run depended on, as its results have it and as it is here."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_DIGITS = 12
"""Digits of a checksum that are printed."""


@dataclass(frozen=True)
class Fact:
    """One thing that a run depended on.

    Attributes
    ----------
    label
        What it is.
    then
        Its version or checksum as the results have it; None where they do not say.
    now
        The same here; None where it cannot be found out.
    difference
        A sentence where both are known to differ, or where it is missing here; "" otherwise.
    """

    label: str
    then: str | None
    now: str | None
    difference: str = ""

    @property
    def line(self) -> str:
        """The fact as it is printed."""
        then = "not recorded" if self.then is None else shortened(self.then)
        return f"{self.label}: {then}"


def shortened(text: str) -> str:
    """Return a checksum or commit by its first digits, and any other text as it is."""
    return f"{text[:SHOWN_DIGITS]}…" if re.fullmatch("[0-9a-f]{40,64}", text) else text


def grouped(facts: Sequence[Fact]) -> list[str]:
    """Return the facts as lines: versions on one, everything else on its own."""
    plain = [fact for fact in facts if fact.then is None or re.fullmatch("[0-9a-f]{40,64}", fact.then)]
    versioned = [f"{fact.label} {fact.then}" for fact in facts if fact not in plain]
    lines = [f"versions: {', '.join(versioned)}"] if versioned else []
    return lines + [fact.line for fact in plain]
