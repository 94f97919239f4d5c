r"""The second grader: answers normalised as strings, in the manner of the MATH authors, then compared with sympy.

It shares nothing with Math-Verify, so that where both agree two independent readings agree. What both strings lose:
dollar, percent and degree signs, units, spacing commands, `\left` and `\right`, thousands separators, an `x =` or
`x \in` in front, fonts. What is compared part by part: comma lists and sets (in any order), tuples and intervals (in
order, brackets included), unions, matrices, equations and inequalities (up to a factor), `\pm`. Expressions are equal
if they agree to 30 digits wherever they are evaluated; decimals count as the exact fractions they are, so that 0.33 is
not 1/3. Answers that are words are compared without case.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import sympy
from sympy import Expr

from lm_eval_tandem.grading.math.latex import NotArithmetic, read

SIGNS = {
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
FONTS = r"\\(?:text|textbf|textit|textrm|textnormal|mathrm|mathbf|mathit|mathsf|mbox|hbox|operatorname|rm|bf)"
SHORT_UNITS = "cm|mm|km|m|ft|in|kg|mg|g|s|h|hr|min|mph|mi|L|ml|mL|J|N|W|V|Hz"
REWRITES: Sequence[tuple[str, str]] = (
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
UNIT = re.compile(
    rf"(?<=[\d}})\]])\s*(?:{FONTS}\{{[^{{}}]*\}}|(?<=[\d}})\] ])(?:(?:{SHORT_UNITS})|[A-Za-z]{{3,}}(?: [A-Za-z]+)*)"
    r"(?:\s*/\s*[A-Za-z]+)?\.?)(?:\s*\^\s*\{?\d\}?)?\s*$"
)
ASSIGNED = re.compile(
    r"^\s*[A-Za-z](?:_\{?\w+\}?)?(?:\s*\(\s*[a-z](?:\s*,\s*[a-z])*\s*\))?\s*(?:=|\\in(?![a-z]))\s*(?=\S)"
)
THOUSANDS = re.compile(r"^[+-]?\d{1,3}(?:,\d{3})+(?:\.\d+)?$")
BASED = re.compile(r"^([0-9A-Za-z]+)_\{?(\d+)\}?$")
MATRIX = re.compile(r"^\\begin\{([bpvV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end\{\1\}$", re.DOTALL)
RELATION = re.compile(r"\\le(?![a-z])|\\ge(?![a-z])|\\ne(?![a-z])|<|>|=")
FLIPPED = {r"\ge": r"\le", ">": "<"}
OPENING, ENDING = "([{", ")]}"
DIGITS = 30


def normalise(answer: str) -> str:
    """The answer in one spelling: signs, fonts, spacing, units and separators as the module's docstring says."""
    for sign, latex in SIGNS.items():
        answer = answer.replace(sign, latex)
    for pattern, replacement in REWRITES:
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
    """Whether a model's answer is the gold one, by this module's rules. May take for ever: call it in a pool."""
    gold, answer = normalise(gold), normalise(answer)
    based = BASED.match(gold), BASED.match(answer)
    if based[0] and based[1]:
        return based[0][1].upper() == based[1][1].upper() and based[0][2] == based[1][2]
    gold, answer = (found[1] if found else text for found, text in zip(based, (gold, answer), strict=True))
    if ("=" in gold) != ("=" in answer) or r"\in " in gold + answer:
        gold, answer = ASSIGNED.sub("", gold), ASSIGNED.sub("", answer)
    return _equal(gold, answer)


def _equal(a: str, b: str) -> bool:
    a, b = a.strip(), b.strip()
    if _bare(a) == _bare(b):
        return True
    for parts, compare in (
        (_union, _same_members),
        (_items, _same_members),
        (_set, _same_members),
        (_tuple, _same_in_order),
        (_matrix, _same_in_order),
    ):
        found = parts(a), parts(b)
        if found[0] is not None and found[1] is not None:
            return compare(found[0], found[1])
        if found[0] is not None or found[1] is not None:
            return False
    relations = _relation(a), _relation(b)
    if relations[0] and relations[1]:
        return _same_relation(relations[0], relations[1])
    if relations[0] or relations[1]:
        return False
    try:
        return agree(read(a), read(b))
    except (NotArithmetic, TypeError, ValueError, ZeroDivisionError):
        return False


def _bare(text: str) -> str:
    text = re.sub(r"\s+", "", text)
    return text.lower() if re.fullmatch(r"[A-Za-z]{2,}", text) else text


def split(text: str, separator: str) -> list[str]:
    """The parts between separators that stand outside of all brackets and environments."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text.startswith(r"\begin", i):
            depth += 1
        elif text.startswith(r"\end", i):
            depth -= 1
        elif text[i] in OPENING:
            depth += 1
        elif text[i] in ENDING:
            depth -= 1
        elif depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i = i + len(separator)
            continue
        i += 1
    return [*parts, text[start:]]


def _union(text: str) -> list[str] | None:
    parts = split(text, r"\cup")
    return parts if len(parts) > 1 else None


def _items(text: str) -> list[str] | None:
    r"""The members of a comma list; `\pm` stands for two of them."""
    members = []
    for part in split(text, ","):
        if r"\pm" in part and not RELATION.search(part):
            members += [part.replace(r"\pm", "+").replace(r"\mp", "-"), part.replace(r"\pm", "-").replace(r"\mp", "+")]
        else:
            members.append(part)
    return members if len(members) > 1 else None


def _set(text: str) -> list[str] | None:
    return split(text[2:-2], ",") if text.startswith(r"\{") and text.endswith(r"\}") else None


def _tuple(text: str) -> list[str] | None:
    """Brackets and members of a tuple or an interval, the brackets first."""
    if len(text) < 2 or text[0] not in "([" or text[-1] not in ")]":
        return None
    members = split(text[1:-1], ",")
    return ["\0" + text[0] + text[-1], *members] if len(members) > 1 else None


def _matrix(text: str) -> list[str] | None:
    """Shape and entries of a matrix, row by row."""
    found = MATRIX.match(text)
    if found is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", found[2]) if row.strip()]
    shape = "\0" + "x".join(str(len(row)) for row in rows)
    return [shape, *(entry for row in rows for entry in row)]


def _same_members(a: Sequence[str], b: Sequence[str]) -> bool:
    left = list(b)
    for member in a:
        match = next((i for i, other in enumerate(left) if _equal(member, other)), None)
        if match is None:
            return False
        del left[match]
    return not left


def _same_in_order(a: Sequence[str], b: Sequence[str]) -> bool:
    return len(a) == len(b) and all(map(_equal, a, b))


def _relation(text: str) -> tuple[str, str, str] | None:
    """Left side, sign and right side of a single (in)equation, `>` and `≥` turned round."""
    signs = list(RELATION.finditer(text))
    if len(signs) != 1:
        return None
    left, sign, right = text[: signs[0].start()], signs[0][0], text[signs[0].end() :]
    return (right, FLIPPED[sign], left) if sign in FLIPPED else (left, sign, right)


def _same_relation(a: tuple[str, str, str], b: tuple[str, str, str]) -> bool:
    """The same sign, and sides whose differences are a constant multiple of each other (of `<` a positive one)."""
    if a[1] != b[1]:
        return False
    try:
        first, second = (read(left) - read(right) for left, _, right in (a, b))
    except NotArithmetic:
        return _equal(a[0], b[0]) and _equal(a[2], b[2])
    ratios = _evaluated(first / second) if second != 0 else []
    settled = bool(ratios) and all(abs(ratio - ratios[0]) <= 10**-DIGITS * abs(ratio) for ratio in ratios)
    turned = a[1] not in ("=", r"\ne") and not bool(sympy.re(ratios[0]) > 0) if settled else True
    return settled and not turned and first.free_symbols == second.free_symbols


def agree(a: Expr, b: Expr) -> bool:
    """Whether two expressions have the same value, to 30 digits, at every point tried."""
    if a == b:
        return True
    if a.is_infinite or b.is_infinite or a is sympy.nan or b is sympy.nan:
        return False
    differences = _evaluated(a - b)
    return bool(differences) and all(abs(difference) < 10**-DIGITS for difference in differences)


def _evaluated(expression: Expr) -> list[Expr]:
    """Values at four points (letters take different positive fractions); those that are no finite numbers left out."""
    encode_reply = sorted(expression.free_symbols, key=str)
    points: list[Callable[[int], sympy.Rational]] = [
        lambda k, n=n: sympy.Rational(n + 7 * k, 11 + 2 * k)  # type: ignore[misc]
        for n in (3, 8, 19, 31)
    ]
    values = [expression.subs({x: point(k) for k, x in enumerate(encode_reply)}).evalf(DIGITS + 20) for point in points]
    return [value for value in values if value.is_number and value.is_finite]
