r"""Finds the answer in a response to a mathematics problem.

Only the text after the thought counts (`grading.thought`), and only up to the first mark of a backend or the first
question that the model goes on to write itself. Of what is left, the last statement of an answer decides:

1. `\boxed{…}` or `\fbox{…}`, closed and not empty. Boxes with nothing but a comma, `and` or `or` between them, as in
   `x = \boxed{1}` or `x = \boxed{2}`, are one answer.
2. A cue, such as "the answer is" or "答案：", and what it introduces (`statement`).
3. `#### …` followed by a number or a formula, as GSM8K marks its answers (a Markdown heading does not count).

A cue whose statement has no number, formula or choice ("the answer is clear") counts only if nothing else is there.
Without any of these forms, the last formula or number of a finished last sentence is the answer: "So she has 18 eggs."
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from lm_eval_tandem.grading.math import statement
from lm_eval_tandem.grading.thought import final_part

MOST = 50
"""Statements of one form that are looked at, from the end: a model that repeats itself must not take minutes."""
END_MARKS = re.compile(r"<\|[a-zA-Z_▁ ]+\|>|<｜[^｜]*｜>|</s>|<(?:eos|end_of_turn|start_of_turn)>|\[/?INST\]")
"""Special tokens that a backend left in the text; the response ends there."""
NEXT_QUESTION = re.compile(r"\n\s*(?:\*\*|#+\s*)?(?:Question|Problem|Q|Human|User|Instruction|问题|问)\s*\d*\s*[:：]")
"""A line with which a base model goes on to a question of its own."""
_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BARE_BOX = re.compile(
    r"\$?([+-]?(?:\d[\d,]*(?:\.\d+)?(?:/\d+)?|\\[A-Za-z]+(?:\{[^{}]*\})*|[A-Za-z](?=\s*(?:\\[)\]]|[$.,;]|$))))"
)
r"""The content of a box without braces: `\boxed 7`, `\boxed\pi`, `\boxed x$`."""
_BETWEEN_BOXES = re.compile(
    r"(?:\s*(?:[a-z]+\s+){1,2}(?:and|or)\s)?(?:\\text\w*\{[^{}]*\b(?:and|or)\b[^{}]*\}|\\(?:quad|qquad|,|;|:|\s)|\b(?:and|or|both)\b|[和或与及、，,;&~\s])*"
)
r"""What stands between boxes that are one answer, after `_LABEL` and the marks of formulas are removed."""
_LABEL = re.compile(r"[A-Za-z](?:_\{?\w+\}?|\([a-z]\))?\s*(?:=|\\in|\\approx)\s*$")
_FORMULA_MARKS = re.compile(r"\\[()\[\]]|\$+|\*\*")
_HASH_LINE = re.compile(r"^\s*####\s*(?!#)([^\n]+?)\s*$", re.MULTILINE)


@dataclass(frozen=True)
class Found:
    """One statement of an answer in a text."""

    end: tuple[int, int]
    """Where it ends in the text, and where it starts: of two that end together, the shorter one counts."""
    answer: str
    is_value: bool = True
    """Whether it has a number, a formula or a choice, and not words alone."""


def extract(response: str) -> str | None:
    r"""Return the answer of a response, as written there but without `$` around it; None if there is none.

    Examples
    --------
    >>> extract(r"<think>Perhaps \boxed{3}.</think>So it is \boxed{4}.")
    '4'
    >>> extract(r"That makes \boxed{255}. The final answer is 10,455.")
    '10,455'
    >>> extract("Then 3 + 4 = 7, and") is None
    True
    """
    part = final_part(response)
    if part is None:
        return None
    for text in NEXT_QUESTION.split(first_turn(part)):
        answer = _answer_of(text)
        if answer is not None:
            return answer
    return None


def first_turn(text: str) -> str:
    """The text up to the first end mark that has something before it."""
    start = 0
    for mark in END_MARKS.finditer(text):
        if text[start : mark.start()].strip(" \n#*") not in ("", "assistant"):
            return text[start : mark.start()]
        start = mark.end()
    return text[start:]


def _answer_of(text: str) -> str | None:
    """The last answer that a text states, by the rules of this module."""
    text = _without_cut_off_box(text)
    found = [*_boxes(text), *_cued(text), *_hashed(text)]
    values = [one for one in found if one.is_value]
    for candidates in (values, found):
        if candidates:
            return max(candidates, key=lambda one: one.end).answer
    return statement.concluded(text) or None


def boxed(text: str) -> str | None:
    r"""Return the content of the last box that is closed and not empty, joined with that of its neighbours.

    Examples
    --------
    >>> boxed(r"$x = \boxed{1}$ or $x = \boxed{2}$")
    '1, 2'
    """
    found = list(_boxes(text))
    return found[-1].answer if found else None


def hashed(text: str) -> str | None:
    """Return what follows the last `####` at the start of a line; GSM8K's own solutions end like that."""
    found = list(_hashed(text))
    return found[-1].answer if found else None


def _boxes(text: str) -> Iterator[Found]:
    """The answers in boxes; boxes that are neighbours are one answer."""
    group: list[str] = []
    end = 0
    for start, stop, content in _single_boxes(text):
        if not group or not _neighbours(text[end:start]):
            group = []
        if content not in group:
            group.append(content)
        end = stop
        yield Found((end, start), ", ".join(group))


def _single_boxes(text: str) -> Iterator[tuple[int, int, str]]:
    r"""Start, end and content of each box that is not empty. Of a box in a box, only the inner one counts."""
    for box in list(_BOX.finditer(text))[-MOST:]:
        if text.startswith("{", box.end()):
            content = balanced(text, box.end())
            stop = box.end() + len(content or "") + 2
        else:
            bare = _BARE_BOX.match(text, box.end())
            content, stop = (bare[1], bare.end()) if bare else (None, 0)
        if content and content.strip(" \n\t$") and not _BOX.search(content):
            yield box.start(), stop, _without_dollars(content)


def _neighbours(between: str) -> bool:
    """Whether a text between two boxes only joins them: a comma, "and", and a name such as `x =`."""
    return len(between) < 60 and _BETWEEN_BOXES.fullmatch(_LABEL.sub("", _FORMULA_MARKS.sub("", between))) is not None


def balanced(text: str, start: int) -> str | None:
    r"""Return the inside of the group whose `{` is at index `start`; None if it is never closed.

    `\{` and `\}` are printed characters and do not count as braces, except for a `\}` that would leave the group open
    and has no `\{` to close: `\boxed{185\}` holds `185\`.
    """
    depth, i = 0, start
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] == "{":
            depth += 1
        elif text[i] == "}":
            depth -= 1
            if depth == 0:
                return text[start + 1 : i]
        i += 1
    inside, stray, _ = text[start + 1 :].partition(r"\}")
    return inside + "\\" if stray and not re.search(r"[{}]", inside) else None


def _without_cut_off_box(text: str) -> str:
    """The text up to a last box that is never closed: what such a box holds is no answer."""
    boxes = list(_BOX.finditer(text))
    if boxes and text.startswith("{", boxes[-1].end()) and balanced(text, boxes[-1].end()) is None:
        return text[: boxes[-1].start()]
    return text


def _cued(text: str) -> Iterator[Found]:
    """The answers that a cue introduces; those in a box are left to `_boxes`."""
    boxes = [(start, stop) for start, stop, _ in _single_boxes(text)]
    for cue in list(statement.CUES.finditer(text))[-MOST:]:
        if any(start < cue.start() < stop for start, stop in boxes):
            continue
        said = statement.sentence(text, cue.end())
        answer = statement.answer_in(said)
        if answer and not _BOX.search(said):
            yield Found((cue.end() + len(said), cue.end()), answer, statement.has_value(answer))


def _hashed(text: str) -> Iterator[Found]:
    """The answers after `####`: a number or formula, with no more than a unit behind it."""
    for line in list(_HASH_LINE.finditer(text))[-MOST:]:
        answer = statement.value_with_unit(line[1])
        if answer and not _BOX.search(line[1]):
            yield Found((line.end(), line.start()), answer)


def _without_dollars(content: str) -> str:
    r"""A box's content without white space and without a pair of `$` around all of it; `18\ ` keeps its blank."""
    content = content.strip()
    if content.endswith("\\") and not content.endswith("\\\\"):
        content = content[:-1].rstrip()
    inside = re.fullmatch(r"\$+([^$]*)(?<!\\)\$+", content)
    return inside[1].strip() if inside else content
