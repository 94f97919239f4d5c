"""Which part of a response counts as its answer."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_tandem.grading.math import answer

BOXED = [
    (r"so \boxed{4}", "4"),
    (r"first \boxed{3}, no: \boxed{4}", "4"),
    (r"\boxed{\frac{1}{2}} is \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\fbox{7}", "7"),
    (r"\boxed 7$", "7"),
    (r"\boxed  {7}", "7"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{5} and then \boxed{", "5"),
    (r"\boxed{5} and \boxed{}", "5"),
    (r"The answer is 3. \boxed{5} #### 7", "5"),
    (r"\boxed{5}. The answer is 3.", "5"),
]
STATED = [
    ("The answer is 5.", "5"),
    ("The answer is 3.5.", "3.5"),
    (r"The final answer is $\frac12$. I hope it is correct.", r"\frac12"),
    ("**Answer:** 42 apples\n", "42 apples"),
    ("The answer is:\n\n\\[\n x = 7\n\\]\nDone.", "x = 7"),
    ("The answer is **3.5** meters. So it goes.", "3.5 meters"),
    ("The answer is that there are $12$ ways.", "12"),
    ("The answer is $x=2$ or $x=3$.", "$x=2$ or $x=3$"),
    ("The answer is $18.", "$18"),
    ("Final Answer: (B)", "(B)"),
    ("The answer is 3. Wait. The answer is 4", "4"),
    ("The answer is 4.\n#### 5", "4"),
    ("24 answers * 2 points/answer = 48 points\n#### 66", "66"),
]
HASHED = [
    ("1 + 1 = 2\n#### 2", "2"),
    ("#### 1\n#### 2\n", "2"),
    ("#### -1,200.50", "-1,200.50"),
    ("#### $5", "5"),
    ("#### 2 eggs", "2"),
    (r"#### $\frac{1}{2}$", r"\frac{1}{2}"),
]
NONE = [
    "",
    "So it is 7.",
    "I do not know the answer",
    "#### Step 4: divide\nwhich gives 7",
    "#### 1. Add both\n7",
    r"\boxed{",
    r"\boxed{ }",
    "The answer is",
]


@pytest.mark.parametrize(("text", "expected"), BOXED + STATED + HASHED)
def test_the_last_answer_of_the_strongest_form_counts(text: str, expected: str) -> None:
    assert answer.extract(text) == expected


@pytest.mark.parametrize("text", NONE)
def test_no_other_number_counts(text: str) -> None:
    assert answer.extract(text) is None


@pytest.mark.parametrize("thought", [r"\boxed{3}", "The answer is 3.", "#### 3", ""])
def test_only_what_follows_the_thought_is_graded(thought: str) -> None:
    assert answer.extract(f"<think>{thought}</think>\n\\boxed{{4}}") == "4"
    assert answer.extract(f"{thought}</think>The answer is 4.") == "4"
    assert answer.extract(f"<think>a</think><think>{thought}</think>#### 4") == "4"
    assert answer.extract(f"<think>{thought}</think>") is None


@pytest.mark.parametrize("before", ["", "\n", "Let me see. ", r"<think>a</think>\boxed{9}"])
def test_a_thought_that_never_ends_holds_no_answer(before: str) -> None:
    assert answer.final_part(before + r"<think>\boxed{3}") is None
    assert answer.extract(before + r"<think>\boxed{3}. The answer is 3." + "\n#### 3") is None


@given(st.text(alphabet=st.sampled_from("ab{}\\ $#\n<>/.:1answeri think boxed")))
def test_no_text_makes_it_fail(text: str) -> None:
    result = answer.extract(text)
    assert result is None or result.strip()


@given(st.recursive(st.sampled_from(["x", r"\{", r"\}", "1 "]), lambda inner: inner.map(lambda text: "{" + text + "}")))
def test_a_box_holds_all_that_is_balanced(inside: str) -> None:
    assert answer.extract(rf"a \boxed{{{inside}}} b") == inside.strip()
