"""The examples in the docstrings do what they show."""

from __future__ import annotations

import ast
import doctest
import importlib
import shutil
from pathlib import Path

import pytest

import lm_eval_tandem

PACKAGE = Path(lm_eval_tandem.__file__).parent
NEEDS_A_MODEL = {
    "lm_eval_tandem.engines",
    "lm_eval_tandem.engines.hf.cpu_scheduler",
    "lm_eval_tandem.engines.hf.engine",
    "lm_eval_tandem.engines.hf.joint",
    "lm_eval_tandem.engines.hf.reward_model",
    "lm_eval_tandem.engines.http.openai",
    "lm_eval_tandem.engines.http.scorer",
    "lm_eval_tandem.engines.llamacpp.engine",
    "lm_eval_tandem.engines.registry",
    "lm_eval_tandem.engines.vllm.engine",
    "lm_eval_tandem.ensembles.scorers",
}
"""Modules whose examples load a model from a hub or call a server: they are only compiled."""
NOT_RUN = {
    "lm_eval_tandem.grading.math.grader",
    "lm_eval_tandem.grading.math.library",
    "lm_eval_tandem.reports.report",
}
"""Modules whose examples carry `+SKIP`, since they need worker processes or runs on disk: compiled too."""


def module_name(file: Path) -> str:
    parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(file): file for file in sorted(PACKAGE.rglob("*.py")) if ">>> " in file.read_text("utf-8")}


@pytest.mark.parametrize("name", [name for name in FILES if name not in NEEDS_A_MODEL | NOT_RUN])
def test_examples_give_what_they_show(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name.endswith("sandbox") and shutil.which("bwrap") is None:
        pytest.skip("bubblewrap is not installed")
    monkeypatch.chdir(tmp_path)
    found = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert found.attempted > 0
    assert found.failed == 0, "the output above says which"


@pytest.mark.parametrize("name", sorted(NEEDS_A_MODEL | NOT_RUN))
def test_examples_that_are_not_run_are_python(name: str) -> None:
    docstrings = [
        ast.get_docstring(node) or ""
        for node in ast.walk(ast.parse(FILES[name].read_text("utf-8")))
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    examples = [example for text in docstrings for example in doctest.DocTestParser().get_examples(text)]
    assert examples
    for example in examples:
        compile(example.source, name, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
