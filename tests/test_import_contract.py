"""The import contract of setup.cfg holds, and fails when a forbidden import is put in."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import lm_eval_tandem

PACKAGE = Path(lm_eval_tandem.__file__).parent
CONTRACT = Path(__file__).resolve().parents[1] / "setup.cfg"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("importlinter") is None, reason="import-linter is not installed (extra dev)"
)


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    """What import-linter says of the copy of the package in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    command = [str(Path(sys.executable).with_name("lint-imports")), str(CONTRACT), "--no-cache"]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1200)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("__pycache__", "*.safetensors", "task_configs", "classifiers")
    shutil.copytree(PACKAGE, tmp_path / "lm_eval_tandem", ignore=ignored)
    return tmp_path


def test_the_package_keeps_the_contract(copy: Path) -> None:
    done = lint(copy)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("module", "line", "broken"),
    [
        ("judge/probe.py", "from lm_eval_tandem.training import fit", "Imports run downwards"),
        ("grading/thought.py", "from lm_eval_tandem.engines import Prompt", "Imports run downwards"),
        ("cascade/policies.py", "import torch", "torch and transformers"),
        ("engines/http/retries.py", "import vllm", "vllm belongs to engines.vllm"),
        ("engines/http/single.py", "import xllamacpp", "llama.cpp belongs to engines.llamacpp"),
        ("reports/table.py", "import lm_eval", "know no harness"),
        ("harness/questions.py", "import fastapi", "fastapi, uvicorn and prometheus-client belong to server"),
        ("engines/registry.py", "from lm_eval_tandem.pair import train", "bundled pair's training code"),
    ],
)
def test_a_forbidden_import_breaks_it(copy: Path, module: str, line: str, broken: str) -> None:
    file = copy / "lm_eval_tandem" / module
    head, found, rest = file.read_text(encoding="utf-8").partition("from __future__ import annotations\n")
    assert found, f"{module} has no place to put an import"
    file.write_text(f"{head}{found}\n{line}\n{rest}", encoding="utf-8")
    done = lint(copy)
    assert done.returncode == 1, done.stdout + done.stderr
    assert f"{broken}" in done.stdout.partition("Broken contracts")[2]
