"""Reading runs: every form the files come in, the ledger that belongs to a run, one sentence for each mistake."""

from __future__ import annotations

import json
import lzma
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.packing import pack, without_repetition
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sections.environment import environment
from lm_eval_tandem.reports.sources import grouping, harness_files, report_data, runs
from lm_eval_tandem.reports.sources.grouping import group
from lm_eval_tandem.reports.sources.labels import without_paths
from reports.world import STAMP, World, read


@pytest.mark.parametrize("packed", [False, True])
def test_questions_come_back_in_order_with_grades_costs_and_records(tmp_path: Path, packed: bool) -> None:
    world = World.random(12, subjects=["a", "b"] * 6)
    world.write(tmp_path, "stage:1", packed)
    (run,) = read([tmp_path])
    assert run.questions == tuple(("t", i) for i in range(12))
    assert run.subjects == ("a", "b") * 6
    assert np.array_equal(run.grades, world.right[:, 1])
    assert (run.measures["length"] == 60).all()
    assert (run.measures["mentor_tokens"] == 10).all()
    assert [record["doc_id"] for record in run.records] == list(range(12))
    assert run.policy == "stage:1"


def test_packed_results_are_smaller_read_the_same_and_are_the_same_bytes(tmp_path: Path) -> None:
    world = World.random(20)
    contents = []
    for name in ("a", "b"):
        file = world.write(tmp_path / name, "cascade")
        samples = next(file.parent.glob("samples_*"))
        lines = [{**json.loads(line), "doc_hash": "0" * 64, "prompt_hash": "1" * 64} for line in samples.open()]
        samples.write_text("\n".join(map(json.dumps, lines)))
        (before,) = read([tmp_path / name])
        packed = pack(tmp_path / name)
        (after,) = read([tmp_path / name])
        assert after.questions == before.questions
        assert np.array_equal(after.grades, before.grades)
        assert [r["doc_id"] for r in after.records] == list(range(20))
        assert [r["stages"][0]["score"] for r in after.records] == [r["stages"][0]["score"] for r in before.records]
        assert not list(tmp_path.rglob("*.jsonl"))
        assert {file.suffix for file in packed} == {".xz"}
        contents.append([file.read_bytes() for file in packed])
    assert contents[0] == contents[1]
    assert b"_hash" not in lzma.decompress(contents[0][1])


@pytest.mark.parametrize(
    ("line", "left_out"),
    [
        ({"doc": {"q": "Why?"}, "arguments": {"gen_args_0": {"arg_0": "Why?"}}}, {"arguments"}),
        ({"doc": {"q": "Why?"}, "arguments": {"gen_args_0": {"arg_0": "Be brief. Why?"}}}, set()),
        ({"resps": [["a"], ["b"]], "filtered_resps": ["a", "b"]}, {"filtered_resps"}),
        ({"resps": [["a </think> b"]], "filtered_resps": ["b"]}, set()),
        ({"doc_id": 1, "target": "45", "acc": 1.0, "target_hash": "0"}, {"target_hash"}),
    ],
)
def test_packing_leaves_out_only_what_is_repeated(line: dict[str, Any], left_out: set[str]) -> None:
    assert without_repetition(line) == {name: value for name, value in line.items() if name not in left_out}


def test_packed_without_questions_nothing_of_the_benchmark_or_the_machine_is_left(tmp_path: Path) -> None:
    world = World.random(6)
    file = world.write(tmp_path, "stage:1")
    results = json.loads(file.read_text())
    place = {"metadata": {"config_source": "/home/me/checkout/task_configs/math/tandem_gsm8k.yaml"}}
    file.write_text(
        json.dumps({**results, "configs": {name: {**c, **place} for name, c in results["configs"].items()}})
    )
    samples = next(file.parent.glob("samples_*"))
    lines = [{**json.loads(line), "doc": {"question": "How many?"}, "target": "7"} for line in samples.open()]
    samples.write_text("\n".join(map(json.dumps, lines)))
    (before,) = read([tmp_path])
    pack(tmp_path, questions=False)
    (after,) = read([tmp_path])
    assert after.questions == before.questions
    assert np.array_equal(after.grades, before.grades)
    left = [lzma.decompress(path.read_bytes()).decode() for path in tmp_path.rglob("samples_*.xz")]
    assert left
    assert not any(word in text for text in left for word in ("How many?", '"target"', '"arguments"'))
    assert '"task_configs/math/tandem_gsm8k.yaml"' in file.read_text()
    assert "/home/me" not in file.read_text()


def test_a_ledger_supplies_the_costs_that_samples_lack(tmp_path: Path) -> None:
    world = World.random(5)
    file = world.write(tmp_path, "stage:2")
    samples = next(file.parent.glob("samples_*"))
    kept = [{k: v for k, v in json.loads(line).items() if k not in runs.MEASURES} for line in samples.open()]
    samples.write_text("\n".join(map(json.dumps, kept)))
    (run,) = read([tmp_path])
    assert (run.measures["length"] == 70).all()
    assert run.measures["tflops"][0] > 0
    next(file.parent.glob("ledger.jsonl")).unlink()
    (run,) = read([tmp_path])
    assert not run.measures
    assert not run.records


def test_a_ledger_of_some_documents_is_joined_by_their_order(tmp_path: Path) -> None:
    """With `--samples` the harness numbers its requests by their place, and its samples as the task does."""
    world = World.random(5)
    file = world.write(tmp_path, "cascade")
    samples = next(file.parent.glob("samples_*"))
    lines = [json.loads(line) for line in samples.open()]
    samples.write_text("\n".join(json.dumps({**line, "doc_id": 10 + 7 * line["doc_id"]}) for line in lines))
    (run,) = read([tmp_path])
    assert run.questions == tuple(("t", 10 + 7 * i) for i in range(5))
    assert [record["doc_id"] for record in run.records] == list(range(5))


def test_a_ledger_with_other_costs_is_not_joined_to_the_run(tmp_path: Path) -> None:
    world = World.random(5)
    file = world.write(tmp_path, "cascade")
    ledger = file.with_name("ledger.jsonl")
    lines = ledger.read_text().splitlines()
    record = json.loads(lines[1])
    ledger.write_text("\n".join([lines[0], json.dumps({**record, "tflops": 2 * record["tflops"]}), *lines[2:]]))
    assert not read([tmp_path])[0].records


def test_of_a_repeated_run_the_newest_counts(tmp_path: Path) -> None:
    world = World.random(4)
    old = world.write(tmp_path / "a", "intern")
    world.right[:] = 1.0
    new = world.write(tmp_path / "b", "intern")
    for file, stamp in ((old, "2026-01-01"), (new, "2026-02-02")):
        for path in list(file.parent.glob(f"*{STAMP}*")):
            path.rename(path.with_name(path.name.replace(STAMP, stamp)))
    (run,) = read([tmp_path])
    assert run.grades.mean() == 1


def test_tasks_of_a_group_are_one_domain_whose_tasks_are_its_subjects(tmp_path: Path) -> None:
    for i, task in enumerate(("m_algebra", "m_geometry")):
        file = World.random(3, seed=i, task=task).write(tmp_path, "intern")
        results = json.loads(file.read_text())
        file.write_text(json.dumps({**results, "group_subtasks": {"m": ["m_algebra", "m_geometry"]}}))
    (run,) = read([tmp_path])
    assert run.domain == "m"
    assert run.subjects == ("algebra",) * 3 + ("geometry",) * 3


def test_a_metric_and_a_filter_can_be_chosen(tmp_path: Path) -> None:
    file = World.random(3).write(tmp_path, "intern")
    samples = next(file.parent.glob("samples_*"))
    lines = [json.loads(line) for line in samples.open()]
    doubled = [{**line, "filter": name, "em": float(name == "loose")} for line in lines for name in ("strict", "loose")]
    samples.write_text("\n".join(map(json.dumps, doubled)))
    assert read([tmp_path], "em,loose")[0].grades.tolist() == [1, 1, 1]
    assert read([tmp_path], "em")[0].grades.tolist() == [0, 0, 0]
    with pytest.raises(ArgumentError, match="no filter other; it has strict, loose"):
        read([tmp_path], "em,other")
    with pytest.raises(ArgumentError, match="no such metric in its samples; it has acc"):
        read([tmp_path], "bleu")


def test_an_unknown_field_is_refused_with_the_list_of_fields(tmp_path: Path) -> None:
    World.random(3).write(tmp_path, "intern")
    with pytest.raises(ArgumentError, match="--by level: no question has this field; they have q"):
        read([tmp_path], by="level")


def test_unreadable_folders_and_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="is not a folder"):
        read([tmp_path / "none"])
    with pytest.raises(ArgumentError, match="holds no results"):
        read([tmp_path])
    file = World.random(3).write(tmp_path, "intern")
    samples = next(file.parent.glob("samples_*"))
    samples.rename(tmp_path / "kept")
    with pytest.raises(ArgumentError, match="--log_samples"):
        read([tmp_path])
    samples.with_name(samples.name + ".xz").write_bytes(b"no xz")
    with pytest.raises(ArgumentError, match="cannot be read"):
        read([tmp_path])
    samples.with_name(samples.name + ".xz").unlink()
    (tmp_path / "kept").rename(samples)
    whole = samples.read_text()
    samples.write_text(whole[: len(whole) // 2])
    with pytest.raises(ArgumentError, match="cannot be read"):
        read([tmp_path])
    samples.write_text("")
    with pytest.raises(ArgumentError, match="holds no samples"):
        read([tmp_path])
    for broken in ("{", "[]", '{"config": {}}', '{"config": 1, "configs": 2}'):
        file.write_text(broken)
        with pytest.raises(ArgumentError, match=str(file.name)):
            read([tmp_path])


def test_a_broken_ledger_is_named_and_other_files_are_ignored(tmp_path: Path) -> None:
    file = World.random(3).write(tmp_path, "intern")
    (tmp_path / "mine.jsonl").write_text('{"question": "?"}\n')
    assert read([tmp_path])[0].records
    ledger = file.with_name("ledger.jsonl")
    ledger.write_text(ledger.read_text()[:-40])
    with pytest.raises(ArgumentError, match=r"ledger\.jsonl cannot be read as a ledger"):
        read([tmp_path])


def test_a_gguf_file_in_another_folder_is_the_same_model(tmp_path: Path) -> None:
    names = {"mentor": "large.gguf", "intern": "small.gguf"}
    there = World.random(4, models={role: f"models/{name}" for role, name in names.items()})
    there.write(tmp_path / "a", "cascade")
    World.random(4, models=names).write(tmp_path / "b", "mentor")
    World.random(4, models=names | {"intern": "models/other.gguf"}).write(tmp_path / "c", "intern")
    data = report_data.read([tmp_path])
    (comparison,) = data.comparisons
    assert [run.policy for run in comparison.runs] == ["mentor", "cascade"]
    told = [line for line in environment(data) if "is in no table" in line]
    assert len(told) == 1
    assert "(models/other.gguf) is none of the pairs that ran on this task; report it alone." in told[0]


def test_of_few_questions_the_closed_gap_has_an_interval(tmp_path: Path) -> None:
    """The stages differ on one of three questions, so that many resamples hold no gap."""
    right = np.array([[1.0, 1, 1], [1, 1, 1], [0, 0, 1]])
    world = World(right, np.where(right > 0, 0.9, 0.1))
    for policy in ("stage:0", "stage:1", "stage:2", "cascade"):
        world.write(tmp_path, policy)
    (comparison,) = group(read([tmp_path]))
    assert comparison.cascade is not None
    found = comparison.gap_closed(comparison.cascade)
    assert found is not None
    assert np.isfinite([found[0], *found[1]]).all()


def test_runs_that_have_no_stages_stand_beside_those_of_a_pair_whatever_their_efforts_are(tmp_path: Path) -> None:
    world = World.random(6)
    for policy in ("outline:80", "steps:1", "intern", "stage:2", "cascade"):
        file = world.write(tmp_path / policy.replace(":", "-"), policy)
        if policy in ("outline:80", "steps:1"):
            results = json.loads(file.read_text())
            results["config"]["tandem"]["efforts"] = [100, 500, 1000]
            file.write_text(json.dumps(results))
    (comparison,) = group(read([tmp_path]))
    assert {run.policy for run in comparison.runs} == {"outline:80", "steps:1", "intern", "stage:2", "cascade"}
    alone = [tmp_path / name for name in ("outline-80", "steps-1")]
    assert [len(one.runs) for one in group(read(alone))] == [2]


def test_runs_on_different_questions_are_refused(tmp_path: Path) -> None:
    World.random(3).write(tmp_path, "intern")
    World.random(2).write(tmp_path, "mentor")
    with pytest.raises(ArgumentError, match=r"\(3 questions\) and .* \(2\) on t answered different questions"):
        group(read([tmp_path]))


def test_two_pairs_under_one_name_are_refused(tmp_path: Path) -> None:
    world = World.random(3)
    world.write(tmp_path, "intern")
    file = world.write(tmp_path, "cascade")
    results = json.loads(file.read_text())
    results["config"]["tandem"]["intern"]["parameters"] += 1
    file.write_text(json.dumps(results))
    with pytest.raises(ArgumentError, match=r"mix two pairs: lab/small has 100000000\d parameters in one"):
        group(read([tmp_path]))


def test_secret_arguments_are_dropped(tmp_path: Path) -> None:
    given = {"policy": "intern", "mentor_api_key": "S3CRET", "hf_token": "S3CRET", "dtype": "auto"}
    World.random(3).write(tmp_path, "intern", arguments=given)
    (run,) = read([tmp_path])
    assert "S3CRET" not in repr(run)
    assert run.arguments == {"policy": "intern", "dtype": "auto"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/data/models/big", "…/big"),
        ("~/models/big", "…/big"),
        (r"C:\models\big", "…/big"),
        ("deepseek-ai/big", "deepseek-ai/big"),
        ("http://host:8000/v1", "http://host:8000/v1"),
        ([100, 500], "100:500"),
        ("build/store.sqlite", "build/store.sqlite"),
    ],
)
def test_paths_on_this_machine_are_cut_to_their_last_part(value: object, expected: str) -> None:
    assert without_paths(value) == expected


def test_small_differences_of_small_costs_keep_a_ledger_apart(tmp_path: Path) -> None:
    """Costs of tiny models are around 1e-9 TFLOPs, where a tolerance of 1e-8 would take any ledger for the run's."""
    file = World.random(5).write(tmp_path, "cascade")
    samples, ledger = next(file.parent.glob("samples_*")), file.with_name("ledger.jsonl")
    for path in (samples, ledger):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        small = [{**line, "tflops": line["tflops"] * 1e-9} if "tflops" in line else line for line in lines]
        path.write_text("\n".join(map(json.dumps, small)))
    assert read([tmp_path])[0].records
    head, *lines = ledger.read_text().splitlines()
    doubled = [{**json.loads(line), "tflops": 2 * json.loads(line)["tflops"]} for line in lines]
    ledger.write_text("\n".join([head, *map(json.dumps, doubled)]))
    assert not read([tmp_path])[0].records


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("policy=stage:1,efforts=5:9", {"policy": "stage:1", "efforts": "5:9"}),
        ("base_url=http://a,b/c,batch_size=4", {"base_url": "http://a,b/c", "batch_size": "4"}),
        ('{"policy": "mentor", "extra": {"a": [1, 2]}}', {"policy": "mentor", "extra": {"a": [1, 2]}}),
        ("policy=mentor, mentor_token=secret,model=x", {"policy": "mentor"}),
        ("{broken", {}),
        ("", {}),
        (None, {}),
    ],
)
def test_model_arguments_are_read_in_every_form(text: Any, arguments: dict[str, Any]) -> None:
    assert harness_files.model_arguments(text) == arguments


def test_a_task_that_records_no_metric_needs_one_named(tmp_path: Path) -> None:
    file = World.random(3).write(tmp_path, "intern")
    results = json.loads(file.read_text())
    for config in ({}, {"metric_list": []}, {"metric_list": None}):
        file.write_text(json.dumps({**results, "configs": {"t": config}}))
        with pytest.raises(ArgumentError, match=r"names no metric of t; give one with --metric NAME"):
            read([tmp_path])
        assert len(read([tmp_path], metric="acc")) == 1


def test_a_metric_that_is_no_number_of_each_question_is_refused(tmp_path: Path) -> None:
    file = World.random(3).write(tmp_path, "intern")
    samples = next(file.parent.glob("samples_*"))
    lines = [{**json.loads(line), "acc": [0.5, 12]} for line in samples.read_text().splitlines()]
    samples.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(ArgumentError, match=r"--metric acc: t has \[0.5, 12\] for a question"):
        read([tmp_path])


def test_a_subject_of_zero_is_a_subject(tmp_path: Path) -> None:
    World.random(4, subjects=[0, 1, 0, 1]).write(tmp_path, "intern")  # type: ignore[list-item]
    (run,) = read([tmp_path])
    assert run.subjects == ("subject 0", "subject 1") * 2


@pytest.mark.parametrize(("pair", "wording"), [("pair", "pair"), ("big+small", "gpra")])
def test_runs_from_before_wordings_had_names_stand_beside_newer_ones(pair: str, wording: str) -> None:
    before = {"pair": pair, "efforts": [18, 24, 40], "insights": "cutoff", "guidance": "guided"}
    assert grouping.pair_key(before) == grouping.pair_key(before | {"prompts": wording})
    assert grouping.pair_key(before) != grouping.pair_key(before | {"prompts": "steps"})
