r"""The shape of an answer: its brackets, how many members it has, and what stands left of an equals sign.

Both graders refuse answers whose shape is another than the gold answer's, because a comparison of values alone accepts
them: Math-Verify reads `\ge 12` as 12, `\{1,2\}` as (1,2) and `1, 1, 2` as `1, 2`.
"""

from __future__ import annotations

import re

from lm_eval_tandem.grading.math.quantity import split

RELATION = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>|=")
INEQUALITY = re.compile(r"\\le(?![A-Za-z])|\\ge(?![A-Za-z])|\\ne(?![A-Za-z])|<|>")
_MEMBER_OF = re.compile(r"^(?P<name>[^=]*?)\s*\\in(?![A-Za-z])\s*(?=\S)")
_VARIABLE = r"\\?[A-Za-z]+'*(?:_(?:\{[^{}]*\}|\w))?"
_NAME = re.compile(
    rf"(?:\s*(?:{_VARIABLE}|\\text\{{[^{{}}]*\}})\s*(?:\([^()=]*\))?\s*)+"  # x, x_1, f(x), AB, \angle ABC
    rf"|\s*\(\s*{_VARIABLE}(?:\s*,\s*{_VARIABLE})+\s*\)\s*"  # (x, y)
    r"|\s*\|[^|=]*\|\s*|\s*\[[A-Z]+\]\s*"  # |AB|, [ABC]
    r"|\s*\\(?:overline|vec|mathbf)\{[^{}]*\}\s*"
    r"|[^=]*\\(?:sin|cos|tan|cot|sec|csc|ln|log|arcsin|arccos|arctan|text|angle)(?![a-z])[^=]*"
)
"""Left sides of an equation that only name what the right side is."""
_LETTER = re.compile(r"[A-Za-z](?:\([a-z]\)|_\{?\w+\}?)?|\\[a-z]+")
_CAPITALS = re.compile(r"[^=]*[A-Z][^=]*")


def names_only(left: str, gold: bool = False) -> bool:
    """Whether the left side of an equation names a quantity, so that the right side alone is the answer.

    A name is a letter, a function's value, a length such as `AB`, a tuple of letters, or a ratio of such names. In a
    model's answer it may also be what a question asks for, an expression of several quantities: `m + n = 17`. An
    expression of a single unknown, `x^2` or `2x`, is none: `x^2 = 9` is still to be solved. A gold answer `a + b = 0`
    is an equation, which its right side does not answer.

    Examples
    --------
    >>> [names_only(left) for left in ("x", "f(2)", "a+b", "x^{2}", "3x", "11")]
    [True, True, True, False, False, False]
    """
    if _NAME.fullmatch(left):
        return not re.match(r"\s*\\(?:frac|sqrt|pi)", left)
    letters = set(re.findall(r"[A-Za-z](?:_\{?\w+\}?)?", re.sub(r"\\[A-Za-z]+", " ", left))) - {"e", "i"}
    if gold or len(letters) < 2:
        return _CAPITALS.fullmatch(left) is not None and not re.search(r"[-+^\d]", re.sub(r"_\{?\w+\}?", "", left))
    return True


def without_name(text: str, gold: bool = False) -> str | None:
    r"""The value of an answer such as `x = 5` or `x \in [0, 1]`; None if it is an equation to be solved or false.

    An answer without an equals sign is its own value. In a list, each member loses its name.

    Examples
    --------
    >>> without_name("x = 2, y = 3"), without_name("x^{2} = 9")
    ('2, 3', None)
    """
    text = _MEMBER_OF.sub("", text) if _MEMBER_OF.match(text) else text
    values = []
    for member in split(text, ","):
        if brackets(member) in ("()", "[]") and "=" in member:
            inside = without_name(member.strip()[1:-1], gold)
            values.append(f"({inside})" if inside else member)
            continue
        left, *rest = split(member, "=")
        if INEQUALITY.search(member) or not rest:
            values.append(member.strip())
        elif names_only(left, gold) or (_is_value(left) and not gold):
            values.append(rest[-1].strip())
        else:
            return None
    return ", ".join(values)


def _is_value(left: str) -> bool:
    r"""Whether a side of an equation has no unknown: `3 \cdot 6` of `3 \cdot 6 = 18`."""
    return re.search(r"\d", left) is not None and not re.search(r"[A-Za-z]", re.sub(r"\\[A-Za-z]+", "", left))


def chain(text: str) -> list[str]:
    r"""The sides without unknowns of an answer that is a calculation, `3 \cdot 6 = 18`: all have to be equal."""
    sides = [side.strip() for side in split(text, "=")]
    return [side for side in sides if side] if len(sides) > 1 and _is_value(sides[0]) else []


def brackets(text: str) -> str:
    r"""`{`, `(`, `[` or `(]`-like for a set, a tuple, an interval; "" for anything else."""
    text = text.strip()
    if text.startswith(r"\{") and text.endswith(r"\}"):
        return "{}"
    if len(text) > 1 and text[0] in "([" and text[-1] in ")]" and len(split(text[1:-1], ",")) > 1 and _one_group(text):
        return text[0] + text[-1]
    return ""


def members(text: str) -> list[str] | None:
    r"""The members of a list, a set or a tuple; None if the text is none. `\pm` stands for two of a list's members."""
    kind = brackets(text)
    if kind == "{}":
        text = text.strip()[2:-2]
    elif kind:
        return split(text.strip()[1:-1], ",")
    result: list[str] = []
    for part in split(text, ","):
        signs = ("+", "-") if r"\pm" in part and not INEQUALITY.search(part) else ("",)
        result += [part.replace(r"\pm", sign).replace(r"\mp", "-" if sign == "+" else "+") for sign in signs]
    return result if kind or len(result) > 1 else None


def same_shape(gold: str, answer: str) -> bool:
    """Whether an answer has the shape of the gold answer, so that their values are to be compared.

    A member that only the answer repeats is no difference: the same solution was found twice. Members that the gold
    answer repeats have to be repeated.
    """
    kinds = brackets(gold), brackets(answer)
    if bool(INEQUALITY.search(answer)) != bool(INEQUALITY.search(gold)):
        return any(kinds) or any(map(is_region, (gold, answer)))  # Math-Verify can solve an inequality
    if "{}" in kinds and any(kind not in ("", "{}") for kind in kinds):
        return False
    of_gold, of_answer = members(gold) or [gold], members(answer) or [answer]
    if len(of_gold) == len(of_answer) or any(map(is_region, (gold, answer))):
        return True
    return kinds[1] in ("", "{}") and len(of_gold) == len(_different(of_gold)) == len(_different(of_answer))


def _different(texts: list[str]) -> set[str]:
    return {re.sub(r"\s", "", text) for text in texts}


def is_region(text: str) -> bool:
    """Whether an answer is a union or another set of numbers that has no members to count."""
    return re.search(r"\\(?:cup|cap|mathbb|setminus|emptyset|begin)(?![A-Za-z])", text) is not None


def as_interval(text: str) -> str | None:
    r"""An inequality of one letter as the interval that it describes, `2 \le x < 5` as `[2, 5)`; None for others.

    Several of them, `x < 2, x > 3`, are the union of their intervals.
    """
    parts = split(text, ",")
    if len(parts) > 1:
        intervals = [as_interval(part) for part in parts]
        return None if None in intervals else r" \cup ".join(map(str, intervals))
    signs = list(INEQUALITY.finditer(text))
    sides = [side.strip() for side in INEQUALITY.split(text)]
    if not signs or any(r"\ne" in sign[0] for sign in signs) or "," in text or "=" in text:
        return None
    upwards = [sign[0] in ("<", r"\le") for sign in signs]
    if len(signs) > 2 or len(set(upwards)) > 1:
        return None
    names = [sign[0] for sign in signs]
    if not upwards[0]:
        sides, names = sides[::-1], names[::-1]
    strict = [name in "<>" for name in names]
    if len(sides) == 3 and _LETTER.fullmatch(sides[1]):
        return f"{'(' if strict[0] else '['}{sides[0]}, {sides[2]}{')' if strict[1] else ']'}"
    if len(sides) == 2 and _LETTER.fullmatch(sides[0]) and not _LETTER.fullmatch(sides[1]):
        return rf"(-\infty, {sides[1]}{')' if strict[0] else ']'}"
    if len(sides) == 2 and _LETTER.fullmatch(sides[1]):
        return rf"{'(' if strict[0] else '['}{sides[0]}, \infty)"
    return None


def _one_group(text: str) -> bool:
    """Whether the first bracket is closed by the last character."""
    depth = 0
    for i, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0:
            return i == len(text) - 1
    return False


def as_tuple(text: str) -> str | None:
    r"""A matrix of one column or row, `\begin{pmatrix} 1 \\ 2 \end{pmatrix}`, as a tuple, `(1, 2)`; None for others."""
    match = re.fullmatch(r"\\begin\{pmatrix\}(.*)\\end\{pmatrix\}", text.strip(), re.DOTALL)
    if match is None:
        return None
    rows = [row.split("&") for row in match[1].split(r"\\")]
    if len(rows) > 1 and all(len(row) == 1 for row in rows):
        rows = [[row[0] for row in rows]]
    return f"({', '.join(entry.strip() for entry in rows[0])})" if len(rows) == 1 and len(rows[0]) > 1 else None
