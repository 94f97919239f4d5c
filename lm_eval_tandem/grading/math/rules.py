r"""The rules by which an answer is compared with the gold answer, in their order; both graders follow them.

The graders differ in how they compare two pieces of mathematics: `library` asks Math-Verify, `normalise` has a parser
and a comparison of its own. All that comes before is here, because Math-Verify has no rules for it or wrong ones:

1. Both answers are brought to one way of writing (`spelling.respell`).
2. Choices, answers in words, times of day and numbers with a base are compared at once.
3. Percent signs, units, other words and the commas of numbers are read (`quantity.readings`). One pair of readings that
   is equal is enough. Two different units of measurement, or words that are no unit, are never equal to a value.
4. The name in `x = 5` is dropped where the other answer has none. Another equation is no value: `x^2 = 9` is not 9.
5. A calculation has to be right: `3 \cdot 7 = 18` is not 18.
6. Two decimals are compared exactly.
7. Where one answer is a column and the other a tuple, or one an inequality and the other an interval, it is rewritten.
8. Answers of different shapes are different (`shape.same_shape`).
9. What is left is compared by the grader.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from fractions import Fraction

from lm_eval_tandem.grading.math import quantity, shape
from lm_eval_tandem.grading.math.quantity import Reading
from lm_eval_tandem.grading.math.spelling import respell

Comparison = Callable[[str, str], bool]
"""Compares two pieces of mathematics without words: the gold answer's and the answer's."""
_DECIMAL = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)")
_FUNCTION_IS = re.compile(r"\s*(?:[a-zA-Z]\([a-z]\)|y)\s*=([^=]*)")


def same(gold: str, answer: str, equal: Comparison) -> bool:
    """Return whether an answer is the gold answer, by the rules of this module and a comparison of mathematics."""
    gold, answer = respell(gold), respell(answer)
    if gold == answer:
        return True
    for rule in (_same_choice, _same_words, _same_time, _same_number_with_base):
        verdict = rule(gold, answer)
        if verdict is not None:
            return verdict
    percents = quantity.percent(gold), quantity.percent(answer)
    if percents[0] is not None and percents[1] is not None:
        gold, answer = percents[0], percents[1]
    return any(_same_reading(*pair, equal) for pair in itertools.product(_readings(gold), _readings(answer)))


def _readings(text: str) -> list[Reading]:
    """The readings of an answer; with a percent sign, also those of its hundredth part."""
    number = quantity.percent(text)
    if number is None:
        return quantity.readings(text)
    return [*quantity.readings(number), Reading(rf"\frac{{{number}}}{{100}}")]


def _same_choice(gold: str, answer: str) -> bool | None:
    """Compare two choices, `(C)` and `C. x = 42`; None if one is no choice."""
    letters = quantity.choice(gold), quantity.choice(answer)
    return letters[0] == letters[1] if None not in letters else None


def _same_words(gold: str, answer: str) -> bool | None:
    """Compare two answers in words; None if one is none, or if both may be products of up to three letters."""
    words = quantity.words(gold), quantity.words(answer)
    if None in words:
        return None
    short = all(re.fullmatch(r"[A-Za-z]{2,3}", text) for text in (gold, answer))
    return None if short and words[0] != words[1] else words[0] == words[1]


def _same_time(gold: str, answer: str) -> bool | None:
    """Compare two times of day; None if neither is written as one.

    Where the gold answer does not say which half of the day it means, the question does, and either is right. Where it
    does, the answer has to say it too.
    """
    times = quantity.time_of_day(gold), quantity.time_of_day(answer)
    if not any(time and time.marked for time in times):
        return None
    if times[0] is None or times[1] is None:
        return False
    if times[0].half_known:
        return times[1].half_known and times[0].minutes == times[1].minutes
    return times[0].minutes % 720 == times[1].minutes % 720


def _same_number_with_base(gold: str, answer: str) -> bool | None:
    """Compare two numbers with a base as index; None if neither has one. Where only one names it, the digits count."""
    numbers = quantity.with_base(gold), quantity.with_base(answer)
    if numbers[0] and numbers[1]:
        return numbers[0] == numbers[1]
    if numbers[0] or numbers[1]:
        digits = [number[0] if number else text.upper() for number, text in zip(numbers, (gold, answer), strict=True)]
        return digits[0] == digits[1]
    return None


def _same_reading(gold: Reading, answer: Reading, equal: Comparison) -> bool:
    """Compare two readings: rules 3 to 9."""
    if gold.worded != answer.worded or not _same_unit(gold, answer):
        return False
    texts = _without_names(gold.text, answer.text)
    if texts is None or not all(texts):
        return False
    if not all(equal(texts[0], step) for step in shape.chain(answer.text)):
        return False
    if all(_DECIMAL.fullmatch(text) for text in texts):
        return Fraction(texts[0]) == Fraction(texts[1])
    texts = _as_one_kind(*texts)
    return shape.same_shape(*texts) and equal(*texts)


def _same_unit(gold: Reading, answer: Reading) -> bool:
    """Whether the units do not contradict each other; a missing unit, or the power of one, contradicts none."""
    if not gold.measure or not answer.measure:
        return True
    return gold.measure == answer.measure and (gold.power == answer.power or 1 in (gold.power, answer.power))


def _without_names(gold: str, answer: str) -> tuple[str, str] | None:
    """Both answers, without `x =` where only one has it; None if that equation is more than a name and a value."""
    if ("=" in gold) == ("=" in answer) and (r"\in " in gold) == (r"\in " in answer):
        functions = _FUNCTION_IS.fullmatch(gold), _FUNCTION_IS.fullmatch(answer)
        return (functions[0][1], functions[1][1]) if functions[0] and functions[1] else (gold, answer)
    values = shape.without_name(gold, gold=True), shape.without_name(answer)
    return None if values[0] is None or values[1] is None else (values[0], values[1])


def _as_one_kind(gold: str, answer: str) -> tuple[str, str]:
    """The two answers; where only one is a column or row, or an inequality, that one as a tuple or interval."""
    for rewritten in (shape.as_tuple, shape.as_interval):
        forms = rewritten(gold), rewritten(answer)
        if (forms[0] is None) != (forms[1] is None):
            other = answer if forms[1] is None else gold
            if rewritten is shape.as_tuple and shape.brackets(other) == "[]":
                other = f"({other.strip()[1:-1]})"
            if shape.brackets(other) or shape.is_region(other):
                return (forms[0], other) if forms[1] is None else (other, forms[1])  # type: ignore[return-value]
    return gold, answer
