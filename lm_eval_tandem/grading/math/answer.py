r"""Finding the answer in a response: first its final part, then the last answer of that part.

The final part is what follows the last `</think>`. Where a `<think>` was opened and never closed the model was cut off
while thinking: there is no final part and no answer, whatever the thought holds. In the final part the first of these
forms that occurs decides, each by its last occurrence:

1. `\boxed{…}` or `\fbox{…}` with balanced braces and something in it;
2. "answer is …", "answer: …" up to the end of the sentence or of the formula that begins there;
3. `#### …` followed by a number or a formula (a Markdown heading is none).

There is no last resort: a response without any of them has no answer, and the last number in sight is never one.
"""

from __future__ import annotations

import re

from lm_eval_tandem.grading.thought import final_part

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{|[\w$\\+-])")
_BARE = re.compile(r"[+-]?(?:\d[\d,]*(?:\.\d+)?|[A-Za-z])")
_CUE = re.compile(r"\banswer\b(?:\s+is\b|\s*:)[\s:*]*", re.IGNORECASE)
_FORMULA = re.compile(r"(?<!\\)\$\$(.+?)\$\$|(?<!\\)\$([^\n]+?)\$|\\\[(.+?)\\\]|\\\((.+?)\\\)", re.DOTALL)
_END = re.compile(r"[.?]?\**\s*(?:$|\n)|[.?]\**\s", re.MULTILINE)
_HASHES = re.compile(r"^\s*####\s*(\$[^$\n]+\$|[-+]?\$?[-+]?(?:\d[\d,]*)?\.?\d[\d,/]*)(?:\s*[A-Za-z%°]+)?\.?\s*$", re.M)


def extract(response: str) -> str | None:
    """The last answer of the final part, as written there (outer `$` removed); None if there is none."""
    part = final_part(response)
    if part is None:
        return None
    for form in (boxed, stated, hashed):
        answer = form(part)
        if answer:
            return answer
    return None


def boxed(text: str) -> str | None:
    r"""The content of the last balanced, non-empty `\boxed{…}` or `\fbox{…}`; of `\boxed 7` the number."""
    for box in reversed(list(_BOX.finditer(text))):
        if text.startswith("{", box.end()):
            content = balanced(text, box.end())
        else:
            bare = _BARE.match(text, box.end())
            content = bare[0] if bare else None
        if content and content.strip():
            return content.strip()
    return None


def balanced(text: str, start: int) -> str | None:
    r"""The inside of the group whose `{` stands at `start`; None if it never closes. `\{` and `\}` are no braces."""
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
    """What follows the last "answer is" or "answer:"; of its only formula, if the rest are words, the inside."""
    for cue in reversed(list(_CUE.finditer(text))):
        opening = _FORMULA.match(text, cue.end())
        end = _END.search(text, opening.end() if opening else cue.end())
        said = text[cue.end() : end.start() if end else len(text)]
        formulas = list(_FORMULA.finditer(said))
        if len(formulas) == 1 and not re.search(r"[\d$\\]", _FORMULA.sub("", said)):
            said = next(group for group in formulas[0].groups() if group is not None)
        said = said.replace("**", "").strip()
        if said:
            return said
    return None


def hashed(text: str) -> str | None:
    """What follows the last `####` at the start of a line, as GSM8K's own answers end."""
    found = _HASHES.findall(text)
    return found[-1].strip().strip("$").strip() if found else None
