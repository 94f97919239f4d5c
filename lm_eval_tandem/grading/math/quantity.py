r"""Reads the words of an answer: units, percent, "million", "and", times of day, numbers with a base, choices.

All functions take answers that `spelling.respell` has brought to one way of writing. `readings` is the way in: what
an answer may stand for, without words. Where one writing has two meanings there are two readings, and an answer is
right if any of its readings equals one of the gold answer's:

- `1,234` is a number, or a list of 1 and 234; `2,74` is 2.74, or a list.
- `7 dozen` is 7, as questions ask "how many dozen", or 84. Thousand, million and so on are part of the number alone.
- `5 m` is 5 times m, or 5 metres. A letter right behind a number, `5m`, is a factor and no unit.
- `75%` is 75 or 0.75, where the other answer has no percent sign.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

MEASURES = {
    "millimetre": "mm millimeter millimetre",
    "centimetre": "cm centimeter centimetre",
    "metre": "m meter metre 米",
    "kilometre": "km kilometer kilometre 千米 公里",
    "inch": "in inch inches",
    "foot": "ft foot feet",
    "yard": "yd yard",
    "mile": "mi mile",
    "second": "s sec second 秒",
    "minute": "min minute 分钟",
    "hour": "h hr hour 小时",
    "day": "day 天",
    "week": "week wk 周",
    "month": "month",
    "year": "year yr 年",
    "milligram": "mg milligram",
    "gram": "g gram 克",
    "kilogram": "kg kilogram 千克 公斤",
    "pound": "lb pound",
    "ounce": "oz ounce",
    "millilitre": "ml milliliter millilitre 毫升",
    "litre": "l liter litre 升",
    "gallon": "gal gallon",
    "dollar": "dollar usd 美元",
    "cent": "cent ¢",
    "degree": "degree 度",
    "radian": "radian rad",
}
"""Units of measurement, with the ways to write one of it; answers in two different units are different answers."""
_MEASURE_OF = {name: measure for measure, names in MEASURES.items() for name in names.split()}
SHORT_UNITS = (
    "cm mm km dm nm ft in yd mi kg mg lb lbs oz hr hrs min sec ml mL cl dl Hz kHz mph kph rpm kW pt qt gal sq cu"
)
"""Units of two letters or more that are no words; with a number in front they are no product of letters."""
SINGLE_LETTER_UNITS = "mgshLlJNWVK"
POWERS = {
    "hundred": 2, "thousand": 3, "million": 6, "billion": 9, "trillion": 12,
    "百": 2, "千": 3, "万": 4, "百万": 6, "千万": 7, "亿": 8,
}  # fmt: skip
"""Words that are part of the number before them: its power of ten."""
_ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
).split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
NUMBER_WORDS = {
    **{word: value for value, word in enumerate(_ONES)},
    **{word: 10 * value for value, word in enumerate(_TENS, 2)},
    **{f"{tens}-{_ONES[one]}": 10 * ten + one for ten, tens in enumerate(_TENS, 2) for one in range(1, 10)},
    "hundred": 100,
    "binary": 2,
    "octal": 8,
    "decimal": 10,
    "hexadecimal": 16,
}
_FUNCTIONS = "sin cos tan cot sec csc log exp max min gcd lcm det mod arcsin arccos arctan sinh cosh tanh ln"
_WORD = (
    rf"\\text\{{[^{{}}]*\}}|[\u4e00-\u9fff]+|(?<![A-Za-z\\])(?!(?:{_FUNCTIONS.replace(' ', '|')})(?![A-Za-z]))"
    r"(?!(?:pmatrix|cases|[A-Z]{1,4})(?![A-Za-z]))"
    rf"(?:[A-Za-z]{{2}}[A-Za-z'-]+|(?:{SHORT_UNITS.replace(' ', '|')})(?![A-Za-z]))"
)
WORD = re.compile(_WORD)
r"""A word: three letters in a row outside of a command, `\text{…}`, Chinese characters or a short unit."""
_QUANTITY = re.compile(
    rf"(?P<value>.*?[\d)\]}}!|A-Za-z])\s*(?P<words>(?:of\s+(?:(?:an?|the)\s+)?|per\s+|an?\s+)?(?:{_WORD})"
    rf"(?:\s*(?:{_WORD}|\(s\)|\^\{{-?\d\}}|/\s*[a-z](?![a-z])|[-/.,]|\\cdot(?![a-z])|\b(?:a|of|an|per)\b|[A-Z]\b))*)\s*",
    re.DOTALL,
)
_VALUE_ENDS = re.compile(r"(?:[\d)\]}!]|\\[a-z]+|(?<![A-Za-z])[A-Za-z])$")
_LETTER_UNIT = re.compile(rf"(?P<value>.*[\d}}])\s+(?P<words>[{SINGLE_LETTER_UNITS}](?:/[a-z]+)?)(?:\^\{{\d\}})?")
_LABEL = re.compile(
    rf"(?:\b(?:an?|is|of)\b\s*)*(?:{_WORD})\s*(?:(?:{_WORD}|\b(?:is|of|an?)\b)\s*)*[:=]?\s*(?=[-+]?[\d.\\\[$]|(?<=[\s:=])\()"
)
_CHANGES_VALUE = re.compile(
    r"\b(?:least|most|more|less|fewer|not|no|none|minus|negative|between|over|under|below|above|before|after|almost|than|all|"
    r"every|except|infinitely|without)\b",
    re.IGNORECASE,
)
"""Words before a number that do more than name it: "at least 5" is not 5."""
_AND = re.compile(
    r"\s*,?\s*(?:\\text\{\s*,?\s*(?:and|or)\s*\}|\b(?:and|or)\b|(?<=[\d)}])or(?=[A-Za-z(\\-]))\s*"
    r"(?=[-+]?(?:[\d\\(\[.]|[A-Za-z](?:[\s,^_=(]|$)))"
)
_THOUSANDS = re.compile(r"(?<![\d.,])([1-9]\d{0,2}(?:,\d{3})+)(?![\d,]|,\d)")
_DECIMAL_COMMA = re.compile(r"[-+]?\d+,\d+")
_PERCENT = re.compile(r"\s*(?:%|\\text\{\s*(?:percent|percentage|pct)\s*(?:points?)?\s*\}|\b(?:percent(?:age)?|pct)\b)")
_CURRENCY = re.compile(r"\\\$|[$€£¥₹]|\\text\{\s*(?:USD|EUR|GBP|Rs\.?)\s*\}(?=\s*\d)|\\(?:pounds|euro)(?![a-z])")
_TIME = re.compile(
    r"(?P<hour>\d{1,2})(?::(?P<minute>\d{2}))?(?P<second>:00)?\s*(?P<mark>[ap]\.?\s?m\.?|noon|midnight|o'?clock"
    r"|in the (?:morning|afternoon|evening)|at night)?(?:\s*(?:noon|midnight))?",
    re.IGNORECASE,
)
_BASE = re.compile(
    r"[(\s]*(?P<digits>[0-9A-Fa-f]+)[)\s]*(?:_\s*\{?\s*(?P<index>[^{}]+|\\text\{[^{}]*\})\s*\}?"
    r"|(?:\\text\{\s*|\()?\s*(?:in\s+)?base[-\s}]*(?P<word>\w+)[\s)}]*)"
)
_CHOICE = re.compile(r"(?:option\s+|choice\s+)?\(?([A-J])(?:\)|[.:]\s|\)?$).*", re.DOTALL)
_APPROXIMATELY = re.compile(r"\\approx(?![A-Za-z])")
_HALF = re.compile(r"(\d+)\s+and\s+(?:a|one)[\s-]half\b")


@dataclass(frozen=True)
class Reading:
    """What an answer may stand for."""

    text: str
    """The answer without units and other words that name what is counted."""
    measure: str = ""
    """Its unit of measurement, a key of `MEASURES`; "" if there is none or it is not in the table."""
    power: int = 1
    """The power of that unit: 2 for square metres."""
    worded: bool = False
    """Whether words are left that are no unit: "5 ft 6 in", "18 apples and 20 pears", "no solution"."""


def readings(text: str) -> list[Reading]:
    r"""Return what an answer may stand for; the likeliest first.

    Examples
    --------
    >>> [reading.text for reading in readings(r"7 \text{ dozen}")]
    ['7', '84']
    """
    text = _HALF.sub(r"(\1+\\frac{1}{2})", _CURRENCY.sub("", text).strip())
    text = _approximated(_AND.sub(", ", text).strip())
    if re.fullmatch(r"\\text\{[^{}]*\d[^{}]*\}", text):
        text = text[6:-1].strip()
    number = _number_word(text)
    if number is not None:
        return [Reading(str(number)), Reading(text, worded=True)]
    result = [_joined(members) for members in _all_choices(split(_merged_thousands(text), ","))]
    if _THOUSANDS.fullmatch(text) and ",0" not in text:
        result.append(Reading(text.replace(",", ", ")))
    elif _DECIMAL_COMMA.fullmatch(text) and (text.lstrip("+-").startswith("0,") or not _THOUSANDS.fullmatch(text)):
        result.append(Reading(text.replace(",", ".")))
    return list(dict.fromkeys(result))


def _all_choices(members: list[str]) -> list[list[Reading]]:
    """The members of a list in each of their readings; where there are several members, they take the same turn."""
    each = [_member(member.strip()) for member in members]
    return [[options[min(turn, len(options) - 1)] for options in each] for turn in range(max(map(len, each)))]


def _joined(members: list[Reading]) -> Reading:
    measures = {(member.measure, member.power) for member in members if member.measure}
    measure, power = measures.pop() if len(measures) == 1 else ("", 1)
    text = ", ".join(member.text for member in members)
    return Reading(text, measure, power, any(member.worded for member in members))


def _member(text: str) -> list[Reading]:
    """The readings of one member of a list, or of an answer that is none."""
    text = _without_label(_without_degrees(text))
    quantity = _QUANTITY.fullmatch(text)
    if quantity and _VALUE_ENDS.search(quantity["value"]) and not WORD.search(quantity["value"]):
        return _quantity(quantity["value"].strip(), quantity["words"])
    letter = _LETTER_UNIT.fullmatch(text)
    if letter and not WORD.search(letter["value"]):
        return [Reading(text), replace(_quantity(letter["value"], letter["words"])[0], power=1)]
    return [Reading(text, worded=WORD.search(text) is not None)]


def _quantity(value: str, words: str) -> list[Reading]:
    """The readings of a value with the words behind it."""
    plain = re.sub(r"\\text\{([^{}]*)\}", r" \1 ", words)
    names = re.findall(r"[A-Za-z]+|[\u4e00-\u9fff]+|¢", plain)
    power = 0
    while names and (names[0].lower().rstrip("s") in POWERS or names[0] in POWERS):
        power += POWERS[names[0] if names[0] in POWERS else names[0].lower().rstrip("s")]
        names = names[1:]
    if names and names[0][0] in "万亿百千" and names[0] not in _MEASURE_OF:
        power, names = POWERS[names[0][0]], [names[0][1:]]
    if re.search(r"\d", re.sub(r"\^\{-?\d\}", "", plain)) or _CHANGES_VALUE.search(plain):
        return [Reading(f"{value} {words}", worded=True)]
    exponent = re.search(r"\^\{(\d)\}", plain)
    named_power = {"square": 2, "squared": 2, "sq": 2, "cubic": 3, "cubed": 3, "cu": 3}
    unit_power = int(exponent[1]) if exponent else max([named_power.get(name.lower(), 1) for name in names], default=1)
    measured = [name for name in names if _measure(name)]
    measure = _measure(measured[0]) if len(measured) == 1 else ""
    reading = Reading(_times(value, 10**power) if power else value, measure, unit_power)
    if names and names[0].lower() in ("dozen", "dozens"):
        return [reading, replace(reading, text=_times(value, 12))]
    return [reading]


def _measure(name: str) -> str:
    """The unit of measurement that a word names; "" if it names none."""
    lower = name.lower()
    return _MEASURE_OF.get(lower) or _MEASURE_OF.get(lower.rstrip("s"), "")


def _times(value: str, factor: int) -> str:
    if re.fullmatch(r"[-+]?\d+(?:\.\d+)?", value):
        return _decimal(Fraction(value) * factor)
    return rf"({value}) \cdot {factor}"


def _decimal(number: Fraction) -> str:
    if number.denominator == 1:
        return str(number.numerator)
    return rf"\frac{{{number.numerator}}}{{{number.denominator}}}"


def _merged_thousands(text: str) -> str:
    """Numbers without commas between their thousands, except within brackets."""
    parts = re.split(r"([\[({].*[\])}])", text)
    return "".join(
        part if i % 2 else _THOUSANDS.sub(lambda m: m[1].replace(",", ""), part) for i, part in enumerate(parts)
    )


def _without_degrees(text: str) -> str:
    r"""Degrees as numbers: those of an answer stand alone, those of a function are radians."""
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)(?![a-z])", text):
        return re.sub(r"(\d+(?:\.\d+)?)\s*\^\\circ", r"\\frac{\1 \\pi}{180}", text)
    return re.sub(r"\^\\circ\s*(?:\\text\{\s*[CF]\s*\}|[CF](?![A-Za-z]))?", "", text).strip()


def _without_label(text: str) -> str:
    """The answer without the words in front of its value: "Total: 18", "the area is 18"."""
    label = _LABEL.match(text)
    if label is None or _CHANGES_VALUE.search(label[0]):
        return text
    return text[label.end() :]


def _approximated(text: str) -> str:
    r"""Of `x \approx 5` the right side; of `\frac{1}{3} \approx 0.33` the exact left side."""
    left, *rest = _APPROXIMATELY.split(text, maxsplit=1)
    if not rest:
        return text
    return rest[0].strip() if re.fullmatch(r"\s*[A-Za-z](?:_\{?\w+\}?|\([a-z]\))?\s*|\s*", left) else left.strip()


def _number_word(text: str) -> int | None:
    return NUMBER_WORDS.get(plain_words(text).lower().replace(" ", "-"))


def plain_words(text: str) -> str:
    r"""The text with the content of each `\text{…}` in its place."""
    return re.sub(r"\s+", " ", re.sub(r"\\text\{([^{}]*)\}", r" \1 ", text)).strip()


def words(text: str) -> str | None:
    """The letters and digits of an answer in words, in lower case; None if the answer is none."""
    plain = plain_words(text)
    if not re.search(r"[A-Za-z]{2}|[\u4e00-\u9fff]", plain) or re.search(r"^-|[\\=<>+*/^_\d]", plain):
        return None
    return re.sub(r"^(?:the|a|an)(?= )|[^\w]", "", plain.lower())


def choice(text: str) -> str | None:
    """The letter of an answer that is a choice among several: `(C)`, `C. x = 42`."""
    match = _CHOICE.fullmatch(plain_words(text))
    return match[1] if match else None


@dataclass(frozen=True)
class Time:
    """A time of day."""

    minutes: int
    """Minutes since midnight, or since noon or midnight if the half of the day is not known."""
    half_known: bool
    marked: bool
    """Whether it is written as a time: with "a.m.", "p.m." or seconds, and not only as `9` or `4:30`."""


def time_of_day(text: str) -> Time | None:
    """The time of day that an answer may stand for; None if it can be none."""
    plain = plain_words(text)
    if plain.lower() in ("noon", "midnight"):
        return Time(720 if plain.lower() == "noon" else 0, half_known=True, marked=True)
    match = _TIME.fullmatch(plain)
    if match is None or int(match["hour"]) > 24 or int(match["minute"] or 0) > 59:
        return None
    mark = (match["mark"] or "").lower().replace(" ", "")
    hour, minute = int(match["hour"]), int(match["minute"] or 0)
    half = (
        {"a": "a", "p": "p", "m": "a", "n": "p"}.get(mark[:1])
        if mark[:2] != "in"
        else "a"
        if "morning" in mark
        else "p"
    )
    if half and hour <= 12:
        return Time(hour % 12 * 60 + minute + 720 * (half == "p"), half_known=True, marked=True)
    return Time(hour % 24 * 60 + minute, hour > 12 or hour == 0, bool(mark or match["second"]))


def with_base(text: str) -> tuple[str, int] | None:
    r"""Digits and base of a number with a base: `52_8`, `1011_{\text{two}}`, `1011 base 2`."""
    match = _BASE.fullmatch(text)
    if match is None:
        return None
    name = plain_words((match["index"] or match["word"]).strip("() ")).lower().removeprefix("base ").strip()
    base = int(name) if name.isdigit() else NUMBER_WORDS.get(name)
    return (match["digits"].upper(), base) if base else None


def percent(text: str) -> str | None:
    """The number in front of a percent sign, or None where there is none."""
    number = _PERCENT.sub("", text)
    return None if number == text else number.strip()


def split(text: str, separator: str) -> list[str]:
    """Split a text at the separators that are outside of all brackets and environments."""
    parts, depth, start, i = [], 0, 0, 0
    while i < len(text):
        if text.startswith(r"\begin", i):
            depth += 1
        elif text.startswith(r"\end", i):
            depth -= 1
        elif text[i] in "([{":
            depth += 1
        elif text[i] in ")]}":
            depth -= 1
        elif depth == 0 and text.startswith(separator, i):
            parts.append(text[start:i])
            start = i = i + len(separator)
            continue
        i += 1
    return [*parts, text[start:]]
