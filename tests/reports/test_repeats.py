"""Runs of one policy that were asked differently are rows of their own, and no run replaces another without a word."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.report import report
from lm_eval_tandem.reports.sections.same_questions import differences
from lm_eval_tandem.reports.sources import reading
from lm_eval_tandem.reports.sources.grouping import group
from lm_eval_tandem.reports.sources.question_settings import told_apart
from lm_eval_tandem.submissions import sources
from reports.world import POLICIES, STAMP, World, read

OLDER, NEWER = "2026-01-01T00-00-00.000000", "2026-02-02T00-00-00.000000"

Change = Callable[[dict[str, Any]], Any]


def written(
    folder: Path,
    policy: str,
    stamp: str,
    questions: Collection[int] | None = None,
    change: Change | None = None,
    **world: Any,
) -> Path:
    """Write a run with a time stamp, on some of six questions, with its results changed; return the results file."""
    file = World.random(6, **world).write(folder, policy, with_ledger=False)
    graded = [json.loads(line) for samples in file.parent.glob("samples_*") for line in samples.open()]
    accuracy = sum(line["acc"] for line in graded if questions is None or line["doc_id"] in questions)
    accuracy /= len(graded if questions is None else questions)
    content = {"n-shot": {}, **json.loads(file.read_text())}
    content["results"] = {task: {"acc,none": accuracy} for task in content["configs"]}
    if change is not None:
        change(content)
    file.write_text(json.dumps(content))
    for part in list(file.parent.glob(f"*{STAMP}*")):
        if questions is not None and part.name.startswith("samples_"):
            lines = [line for line in part.read_text().splitlines() if json.loads(line)["doc_id"] in questions]
            part.write_text("\n".join(lines))
        part.rename(part.with_name(part.name.replace(STAMP, stamp)))
    return file.with_name(file.name.replace(STAMP, stamp))


def few_shot(results: dict[str, Any]) -> None:
    results["n-shot"]["t"] = 2


def as_other_model(results: dict[str, Any]) -> None:
    del results["config"]["tandem"]
    results["config"]["model"] = "vllm"
    results["model_name"] = "lab/middle"


WAYS: list[tuple[Change, str]] = [
    (few_shot, "2-shot"),
    (
        lambda results: results.update(chat_template="{{x}}", chat_template_sha="abcdef0123"),
        "with chat template abcdef01",
    ),
    (lambda results: results.update(system_instruction="Be exact."), "system instruction Be exact."),
    (lambda results: results["configs"]["t"].update(generation_kwargs={"max_gen_toks": 60}), "max_gen_toks 60"),
    (
        lambda results: results["configs"]["t"].update(generation_kwargs={"temperature": 0.7}),
        "sampling temperature 0.7",
    ),
    (lambda results: results.update(versions={"t": 2.0}), "task version 2.0"),
]


@pytest.mark.parametrize(("change", "words"), WAYS)
@pytest.mark.parametrize("policy", ["intern", "cascade"])
def test_runs_of_a_policy_that_were_asked_differently_are_two_rows(
    tmp_path: Path, policy: str, change: Change, words: str
) -> None:
    written(tmp_path / "a", policy, OLDER)
    written(tmp_path / "b", policy, NEWER, change=change)
    found = reading.read([tmp_path])
    (comparison,) = group(found.runs)
    labels = [comparison.label(run) for run in comparison.runs]
    assert len(set(labels)) == 2
    assert f"{policy}, {words}" in labels
    assert not found.left_out
    assert differences(comparison)
    files = [run for run in sources.read([tmp_path])]
    assert len(files) == 2
    assert {task.told_apart for run in files for task in run.tasks} >= {(words,)}
    assert {task.run.identity for run in files for task in run.tasks} == {run.identity for run in found.runs}


def test_a_newer_run_on_fewer_questions_does_not_take_the_place_of_an_older_one(tmp_path: Path) -> None:
    whole = written(tmp_path / "a", "intern", OLDER)
    few = written(tmp_path / "b", "intern", NEWER, range(2))
    found = reading.read([tmp_path])
    assert [len(run.questions) for run in found.runs] == [6]
    (left,) = found.left_out
    assert (left.file, left.taken) == (few, whole)
    assert left.sentence() == (
        f"tandem-large+small-intern on t was run repeatedly: {whole} is taken, and not {few}, which has fewer "
        "questions (2; 6 were taken)."
    )
    (submitted,) = sources.read([tmp_path])
    assert submitted.file == whole
    assert submitted.notes == [left.sentence()]


@pytest.mark.parametrize("questions", [range(2), range(6)])
def test_a_newer_run_on_the_same_questions_or_more_takes_the_place_and_is_named(
    tmp_path: Path, questions: range
) -> None:
    old = written(tmp_path / "a", "intern", OLDER, questions)
    new = written(tmp_path / "b", "intern", NEWER, seed=1)
    (left,) = reading.read([tmp_path]).left_out
    assert (left.file, left.taken) == (old, new)
    assert left.sentence().endswith("(2; 6 were taken)." if len(questions) == 2 else "which is older.")
    line = left.sentence(names=True)
    assert str(tmp_path) not in line
    assert old.name in line
    assert line in report([tmp_path]).environment
    assert [run.file for run in sources.read([tmp_path])] == [new]


def test_of_runs_on_different_questions_none_is_left_out(tmp_path: Path) -> None:
    for stamp, questions in ((OLDER, [0, 1, 2, 5]), (NEWER, [0, 3, 4, 5])):
        written(tmp_path / "other" / stamp, "intern", stamp, questions, as_other_model)
        written(tmp_path / "tandem" / stamp, "mentor", stamp, questions)
    found = reading.read([tmp_path / "other"])
    assert sorted(run.questions[1][1] for run in found.runs) == [1, 3]
    (comparison,) = group(found.runs)
    every = [*comparison.runs, *[joined.run for joined in comparison.partial]]
    assert {comparison.label(run) for run in every} == {
        "vllm middle, questions asked 0, 1, 2, 5",
        "vllm middle, questions asked 0, 3, 4, 5",
    }
    assert not found.left_out
    assert len(sources.read([tmp_path / "other"])) == 2
    with pytest.raises(ArgumentError, match="answered different questions"):
        group(read([tmp_path / "tandem"]))


def test_a_folder_that_is_named_twice_is_read_once(tmp_path: Path) -> None:
    written(tmp_path / "a", "intern", OLDER)
    found = reading.read([tmp_path, tmp_path / "a"])
    assert (len(found.runs), found.left_out) == (1, [])


def test_the_tasks_of_a_group_stay_together_in_each_way_to_ask(tmp_path: Path) -> None:
    for stamp, shots in ((OLDER, {"m_a": 0, "m_b": 5}), (NEWER, {"m_a": 2, "m_b": 2})):
        for task, number in shots.items():

            def of_group(results: dict[str, Any], task: str = task, number: int = number) -> None:
                results |= {"group_subtasks": {"m": ["m_a", "m_b"]}, "n-shot": {task: number}}

            written(tmp_path / stamp / task, "intern", stamp, change=of_group, task=task)
        one = [next((tmp_path / stamp).rglob(f"*{task}*/results_*.json")) for task in shots]
        contents = [json.loads(file.read_text()) for file in one]
        for name in ("configs", "n-shot"):  # both tasks in one results file, as a run on the group leaves them
            contents[0][name] |= contents[1][name]
        one[0].write_text(json.dumps(contents[0]))
        for samples in one[1].parent.glob("samples_*"):
            samples.rename(one[0].with_name(samples.name))
        one[1].unlink()
    found = reading.read([tmp_path])
    (comparison,) = group(found.runs)
    assert [len(run.questions) for run in comparison.runs] == [12, 12]
    assert [run.settings["m_b"]["few-shot examples"] for run in comparison.runs] == ["5", "2"]
    assert [comparison.label(run) for run in comparison.runs] == ["intern, 0 or 5-shot", "intern, 2-shot"]


def test_a_report_takes_the_stages_that_were_asked_like_the_other_runs(tmp_path: Path) -> None:
    for policy in POLICIES:
        written(tmp_path / "a", policy, OLDER)
    for policy in ("intern", "stage:1", "cascade"):
        written(tmp_path / "b", policy, NEWER, change=few_shot)
    (comparison,) = group(read([tmp_path]))
    shots = {
        policy: {run.settings["t"]["few-shot examples"]} for policy, run in [("cascade", comparison.cascade)] if run
    }
    assert shots == {"cascade": {"0"}}
    assert {run.settings["t"]["few-shot examples"] for run in comparison.stages.values()} == {"0"}
    assert comparison.oracle is not None
    made = report([tmp_path])
    (policies,) = [table for table in made.tables if table.name.startswith("policies-")]
    rows = [str(row[0]) for row in policies.rows]
    assert len(rows) == len(set(rows)) == 9
    assert {"intern, 0-shot", "intern, 2-shot", "stage:1, 2-shot", "cascade, 2-shot", "stage:2"} <= set(rows)


@pytest.mark.parametrize(("name", "values"), [("seed", (1, 2)), ("loglikelihood", ("intern", "mentor"))])
def test_runs_with_another_setting_are_named_by_it(tmp_path: Path, name: str, values: tuple[Any, Any]) -> None:
    for stamp, value in zip((OLDER, NEWER), values, strict=True):

        def other(results: dict[str, Any], value: Any = value) -> None:
            results["config"]["tandem"][name] = value

        written(tmp_path / stamp, "intern", stamp, change=other)
    (comparison,) = group(read([tmp_path]))
    assert sorted(map(comparison.label, comparison.runs)) == [f"intern, {name} {value}" for value in values]


def test_the_seed_of_examples_is_no_difference_to_a_run_without_any() -> None:
    bare, shown = {"few-shot examples": "0"}, {"few-shot examples": "2", "seed of the few-shot examples": "1"}
    other = {**shown, "seed of the few-shot examples": "2"}
    assert told_apart([bare, shown]) == [["0-shot"], ["2-shot"]]
    assert told_apart([shown, other]) == [["seed of the few-shot examples 1"], ["seed of the few-shot examples 2"]]
    assert len({tuple(words) for words in told_apart([bare, shown, other])}) == 3
