"""Separates the thought of a reasoning model from its final response.

Models mark their thoughts in different ways; `TAGS` lists the pairs of marks, and OpenAI's harmony format, which names
a channel before each message, has rules of its own. A thought that was opened and never closed was cut off.
"""

from __future__ import annotations

import re

TAGS = (
    ("<think>", "</think>"),  # DeepSeek-R1, Qwen3, QwQ and most others
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),  # Magistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
    ("<|begin_of_thought|>", "<|end_of_thought|>"),  # Sky-T1, OpenThinker
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
)
"""Pairs of marks around a thought."""
_OPEN = re.compile("|".join(re.escape(opening) for opening, _ in TAGS))
_CLOSE = re.compile("|".join(re.escape(closing) for _, closing in TAGS))
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_CHANNEL_WITHOUT_MARKS = re.compile(r"\Aanalysis(?=[A-Z])|assistant(final|analysis|commentary)(?=[^a-z])")
"""What remains of the marks of harmony where the backend removes special tokens: `analysis…assistantfinal…`."""


def final_part(response: str) -> str | None:
    """The text after the last thought, or None if a thought was opened there and never closed.

    A response without any mark is its own final part.

    Examples
    --------
    >>> final_part("<think>Is it 3?</think>It is 4.")
    'It is 4.'
    >>> final_part("<|channel|>analysis<|message|>Is it 3?<|end|><|channel|>final<|message|>It is 4.")
    'It is 4.'
    >>> final_part("[THINK]Is it 3?") is None
    True
    """
    for channel in (_CHANNEL, _CHANNEL_WITHOUT_MARKS):
        messages = list(channel.finditer(response))
        if messages:
            return response[messages[-1].end() :] if messages[-1][1] == "final" else None
    after = response[_end_of_last(_CLOSE, response) :]
    return None if opens(after) else after


def ends_inside(prompt: str) -> bool:
    """Whether a prompt ends inside a thought, as those of some chat templates do."""
    return _end_of_last(_OPEN, prompt) > _end_of_last(_CLOSE, prompt)


def closes(response: str) -> bool:
    """Whether a response has the mark that ends a thought."""
    return _CLOSE.search(response) is not None


def opens(text: str) -> bool:
    """Whether a text has a mark that opens a thought."""
    return _OPEN.search(text) is not None


def without_marks(text: str) -> str:
    """The text with as many blanks in the place of each mark of `TAGS`."""
    for marks in (_OPEN, _CLOSE):
        text = marks.sub(lambda mark: " " * len(mark[0]), text)
    return text


def _end_of_last(marks: re.Pattern[str], text: str) -> int:
    """Where the last match of a pattern ends; 0 if there is none."""
    return max((mark.end() for mark in marks.finditer(text)), default=0)
