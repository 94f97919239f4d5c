"""The real command line in a process of its own, as a user types it."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import (
    BARE_WITHOUT_DEFAULT_TASKS,
    ENVIRONMENT,
    MACHINE_REPORT_LEFT_OUT,
    command,
    options_of,
    results,
    run,
    run_forked,
    samples,
)
from lm_eval_tandem import pair
from tasks.in_process import lm_eval


@pytest.fixture(scope="session")
def has_hook() -> None:
    """The bare command needs the wheel: an editable install or a checkout has no import hook."""
    probe = subprocess.run(
        [sys.executable, "-c", "import sys; print('_lm_eval_tandem_hook' in sys.modules)"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )
    if probe.stdout.strip() != "True":
        pytest.skip("lm_eval_tandem is not installed from a wheel here, so bare lm_eval does not know it")


@pytest.mark.usefixtures("has_hook")
def test_bare_lm_eval_shows_cost_beside_accuracy(tmp_path: Path) -> None:
    shown = run(
        [
            *command("tandem_pair_math", bare=True, store="s.sqlite", ledger="l.jsonl"),
            *("--limit", "30", "--output_path", "out", "--log_samples"),
        ],
        tmp_path,
    )
    for metric in ("acc", "length", "mentor_tokens", "tflops", "stage"):
        assert re.search(rf"\|{metric} *\|", shown), f"{metric} is missing in the table"
    assert "tandem-pair-cascade" in shown
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["tandem-pair-cascade"]
    found = results(tmp_path / "out")
    tandem = found["config"]["tandem"]
    assert tandem["totals"]["questions"] == 30
    assert tandem["totals"]["tflops"] == pytest.approx(found["results"]["tandem_pair_math"]["tflops,none"])
    assert len((tmp_path / "l.jsonl").read_text().splitlines()) == 31


@pytest.mark.usefixtures("has_hook")
def test_another_model_runs_the_same_task_without_cost_columns(tmp_path: Path) -> None:
    bare = command("tandem_pair_code", "hf", bare=True, pretrained=pair.INTERN)
    quicker = [sys.executable, "-c", BARE_WITHOUT_DEFAULT_TASKS, *bare[1:]]
    shown = run([*quicker, "--limit", "20"], tmp_path)
    assert re.search(r"\|acc +\|", shown)
    assert "tflops" not in shown
    assert "stage" not in shown


def test_chat_few_shot_predict_only_and_samples_work_as_for_model_hf(tmp_path: Path) -> None:
    base = ["--output_path", str(tmp_path / "out"), "--log_samples"]
    base += ["--apply_chat_template", "--system_instruction", "Be exact."]
    run_forked([*command("tandem_pair_math", policy="intern"), *base, "--limit", "12", "--predict_only"], tmp_path)
    lm_eval(*options_of(command("tandem_pair_math", "hf", pretrained=pair.INTERN)), *base, "--limit", "12")
    ours, theirs = samples(tmp_path / "out" / "tandem-pair-intern"), samples(next((tmp_path / "out").glob("*pair__*")))
    assert [one["resps"] for one in ours] == [one["resps"] for one in theirs]
    assert [one["arguments"] for one in ours] == [one["arguments"] for one in theirs]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"policy": "casade"},
            "policy=casade is not known; use cascade, intern, mentor, stage:N with N from 0 to 3, ",
        ),
        ({"mentor": "./none", "intern": "org/x"}, "mentor=./none is no folder"),
    ],
)
def test_a_wrong_argument_ends_with_one_sentence(tmp_path: Path, arguments: dict[str, str], sentence: str) -> None:
    errors = run_forked([*command("tandem_pair_math", **arguments)], tmp_path, code=1)
    last = errors.strip().splitlines()[-1]
    assert last.startswith("tandem: error: ")
    assert sentence in last
    assert "Traceback" not in errors


def test_from_collecting_to_a_cascade_with_the_new_classifier(tmp_path: Path) -> None:
    program = [sys.executable, "-m", "lm_eval_tandem.cli"]
    quicker = [sys.executable, "-c", f"{MACHINE_REPORT_LEFT_OUT}\nfrom lm_eval_tandem.cli import main\nmain()"]
    tasks = ["--tasks", "tandem_pair_math_train", "--limit", "60", "--batch_size", "32"]
    assert "collected:" in run_forked([*quicker, "collect", *tasks, "--output", "c"], tmp_path)
    assert "fitted:" in run_forked([*program, "fit", "c", "--output", "mine"], tmp_path)
    assert "60 questions" in (tmp_path / "mine" / "README.md").read_text()
    assert "Use policy=" in run_forked([*program, "thresholds", "c", "--classifier", "mine"], tmp_path)
    for policy in ("cascade", "mentor"):
        arguments = command("tandem_pair_math", policy=policy, classifier="mine")
        run_forked([*arguments, "--limit", "40", "--output_path", "out", "--log_samples"], tmp_path)
    report = run_forked([*program, "report", "out"], tmp_path)
    assert re.search(
        r"the bundled pair: cascade\*\*: [\d.]+ % correct, of 40 questions; [\d.]+ % of the cost of the mentor", report
    )
    assert "lm-eval-tandem: error:" in run_forked([*program, "fit", "nowhere", "--output", "x"], tmp_path, code=1)
