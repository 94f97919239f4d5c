"""What messages quote of others: one line that breaks off nowhere within a word, and no page of a server."""

from __future__ import annotations

import pytest

from lm_eval_tandem.errors import one_line

ADDRESS = "https://example.org/docs/transformers/installation#offline-mode"


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("short\n  and\tclear", "short and clear"),
        ("", ""),
        (f"It is not there. See {ADDRESS} for more.", "It is not there."),
        (f"It is not there\nSee {ADDRESS} for more.", "It is not there"),
        (f"no end before {ADDRESS}", "no end before…"),
        (f"No. It is nowhere at {ADDRESS}", "No. It is nowhere at…"),
        ("x" * 60, "x" * 39 + "…"),
        (f"version 1.2.3 of {ADDRESS}", "version 1.2.3 of…"),
    ],
)
def test_a_long_reason_ends_with_a_sentence_a_line_or_a_word(message: str, shown: str) -> None:
    assert one_line(message, 40) == shown


def test_a_reason_of_usual_length_is_whole() -> None:
    assert one_line("a word " * 40) == ("a word " * 40).strip()
