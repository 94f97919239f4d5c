"""Numbers that come out alike on every machine: sums, comparisons, and the only place that turns them into text.

The last bits of a sum depend on the processor: how many numbers it adds at once, and whether it rounds between a
product and a sum. So whatever is decided or shown here first forgets what lies beyond `DIGITS` significant digits,
which is far more than any question, clock or model gives and far less than float64 holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DIGITS = 10
"""Significant digits that mean something: 16 are there, and long sums spoil the last two or three."""
FILED = 7
"""Significant digits of a figure in a file of numbers."""
_BITS = 33
_SAME = 2.0**-_BITS
"""By what share two numbers may differ and still be the same; the same as `DIGITS`, in bits."""


def mean(values: ArrayLike) -> float:
    """The mean, its sum rounded once: no order of adding up, and so no processor, makes another one."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return math.fsum(flat.tolist()) / len(flat)


def total(values: ArrayLike) -> float:
    """The sum, rounded once."""
    return math.fsum(np.asarray(values, dtype=np.float64).ravel().tolist())


def settled(values: ArrayLike) -> Floats:
    """Numbers to compare, rank or sort, of any shape: those that are equal but for their last bits become equal.

    Rounding is to 33 bits, ten digits, and not to decimals, because every step of it is then exact everywhere.
    """
    share, power = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.round(share * 2.0**_BITS) / 2.0**_BITS, power), dtype=np.float64)


def apart(a: ArrayLike, b: ArrayLike) -> Floats:
    """A - b, exactly 0 where both are the same but for their last bits: those are all that would be left over."""
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = one - other
    near = np.abs(difference) <= _SAME * np.maximum(np.abs(one), np.abs(other))
    return np.asarray(np.where(near, 0.0, difference), dtype=np.float64)


def typed(value: float) -> float:
    """A number as a person would have typed it: the nearest with `DIGITS` significant digits."""
    return float(f"{value:.{DIGITS - 1}e}")


def decimals(value: float, digits: int, signed: bool = False) -> str:
    """A number with so many decimals and commas between thousands; a rounded zero never shows as -0.

    Half goes to the even digit, and what is half is said by the decimal that the number means: 28.25 is 28.2, be its
    last bit one up or one down. signed: with a plus sign.
    """
    sign = "+" if signed else ""
    if not math.isfinite(value):
        return f"{value:{sign},.{digits}f}"
    with localcontext() as context:
        context.rounding = ROUND_HALF_EVEN
        text = f"{_meant(value):{sign},.{digits}f}"
    zero = not any(digit in text for digit in "123456789")
    return text.replace("-", sign) if zero else text


def significant(value: float, digits: int = FILED) -> str:
    """A number with at most so many significant digits, as `%g` writes it; zero never shows as -0."""
    if not math.isfinite(value):
        return f"{value:g}"
    rounded = float(Context(prec=digits, rounding=ROUND_HALF_EVEN).plus(_meant(value)))
    return f"{rounded + 0.0:.{digits}g}"


def listed(values: Iterable[float]) -> str:
    """Numbers that a person chose, thresholds for one, with colons between them."""
    return ":".join(significant(value, 6) for value in values)


def magnitude(value: float) -> int:
    """The power of ten of a number's first digit; of a number that is not 0."""
    return _meant(value).adjusted()


def _meant(value: float) -> Decimal:
    """The decimal of `DIGITS` significant digits next to a number."""
    return Decimal(f"{value:.{DIGITS - 1}e}")
