r"""Finds the answer in a response to a mathematics problem.

Only the text after the last `</think>` counts; if a thought was opened and never closed, the model was cut off and
there is no answer. In that text, the first of these forms that occurs decides, by its last occurrence:

1. `\boxed{…}` or `\fbox{…}` with balanced braces and something inside.
2. "answer is …" or "answer: …", up to the end of the sentence or of the formula that starts there.
3. `#### …` followed by a number or a formula, as GSM8K marks its answers (a Markdown heading does not count).

A response without any of them has no answer; a number that merely comes last is never taken for one.
"""

from __future__ import annotations

import re

from lm_eval_tandem.grading.thought import final_part

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{|[\w$\\+-])")
_UNBRACED = re.compile(r"[+-]?(?:\d[\d,]*(?:\.\d+)?|[A-Za-z])")
_ANSWER_PHRASE = re.compile(r"\banswer\b(?:\s+is\b|\s*:)[\s:*]*", re.IGNORECASE)
_FORMULA = re.compile(r"(?<!\\)\$\$(.+?)\$\$|(?<!\\)\$([^\n]+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_SENTENCE_END = re.compile(r"[.?]?\**\s*(?:$|\n)|[.?]\**\s", re.MULTILINE)
_HASH_LINE = re.compile(
    r"^\s*####\s*(\$[^$\n]+\$|[-+]?\$?[-+]?(?:\d[\d,]*)?\.?\d[\d,/]*)(?:\s*[A-Za-z%°]+)?\.?\s*$", re.M
)


def extract(response: str) -> str | None:
    r"""Return the answer of a response, as written there but without `$` around it; None if there is none.

    Examples
    --------
    >>> extract(r"<think>Perhaps \boxed{3}.</think>So it is \boxed{4}.")
    '4'
    >>> extract("The last number is 7.") is None
    True
    """
    part = final_part(response)
    if part is None:
        return None
    for form in (boxed, stated, hashed):
        answer = form(part)
        if answer:
            return answer
    return None


def boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{…}` or `\fbox{…}` that is closed and not empty, or 7 of `\boxed 7`."""
    for box in reversed(list(_BOX.finditer(text))):
        if text.startswith("{", box.end()):
            content = balanced(text, box.end())
        else:
            unbraced = _UNBRACED.match(text, box.end())
            content = unbraced[0] if unbraced else None
        if content and content.strip():
            return content.strip()
    return None


def balanced(text: str, start: int) -> str | None:
    r"""Return the inside of the group whose `{` is at index `start`; None if it is never closed.

    `\{` and `\}` are printed characters and do not count as braces.
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
    return None


def stated(text: str) -> str | None:
    """Return what follows the last "answer is" or "answer:", up to the end of the sentence.

    If the sentence holds one formula, and words without numbers besides it, the answer is the inside of the formula.
    """
    for phrase in reversed(list(_ANSWER_PHRASE.finditer(text))):
        first_formula = _FORMULA.match(text, phrase.end())
        end = _SENTENCE_END.search(text, first_formula.end() if first_formula else phrase.end())
        statement = text[phrase.end() : end.start() if end else len(text)]
        formulas = list(_FORMULA.finditer(statement))
        if len(formulas) == 1 and not re.search(r"[\d$\\]", _FORMULA.sub("", statement)):
            statement = next(group for group in formulas[0].groups() if group is not None)
        statement = statement.replace("**", "").strip()
        if statement:
            return statement
    return None


def hashed(text: str) -> str | None:
    """Return what follows the last `####` at the start of a line; GSM8K's own solutions end like that."""
    matches = _HASH_LINE.findall(text)
    return matches[-1].strip().strip("$").strip() if matches else None
