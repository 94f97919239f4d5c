"""Code is found in every style of response and graded right; pass@k; local files of the tasks."""

from __future__ import annotations

import ast
import itertools
import json
import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grading.code.styles import STYLES
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading.code import grader, sandbox
from lm_eval_tandem.grading.code.extraction import called_names, extract, longest_valid
from lm_eval_tandem.harness import task_data
from shared_data import rows

needs_bubblewrap = pytest.mark.skipif(
    shutil.which("bwrap") is None and not os.environ.get("CI"),
    reason="bubblewrap is not installed (apt-get install bubblewrap)",
)
PROMPT = (
    "import math\n\n\ndef half(x):\n    return x / 2\n\n\n"
    'def f(x, y):\n    """Adds.\n\n    >>> f(1, 2)\n    3\n    """\n'
)
STUB_OF_F = {"entry_point": "f", "prompt": PROMPT, "test": "def check(g):\n    assert g(half(2), 2) == 3\n"}


def graded(docs: list[dict[str, Any]], replies: list[str], what: str) -> list[grader.Grade]:
    """Grade the replies, and print how long it took."""
    start = time.monotonic()
    grades = grader.grade_all([grader.humaneval(doc) for doc in docs], replies)
    passed = sum(grade.outcome == "passed" for grade in grades)
    print(f"\n{what}: {passed}/{len(docs)} passed in {time.monotonic() - start:.1f} s on {sandbox.CORES} cores")
    return grades


def broken(source: str) -> str:
    """The source with every returned value replaced by a wrong one."""

    class Breaker(ast.NodeTransformer):
        def visit_Return(self, node: ast.Return) -> ast.Return:
            return ast.Return(ast.Tuple([ast.Constant("broken"), node.value or ast.Constant(None)], ast.Load()))

    return ast.unparse(ast.fix_missing_locations(Breaker().visit(ast.parse(source))))


@needs_bubblewrap
def test_all_canonical_solutions_pass_each_in_one_of_the_styles() -> None:
    docs = rows("humaneval.jsonl")
    replies = [style(doc) for doc, style in zip(docs, itertools.cycle(STYLES.values()), strict=False)]
    grades = graded(docs, replies, "mixed styles")
    assert [doc["task_id"] for doc, grade in zip(docs, grades, strict=True) if grade.outcome != "passed"] == []
    assert len(docs) == 164
    assert {grade.isolation for grade in grades} == {sandbox.isolation_level()}


@needs_bubblewrap
@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_all_canonical_solutions_pass_in_every_style(style: str) -> None:
    docs = rows("humaneval.jsonl")
    grades = graded(docs, [STYLES[style](doc) for doc in docs], style)
    assert [doc["task_id"] for doc, grade in zip(docs, grades, strict=True) if grade.outcome != "passed"] == []


@needs_bubblewrap
@pytest.mark.slow
@pytest.mark.parametrize("style", STYLES)
def test_none_passes_with_its_returned_value_broken(style: str) -> None:
    docs = rows("humaneval.jsonl")
    damaged = []
    for doc in docs:
        whole = broken(doc["prompt"] + doc["canonical_solution"])
        function = next(node for node in ast.parse(whole).body if getattr(node, "name", "") == doc["entry_point"])
        body = "\n".join(whole.splitlines()[function.body[1].lineno - 1 : function.end_lineno])
        damaged.append({**doc, "canonical_solution": body + "\n"})
    grades = graded(docs, [STYLES[style](doc) for doc in damaged], f"broken, {style}")
    assert {grade.outcome for grade in grades} <= {"failed", "error"}
    assert all("broken" in (grade.code or "") for grade in grades)


@needs_bubblewrap
@pytest.mark.parametrize(
    "reply",
    [
        "    return x + y",
        "return x + y",
        "total = x + y\nreturn total",
        "    total = x + y\n    return total\n\nprint(f(1))\n\ndef main():\n    pass\n\nmain()\nassert False\nEnd.",
        "    total = 0\n    for z in (x, y):\n        total += z\n    return total\n```\nThat is all.",
        "```\nreturn x + y\n```",
        "```python\n    total = x\n    return total + y\n```",
        "~~~py\ndef f(x, y):\n    return x + y\n~~~",
        "1. So:\n   ```python\n   def f(x, y):\n       return x + y\n   ```\n",
        "def f(x, y):\n    return x + y",
        "Here it is:\n\ndef f(x, y):\n    return half(2 * x) + y\n\nIt adds.",
        "Here it is:\n\nfrom math import fsum\n\ndef f(x, y):\n    return fsum([x, y])\n\nIt adds.",
        "from __future__ import annotations\n\ndef f(x: Unknown, y):\n    return x + y",
        "f = lambda x, y: x + y",
        "```python\ndef add(x, y):\n    return x + y\n```\nNow\n```python\ndef f(x, y):\n    return add(x, y)\n```",
        "```python\ndef f(x, y):\n    return 0\n```\nBetter:\n```python\ndef f(x, y):\n    return x + y\n```",
        "```python\ndef f(x, y):\n    return x + y\n```\n```bash\npython f.py\n```\n```\n3\n```",
        "```python\ndef f(x, y):\n    return x + y\n\nif __name__ == '__main__':\n    1 / 0",
        "<think>```python\ndef f(x, y):\n    return 0\n```</think>    return x + y",
        "no opening tag, as after a template that has it</think>\n\n```python\ndef f(x, y):\n    return x + y\n```",
    ],
)
def test_code_is_found(reply: str) -> None:
    grade = grader.grade(grader.humaneval(STUB_OF_F), reply)
    assert grade.outcome == "passed", grade


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " \n",
        "I cannot do this.",
        "Sure",
        "    ",
        "<think>\n```python\ndef f(x, y):\n    return x + y\n```",
        "done</think> and again <think>\n```python\ndef f(x, y):\n    return x + y\n```",
        "<think>x</think>",
        "```bash\nls\n```",
        "The answer is 3.",
        "```python\n```",
        "\0",
    ],
)
def test_no_code_is_no_answer(reply: str) -> None:
    assert extract(reply, ("f",), PROMPT) is None
    assert extract(reply, ("f",)) is None


def test_code_that_defines_nothing_requested_is_an_answer() -> None:
    assert extract("```python\ndef g(x):\n    return x\n```", ("f",), PROMPT) == (PROMPT, "def g(x):\n    return x\n")
    assert extract("```python\ndef f(x:\n```", ("f",)) == ("def f(x:\n",)


@given(st.text() | st.text(alphabet="`~ \n:()defrtun x<thi/k>#\t'\"\\").map(lambda text: f"def f(x):\n{text}"))
def test_no_reply_breaks_the_extraction(reply: str) -> None:
    for prompt in ("", PROMPT):
        sources = extract(reply, ("f",), prompt)
        assert sources is None or all(isinstance(source, str) for source in sources)


def test_the_longest_valid_python_is_kept() -> None:
    assert longest_valid("x = 1\ny = 2\nand so on\nz = 3\n") == "x = 1\ny = 2\n"
    assert longest_valid("so it is\n") == ""
    assert longest_valid("    return 1\nfor ever\n", "def f():\n") == "def f():\n    return 1\n"


def test_the_names_that_tests_call_are_found() -> None:
    assert called_names("assert math.isclose(area(3), 9.0) == (lambda a: a)(True)", "import math") == ("area",)
    assert called_names("x = Node(1)\nassert depth(x) == len([y for y in [1]])") == ("Node", "depth")


@needs_bubblewrap
@pytest.mark.parametrize("fields", ["test_imports", "test_setup_code"])
def test_problems_of_mbpp_with_either_set_of_fields(fields: str) -> None:
    doc = {
        "code": "def area(r):\n    return 3.14 * r",
        "test_list": ["assert math.isclose(area(2), 6.28)", "assert area(0) == 0"],
        fields: ["import math"] if fields == "test_imports" else "import math",
    }
    problem = grader.mbpp(doc)
    assert problem.names == ("area",)
    assert grader.grade(problem, f"```python\n{doc['code']}\n```").outcome == "passed"
    assert grader.grade(problem, "```python\ndef area(r):\n    return 1\n```").outcome == "failed"


@needs_bubblewrap
def test_code_that_hangs_or_crashes_costs_no_other_reply_its_grade() -> None:
    problem = grader.humaneval(STUB_OF_F)
    right, wrong = "    return x + y", "    return x - y"
    replies = [right if i % 2 else wrong for i in range(40)]
    wanted = ["passed" if i % 2 else "failed" for i in range(40)]
    replies[20], wanted[20] = "    while True:\n        pass", "timeout"
    replies[21], wanted[21] = "    import os\n    os._exit(0)", "error"
    grades = grader.grade_all([problem] * 40, replies, sandbox.Limits(seconds=2.0))
    assert [grade.outcome for grade in grades] == wanted


def test_a_sandbox_that_does_not_start_gives_no_grade(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def fails(*_: Any) -> None:
        tried.append(1)
        raise sandbox.SandboxError("no namespaces left")

    monkeypatch.setattr(grader, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(sandbox, "run", fails)
    with pytest.raises(sandbox.SandboxError):
        grader.grade_all([grader.humaneval(STUB_OF_F)], ["    return 1"])
    assert len(tried) == 3


@given(st.integers(1, 30).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_pass_at_k_is_the_share_of_choices_that_hold_a_passing_one(case: tuple[int, int, int]) -> None:
    n, c, k = case
    missing = math.prod((n - c - i) / (n - i) for i in range(k)) if n - c >= k else 0.0
    assert grader.pass_at_k(n, c, k) == pytest.approx(1.0 - missing)
    assert grader.pass_at_k(n, c, 1) == pytest.approx(c / n)


def test_pass_at_k_of_fewer_than_k_is_refused() -> None:
    with pytest.raises(ValueError, match="pass@5"):
        grader.pass_at_k(4, 1, 5)


def row(outcome: str, **more: Any) -> str:
    """A grade as the filter returns it."""
    return json.dumps({"outcome": outcome, "isolation": "bubblewrap", **more})


def test_a_documents_metrics_are_means_over_its_replies() -> None:
    found = grader.document_metrics([row("passed"), row("failed"), row("no_answer"), row("timeout")])
    assert found == {"acc": 0.25, "no_answer": 0.25, "timeout": 0.25, "sandboxed": 1.0, "pass@2": 0.5}
    with_costs = grader.document_metrics(
        [row("passed", metrics={"stage": 2.0, "tflops": 1.0}), row("passed", metrics={"stage": 0.0, "tflops": 2.0})]
    )
    assert with_costs["stage"] == 1.0
    assert with_costs["tflops"] == 1.5
    assert "sandboxed" in with_costs
    assert "metrics" not in with_costs


def test_local_files_take_the_place_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(task_data.VARIABLE, str(tmp_path))
    with pytest.raises(ArgumentError, match=r"holds no some_task\.jsonl.*a/b .c., split test"):
        task_data.load("some_task", "a/b", "c", "test")
    file = tmp_path / "some_task.jsonl"
    for text, message in (("", "no document"), ("{}\nno\n", "line 2, is not JSON"), ("[1]", "not a JSON object")):
        file.write_text(text)
        with pytest.raises(ArgumentError, match=message):
            task_data.load("some_task", "a/b", None, "test")
    file.write_text('{"a": 1}\n\n{"a": 2}\n')
    assert task_data.load("some_task", "a/b", None, "test")["test"]["a"] == [1, 2]
