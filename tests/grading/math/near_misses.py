r"""Wrong answers that look like the right one: a digit, a sign, a unit, an exponent, a bracket … is another."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

GOLDS = [
    "18", "-7", "1200", "0.125", r"\frac{3}{4}", r"-\frac{7}{12}", r"3\sqrt{13}", r"\frac{\sqrt{3}}{3}", r"2^{10}",
    "6.72 \\times 10^{-5}", r"\frac{1}{2^{60}}", r"\frac{\pi}{6}", r"2\pi", "x^2 + 3x - 4", "2k + 2", "(x+5)(x+2)",
    r"\frac{n(n+1)}{2}", "6 - 5i", r"3\frac{1}{2}", r"0.\overline{37}", r"25 \text{ cm}^2", r"12 \text{ hours}",
    r"145^\circ", r"75\%", r"9 \text{ a.m.}", r"\text{4:30 p.m.}", "52_8", "(3, -1)", "(6, 31, -1)", "[2, 5)",
    r"(-\infty, 2]", r"(2, 12) \cup (12, 102)", r"\{1, 2, 3\}", "1, -2", r"1 \pm \sqrt{19}", r"x \le 3",
    r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} -1 \\ 2 \end{pmatrix}", "y = 2x + 3",
    "5x - 7y + 4 = 0", r"\text{Evelyn}", r"\text{even}", "B", r"\sin 2x", r"e^{3}", r"\log_2 7", "10!", r"\binom{7}{3}",
    r"5 \text{ million}", "3:4", "1000000007", r"\sqrt[3]{4}",
]  # fmt: skip
OTHER_WORDS = {
    "Evelyn": "Carla", "even": "odd", "cm": "m", "hours": "minutes", "a.m.": "p.m.", "p.m.": "a.m.",
    "million": "billion",
}  # fmt: skip
CHANGES: dict[str, Callable[[str, random.Random], str]] = {
    "another digit": lambda text, rng: _at_one(
        text, r"(?<![A-Za-z])\d", rng, lambda d: str((int(d) + rng.randint(1, 8)) % 9)
    ),
    "one digit more": lambda text, rng: _at_one(text, r"\d", rng, lambda d: d + str(rng.randint(1, 9))),
    "another sign": lambda text, rng: _at_one(text, r"(?<=[\d}xk]) [-+] ", rng, lambda s: " - " if "+" in s else " + "),
    "a sign in front": lambda text, rng: (
        text[1:] if text[0] == "-" else "-" + text if text[0] in "0123456789\\" else text
    ),
    "another bracket": lambda text, rng: _at_one(text, r"[\[(](?=-?\d)", rng, lambda b: "[" if b == "(" else "("),
    "another relation": lambda text, rng: _at_one(
        text, r"\\le(?![a-z])", rng, lambda _: rng.choice([r"\ge", "<", ">"])
    ),
    "another operation": lambda text, rng: _at_one(
        text, r"\\cup|\\pm|\\frac|\\sqrt(?!\[)|!|\\sin", rng, OTHER_OPERATION.__getitem__
    ),
    "another letter": lambda text, rng: _at_one(
        text, r"(?<![A-Za-z\\{])[xykn](?![A-Za-z])|\bB\b", rng, lambda letter: "zC"[letter == "B"]
    ),
    "another word": lambda text, rng: _at_one(
        text, "|".join(map(re.escape, OTHER_WORDS)), rng, OTHER_WORDS.__getitem__
    ),
    "one member less": lambda text, rng: _at_one(text, r", [^,)\]}\\]+", rng, lambda _: ""),
    "one member more": lambda text, rng: _at_one(text, r"(?<=\d)(?=\\\}|$)", rng, lambda _: ", 77"),
    "the exponent": lambda text, rng: _at_one(text, r"\^(?:\{-?\d+\}|\d)", rng, lambda _: "^{4}"),
    "no exponent": lambda text, rng: _at_one(text, r"(?<!\})\^(?:\{-?\d+\}|\d)", rng, lambda _: ""),
    "a decimal point": lambda text, rng: _at_one(text, r"(?<=\d)(?=\d)", rng, lambda _: "."),
    "a factor": lambda text, rng: _at_one(
        text, r"^(?=[\d\\(])(?!\\text|\\begin|\\\{|\([^)]*,)", rng, lambda _: "2x \\cdot "
    ),
}
OTHER_OPERATION = {
    r"\cup": r"\cap", r"\pm": "+", r"\frac": r"\binom", r"\sqrt": "", "!": "", r"\sin": r"\cos",
}  # fmt: skip


def near_misses(count: int) -> Iterator[tuple[str, str, str]]:
    """That many different triples of the kind of change, a gold answer and a wrong answer; the same in every run."""
    rng = random.Random(5)
    seen: set[tuple[str, str]] = set()
    while len(seen) < count:
        gold, kind = rng.choice(GOLDS), rng.choice(list(CHANGES))
        answer = CHANGES[kind](gold, rng)
        if answer != gold and (gold, answer) not in seen and not _same_all_the_same(gold, answer):
            seen.add((gold, answer))
            yield kind, gold, answer


def _at_one(text: str, pattern: str, rng: random.Random, change: Callable[[str], str]) -> str:
    """The text with one of a pattern's matches, chosen at random, replaced."""
    matches = list(re.finditer(pattern, text))
    if not matches:
        return text
    match = rng.choice(matches)
    return text[: match.start()] + change(match[0]) + text[match.end() :]


def _same_all_the_same(gold: str, answer: str) -> bool:
    """Whether a change happens to leave the value as it is."""
    strip = re.compile(r"^[-+]?0+(?=\d)|(?<=\.\d)0+$|\s")
    return strip.sub("", gold) == strip.sub("", answer) or "^1" in answer
