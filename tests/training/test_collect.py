"""`lm-eval-tandem collect` as a user types it: killed, and continued from its store."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from command_line import ENVIRONMENT, entries, run
from lm_eval_tandem import _paths
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.training.collect import check_tasks, collect
from lm_eval_tandem.training.collected_file import NAME, read
from lm_eval_tandem.training.dataset import concatenate
from lm_eval_tandem.training.fit import fit_sufficiency

PROGRAM = [sys.executable, "-m", "lm_eval_tandem.cli"]
COLLECT = [*PROGRAM, "collect", "--tasks", "tandem_pair_math_train", "--batch_size", "32", "--limit", "60", "--output"]


@pytest.mark.slow
def test_a_killed_collection_continues_and_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    run([*COLLECT, "whole"], tmp_path)
    killed = subprocess.Popen(
        [*COLLECT, "again"], cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 240
    while entries(tmp_path / "again" / "store.sqlite") < 150 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (tmp_path / "again" / NAME).exists()
    before = entries(tmp_path / "again" / "store.sqlite")
    assert before >= 150
    run([*COLLECT, "again"], tmp_path)
    whole, again = (read(tmp_path / name)[0] for name in ("whole", "again"))
    assert whole.ids == again.ids
    assert whole.agrees is not None
    for name in ("correct", "agrees", "cost", "answer_tokens"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(again, name))
    np.testing.assert_allclose(whole.entropy, again.entropy, atol=1e-3)
    np.testing.assert_array_equal(whole.agrees, whole.correct)  # this mentor is right, so agreeing is being right


@pytest.mark.slow
def test_the_cost_of_collecting_is_estimated_before_it_starts(tmp_path: Path) -> None:
    done = subprocess.run([*COLLECT, "c"], cwd=tmp_path, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    estimate, _, rest = done.stderr.partition("are not generated again.")
    assert "collect: 60 questions at 4 stages and under mentor: about " in estimate
    assert "TFLOPs" in estimate
    assert "60/60" in rest


def test_lines_are_in_the_same_order_whatever_finishes_first(tmp_path: Path) -> None:
    ids = []
    for batch_size in (1, 16):
        arguments = {"dtype": "float32", "device": "cpu", "efforts": "24", "batch_size": batch_size}
        file = collect(arguments, ["tandem_pair_math_train"], tmp_path / str(batch_size), [], limit=14, mentor=False)
        data, description = read(file)
        assert description["apply_chat_template"] is False
        ids.append(data.ids)
    assert ids[0] == ids[1] == [f"tandem_pair_math_train/{doc}" for doc in range(14)]


def test_a_task_that_is_not_known_is_refused_in_one_sentence(tmp_path: Path) -> None:
    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    file = tmp_path / "own.yaml"
    file.write_text("task: own")
    check_tasks(["tandem_pair_math_train", str(file)], manager)
    with pytest.raises(ArgumentError, match=r"maths_train is no task .* did you mean tandem_pair_math_train\?"):
        check_tasks(["tandem_pair_code_train", "tandem_pair_maths_train"], manager)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        *[
            ({"limit": limit}, r"--limit \S+ selects no questions; give their number per task, a share of them below 1")
            for limit in (-4.0, 0.0, math.nan, math.inf)
        ],
        *[
            ({"given": {"step_end": "."}, **policies}, r"step_end has no effect without --policies steps:N or verify:N")
            for policies in ({}, {"policies": ["handoff:20"]})
        ],
        (
            {"metric": "accuracy"},
            r"--metric accuracy is none of tandem_pair_math_train's; use one of acc, no_answer, length, ",
        ),
        ({"output": "taken"}, r"--output \S+taken is a file; give the name of a folder\."),
        ({"output": "taken/below"}, r"--output \S+below cannot be made \(Not a directory\); give another folder\."),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sentence: str
) -> None:
    monkeypatch.setattr(HFLM, "__init__", lambda *_, **__: pytest.fail("a model was loaded"))
    (tmp_path / "taken").write_text("mine")
    output = tmp_path / options.pop("output", "collected")
    with pytest.raises(ArgumentError, match=sentence):
        collect(options.pop("given", {}), ["tandem_pair_math_train"], output, [], **options)
    assert (tmp_path / "taken").read_text() == "mine"


def test_answers_can_be_collected_without_the_statistics_of_prompts(tmp_path: Path) -> None:
    arguments = {"dtype": "float32", "device": "cpu", "efforts": "24", "batch_size": 16}
    tasks = ["tandem_pair_math_train"]
    files = [
        collect(dict(arguments), tasks, tmp_path / str(prompts), [], limit=24, prompts=prompts)
        for prompts in (True, False)
    ]
    whole, answers = (read(file)[0] for file in files)
    assert answers.features.shape == (24, 2, 1)
    assert answers.parts is None
    for name in ("correct", "agrees", "cost", "answer_tokens", "entropy", "answer_ids"):
        np.testing.assert_allclose(getattr(answers, name), getattr(whole, name), rtol=1e-5, atol=1e-5)
    for row in pyarrow.parquet.read_table(files[1]).to_pylist():
        assert (row["insight"] == "") == (row["stage"] == 0)
        assert row["target"] in row["answer"] or not row["correct"]
    fitted = fit_sufficiency(answers)
    assert fitted.report["inputs"] == "probe"
    assert fitted.thresholds == fit_sufficiency(whole, inputs="probe").thresholds
    for options in ({"recipe": "paper"}, {"inputs": "statistics"}, {"inputs": "statistics+probe"}):
        with pytest.raises(ClassifierError, match=r"without --no_statistics .* or fit with --inputs probe"):
            fit_sufficiency(answers, **options)
    both = concatenate([whole, answers])
    np.testing.assert_array_equal(both.features[:24], whole.features[:, :, -1:])
    with pytest.raises(ArgumentError, match="leave out --no_statistics"):
        collect(dict(arguments), tasks, tmp_path / "hidden", [], hidden=True, prompts=False)
