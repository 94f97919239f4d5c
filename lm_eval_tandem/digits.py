"""Numbers that come out alike on every machine: sums, comparisons, and the only place that turns numbers into text.

The last bits of a sum depend on the processor: how many numbers it adds at once, and whether it rounds between a
product and a sum. So whatever is compared or printed is first rounded to `DIGITS` significant digits, which is far more
than any question, clock or model determines and far less than float64 holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]

DIGITS = 10
"""Significant digits that are reliable: float64 has 16, of which long sums lose the last two or three."""
FILE_DIGITS = 7
"""Significant digits of a number in a file of figures."""
_BITS = 33
_TOLERANCE = 2.0**-_BITS
"""Relative difference up to which two numbers count as equal: `DIGITS` digits, in bits."""


def mean(values: ArrayLike) -> float:
    """The mean. Its sum is rounded only once, so neither the order of the values nor the processor changes it."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    return math.fsum(flat.tolist()) / len(flat)


def total(values: ArrayLike) -> float:
    """The sum, rounded only once, as in `mean`."""
    return math.fsum(np.asarray(values, dtype=np.float64).ravel().tolist())


def without_last_bits(values: ArrayLike) -> Floats:
    """Round numbers of any shape before they are compared, ranked or sorted.

    Numbers that differ in their last bits alone become equal. Rounding is to 33 bits, about ten digits, and not to
    decimals, because each of its steps is then exact on every machine.
    """
    mantissa, exponent = np.frexp(np.asarray(values, dtype=np.float64))
    return np.asarray(np.ldexp(np.round(mantissa * 2.0**_BITS) / 2.0**_BITS, exponent), dtype=np.float64)


def subtract(a: ArrayLike, b: ArrayLike) -> Floats:
    """A - b, exactly 0 where both differ in their last bits alone."""
    one, other = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    difference = one - other
    near = np.abs(difference) <= _TOLERANCE * np.maximum(np.abs(one), np.abs(other))
    return np.asarray(np.where(near, 0.0, difference), dtype=np.float64)


def nearest_decimal(value: float) -> float:
    """The nearest number with `DIGITS` significant digits: 0.1 + 0.2 becomes 0.3."""
    return float(f"{value:.{DIGITS - 1}e}")


def decimals(value: float, digits: int, signed: bool = False) -> str:
    """A number as text, with a fixed number of decimals and commas between thousands.

    Parameters
    ----------
    value
        The number. Halves go to the even digit, and whether it is one is decided by `DIGITS` significant digits: 28.25
        is written 28.2, even if its last bit is one higher or lower.
    digits
        The number of decimals.
    signed
        Whether positive numbers have a plus sign. A number that rounds to zero never has a minus sign.

    Examples
    --------
    >>> decimals(28.25, 1), decimals(1234.5, 2), decimals(-0.001, 1)
    ('28.2', '1,234.50', '0.0')
    """
    sign = "+" if signed else ""
    if not math.isfinite(value):
        return f"{value:{sign},.{digits}f}"
    with localcontext() as context:
        context.rounding = ROUND_HALF_EVEN
        text = f"{_decimal(value):{sign},.{digits}f}"
    zero = not any(digit in text for digit in "123456789")
    return text.replace("-", sign) if zero else text


def significant(value: float, digits: int = FILE_DIGITS) -> str:
    """A number as text, with at most `digits` significant digits, as `%g` writes it; zero has no minus sign."""
    if not math.isfinite(value):
        return f"{value:g}"
    rounded = float(Context(prec=digits, rounding=ROUND_HALF_EVEN).plus(_decimal(value)))
    return f"{rounded + 0.0:.{digits}g}"


def colon_separated(values: Iterable[float]) -> str:
    """Numbers as the command line takes them, with colons between them; thresholds, for example."""
    return ":".join(significant(value, 6) for value in values)


def magnitude(value: float) -> int:
    """The power of ten of the first digit of a number that is not 0."""
    return _decimal(value).adjusted()


def _decimal(value: float) -> Decimal:
    """The number with `DIGITS` significant digits, in decimal arithmetic."""
    return Decimal(f"{value:.{DIGITS - 1}e}")
