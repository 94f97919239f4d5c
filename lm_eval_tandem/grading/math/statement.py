r"""Reads the answer out of a sentence that states one: "The answer is approximately 18, because …" says 18.

`CUES` lists what introduces such a sentence. `answer_in` looks at what follows a cue, in this order:

1. A choice: `(B)`, `option B`.
2. A formula, or formulas joined by a comma, "and" or "or"; or a number or an expression. The unit behind it belongs to
   it; reasons and remarks behind it ("because …", "(eighteen)") do not.
3. Words, then "is", "are", "=" or ":", then one of the above: "The largest $n$ is 34."
4. Words around a single formula or number: "that there are 12 ways".
5. The words themselves: "Evelyn".
"""

from __future__ import annotations

import re

_LINK = (
    r"(?:is|are|was|equals?|becomes|reads|comes\s+(?:out\s+)?to|(?:would|should|must|will|can|could)\s+be"
    r"|turns\s+out\s+to\s+be)\b"
)
_CUES = {
    "English": rf"(?<![/\w])answers?\b[*_`\"]*(?:\s+(?:to|for|of|in|as|that|we)\b[^.:\n$]{{0,80}}?)?\s*"
    rf"(?:{_LINK}|[*_]*\s*[:：])",
    "a formula right behind the word": r"(?<![/\w])answer(?=\s*(?:\$|\\\[|\\\())",
    "a choice": r"\b(?:correct|right|best)\s+(?:option|choice)\s+is\b",
    "a heading": r"^[#*_\s]*(?:the\s+)?(?:final\s+|correct\s+)?answer[#*_ ]*\n",
    "Chinese": r"(?:答案|答)(?:应该|应当|应|就|即)?(?:为|是|等于|[:：])|故?选(?=\s*[A-J])",
    "Japanese": r"答え?(?:は|[:：])",
    "Korean": r"(?:정답|답)(?:은|[:：])",
    "French": r"\bréponse(?:\s+finale)?\s*(?:est\b|:)",
    "Spanish": r"\brespuesta(?:\s+final)?\s*(?:es\b|:)",
    "Portuguese": r"\bresposta(?:\s+final)?\s*(?:é\b|:)",
    "Italian": r"\brisposta(?:\s+finale)?\s*(?:è\b|:)",
    "German": r"\bantwort\s*(?:ist\b|lautet\b|:)",
    "Russian": r"\bответ\s*(?:равен\b|[:—–-])",
}
"""What introduces an answer, by language or form; upper case or lower case."""
CUES = re.compile(rf"(?:{'|'.join(_CUES.values())})[\s:：*_]*", re.IGNORECASE | re.MULTILINE)
LONGEST = 2000
"""Characters in which a sentence has to end, and in which a conclusion has to stand."""
FORMULA = re.compile(
    r"(?<!\\)\$\$(?P<display>.+?)\$\$"
    r"|\\\[(?P<bracket>.+?)\\\]"
    r"|\\\((?P<paren>.+?)\\\)"
    r"|(?<!\\)\$(?P<inline>(?:\\\$|[^\n$])+?)(?<!\\)\$(?!\d)",
    re.DOTALL,
)
"""A formula. A `$` before a digit does not close one: "$5 and $6" are prices."""
_NUMBER = re.compile(
    r"(?<![\w.])(?:[-+−]?(?:[$€£¥₹]|\\\$)\s?)?[-+−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:\s?/\s?\d+|\s\d+/\d+)?(?:\s?\\?%|[€£¥])?"
)
_SENTENCE_END = re.compile(r"(?<!\bapprox)(?<!\bca)(?<!\bsq)(?<!\bcu)[.?!]+[*_\"”)]*(?=\s|$)|[。！？]|\n")
_MATHS = re.compile(
    r"(?:\\[A-Za-z]+|\b(?:and|or|sqrt|pi|sin|cos|tan|log|ln)\b|\b(?!(?:a|I)\s+[A-Za-z]{2})[A-Za-z]\b|(?<=\d)[A-Za-z]\b"
    r"|[^A-Za-z\n])+",
    re.IGNORECASE,
)
"""Text without words: what an answer in plain text can consist of."""
_VALUE_STARTS = re.compile(r"[-+−(\[{|√π∞±<>≤≥=~≈]|\\|[$€£¥₹]|\.?\d|[A-Za-z](?:_\w+|\(\w\))?\s*[=<>≤≥^+*/]")
_NO_UNIT = (
    "and|or|because|since|as|which|where|when|so|if|after|but|this|that|i|we|it|is|are|was|he|she|they|you|hence|thus"
)
_UNIT_WORDS = re.compile(rf"\s*[-–]?\s*(?!(?i:{_NO_UNIT}|therefore)\b)[A-Za-z°²³/][\w°²³/^'’-]*\.?")
_JOINED = re.compile(r"\s*(?:,\s*(?:and|or)?|and|or|;)\s*", re.IGNORECASE)
_FILLERS = re.compile(
    r"(?:\s*(?:approximately|approx\.?|about|around|roughly|nearly|exactly|precisely|simply|just|thus|therefore|hence|"
    r"clearly|indeed|then|now|still|also|always|given by|equal to|only|found to be|option|choice|约|大约|等于|"
    r"the (?:number|value|integer|fraction))\b[\s:,]*)+",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(?:option\s+|choice\s+)?(\([A-J]\)|[A-J](?=\s*(?:$|[.:,)])))", re.IGNORECASE)
_LINKS = re.compile(rf"\s*(?:\b{_LINK}|[=:：]|\bto be\b)\s*", re.IGNORECASE)
_CONCLUDES = re.compile(rf"\s*(?:\b{_LINK}|=|\b(?:get|gives?|obtain|yields?|makes|find)\b)\s*", re.IGNORECASE)
"""What a value follows in the last sentence of a reply."""
_REASON = re.compile(r",?\s*\b(?:because|since)\b|\s[(（](?=[^)）]*[A-Za-z]{2}|\s*=)")
_SAID_AFTERWARDS = re.compile(
    r"\s*(?:I hope|Hope|Let me know|Please|Feel free|This is (?:the|our) (?:final )?answer|Thank|Note that|Would you)",
    re.IGNORECASE,
)
"""Beginnings of sentences that follow a conclusion and are none."""
_CUT_OFF = re.compile(
    r"(?:[-+*/=,(:\\^_{]|\b(?:the|a|an|of|and|or|is|are|so|to|in|with|that|we|then|which|because|since|by|for|as|at|"
    r"from|has|have))\s*$",
    re.IGNORECASE,
)
"""Ends of sentences that a model did not get to finish."""


def sentence(text: str, start: int) -> str:
    """The sentence that begins at an index; an end inside a formula is none."""
    text = text[start : start + LONGEST]
    formulas = [match.span() for match in FORMULA.finditer(text)]
    for end in _SENTENCE_END.finditer(text):
        if not any(first <= end.start() < last for first, last in formulas):
            return text[: end.start()]
    return text


def has_value(answer: str) -> bool:
    """Whether an answer has a number, a formula or a choice, and not words alone."""
    return re.search(r"[\d$\\√π∞]", answer) is not None or re.search(r"[A-Za-z]{2}", answer) is None


def answer_in(said: str) -> str | None:
    """The answer in a sentence, or in what follows a cue; None if there is none.

    Examples
    --------
    >>> answer_in("The largest $n$ is 34, because 35 is too large")
    '34'
    """
    said = _plain(said)
    said = said[_end(_FILLERS.match(said)) :]
    if not said:
        return None
    choice = _CHOICE.match(said)
    if choice:
        return choice[1]
    value = value_with_unit(said, strict=False)
    if value:
        return value
    said = _without_reason(said)
    return _after_link(said) or _only_value(said) or said.rstrip(" .:") or None


def value_with_unit(said: str, strict: bool = True) -> str | None:
    """The value at the start of a text with the unit behind it; None if no value starts there.

    With `strict`, there must be nothing but a short unit behind it.
    """
    said = _plain(said)
    if FORMULA.match(said):
        value, rest = _formulas(said)
    elif _VALUE_STARTS.match(said):
        value, rest = _expression(said)
    else:
        return None
    unit, rest = _unit(rest)
    if strict and (rest.strip(" .") or not has_value(value) or len(unit.split()) > 5):
        return None
    linked = _LINKS.match(rest)
    if linked and not strict:  # "$x$ is 5": what comes first is a name
        named = value_with_unit(rest[linked.end() :], strict=False)
        if named:
            return named
    if unit and re.match(r"\s*(?:and\s+)?[-+$\\]*\d", rest):  # "5 ft 6 in", "2 apples and 3 pears"
        return said.rstrip(" .")
    return f"{value} {unit}".strip() or None


def concluded(text: str) -> str | None:
    """The last value of the last sentence, if the sentence is finished; None if there is none.

    Examples
    --------
    >>> concluded("She sells 9 of them for 2 dollars each. So she makes 9 * 2 = 18 dollars every day.")
    '18 dollars every day'
    """
    text = re.sub(r"(?:\*\*|[_#`\s])+$", "", text[-LONGEST:].strip())
    formulas = list(FORMULA.finditer(text))
    if formulas and re.fullmatch(r"[\s.。*_]*", text[formulas[-1].end() :]):
        return _formulas(text[_start_of_joined(text, [formula.start() for formula in formulas]) :])[0]
    said = _last_sentence(text)
    if _CUT_OFF.search(said):
        return None
    said = _without_reason(_plain(said))
    values = _values(said)
    if not values:
        return None
    starts = [start for start, _ in values]
    for link in reversed(_outside_formulas(_CONCLUDES, said)):
        behind = said[_end(_CONCLUDES.match(said, link)) :]
        first = next((start for start in starts if start >= len(said) - len(behind)), None)
        if first is not None and _VALUE_STARTS.match(behind):
            return value_with_unit(behind, strict=False)
    return value_with_unit(said[_start_of_joined(said, starts) :], strict=False)


def _start_of_joined(said: str, starts: list[int]) -> int:
    """Where the last value starts, or the first of those that are joined with it: "$x = 5$ or $x = 6$"."""
    while len(starts) > 1:
        before = FORMULA.match(said, starts[-2])
        if before is None or _JOINED.fullmatch(said[before.end() : starts[-1]]) is None:
            break
        starts = starts[:-1]
    return starts[-1]


def _last_sentence(text: str) -> str:
    """The last sentence of a text that is no mere remark to the reader."""
    sentences, position = [], 0
    while position < len(text):
        said = sentence(text, position)
        if re.search(r"\w", said):
            sentences.append(said)
        position += len(said) + 1
    while sentences and _SAID_AFTERWARDS.match(sentences[-1]):
        sentences.pop()
    return sentences[-1] if sentences else ""


def _outside_formulas(pattern: re.Pattern[str], said: str) -> list[int]:
    """Where the matches of a pattern start that are not inside a formula."""
    formulas = [match.span() for match in FORMULA.finditer(said)]
    starts = [match.start() for match in pattern.finditer(said)]
    return [start for start in starts if not any(first <= start < last for first, last in formulas)]


def _without_reason(said: str) -> str:
    """What is said before "because …" or a remark in brackets."""
    starts = _outside_formulas(_REASON, said)
    return said[: starts[0]] if starts and starts[0] else said


def _plain(said: str) -> str:
    """A text without the marks of Markdown."""
    return re.sub(r"\*\*|__|(?<!\w)[*_`](?=\S)|`|\\\"", "", said).strip(" \n\t*:")


def _end(match: re.Match[str] | None) -> int:
    return match.end() if match else 0


def _inside(formula: re.Match[str]) -> str:
    return next(group for group in formula.groups() if group is not None).strip()


def _formulas(said: str) -> tuple[str, str]:
    """The formulas that a text starts with, and what follows them; a single one without its marks."""
    first = FORMULA.match(said)
    assert first is not None
    end = first.end()
    while (joined := _JOINED.match(said, end)) and (following := FORMULA.match(said, joined.end())):
        end = following.end()
    return (_inside(first) if end == first.end() else said[:end]), said[end:]


def _expression(said: str) -> tuple[str, str]:
    """The number or expression in plain text that a text starts with, and what follows it."""
    match = _MATHS.match(said)
    value = _without_reason(match[0]) if match else ""
    value = re.sub(r"(?:\s*(?:\b(?:and|or)\b|[-+*/=,;:(（–—]))+\s*$", "", value)
    rest = said[len(value) :]
    return value.strip().rstrip("."), rest


def _unit(rest: str) -> tuple[str, str]:
    """The words of a unit at the start of a text, and what follows them."""
    end = 0
    while (word := _UNIT_WORDS.match(rest, end)) and word[0].strip():
        end = word.end()
    return rest[:end].strip(" .-–"), rest[end:]


def _values(said: str) -> list[tuple[int, int]]:
    """Start and end of each formula, and of each number outside of formulas."""
    outside = set(_outside_formulas(_NUMBER, said))
    numbers = [match.span() for match in _NUMBER.finditer(said) if match.start() in outside]
    return sorted(numbers + [match.span() for match in FORMULA.finditer(said)])


def _after_link(said: str) -> str | None:
    """The value behind the last "is", "=" or ":" that has one."""
    for start in reversed(_outside_formulas(_LINKS, said)):
        rest = said[_end(_LINKS.match(said, start)) :]
        value = value_with_unit(rest[_end(_FILLERS.match(rest)) :], strict=False)
        if value:
            return value
    return None


def _only_value(said: str) -> str | None:
    """The single formula or number in a text; None if there is another one."""
    values = _values(said)
    if len(values) != 1:
        return None
    start, end = values[0]
    formula = FORMULA.match(said, start)
    return _inside(formula) if formula else value_with_unit(said[start:], strict=False) or said[start:end]
