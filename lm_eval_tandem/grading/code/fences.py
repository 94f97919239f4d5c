"""Splits a response into its fenced blocks and the text before them.

Fences follow CommonMark, with what models make of it: a fence may stand in a quote or in a Markdown block, its end may
be glued to the last line of code, and `[BEGIN]` and `[DONE]` (of the examples in the paper on MBPP) are a fence too.
Where the rules would end a block within a string of its code, such as a docstring with a fenced example, it goes on.
"""

from __future__ import annotations

import itertools
import re
import textwrap
from typing import NamedTuple

from lm_eval_tandem.grading.code.statements import MAX_ATTEMPTS, ends_in_string, parse, split_lines

_FENCE = re.compile(r"(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,})[ \t]*(?P<info>[^`]*)$")
_GLUED_START = re.compile(r"(?P<indent>[ \t]*)[^`~]*(?P<marks>`{3,}|~{3,})(?P<info>py(?:thon)?3?)\s*$", re.IGNORECASE)
_QUOTE = re.compile(r"[ \t]{0,3}(?:>[ ]?)+")
_BEGIN, _DONE = "[BEGIN]", "[DONE]"
_LANGUAGE = re.compile(r"[{.\s]*([A-Za-z]*)")


class Block(NamedTuple):
    """A fenced block: its code, dedented, and whether its fence says that it is Python, or nothing."""

    code: str
    python: bool


class _Opening(NamedTuple):
    indent: int
    marks: str
    language: str
    quoted: bool

    @property
    def python(self) -> bool:
        return not self.language or self.language.startswith(("py", "ipy"))


def split_fences(text: str, in_markdown: bool = False) -> tuple[str, list[Block]]:
    """Split a text into what precedes the first fence and the contents of all fenced blocks that are not empty.

    A block that is never closed extends to the end of the text, because a response may have been cut off at its token
    limit. The blocks in a Markdown block (but not in a Markdown block in it) take its place.
    """
    lines = split_lines(text)
    before: list[str] = []
    blocks: list[Block] = []
    seen = False
    i = 0
    while i < len(lines):
        if opening := _opening(lines[i]):
            seen = True
            content, i = _content(lines, i + 1, opening)
            code = _clean(content)
            if opening.language in ("markdown", "md") and not in_markdown:
                blocks += split_fences(code, in_markdown=True)[1]
            elif code.strip():
                blocks.append(Block(code, opening.python))
            continue
        head, done, _ = lines[i].partition(_DONE)
        if not seen:
            before.append(head if _ends_with_mark(lines[i], _DONE) else lines[i])
        seen = seen or (bool(done) and _ends_with_mark(lines[i], _DONE))
        i += 1
    return "".join(before), blocks


def _opening(line: str) -> _Opening | None:
    """The fence that a line opens, if it opens one."""
    body, quoted = _unquoted(line)
    if body.strip() == _BEGIN:
        return _Opening(0, _DONE, "", quoted)
    fence = _FENCE.match(body.rstrip()) or _GLUED_START.match(body.rstrip())
    if not fence:
        return None
    language = _LANGUAGE.match(fence["info"])
    return _Opening(len(fence["indent"]), fence["marks"], language[1].lower() if language else "", quoted)


def _content(lines: list[str], start: int, opening: _Opening) -> tuple[str, int]:
    """The content of a block whose lines begin at `start`, and the number of the first line after it."""
    found: list[str] = []
    for i in range(start, len(lines)):
        line, quoted = _unquoted(lines[i]) if opening.quoted else (lines[i], True)
        if not quoted:
            return _join(found, opening), i
        if _closes(line, opening):
            if not (opening.python and _in_string(found, lines[i:], opening)):
                return _join(found, opening), i + 1
        elif opening.python and _FENCE.match(line.rstrip()) and parse(_join(found, opening)):
            return _join(found, opening), i  # the end of the block is missing
        elif opening.python and _ends_with_mark(line, opening.marks):
            last = [*found, line.rstrip().removesuffix(opening.marks) + "\n"]
            if parse(_join(last, opening)) and (opening.marks == _DONE or not parse(_join([*found, line], opening))):
                return _join(last, opening), i + 1
        found.append(line)
    return _join(found, opening), len(lines)


def _closes(line: str, opening: _Opening) -> bool:
    """Whether a line can end the block; by CommonMark, its indentation is at most three more than the opening's."""
    if opening.marks == _DONE:
        return line.strip() == _DONE
    fence = _FENCE.match(line.rstrip())
    if not fence or fence["info"] or not fence["marks"].startswith(opening.marks):
        return False
    return len(fence["indent"]) <= opening.indent + 3


def _in_string(found: list[str], rest: list[str], opening: _Opening) -> bool:
    """Whether a fence, the first line of the rest, stands in a string, and the code is valid up to a later fence."""
    ends = itertools.islice((i for i, line in enumerate(rest) if _closes(line, opening)), MAX_ATTEMPTS)
    for i in ends:
        code = _join([*found, *rest[:i]], opening)
        if not ends_in_string(code):
            return i > 0 and parse(code) is not None
    return False


def _join(lines: list[str], opening: _Opening) -> str:
    """The content without the indentation of its fence (CommonMark), and then of all its lines."""
    prefix = re.compile(rf"[ \t]{{0,{opening.indent}}}")
    return textwrap.dedent("".join(prefix.sub("", line, count=1) for line in lines))


def _clean(code: str) -> str:
    """The code without the prompts of an interactive session, and without lines that only a notebook understands."""
    lines = [line for line in split_lines(code) if line.strip() not in (_BEGIN, _DONE)]
    if parse("".join(lines)):
        return "".join(lines)
    if code.lstrip().startswith(">>>"):
        return "".join(line[4:] or "\n" for line in lines if re.match(r"(?:>>>|\.\.\.)(?:\s|$)", line))
    return "".join(line for line in lines if not line.startswith(("%", "!")))


def _unquoted(line: str) -> tuple[str, bool]:
    """The line without the marks of a Markdown quote, and whether it has any."""
    quote = _QUOTE.match(line)
    if not quote or line.startswith(">>>"):
        return line, False
    return line[quote.end() :], True


def _ends_with_mark(line: str, mark: str) -> bool:
    return line.rstrip().endswith(mark)
