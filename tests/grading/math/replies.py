r"""Replies of base, chat and thinking models to one question each, with and without a box, right and wrong.

A reply is put together from an answer in one of its spellings and a style in which models state answers. `replies`
cycles through all of them, so any 300 in a row hold every style several times with different answers.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

ANSWERS = [
    # the gold answer; spellings of it as LaTeX; spellings as plain text; a wrong answer
    ("18", ["18", r"18 \text{ dollars}", r"\$18"], ["18", "18 dollars", "$18", "18 dollars per day"], "81"),
    ("1200", ["1200", r"1{,}200", r"1\,200"], ["1200", "1,200", "1,200 people", "1200 people"], "1020"),
    (r"\frac{3}{4}", [r"\frac{3}{4}", r"\dfrac34", "0.75"], ["3/4", "0.75"], "4/3"),
    ("-7", ["-7", "x = -7", "−7"], ["-7", "x = -7", "−7"], "7"),
    (r"20\%", [r"20\%", r"20 \text{ percent}"], ["20%", "20 percent"], "2"),
    (r"3\sqrt{2}", [r"3\sqrt{2}", r"3\sqrt2", r"\sqrt{18}"], ["3√2", "3*sqrt(2)"], "2√3"),
    ("42", ["42", "42.0", r"42^\circ"], ["42", "42 degrees", "42°", "42.0"], "24"),
    ("2, 5", ["2, 5", r"2 \text{ and } 5", "5, 2"], ["2 and 5", "2, 5", "5 and 2"], "2, 6"),
    ("(3, -1)", ["(3, -1)", r"\left(3, -1\right)"], ["(3, -1)", "(3,-1)"], "(-1, 3)"),
    (r"\text{Evelyn}", [r"\text{Evelyn}", r"\textbf{Evelyn}"], ["Evelyn"], "Carla"),
    ("B", ["B", r"\text{(B)}"], ["B", "(B)"], "C"),
    ("6.5", ["6.5", r"\frac{13}{2}", r"6\frac12"], ["6.5", "6.5 hours", "6 1/2"], "5.6"),
]
BOXED_STYLES = [
    # {} is the answer in LaTeX
    r"Adding up, the total is $\boxed{{{}}}$.",
    "### Step 1\nAdd both sides.\n\n### Final Answer\n\n$$\n\\boxed{{{}}}\n$$",
    r"**Final Answer:** \(\boxed{{{}}}\)",
    r"We first get \boxed{{100}} at the start. After that we obtain \boxed{{{}}}.",
    "The answer is $\\boxed{{{}}}$. I hope it is correct.<|im_end|>",
    r"<think>Is it \boxed{{99}}? No, wait.</think>" "\n\nTherefore the final answer is:\n\n\\[\n\\boxed{{{}}}\n\\]",
    r"[THINK]Maybe 99.[/THINK]So we have \boxed{{{}}}",
    r"<|channel|>analysis<|message|>Try 99.<|end|><|start|>assistant"
    r"<|channel|>final<|message|>**\boxed{{{}}}**<|return|>",
    r"Try \boxed at first. It gives $\boxed{{{}}}$, as \boxed was asked for.",
    r"因此，答案是 $\boxed{{{}}}$。",
]
PLAIN_STYLES = [
    # {} is the answer as plain text
    "She pays for all of them.\nThe answer is {}.",
    "First we add 3 and 4.\n#### {}",
    "**Answer**: {}",
    "**Final Answer**: {}\n\nLet me know if you have questions!",
    "After 2 steps we are done. Final Answer: The final answer is {}. I hope it is correct.",
    "The answer is {}, because 9 and 2 were given.",
    "That makes \\boxed{{100}} so far. With the rest, the final answer is {}.",
    "The answer is {}<|im_end|>\n<|im_start|>user\nAnother question. The answer is 99.",
    "So the answer should be {}.\n\nQuestion: What is 1 + 1?\nAnswer: The answer is 99.",
    "<think>Is the answer 99?</think>\n\nThe correct answer is **{}**.",
    "<thinking>The answer is 99.</thinking>My answer: {}",
    "答案：{}",
    "所以答案是{}。",
    "◁think▷ 99? ◁/think▷ La respuesta es {}.",
    "### Final Answer\n\n{}",
]
CONCLUSIONS = [
    # without a cue: only for answers that are a single value
    "He has 3 bags with 6 each. So in the end it is {}.",
    "2 + 3 = 5, and the rest follows.\nTherefore, the result is {}.",
    "We subtract 4 from both sides. Hence we get {}</s>",
]
FOR_NUMBERS = [*CONCLUSIONS, *(style for style in PLAIN_STYLES if "boxed" in style)]
"""Styles in which words alone would not be taken for the answer."""


class Reply(NamedTuple):
    """A reply, the gold answer, and whether the reply is right."""

    text: str
    gold: str
    right: bool
    is_boxed: bool


def replies() -> Iterator[Reply]:
    """An endless row of replies: with and without a box in turn, and every third one wrong."""
    boxed, plain = itertools.cycle(BOXED_STYLES), itertools.cycle(PLAIN_STYLES + CONCLUSIONS)
    for turn in itertools.count():
        for gold, formulas, texts, other in ANSWERS:
            for is_boxed in (True, False):
                right = (turn + len(gold) + is_boxed) % 3 != 0
                spellings = formulas if is_boxed else texts
                style = next(boxed) if is_boxed else next(plain)
                if style in FOR_NUMBERS and not any(character.isdigit() for character in gold):
                    style = PLAIN_STYLES[turn % 2]
                yield Reply(style.format(spellings[turn % len(spellings)] if right else other), gold, right, is_boxed)
        next(boxed), next(plain)  # so that the next turn pairs answers and styles in another way
