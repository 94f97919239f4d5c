"""Test labels choose nothing: with all of them exchanged, the same stages are taken and the same answers given."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_tandem import _paths, cli
from lm_eval_tandem.harness.model import TandemLM

QUESTIONS = 100
TRAINED = 20
TASK = """include: _tandem_pair
task: {task}
dataset_kwargs:
  file: {file}
"""


def world(folder: Path, turned: int) -> Path:
    """The pair's math tasks, cut short; the answers of the test task are those of the questions `turned` places on."""
    source = _paths.task_configs() / "pair"
    folder.mkdir()
    for name in ("_tandem_pair", "pair_metrics.py"):
        shutil.copy(source / name, folder)
    for split, count in (("test", QUESTIONS), ("train", TRAINED)):
        rows = [json.loads(line) for line in (source / f"math_{split}.jsonl").read_text().splitlines()[:count]]
        answers = [row["answer"] for row in rows]
        if split == "test":
            answers = answers[turned:] + answers[:turned]
        lines = [json.dumps({**row, "answer": answer}) for row, answer in zip(rows, answers, strict=True)]
        (folder / f"{split}.jsonl").write_text("\n".join(lines))
        (folder / f"leak_{split}.yaml").write_text(TASK.format(task=f"leak_{split}", file=f"{split}.jsonl"))
    return folder


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The task as it is, and with its labels exchanged."""
    base = tmp_path_factory.mktemp("worlds")
    return world(base / "true", 0), world(base / "exchanged", 37)


def run(folder: Path, policy: str) -> tuple[TandemLM, dict[str, Any]]:
    lm = TandemLM(policy=policy, dtype="float32", device="cpu", batch_size=32)
    try:
        tasks = TaskManager(include_path=str(folder), include_defaults=False)
        found = simple_evaluate(model=lm, tasks=["leak_test"], task_manager=tasks, bootstrap_iters=0)
        assert found is not None
        return lm, found
    finally:
        lm.close()


@pytest.mark.parametrize("policy", ["cascade", "escalate"])
def test_exchanged_test_labels_change_no_stage_and_no_answer(worlds: tuple[Path, Path], policy: str) -> None:
    (one, true), (other, exchanged) = (run(folder, policy) for folder in worlds)
    samples = [sorted(found["samples"]["leak_test"], key=lambda line: line["doc_id"]) for found in (true, exchanged)]
    assert [line["arguments"] for line in samples[0]] == [line["arguments"] for line in samples[1]]
    targets = [[line["target"] for line in lines] for lines in samples]
    assert sum(a != b for a, b in zip(*targets, strict=True)) > 0.8 * QUESTIONS, "the labels were not exchanged"
    grades = [sum(line["acc"] for line in lines) / QUESTIONS for lines in samples]
    assert grades[0] > 0.9
    assert grades[1] < 0.3, "the exchanged labels were not the ones that graded"

    assert [line["resps"] for line in samples[0]] == [line["resps"] for line in samples[1]]
    records = [sorted(lm.records, key=lambda record: record.doc_id) for lm in (one, other)]
    assert len({record.stage for record in records[0]}) > 1, "the judge decided nothing here"
    for a, b in zip(*records, strict=True):
        assert (a.stage, a.reason, a.tokens) == (b.stage, b.reason, b.tokens)
        assert [one.stage for one in a.stages] == [one.stage for one in b.stages]
        scores = [[judgement.score for judgement in record.stages] for record in (a, b)]
        assert scores[0] == pytest.approx(scores[1], abs=1e-3)  # the order of batches depends on the clock
    assert one.judge is not None
    assert other.judge is not None
    assert one.judge.thresholds == other.judge.thresholds


def test_exchanged_test_labels_change_no_byte_of_classifier_and_thresholds(
    worlds: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One question at a time, so that not even the order of batches differs; one stage, for time."""
    made: list[dict[str, bytes]] = []
    for folder in worlds:
        base = tmp_path / folder.name
        collected, fitted = base / "collected", base / "judge"
        given = ["--tasks", "leak_train", "--batch_size", "1", "--no_mentor", "--output", str(collected)]
        cli.main(
            ["collect", "--include_path", str(folder), "--model_args", "dtype=float32,device=cpu,efforts=24", *given]
        )
        cli.main(["fit", str(collected), "--output", str(fitted)])
        cli.main(["thresholds", str(collected), "--classifier", str(fitted), "--output", str(base / "points.json")])
        files = [base / "points.json", *sorted(file for file in fitted.iterdir())]
        made.append({file.name: file.read_bytes() for file in files})
    assert {"config.json", "model.safetensors", "out_of_fold.safetensors", "README.md", "points.json"} == set(made[0])
    assert made[0] == made[1]
    capsys.readouterr()
