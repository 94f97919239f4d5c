"""`benchmarks/real.py`: which steps it runs, on what, and that finished ones are left alone."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import cli, pair

real = pytest.importorskip("benchmarks.real", reason="the tests were copied without benchmarks/")


@pytest.fixture
def setting(tmp_path: Path) -> Any:
    return real.Setting(tmp_path / "models", tmp_path / "work", tmp_path / "results", 1)


def test_nothing_is_fitted_on_test_questions_and_the_advice_comes_first(setting: Any) -> None:
    for one in real.PAIRS:
        training, testing = list(setting.training(one)), list(setting.testing(one))
        for step in training:
            words = " ".join(step.command)
            assert "tandem_gsm8k_train" in words or str(setting.work / one.name) in words
            assert "humaneval" not in words
            cli.parser().parse_args(step.command[3:])  # it ends the program where an option is unknown
        assert len(testing) == 2 * len(one.policies)
        assert [step.name.partition("-")[0] for step in training] == ["collect", "fit", "thresholds"]


def test_every_report_has_the_mentor(setting: Any) -> None:
    """It was asked with the first pair."""
    asked = {step.output for step in setting.testing(real.PAIRS[0]) if step.output.name == "mentor"}
    for one in real.PAIRS:
        step, *_ = setting.reports(one)
        given = {Path(folder) for folder in cli.parser().parse_args(step.command[3:]).results}
        assert all(given & {folder, folder.parent} for folder in asked)
        assert {setting.output / one.name / task for task in real.TEST_TASKS} <= given


def test_models_in_transformers_are_unpacked_to_the_type_that_computes(setting: Any) -> None:
    in_float32 = dataclasses.replace(setting, dtype="float32")
    steps = list(in_float32.strategies(real.PAIRS[0]))
    *unpacking, reference, trying = (step.command for step in steps)
    assert all(command[-2:] == ["--dtype", "float32"] for command in unpacking)
    assert "dtype=float32" in reference[reference.index("--model_args") + 1]
    assert trying[trying.index("--dtype") + 1] == "float32"
    assert in_float32.arguments(real.read_by_both(real.PAIRS[0]))["dtype"] == "float32"


def test_what_is_chosen_of_the_strategies_is_asked_test_questions_afterwards(setting: Any) -> None:
    first = real.PAIRS[0]
    *before, trying = setting.strategies(first)
    assert [step.name for step in before] == [
        "unpack-qwen2.5-coder-1.5b-instruct-q4_k_m",
        "unpack-qwen2.5-coder-0.5b-instruct-q4_k_m",
        "reference-coder-0.5b",
    ]
    cli.parser().parse_args(before[-1].command[3:])
    assert trying.name == "strategies-coder-0.5b"
    assert not trying.finished
    chosen = [
        {
            "name": "outline:80",
            "candidate": ["tandem", {"mentor": "a.gguf", "intern": "b.gguf", "policy": "outline:80"}],
        },
        {"name": "ensemble:vote", "candidate": ["ensemble", {"models": "a.gguf;b.gguf", "aggregation": "vote"}]},
        {"name": "ensemble:random/loop (segment_tokens=32)", "candidate": ["ensemble", {"models": "a.gguf;b.gguf"}]},
        {"name": "ensemble:gac", "candidate": ["ensemble", {"models": "a.gguf;b.gguf", "backend": "hf"}]},
    ]
    trying.output.mkdir(parents=True)
    (trying.output / "strategies.json").write_text(json.dumps(chosen))
    again, *testing = list(setting.strategies(first))[len(before) :]
    assert again.finished
    chosen_names = ["outline-80", "ensemble-vote", "ensemble-random-loop-segment_tokens-32", "ensemble-gac"]
    compared = ["intern", "stage-3", "llm_cascade", "escalate", "cascade", "mentor"]
    assert [step.name for step in testing] == [f"coder-0.5b-strategies-{name}" for name in chosen_names + compared]
    models = [step.command[step.command.index("--model") + 1] for step in testing]
    assert models == ["tandem", *["ensemble"] * 3, *["tandem"] * 6]
    asked = {step.command[step.command.index("--samples") + 1] for step in testing}
    assert [json.loads(one) for one in asked] == [{"tandem_gsm8k": real.sample()[::2]}]
    (_,) = setting.reports(first)
    testing[0].output.mkdir(parents=True)
    _, report = setting.reports(first)
    assert cli.parser().parse_args(report.command[3:]).results == [testing[0].output.parent]
    vote, gac = (step.command[step.command.index("--model_args") + 1] for step in (testing[1], testing[3]))
    assert vote.startswith(
        f"models={setting.models / 'a.gguf'};{setting.models / 'b.gguf'},aggregation=vote,max_length="
    )
    folder = setting.work / "transformers"
    assert gac.startswith(f"models={folder / 'a'};{folder / 'b'},backend=hf,dtype=bfloat16,batch_size=32,store=")


def test_the_sample_of_test_questions_is_fixed_and_large_enough() -> None:
    assert len(set(real.sample())) == real.TEST_QUESTIONS >= 200
    assert real.sample() == real.sample()
    assert max(real.sample()) < real.GSM8K_TEST
    assert real.sample()[:3] == [0, 5, 10]


def test_a_folder_without_the_models_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"holds no qwen2.5-coder-1.5b.*; name a folder with the GGUF files"):
        real.main([str(tmp_path)])


def test_a_later_pair_finds_what_the_mentor_has_written_for_the_first(tmp_path: Path) -> None:
    first, later = (tmp_path / one.name / "store.sqlite" for one in real.PAIRS)
    real.share_training_answers(tmp_path)
    assert not later.exists()
    first.parent.mkdir()
    first.write_text("first")
    real.share_training_answers(tmp_path)
    assert later.read_text() == "first"
    first.write_text("more")
    real.share_training_answers(tmp_path)
    assert later.read_text() == "first", "what was collected since is not replaced"


@pytest.mark.slow
@NEEDS_LLAMACPP
def test_a_step_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the bundled pair under the names of the real models, on two questions."""
    from engines.llamacpp import to_gguf

    models, data = tmp_path / "models", tmp_path / "data"
    for folder in (models, data):
        folder.mkdir()
    for name, folder in ((real.MENTOR, pair.MENTOR), (real.PAIRS[0].intern, pair.INTERN)):
        to_gguf.save(folder, models / name)
    (models / real.PAIRS[1].intern).touch()
    for name in real.DATA:
        rows = [{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in range(3)]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(real, "sample", lambda *_: [0, 2])
    monkeypatch.setattr(real, "GENERATION", ["--batch_size", "2", "--gen_kwargs", "max_gen_toks=8"])
    monkeypatch.setattr(real, "WINDOW", 512)
    command = [str(models), "--data", str(data), "--work", str(tmp_path / "work"), "--threads", "1"]
    command += ["--output", str(tmp_path / "out"), "--only", "coder-0.5b-tandem_gsm8k-stage-1"]
    real.main(command)
    (results,) = (tmp_path / "out").rglob("results_*.json")
    found = json.loads(results.read_text())
    assert found["n-samples"]["tandem_gsm8k"]["effective"] == 2
    assert found["config"]["tandem"]["policy"] == "stage:1"
    real.main(command)
    assert len(list((tmp_path / "out").rglob("results_*.json"))) == 1
    (line,) = (tmp_path / "out" / "seconds.jsonl").read_text().splitlines()
    assert json.loads(line)["code"] == 0
