"""What messages quote of others: one line that breaks off nowhere within a word, and no page of a server."""

from __future__ import annotations

import subprocess
import sys

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


def test_a_sentence_begins_with_the_name_of_the_model_that_was_asked_for() -> None:
    """Also where a task, which names no model, is loaded afterwards."""
    lines = "from lm_eval_tandem.errors import ArgumentError, print_plainly as plainly"
    for calls, begins in (("plainly()", "tandem"), ("plainly(); plainly('ensemble'); plainly()", "ensemble")):
        program = f"{lines}; {calls}; raise ArgumentError('it is so.')"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (ended.stderr, ended.returncode) == (f"{begins}: error: it is so.\n", 1)
