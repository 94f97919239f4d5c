r"""The reported score: Math-Verify's verdict, by the rules of `rules` and with its known errors excluded.

Math-Verify parses both answers and compares them, with two exceptions:

- Its own rules for units are off: they take letters for units (`4t`, `- c`). `quantity` has read the units before.
- Numbers are compared here. It rounds them to six digits after the point, so that 10^{-20} and 10^{-21} are equal and
  \frac{1}{3} is 0.333333; here they have to agree relatively (`ROUNDED`, `EXACT`).
"""

from __future__ import annotations

import re
from typing import Any

from lm_eval_tandem.grading.math import rules

ROUNDED, EXACT = 1e-9, 1e-20
"""Largest relative difference of equal numbers, where one of them is a decimal and where none is.

So a decimal has to give nine digits of a number that is none: 0.333 and 0.333333 are not 1/3.
"""
_COEFFICIENT = re.compile(r"(?<![A-Za-z\\])([a-eik-np-uw-z])\s*(?=\((?!\s*[a-z]\s*\)))")
"""A letter before a bracket that is a factor. Of f, g, h, and of capitals, it is a function."""
_IMAGINARY = re.compile(r"(?<![A-Za-z\\])i(?![A-Za-z])")
_HAS_INDEX = re.compile(r"\\(?:sum|prod)|_\s*(?:i|\{[^{}]*i)")


def verify(gold: str, answer: str) -> bool:
    r"""Return whether Math-Verify accepts the answer as equal to the gold answer.

    There is no bound on its time, so `grader.grade` calls it in a worker.

    Examples
    --------
    >>> verify(r"\frac{1}{2}", "0.5")  # doctest: +SKIP
    True
    """
    return rules.same(gold, answer, _equal)


def _equal(gold: str, answer: str) -> bool:
    """Compare two answers without words: numbers by their values, all else by Math-Verify."""
    import math_verify

    first, second = _parse(gold), _parse(answer)
    if not first or not second:
        return False
    same_number = _same_number(first[0], second[0])
    if same_number is not None:
        return same_number
    # No time limits of Math-Verify's own: they use SIGALRM, which works in the main thread only.
    equal = math_verify.verify(first, second, timeout_seconds=None)
    return bool(equal) and not _differ(first[0], second[0])


def _parse(text: str) -> list[Any]:
    """What Math-Verify reads: a list of one expression, or of the text where it cannot parse it."""
    import math_verify
    from latex2sympy2_extended.math_normalization import NormalizationConfig

    normalisation = NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=False, nits=False, boxed="last"
    )
    formula = math_verify.LatexExtractionConfig(
        try_extract_without_anchor=False, boxed_match_priority=0, normalization_config=normalisation
    )
    text = _COEFFICIENT.sub(r"\1 \\cdot ", text)
    if not _HAS_INDEX.search(text):  # Math-Verify's name for the imaginary unit
        text = _IMAGINARY.sub("I", text)
    box = rf"\boxed{{{text}}}"
    return list(math_verify.parse(box, [formula], parsing_timeout=None))


def _differ(first: Any, second: Any) -> bool:
    """Whether the numbers at the same places of two lists, intervals or matrices differ."""
    import sympy

    if isinstance(first, sympy.MatrixBase) and isinstance(second, sympy.MatrixBase):
        return first.shape != second.shape or any(map(_differ, first.flat(), second.flat()))
    if not isinstance(first, sympy.Basic) or not isinstance(second, sympy.Basic):
        return False
    if all(isinstance(value, sympy.FiniteSet) for value in (first, second)):
        return any(all(_differ(one, other) for other in second.args) for one in first.args)
    if type(first) is type(second) and isinstance(first, (sympy.Interval, sympy.Tuple)):
        return len(first.args) != len(second.args) or any(map(_differ, first.args, second.args))
    return _same_number(first, second) is False


def _same_number(first: Any, second: Any) -> bool | None:
    """Compare two numbers, in whatever form, by their values; None if one is no number."""
    import sympy

    expressions = first, second
    if not all(isinstance(value, sympy.Expr) and not value.free_symbols for value in expressions):
        return None
    values = [value.doit().evalf(30) for value in expressions]
    if not all(value.is_number and value.is_finite for value in values):
        return None
    precision = ROUNDED if any(value.has(sympy.Float) for value in expressions) else EXACT
    return bool(abs(values[0] - values[1]) <= precision * max(map(abs, values)))
