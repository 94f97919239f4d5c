"""The rows of a file of questions: what each one asks, and which of its fields come back with the answer.

Every field comes back. One whose name `run` writes itself (`ADDED`) comes back with `input_` before it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import ArgumentError, one_line

SHAPES = "messages, prompt, question, or instruction (and input)"
ADDED = ("answer", "tandem", "error")
"""What is added to a row."""
RENAMED = "input_"
"""What comes before the name of a field that would be one of those."""
NAMED = 3
"""Number of lines that the message about a file names."""
LONGEST_ID = 60
"""Characters of a row's id that messages repeat."""

Conversation = list[dict[str, str]]


@dataclass(frozen=True)
class QuestionRow:
    """A row of the input.

    Attributes
    ----------
    line
        Its line in the file, counted from 1.
    fields
        What it holds.
    conversation
        The turns that it asks, each with role and content.
    """

    line: int
    fields: dict[str, Any]
    conversation: Conversation

    @property
    def place(self) -> str:
        """How messages call the row: by its line, and by its field `id` where it has one."""
        name = self.fields.get("id")
        return f"line {self.line}" + (f" (id {one_line(name, LONGEST_ID)})" if isinstance(name, str | int) else "")

    @property
    def returned(self) -> dict[str, Any]:
        """Its fields as they come back.

        Examples
        --------
        >>> QuestionRow(1, {"question": "1 + 1 =", "answer": "2"}, []).returned
        {'question': '1 + 1 =', 'input_answer': '2'}
        """
        return {f"{RENAMED}{name}" if name in ADDED else name: value for name, value in self.fields.items()}


def read_rows(path: Path) -> list[QuestionRow]:
    """The rows of a JSON Lines file; each holds a question. Lines without text are left out.

    Raises
    ------
    ArgumentError
        It cannot be read, lines hold no question, or two fields would come back under one name.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--input {path} cannot be read ({error}); give a JSON Lines file in UTF-8.") from None
    rows, wrong = list[QuestionRow](), list[str]()
    # not by splitlines, which also splits at characters that JSON allows in a text
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    for number, line in lines:
        try:
            fields = parsed(line)
            rows.append(QuestionRow(number, fields, conversation_of(fields)))
        except ValueError as error:
            wrong.append(f"line {number} {error}")
    if wrong:
        count = f"{len(wrong):,} of {len(lines):,} lines hold no question: " if len(wrong) > 1 else ""
        more = f", and {len(wrong) - NAMED:,} more" if len(wrong) > NAMED else ""
        raise ArgumentError(
            f"--input {path}: {count}{', '.join(wrong[:NAMED])}{more}; give in each line an object with {SHAPES}."
        )
    if not rows:
        raise ArgumentError(f"--input {path} holds no questions; give one in each line.")
    check_names(rows, path)
    return rows


def check_names(rows: Sequence[QuestionRow], path: Path) -> None:
    """Refuse rows of which two fields would come back under one name."""
    for name in ADDED:
        renamed = next((row for row in rows if name in row.fields), None)
        taken = next((row for row in rows if RENAMED + name in row.fields), None)
        if renamed is not None and taken is not None:
            raise ArgumentError(
                f"--input {path}: line {renamed.line} holds {name}, which comes back as {RENAMED}{name}, and line "
                f"{taken.line} holds {RENAMED}{name} itself; rename one of them."
            )


def refuse_constant(name: str) -> None:
    """Raise ValueError for NaN and infinity, which Python reads in JSON and nothing else does."""
    raise ValueError(f"{name} is no number of JSON")


def parsed(line: str) -> dict[str, Any]:
    """The object in a line; raises ValueError with what is wrong with it, as words that follow the line's number."""
    try:
        fields = json.loads(line, parse_constant=refuse_constant)
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a character (a surrogate without the other one)") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg.removesuffix(' at')} at character {error.colno})") from None
    except (ValueError, RecursionError) as error:  # a number that is too long, or too many brackets
        raise ValueError(f"cannot be read as JSON ({one_line(error)})") from None
    if not isinstance(fields, dict):
        raise ValueError("holds no object")
    return fields


def conversation_of(fields: dict[str, Any]) -> Conversation:
    """The conversation of a row: of the first of `SHAPES` that it holds; a field that is null counts as missing.

    Raises
    ------
    ValueError
        It has none. The message says why, as words that follow the line's number.
    """
    name = next((one for one in ("messages", "prompt", "question", "instruction") if fields.get(one) is not None), None)
    if name is None:
        raise ValueError("has none of messages, prompt, question and instruction")
    if name == "messages":
        turns = turns_of(fields[name])
    else:
        parts = [fields[name], fields.get("input")] if name == "instruction" else [fields[name]]
        given = [part for part in parts if part is not None and part != ""]
        if not all(isinstance(part, str) for part in given):
            raise ValueError(f"has {'an' if name[0] in 'aeiou' else 'a'} {name} that is no text")
        turns = [{"role": "user", "content": "\n\n".join(given)}]
    if not any(turn["content"].strip() for turn in turns):
        raise ValueError(f"has {name} without any text")
    return turns


def turns_of(messages: Any) -> Conversation:
    """The turns of a row's messages; raises ValueError as `conversation_of` does."""
    if not isinstance(messages, list) or not all(isinstance(turn, dict) for turn in messages):
        raise ValueError("has messages that are no list of objects with role and content")
    for number, turn in enumerate(messages, 1):
        if not isinstance(turn.get("role"), str) or not isinstance(turn.get("content"), str):
            raise ValueError(f"has messages of which number {number} lacks role or content as text")
    return [{"role": turn["role"], "content": turn["content"]} for turn in messages]
