"""Which part of a response counts as its answer."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_tandem.grading import thought
from lm_eval_tandem.grading.math import answer

BOXED = [
    (r"so \boxed{4}", "4"),
    (r"first \boxed{3}, no: \boxed{4}", "4"),
    (r"\boxed{\frac{1}{2}} is \boxed{ \frac{1}{2} }.", r"\frac{1}{2}"),
    (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
    (r"\fbox{7}", "7"),
    (r"\boxed 7$", "7"),
    (r"so \boxed x$", "x"),
    (r"\boxed\frac{1}{2}", r"\frac{1}{2}"),
    (r"\boxed  {7}", "7"),
    (r"\boxed{\boxed{5}}", "5"),
    (r"\boxed{5} and then \boxed{", "5"),
    (r"\boxed{5} and \boxed{}", "5"),
    (r"\boxed{$5$}", "5"),
    (r"\boxed{\text{The answer is } 5}", r"\text{The answer is } 5"),
    ("\\boxed{18\\ }", "18"),
    (r"\boxed{185\}", "185"),
]
NEIGHBOURS = [
    (r"$x=\boxed{-2}$ or $x=\boxed{1}$", "-2, 1"),
    (r"\boxed{1}\boxed{2}", "1, 2"),
    (r"\boxed{1}, \boxed{2}, and \boxed{5}.", "1, 2, 5"),
    (r"\[\boxed{(2, 2)} \quad \text{and} \quad \boxed{(6, 2)}\]", "(2, 2), (6, 2)"),
    (r"\(\boxed{(3, 3)} \text{ for part (a) and } \boxed{(1, 1)}\)", "(3, 3), (1, 1)"),
    (r"\boxed{5} or \boxed{5}", "5"),
    (r"\boxed{1} papers and \boxed{2} bins", "1, 2"),
    (r"\boxed{200} dollars and then we get \boxed{255}", "255"),
    (r"We get \boxed{200}. So then \boxed{255}", "255"),
    (r"\boxed{3} + 2 = \boxed{5}", "5"),
]
STATED = [
    ("The answer is 5.", "5"),
    ("The answer is 3.5.", "3.5"),
    (r"The final answer is $\frac12$. I hope it is correct.", r"\frac12"),
    ("**Answer:** 42 apples\n", "42 apples"),
    ("**Answer**: 18", "18"),
    ("**Final Answer**: 18", "18"),
    ("### Final Answer\n\n42", "42"),
    ("The answer is:\n\n\\[\n x = 7\n\\]\nDone.", "x = 7"),
    ("The answer is **3.5** meters. So it goes.", "3.5 meters"),
    ("The answer is that there are $12$ ways.", "12 ways"),
    ("The answer is $x=2$ or $x=3$.", "$x=2$ or $x=3$"),
    ("The answer is $18.", "$18"),
    ("Final Answer: (B)", "(B)"),
    ("The answer is B.", "B"),
    ("The correct option is (C).", "(C)"),
    ("The correct answer is (A) 5.", "(A)"),
    ("The answer is 3. Wait. The answer is 4", "4"),
    ("The answer is 4:30 p.m.", "4:30 p.m"),
    ("The answer is 5 ft 6 in.", "5 ft 6 in"),
    ("The answer is (3, 4).", "(3, 4)"),
    ("The answer to the question is 7.", "7"),
    ("The answer should be 7.", "7"),
    ("The answer is Evelyn.", "Evelyn"),
]
ABOUT_THE_NUMBER = [
    ("The answer is approximately 18.", "18"),
    ("Answer: The largest $n$ is 34.", "34"),
    ("The answer is 18, because 9 x 2 = 18.", "18"),
    ("The answer is 18 (eighteen).", "18"),
    ("The answer is `18`.", "18"),
    ("Final Answer: Jane started growing Sphere 3 hours ago. I hope it is correct.", "3 hours ago"),
    (r"Final Answer: The maximum number of points in the domain of $f(x)$ is 19.", "19"),
    ("The answer is simply 2, 3, and 5.", "2, 3, and 5"),
]
OTHER_LANGUAGES = [
    ("答案：18", "18"),
    ("答案是18。", "18"),
    ("所以答案为 $\\frac{1}{2}$。", r"\frac{1}{2}"),
    ("故选 B", "B"),
    ("La respuesta es 18.", "18"),
    ("La réponse est 18.", "18"),
    ("Die Antwort lautet 18.", "18"),
    ("Ответ: 18", "18"),
    ("答えは18です。", "18です"),
]
LAST_WINS = [
    (r"The answer is 3. \boxed{5} #### 7", r"5"),
    ("The answer is 3. \\boxed{5}\n#### 7", "7"),
    (r"\boxed{5}. The answer is 3.", "3"),
    (r"interest \boxed{255}. The final answer is $10,455$.", "10,455"),
    ("The answer is 4.\n#### 5", "5"),
    (r"So \boxed{-5}. The answer is negative because 5 < 10.", "-5"),
    (r"\boxed{3}. I hope the answer is clear.", "3"),
    (r"\boxed{3}. This answer is correct.", "3"),
]
HASHED = [
    ("1 + 1 = 2\n#### 2", "2"),
    ("#### 1\n#### 2\n", "2"),
    ("#### -1,200.50", "-1,200.50"),
    ("#### $5", "$5"),
    ("#### 2 eggs", "2 eggs"),
    ("#### 18 dollars per day", "18 dollars per day"),
    (r"#### $\frac{1}{2}$", r"\frac{1}{2}"),
    ("24 answers * 2 points/answer = 48 points\n#### 66", "66"),
]
LEFT_BY_BACKENDS = [
    ("The answer is 18<|im_end|>", "18"),
    ("The answer is 18.</s>", "18"),
    ("#### 18</s>", "18"),
    ("18.</s>", "18"),
    ("The answer is 18.<｜end▁of▁sentence｜>", "18"),
    ("The answer is 18.<|im_end|>\n<|im_start|>user\nThe answer is 19.", "18"),
    ("<|im_start|>assistant\nThe answer is 18.", "18"),
    ("#### 18\n\nQuestion: How many are 2 and 2?\nAnswer: 4\n#### 4", "18"),
]
CONCLUDED = [
    ("So it is 7.", "7"),
    ("Therefore $x \\geq 5$ is the solution.", r"x \geq 5"),
    ("So, $x = 5$ or $x = 6$.", "$x = 5$ or $x = 6$"),
    ("She sells 9. So she makes 9 * 2 = $18 every day.", "$18 every day"),
    ("Hence 18 eggs are left. I hope this helps!", "18 eggs"),
    ("Therefore\n\\[\n x = 7\n\\]", "x = 7"),
    ("#### Step 4: divide\nwhich gives 7", "7"),
]
A_WORD_AND_NO_BOX = [
    (r"\boxed{5} (in \boxed notation)", "5"),
    (r"I will use \boxed at the end. The answer is 5.", "5"),
]
NONE = [
    "",
    "I do not know the answer",
    r"\boxed{",
    r"\boxed{ }",
    r"(\boxed is used.)",
    r"The answer is \boxed{1",
    r"So it is 4. The answer is \boxed{\frac{1}{2}",
    "The answer is",
    "Then 3 + 4 = 7, and",
    "First 12 / 3 = 4. Then we have 4 *",
]
FORMS = [
    *BOXED, *NEIGHBOURS, *STATED, *ABOUT_THE_NUMBER, *OTHER_LANGUAGES, *LAST_WINS, *HASHED, *LEFT_BY_BACKENDS,
    *CONCLUDED, *A_WORD_AND_NO_BOX,
]  # fmt: skip


@pytest.mark.parametrize(("text", "expected"), FORMS)
def test_the_last_stated_answer_counts(text: str, expected: str) -> None:
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
    assert thought.final_part(before + r"<think>\boxed{3}") is None
    assert answer.extract(before + r"<think>\boxed{3}. The answer is 3." + "\n#### 3") is None


@pytest.mark.parametrize(("opening", "closing"), thought.TAGS)
def test_a_thought_counts_in_none_of_the_tags_that_models_use(opening: str, closing: str) -> None:
    assert answer.extract(rf"{opening}Perhaps \boxed{{3}}. The answer is 3.") is None
    assert answer.extract(rf"{opening}Perhaps \boxed{{3}}.{closing}So it is \boxed{{4}}.") == "4"
    assert answer.extract(rf"Perhaps \boxed{{3}}.{closing}The answer is 4.") == "4"
    assert thought.ends_inside(f"Question?{opening}\n")
    assert not thought.ends_inside(f"Question?{opening}{closing}\n")
    assert thought.closes(f"Perhaps 3.{closing}4")


@pytest.mark.parametrize(
    ("analysis", "final"),
    [
        ("<|channel|>analysis<|message|>", "<|end|><|start|>assistant<|channel|>final<|message|>"),
        ("analysis", "assistantfinal"),
    ],
    ids=["harmony", "harmony without its special tokens"],
)
def test_only_the_final_channel_of_harmony_counts(analysis: str, final: str) -> None:
    assert answer.extract(rf"{analysis}We try \boxed{{3}}.") is None
    assert answer.extract(rf"{analysis}We try \boxed{{3}}.{final}It is \boxed{{4}}.<|return|>") == "4"


@given(st.text(alphabet=st.sampled_from("ab{}\\ $#\n<>/.:1answeri think boxed")))
def test_no_text_makes_it_fail(text: str) -> None:
    result = answer.extract(text)
    assert result is None or result.strip()


@given(st.recursive(st.sampled_from(["x", r"\{", r"\}", "1 "]), lambda inner: inner.map(lambda text: "{" + text + "}")))
def test_a_box_holds_all_that_is_balanced(inside: str) -> None:
    assert answer.extract(rf"a \boxed{{{inside}}} b") == inside.strip()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the answer is 5 and " * 2000, "5"),
        ("\\boxed{" * 3000, None),
        ("\\boxed{" * 2000 + "5" + "}" * 2000, "5"),
        ("$ " * 8000, None),
        ("First we note that $x = 2$, so 7 dollars remain. " * 500, "7 dollars remain"),
    ],
    ids=["cues", "open boxes", "nested boxes", "dollar signs", "sentences"],
)
def test_a_model_that_repeats_itself_gets_its_answer(text: str, expected: str | None) -> None:
    start = time.process_time()
    found = answer.extract(text)
    assert found == expected
    assert time.process_time() - start < 10
