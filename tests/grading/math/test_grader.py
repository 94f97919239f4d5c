"""Both mathematics graders on real solutions, on pairs written by hand, and with answers that break graders."""

from __future__ import annotations

import asyncio
import random
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

pytest.importorskip("math_verify", reason="the extra lm-eval-tandem[math] is not installed")

from hypothesis import given, settings
from hypothesis import strategies as st

import shared_data
from grading.math import forms, misbehaving
from lm_eval_tandem.grading import GradingError
from lm_eval_tandem.grading.math import grader
from lm_eval_tandem.grading.math.answer import extract, hashed
from lm_eval_tandem.grading.math.grader import Grade
from lm_eval_tandem.grading.math.latex import NotArithmetic, parse
from lm_eval_tandem.grading.math.normalise import equal


def math500() -> list[dict[str, str]]:
    return shared_data.rows("math500_first200.jsonl")


def report(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Print a count, also where the test passes."""
    with capsys.disabled():
        print(f"\n  {text}")


def without_name(answer: str) -> str:
    """`x=5` as `5`, which is the same answer."""
    return answer.partition("=")[2] if answer[:2] == "x=" else answer


def test_math500_own_solutions_are_right_by_both(capsys: pytest.CaptureFixture[str]) -> None:
    data = math500()
    grades = grader.grade_all([(row["answer"], extract(row["solution"])) for row in data])
    counts = [sum(getattr(grade, name) for grade in grades) for name in ("verified", "normalised", "failed")]
    report(capsys, f"MATH-500, own solutions: verify {counts[0]}/{len(data)}, normalised {counts[1]}/{len(data)}")
    assert counts == [len(data), len(data), 0]
    assert len(data) == 200


def test_the_next_answer_is_wrong_by_both(capsys: pytest.CaptureFixture[str]) -> None:
    data = math500()
    pairs = [(row, after) for row, after in zip(data, data[1:] + data[:1], strict=True)]
    pairs = [(row, after) for row, after in pairs if without_name(row["answer"]) != without_name(after["answer"])]
    grades = grader.grade_all([(after["answer"], extract(row["solution"])) for row, after in pairs])
    counts = [sum(getattr(grade, name) for grade in grades) for name in ("verified", "normalised", "failed")]
    report(capsys, f"MATH-500, {len(pairs)} next rows' answers: verify {counts[0]}, normalised {counts[1]} right")
    assert counts == [0, 0, 0]
    assert len(pairs) > 180


def test_gsm8k_own_answers_are_right_by_both(capsys: pytest.CaptureFixture[str]) -> None:
    data = shared_data.rows("gsm8k_test.jsonl")
    grades = grader.grade_all([(hashed(row["answer"]) or "", extract(row["answer"])) for row in data])
    counts = [sum(getattr(grade, name) for grade in grades) for name in ("verified", "normalised", "failed")]
    report(capsys, f"GSM8K, own answers: verify {counts[0]}/{len(data)}, normalised {counts[1]}/{len(data)}")
    assert counts == [len(data), len(data), 0]
    assert len(data) == 1319


@pytest.mark.parametrize("right", [True, False], ids=["equivalent", "near-miss"])
def test_pairs_written_by_hand(right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    table = forms.EQUIVALENT if right else forms.NEAR_MISSES
    pairs = [(kind, *pair) for kind, pairs in table.items() for pair in pairs]
    assert len(set(pairs)) == 60
    grades = [grader.grade(gold, rf"So it is \boxed{{{answer}}}.") for _, gold, answer in pairs]
    for name in ("verified", "normalised"):
        wrong = [pair for pair, grade in zip(pairs, grades, strict=True) if getattr(grade, name) != right]
        report(capsys, f"{'equivalent forms' if right else 'near-misses'} as expected by {name}: {60 - len(wrong)}/60")
        assert wrong == []


@pytest.fixture
def fragile(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Replace Math-Verify by a grader that some answers make hang or crash, with a short limit."""
    monkeypatch.setattr(grader, "VERIFY", "grading.math.misbehaving:verify")
    monkeypatch.setattr(grader, "LIMIT", 2.0)
    monkeypatch.setattr(grader, "WALL_FACTOR", 5.0)
    return


def grade_among_breaking_answers(items: int, threads: int, every: int = 100) -> None:
    """Grade items from several threads, where one in `every` breaks the grader; all others get their right grades."""
    rng = random.Random(3)
    table: list[tuple[str, str, bool | None]] = []
    for i in range(items):
        value = rng.randrange(2, 10**6)
        if i % every == every // 2:
            table.append((str(value), misbehaving.WAYS[i // every % len(misbehaving.WAYS)], None))
        else:
            right = rng.random() < 0.5
            table.append((str(value), rf"\frac{{{2 * value + 2 * (not right)}}}{{2}}", right))
    parts = [table[i::threads] for i in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        graded = list(pool.map(lambda part: grader.grade_all([(gold, answer) for gold, answer, _ in part]), parts))
    for part, grades in zip(parts, graded, strict=True):
        for (_, answer, right), grade in zip(part, grades, strict=True):
            expected = Grade(answer, verified=bool(right), normalised=bool(right), failed=right is None)
            assert grade == expected, grade


@pytest.mark.usefixtures("fragile")
def test_answers_that_break_the_grader_cost_no_other_its_grade() -> None:
    grade_among_breaking_answers(350, 4, every=50)


@pytest.mark.slow
@pytest.mark.usefixtures("fragile")
def test_a_long_run_with_answers_that_break_the_grader() -> None:
    grade_among_breaking_answers(10_000, 6)


@pytest.mark.parametrize(
    "answer",
    ["9^{9^{9^{9}}}", pytest.param("100000000!", marks=pytest.mark.slow), "(" * 3000 + "5" + ")" * 3000],
    ids=["power", "factorial", "nesting"],
)
def test_answers_that_take_too_long_are_wrong_and_flagged(answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grader, "LIMIT", 1.0)
    grade = grader.grade("5", rf"\boxed{{{answer}}}")
    assert not grade.verified
    assert not grade.normalised
    assert grade.failed
    monkeypatch.undo()
    assert grader.grade("5", r"\boxed{5}") == Grade("5", True, True, False)


def test_no_signal_of_the_caller_is_touched_on_any_thread() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT)]
    found: list[Grade] = []

    async def server() -> None:
        found.append(await asyncio.to_thread(grader.grade, "5", r"\boxed{5}"))

    thread = threading.Thread(target=lambda: asyncio.run(server()))
    thread.start()
    thread.join()
    assert found == [Grade("5", True, True, False)]
    assert before == [signal.getsignal(number) for number in (signal.SIGALRM, signal.SIGCHLD, signal.SIGINT)]


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        (r"75\%", "75", True),
        ("75", "75%", True),
        (r"75\%", "0.75", True),
        (r"7.5 \%", r"7.5\%", True),
        (r"7.5\%", "0.075", True),
        (r"75\%", "7.5", False),
        (r"75\%", r"0.75\%", False),
        ("52_8", "52", True),
        ("52_8", "52_{8}", True),
        ("52_8", "52_{10}", False),
        (r"30^\circ", "30°", True),
        (r"30^\circ", "31°", False),
    ],
)
def test_percent_signs_bases_and_degrees(gold: str, answer: str, right: bool) -> None:
    assert grader.grade(gold, rf"\boxed{{{answer}}}").verified is right


def test_no_answer_is_wrong_and_nothing_is_run() -> None:
    assert grader.grade("5", r"<think>\boxed{5}") == Grade(None, verified=False, normalised=False, failed=False)


def test_without_math_verify_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(GradingError, match=r'pip install "\.\[math\]" in a checkout'):
        grader.require()


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("5", "x = 5", True),
        ("y = 2x + 1", "2x + 1", True),
        ("y = 2x + 1", "2x - y + 1 = 0", True),
        (r"x \le 3", r"3 \geq x", True),
        (r"x \le 3", r"x \ge 3", False),
        (r"x < 3", r"x \le 3", False),
        (r"3\frac{1}{2}", "3 1/2", True),
        (r"\frac{3}{4}", r"0.75", True),
        (r"\frac{1}{3}", r"0.333333", False),
        (r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}", r"\begin{pmatrix} 1 & 2 & 3 & 4 \end{pmatrix}", False),
        (r"\sin^2 x + \cos^2 x", "1", True),
        (r"\log_2 8", "3", True),
        (r"\binom{5}{2}", "10", True),
        (r"|{-3}|", "3", True),
        (r"\sqrt[3]{8}", "2", True),
        (r"\arctan 1", r"\frac{\pi}{4}", True),
        (r"\tan^{-1} 1", r"\pi/4", True),
        (r"2^{10}", "1024", True),
        (r"x^2y", "yx^2", True),
        (r"x_1 + x_2", "x_{2} + x_{1}", True),
        (r"\text{no solution}", "No Solution", True),
        (r"\infty", r"-\infty", False),
        ("1,000", "1000", True),
        ("(1,000)", "(1000)", False),
        ("even", "neve", False),
        ("", "5", False),
    ],
)
def test_the_second_grader(gold: str, answer: str, right: bool) -> None:
    assert equal(gold, answer) is right
    assert equal(answer, gold) is right


@pytest.mark.parametrize("text", ["__import__('os')", "1; 2", "lambda: 0", r"\input{x}", "", "1 +", "(1", r"\frac{1}"])
def test_nothing_but_arithmetic_is_parsed(text: str) -> None:
    with pytest.raises(NotArithmetic):
        parse(text)


PIECES = [*"012.,x+-/^_{}()[]\\ $%=|\u00b0", r"\frac", r"\sqrt", r"\pm", r"\text{", r"\begin{pmatrix}", r"\le"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join))
def test_an_answer_equals_itself_and_no_text_makes_the_second_grader_fail(text: str) -> None:
    assert equal(text, text)
    assert equal(text, "1") in (True, False)


@settings(max_examples=100, deadline=None)
@given(st.integers(-999, 999), st.integers(1, 99))
def test_fractions_equal_what_they_reduce_to(upper: int, lower: int) -> None:
    sign, size = ("-" if upper < 0 else ""), abs(upper)
    ways: list[Callable[[], str]] = [
        lambda: rf"\frac{{{upper}}}{{{lower}}}",
        lambda: rf"{sign}\dfrac{{{3 * size}}}{{{3 * lower}}}",
        lambda: f"{upper}/{lower}",
    ]
    assert all(equal(ways[0](), way()) for way in ways)
    assert not equal(ways[0](), rf"\frac{{{upper + 1}}}{{{lower}}}")
