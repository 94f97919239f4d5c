r"""The second grader: normalises two answers as strings, as the authors of MATH do, then compares them with sympy.

It shares no code with Math-Verify, so an agreement of both graders is one of two independent implementations.

- Removed from both answers: dollar, percent and degree signs, units, spacing commands, `\left` and `\right`, thousands
  separators, fonts, and an `x =` or `x \in` in front.
- Compared part by part: comma lists, sets and unions (in any order), tuples, intervals and matrices (in order, with
  their brackets or shape), equations and inequalities (up to a factor), `\pm`.
- Expressions are equal if they agree to 30 digits at every point where they are evaluated. A decimal is the exact
  fraction that it writes, so 0.33 is not 1/3.
- Words are compared without regard to case.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import sympy
from sympy import Expr, Rational

from lm_eval_tandem.grading.math.latex import NotArithmetic, parse

UNICODE_SIGNS = {
    "−": "-",
    "–": "-",
    "×": r"\times ",
    "·": r"\cdot ",
    "÷": "/",
    "π": r"\pi ",
    "∞": r"\infty ",
    "√": r"\sqrt",
    "≤": r"\le ",
    "≥": r"\ge ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∈": r"\in ",
    "°": "",
    "≠": r"\ne ",
    "\u00a0": " ",
}
"""LaTeX for characters that models write in its place."""
FONTS = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|rm|bf)"
SHORT_UNITS = "cm|mm|km|m|ft|in|kg|mg|g|s|h|hr|min|mph|mi|L|ml|mL|J|N|W|V|Hz"
SUBSTITUTIONS: Sequence[tuple[str, str]] = (
    (r"\\left(?![a-z])|\\right(?![a-z])|\\(?:big|Big|bigg|Bigg)[lr]?(?![A-Za-z])|\\displaystyle", ""),
    (r"\\[dtc]frac(?![a-z])", r"\\frac"),
    (r"(?<!\\)\\!", ""),
    (r"(?<!\\)\\[,;: ]|~|\\q?quad(?![a-z])", " "),
    (r"\^\s*(?:\\circ|\{\s*\\circ\s*\})|\\degree(?![a-z])", ""),
    (r"\\?[$%]", ""),
    (r"\\geqslant|\\geq(?![a-z])|>=", r"\\ge"),
    (r"\\leqslant|\\leq(?![a-z])|<=", r"\\le"),
    (r"\\gt(?![a-z])", ">"),
    (r"\\lt(?![a-z])", "<"),
    (r"\\neq(?![a-z])", r"\\ne"),
    (r"\\mathbb\s*\{?\s*([A-Z])\s*\}?", r"\\mathbb{\1}"),
    (r"\\varnothing|\\\{\s*\\\}", r"\\emptyset"),
    (r"\\[lr]vert(?![a-z])|\\vert(?![a-z])", "|"),
    (rf"{FONTS}\{{\s*(?:and|or|,)\s*\}}|(?<=[\s\d}}])(?:and|or)(?=[\s\d\\-])", ","),
    (r"(\d)\s+(\d+)\s*/\s*(\d+)", r"\1\\frac{\2}{\3}"),
)
"""Patterns and replacements that bring an answer to one way of writing, applied in this order."""
UNIT = re.compile(
    rf"(?<=[\d}})\]])\s*(?:{FONTS}\{{[^{{}}]*\}}|(?<=[\d}})\] ])(?:(?:{SHORT_UNITS})|[A-Za-z]{{3,}}(?: [A-Za-z]+)*)"
    r"(?:\s*/\s*[A-Za-z]+)?\.?)(?:\s*\^\s*\{?\d\}?)?\s*$"
)
ASSIGNMENT = re.compile(
    r"^\s*[A-Za-z](?:_\{?\w+\}?)?(?:\s*\(\s*[a-z](?:\s*,\s*[a-z])*\s*\))?\s*(?:=|\\in(?![a-z]))\s*(?=\S)"
)
THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
NUMBER_WITH_BASE = re.compile(r"^([0-9A-Za-z]+)_\{?(\d+)\}?$")
MATRIX = re.compile(r"^\\begin\{([bpvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}$", re.DOTALL)
RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>|=")
MIRRORED = {r"\ge": r"\le", ">": "<"}
"""Relations that are rewritten as their mirror image, with the sides exchanged."""
OPENING, CLOSING = "([{", ")]}"
DIGITS = 30
"""Decimal digits to which two expressions have to agree."""


def normalise(answer: str) -> str:
    r"""Return the answer in one way of writing; the module's docstring lists what is removed.

    Examples
    --------
    >>> normalise(r"$\dfrac{1}{2}$ cm")
    '\\frac{1}{2}'
    """
    for sign, latex in UNICODE_SIGNS.items():
        answer = answer.replace(sign, latex)
    for pattern, replacement in SUBSTITUTIONS:
        answer = re.sub(pattern, replacement, answer)
    answer = answer.strip().rstrip(".").strip()
    whole = re.fullmatch(FONTS + r"\{([^{}]*)\}", answer)
    if whole is None:
        answer = UNIT.sub("", answer)
    answer = re.sub(FONTS + r"\s*\{([^{}]*)\}", r"\1", answer).strip()
    if THOUSANDS.match(answer):
        answer = answer.replace(",", "")
    choice = re.fullmatch(r"\(([A-Z])\)", answer)
    return choice[1] if choice else re.sub(r"\s+", " ", answer)


def equal(gold: str, answer: str) -> bool:
    r"""Return whether a model's answer equals the gold answer by this module's rules.

    There is no bound on its time, because sympy may never return: call it in a `pool.Pool`.

    Examples
    --------
    >>> equal(r"\frac{1}{2}", "0.5"), equal(r"\frac{1}{3}", "0.33")
    (True, False)
    """
    gold, answer = normalise(gold), normalise(answer)
    with_base = NUMBER_WITH_BASE.match(gold), NUMBER_WITH_BASE.match(answer)
    if with_base[0] and with_base[1]:
        return with_base[0][1].upper() == with_base[1][1].upper() and with_base[0][2] == with_base[1][2]
    gold, answer = (match[1] if match else text for match, text in zip(with_base, (gold, answer), strict=True))
    if ("=" in gold) != ("=" in answer) or r"\in " in gold + answer:
        gold, answer = ASSIGNMENT.sub("", gold), ASSIGNMENT.sub("", answer)
    return _equal(gold, answer)


def _equal(a: str, b: str) -> bool:
    """Compare two normalised answers: as strings, else part by part, else as relations, else as expressions."""
    a, b = a.strip(), b.strip()
    if _without_spaces(a) == _without_spaces(b):
        return True
    for parts, compare in (
        (_union, _same_members),
        (_items, _same_members),
        (_set, _same_members),
        (_tuple, _same_in_order),
        (_matrix, _same_in_order),
    ):
        parts_of_a, parts_of_b = parts(a), parts(b)
        if parts_of_a is not None and parts_of_b is not None:
            return compare(parts_of_a, parts_of_b)
        if parts_of_a is not None or parts_of_b is not None:
            return False
    relations = _relation(a), _relation(b)
    if relations[0] and relations[1]:
        return _same_relation(relations[0], relations[1])
    if relations[0] or relations[1]:
        return False
    try:
        return agree(parse(a), parse(b))
    except (NotArithmetic, TypeError, ValueError, ZeroDivisionError):
        return False


def _without_spaces(text: str) -> str:
    """The text without white space, and in lower case if it is a word."""
    text = re.sub(r"\s+", "", text)
    return text.lower() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


def split(text: str, separator: str) -> list[str]:
    """Split a text at the separators that are outside of all brackets and environments."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text.startswith(r"\begin", i):
            depth += 1
        elif text.startswith(r"\end", i):
            depth -= 1
        elif text[i] in OPENING:
            depth += 1
        elif text[i] in CLOSING:
            depth -= 1
        elif depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i = i + len(separator)
            continue
        i += 1
    return [*parts, text[start:]]


def _union(text: str) -> list[str] | None:
    """The members of a union; None if the text is not one."""
    parts = split(text, r"\cup")
    return parts if len(parts) > 1 else None


def _items(text: str) -> list[str] | None:
    r"""The members of a comma list, where `\pm` stands for two members; None if there is only one."""
    members = []
    for part in split(text, ","):
        if r"\pm" in part and not RELATION.search(part):
            members += [part.replace(r"\pm", "+").replace(r"\mp", "-"), part.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            members.append(part)
    return members if len(members) > 1 else None


def _set(text: str) -> list[str] | None:
    """The members of a set in braces; None if the text is not one."""
    return split(text[2:-2], ",") if text.startswith(r"\{") and text.endswith(r"\}") else None


def _tuple(text: str) -> list[str] | None:
    """The brackets of a tuple or an interval, then its members; None if the text is neither."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    members = split(text[1:-1], ",")
    return ["\0" + text[0] + text[-1], *members] if len(members) > 1 else None


def _matrix(text: str) -> list[str] | None:
    """The shape of a matrix, then its entries row by row; None if the text is not one."""
    match = MATRIX.match(text)
    if match is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", match[2]) if row.strip()]
    shape = "\0" + "x".join(str(len(row)) for row in rows)
    return [shape, *(entry for row in rows for entry in row)]


def _same_members(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether both have equal members, in any order."""
    unmatched = list(b)
    for member in a:
        index = next((i for i, other in enumerate(unmatched) if _equal(member, other)), None)
        if index is None:
            return False
        del unmatched[index]
    return not unmatched


def _same_in_order(a: Sequence[str], b: Sequence[str]) -> bool:
    return len(a) == len(b) and all(map(_equal, a, b))


def _relation(text: str) -> tuple[str, str, str] | None:
    """Left side, sign and right side of a single equation or inequality; `>` and `≥` as `<` and `≤`."""
    signs = list(RELATION.finditer(text))
    if len(signs) != 1:
        return None
    left, sign, right = text[: signs[0].start()], signs[0][0], text[signs[0].end() :]
    return (right, MIRRORED[sign], left) if sign in MIRRORED else (left, sign, right)


def _same_relation(a: tuple[str, str, str], b: tuple[str, str, str]) -> bool:
    """Whether two relations say the same: the same sign, and differences of their sides that are proportional.

    The factor has to be positive for `<` and `≤`. Sides that are not arithmetic are compared one by one.
    """
    if a[1] != b[1]:
        return False
    try:
        first, second = (parse(left) - parse(right) for left, _, right in (a, b))
    except NotArithmetic:
        return _equal(a[0], b[0]) and _equal(a[2], b[2])
    ratios = _evaluated(first / second) if second != 0 else []
    proportional = bool(ratios) and all(abs(ratio - ratios[0]) <= 10**-DIGITS * abs(ratio) for ratio in ratios)
    if not proportional:
        return False
    reversed_sides = a[1] not in ("=", r"\ne") and not bool(sympy.re(ratios[0]) > 0)
    return not reversed_sides and first.free_symbols == second.free_symbols


def agree(a: Expr, b: Expr) -> bool:
    """Return whether two expressions have the same value, to `DIGITS` digits, at every point tried."""
    if a == b:
        return True
    if a.is_infinite or b.is_infinite or a is sympy.nan or b is sympy.nan:
        return False
    differences = _evaluated(a - b)
    return bool(differences) and all(abs(difference) < 10**-DIGITS for difference in differences)


def _evaluated(expression: Expr) -> list[Expr]:
    """Values of an expression at four points, without those that are not finite numbers.

    A point assigns a positive fraction to each letter, a different one to each.
    """
    letters = sorted(expression.free_symbols, key=str)
    values = []
    for numerator in (3, 8, 19, 31):
        point = {letter: Rational(numerator + 7 * k, 11 + 2 * k) for k, letter in enumerate(letters)}
        values.append(expression.subs(point).evalf(DIGITS + 20))
    return [value for value in values if value.is_number and value.is_finite]
