"""Every file of examples/ runs as its README says, with tiny models in place of the named ones and a few local rows."""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from lm_eval_tandem import _paths, cli
from lm_eval_tandem.engines import registry
from lm_eval_tandem.harness.arguments import EFFORTS
from lm_eval_tandem.harness.settings import read_settings
from lm_eval_tandem.reports.report import report, write

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
FILES = sorted(EXAMPLES.glob("*.yaml"))
POLICIES = "intern stage:1 stage:2 stage:3 mentor budget_forcing:2000 llm_cascade escalate cascade".split()

if not FILES:
    pytest.skip("the tests were copied without examples/", allow_module_level=True)

MATH = [
    {"problem": "What is 2 + 3?", "answer": "5", "solution": r"\boxed{5}", "subject": "Algebra", "level": 1},
    {"problem": "What is half of 8?", "answer": "4", "solution": r"\boxed{4}", "subject": "Prealgebra", "level": 2},
]
GSM8K = [{"question": f"Ann has {n} apples and buys 3. How many has she?", "answer": f"#### {n + 3}"} for n in (2, 5)]
HUMANEVAL = [
    {
        "task_id": f"HumanEval/{n}",
        "prompt": f'def add_{n}(x: int) -> int:\n    """Add {n} to x."""\n',
        "canonical_solution": f"    return x + {n}\n",
        "test": f"def check(candidate):\n    assert candidate(1) == {n + 1}\n",
        "entry_point": f"add_{n}",
    }
    for n in (1, 2)
]
SUBJECTS = "algebra counting_and_probability geometry intermediate_algebra number_theory prealgebra precalculus".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The rows of every task that the examples name."""
    base = tmp_path_factory.mktemp("data")
    rows = {"tandem_math500": MATH, "tandem_gsm8k": GSM8K, "tandem_humaneval": HUMANEVAL}
    rows |= {f"tandem_math_{subject}": MATH for subject in SUBJECTS}
    for task, documents in rows.items():
        (base / f"{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in documents))
    return base


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny mentor and a tiny intern whose contexts are long enough for real problems."""
    found = {}
    for seed, role in enumerate(("mentor", "intern")):
        found[role] = tiny.save(tmp_path_factory.mktemp(role), seed=seed)
        file = found[role] / "config.json"
        config = json.loads(file.read_text()) | {"max_position_embeddings": 4096}
        file.write_text(json.dumps(config))
    return found


@pytest.fixture
def harness(monkeypatch: pytest.MonkeyPatch, data: Path) -> None:
    """Prepare the harness's command line for this process, without the seconds that indexing its own tasks takes."""
    pytest.importorskip("math_verify", reason="the extra lm-eval-tandem[math] is not installed")
    from lm_eval.tasks import TaskManager

    whole = TaskManager.__init__
    monkeypatch.setattr(TaskManager, "__init__", functools.partialmethod(whole, include_defaults=False))
    monkeypatch.setenv("TANDEM_DATA", str(data))
    monkeypatch.setenv("TANDEM_SANDBOX", "process")


def read(file: Path) -> dict[str, Any]:
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def with_policy(file: Path, policy: str) -> dict[str, Any]:
    """The configuration after the substitution that the README shows."""
    return dict(yaml.safe_load(file.read_text(encoding="utf-8").replace("cascade", policy)))


def shrunk(config: dict[str, Any], models: dict[str, Path], folder: Path, stack: ExitStack) -> dict[str, Any]:
    """The same configuration with tiny models and few tokens, which writes everything below `folder`."""
    given = dict(config["model_args"])
    given |= {role: str(model) for role, model in models.items()}
    dropped = ("dtype", "intern_dtype", "device_map", "max_model_len", "backend")
    given = {name: value for name, value in given.items() if name not in dropped and "gpu_memory" not in name}
    if given.get("mentor_backend") == "openai":
        from engines.http import openai_server

        server = stack.enter_context(openai_server.serving(models["mentor"]))
        given |= {"mentor": "tiny", "mentor_base_url": server.url}
    for name in ("store", "ledger"):
        given[name] = str(folder / given[name])
    given |= {"classifier": "pair", "efforts": [4, 6, 8]}
    changed = {"model_args": given, "include_path": str(_paths.task_configs()), "output_path": str(folder / "out")}
    changed |= {"gen_kwargs": {"max_gen_toks": 12}, "limit": 2, "device": "cpu", "batch_size": 4}
    return {**config, **changed}


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Ends at the end of the test what the test has started."""
    with ExitStack() as started:
        yield started


@pytest.mark.usefixtures("harness")
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_runs_and_its_report_is_made(
    file: Path, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stack: ExitStack
) -> None:
    config = read(file)
    if config["model_args"].get("mentor_backend") == "openai" and find_spec("openai") is None:
        pytest.skip("the extra lm-eval-tandem[openai] is not installed")
    monkeypatch.setenv("OPENAI_API_KEY", "unused")
    written = tmp_path / file.name
    written.write_text(yaml.safe_dump(shrunk(config, models, tmp_path, stack)))
    run(["run", "--config", str(written)], monkeypatch)
    made = report([tmp_path])
    assert {table.name.split("-")[0] for table in made.tables} >= {"policies", "stages"}
    for output in write(made, tmp_path / "report"):
        text = output.read_text(encoding="utf-8")
        assert str(tmp_path) not in text, output.name
        assert str(models["mentor"].parent) not in text, output.name
    domains = {line.split(":")[0] for line in made.environment if "accuracy is the metric acc" in line}
    assert domains == set(config["tasks"])


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m lm_eval_tandem …` in this process."""
    from lm_eval_tandem import __main__

    monkeypatch.setattr(sys, "argv", ["lm_eval", *arguments])
    monkeypatch.setattr(__main__, "include_our_tasks", lambda: None)
    __main__.main()


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_one_substitution_makes_the_file_of_every_policy(file: Path, policy: str) -> None:
    given = with_policy(file, policy)["model_args"]
    if given.get("backend") == "vllm" and find_spec("vllm") is None:
        given = {name: value for name, value in given.items() if "gpu_memory" not in name and name != "max_model_len"}
        given["backend"] = "hf"
    if given.get("mentor_backend") == "openai" and find_spec("openai") is None:
        pytest.skip("the extra lm-eval-tandem[openai] is not installed")
    read_back = read_settings(given, registry.arguments)
    assert str(read_back.policy) == policy
    assert str(read_back.ledger).endswith(f"{policy}.jsonl")
    assert read_back.efforts == EFFORTS, "the paper's own"


def test_no_two_files_write_to_the_same_folder() -> None:
    outputs = [read(file)["output_path"] for file in FILES]
    assert len(set(outputs)) == len(outputs)
    for file in FILES:
        config = read(file)
        assert config["output_path"] == f"runs/{file.stem}"
        assert config["model_args"]["ledger"].startswith(config["output_path"])
        assert "tandem_humaneval" not in config["tasks"] or config["confirm_run_unsafe_code"] is True


def test_the_readme_names_every_file_and_its_commands_parse() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\]\((\w+\.yaml)\)", text)) == {file.name for file in FILES}
    commands = re.findall(r"^ *(lm-eval-tandem .*)$", text, flags=re.MULTILINE)
    assert {shlex.split(command)[1] for command in commands} == {"collect", "fit", "report"}
    for command in commands:
        cli.parser().parse_args(shlex.split(command)[1:])
    assert set(re.findall(r"for policy in (.*?);", text)[0].split()) == set(POLICIES)


@pytest.mark.slow
def test_the_pair_goes_from_collect_to_report_in_an_empty_folder(tmp_path: Path) -> None:
    """Run the script in a shell, with the programs that are installed beside this interpreter."""
    programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": programs, "QUESTIONS": "30", "OMP_NUM_THREADS": "1"}
    script = ["sh", str(EXAMPLES / "pair.sh")]
    done = subprocess.run(script, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    text = (tmp_path / "report" / "README.md").read_text(encoding="utf-8")
    assert "| cascade | " in text
    assert "### Classifier judge" in text
    assert {path.name for path in tmp_path.iterdir()} >= {"collected", "judge", "runs", "report"}
    missing = re.findall(r"\*Missing:\* (\w+ \w+)", text)
    assert len(missing) == 5, "a second pair, prices, further classifiers (twice), a benchmark"
