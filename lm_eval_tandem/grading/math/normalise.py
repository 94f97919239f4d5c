r"""The second grader: compares two answers part by part, and their expressions with a parser of its own and sympy.

It follows the rules of `rules`, as the reported score does, but parses and compares mathematics without Math-Verify, so
an agreement of both graders is one of two independent comparisons.

- Compared part by part: comma lists, sets and unions (in any order), tuples, intervals and matrices (in order, with
  their brackets or shape), equations and inequalities (up to a factor), `\\pm`.
- Expressions are equal if they agree to 30 digits at every point where they are evaluated. A decimal is the exact
  fraction that it writes, so 0.33 is not 1/3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import sympy
from sympy import Expr, Rational, Symbol

from lm_eval_tandem.grading.math import quantity, rules, shape
from lm_eval_tandem.grading.math.latex import NotArithmetic, parse
from lm_eval_tandem.grading.math.quantity import split
from lm_eval_tandem.grading.math.shape import RELATION
from lm_eval_tandem.grading.math.spelling import respell

MATRIX = re.compile(r"^\\begin\{pmatrix\}(.*)\\end\{pmatrix\}$", re.DOTALL)
MIRRORED = {r"\ge": r"\le", ">": "<"}
"""Relations that are rewritten as their mirror image, with the sides exchanged."""
DIGITS = 30
"""Decimal digits to which two expressions have to agree, relative to the larger one."""


def normalise(answer: str) -> str:
    r"""Return an answer in one way of writing, without units and percent signs.

    Examples
    --------
    >>> normalise(r"$\dfrac{1}{2}$ cm")
    '\\frac{1}{2}'
    """
    text = respell(answer)
    return quantity.plain_words(quantity.readings(quantity.percent(text) or text)[0].text)


def equal(gold: str, answer: str) -> bool:
    r"""Return whether a model's answer equals the gold answer by this grader's comparison.

    There is no bound on its time, because sympy may never return: call it in a `pool.Pool`.

    Examples
    --------
    >>> equal(r"\frac{1}{2}", "0.5"), equal(r"\frac{1}{3}", "0.33")
    (True, False)
    """
    return rules.same(gold, answer, _equal)


def _equal(a: str, b: str) -> bool:
    """Compare two normalised answers: as strings, else part by part, else as relations, else as expressions."""
    a, b = a.strip(), b.strip()
    if _without_spaces(a) == _without_spaces(b):
        return True
    for parts, compare in ((_union, _same_members), (_matrix, _same_in_order), (_members, _same_list)):
        parts_of_a, parts_of_b = parts(a), parts(b)
        if parts_of_a is not None or parts_of_b is not None:
            both_have = parts is _members or (parts_of_a is not None and parts_of_b is not None)
            return both_have and compare(parts_of_a or [a], parts_of_b or [b])
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


def _union(text: str) -> list[str] | None:
    """The members of a union; None if the text is not one."""
    parts = split(text, r"\cup")
    return parts if len(parts) > 1 else None


def _members(text: str) -> list[str] | None:
    r"""The brackets of a list, a set, a tuple or an interval ("\0" in front), then its members; None for others."""
    members = shape.members(text)
    return None if members is None else ["\0" + shape.brackets(text), *members]


def _matrix(text: str) -> list[str] | None:
    """The shape of a matrix, then its entries row by row; None if the text is not one."""
    match = MATRIX.match(text)
    if match is None:
        return None
    rows = [row.split("&") for row in re.split(r"\\\\", match[1]) if row.strip()]
    shape = "\0" + "x".join(str(len(row)) for row in rows)
    return [shape, *(entry for row in rows for entry in row)]


def _same_members(a: Sequence[str], b: Sequence[str]) -> bool:
    """Whether both have equal members, in any order; those of the second may be repeated (`shape.same_shape`)."""
    unmatched = list(b)
    for member in a:
        index = next((i for i, other in enumerate(unmatched) if _equal(member, other)), None)
        if index is None:
            return False
        del unmatched[index]
    return all(any(_equal(member, other) for member in a) for other in unmatched)


def _same_list(a: Sequence[str], b: Sequence[str]) -> bool:
    """Compare two lists, sets or tuples, with their brackets in front: only what has round brackets has an order."""
    brackets = {parts[0] for parts in (a, b) if parts[0][:1] == "\0"} - {"\0"}
    a, b = ([part for part in parts if part[:1] != "\0"] for parts in (a, b))
    if brackets <= {"\0{}"}:
        return _same_members(a, b)
    return len(brackets) == 1 and _same_in_order(a, b)


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
    letters = sorted(a.free_symbols | b.free_symbols, key=str)
    verdicts = [_agree_at(a.subs(point), b.subs(point)) for point in _points(letters)]
    return True in verdicts and False not in verdicts


def _agree_at(a: Expr, b: Expr) -> bool | None:
    """Whether two expressions without letters have the same value; None if they have none."""
    if a.is_Rational and b.is_Rational:
        return bool(a == b)
    size, difference = (value.evalf(DIGITS + 20) for value in (a, a - b))
    if not (difference.is_number and difference.is_finite and size.is_finite):
        return None
    rounding = 0 if a.is_Rational else Rational(10) ** -(DIGITS + 15)
    return bool(abs(difference) <= max(abs(size) * Rational(10) ** -DIGITS, rounding))


def _points(letters: Sequence[Symbol]) -> list[dict[Symbol, Rational]]:
    """Four assignments of a positive fraction to each letter, a different one to each."""
    return [
        {letter: Rational(numerator + 7 * k, 11 + 2 * k) for k, letter in enumerate(letters)}
        for numerator in (3, 8, 19, 31)
    ]


def _evaluated(expression: Expr) -> list[Expr]:
    """Values of an expression at those points, without those that are not finite numbers."""
    values = [expression.subs(point).evalf(DIGITS + 20) for point in _points(sorted(expression.free_symbols, key=str))]
    return [value for value in values if value.is_number and value.is_finite]
