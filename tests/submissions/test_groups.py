"""Exported results of groups of tasks: the harness's and the report's numbers, with how they were aggregated."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from command_line import command, options_of
from lm_eval_tandem import _paths
from lm_eval_tandem.submissions import every_eval_ever_results, sources
from lm_eval_tandem.submissions.models import identify
from submissions.every_eval_ever_schema import check
from submissions.exports import CODE, QUESTIONS, TASK, by_metric, file_of, needs_validator, submit, validate
from submissions.report_numbers import agrees, report_cells
from tasks.in_process import lm_eval

GROUP = "pair_group"
WEIGHTS = {"acc": "number of questions of each task", "length": "each task alike"}


@pytest.fixture(scope="module")
def grouped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a group of two tasks of different sizes, with one metric weighted by them, and one not."""
    base = tmp_path_factory.mktemp("groups")
    tasks = shutil.copytree(_paths.task_configs() / "pair", base / "tasks")
    metrics = [{"metric": name, "aggregation": "mean", "weight_by_size": name == "acc"} for name in WEIGHTS]
    group = {"group": GROUP, "task": [TASK, CODE], "aggregate_metric_list": metrics}
    (tasks / "group.yaml").write_text(json.dumps(group))
    asked = {TASK: list(range(QUESTIONS)), CODE: [0, 1]}
    arguments = command(GROUP, policy="stage:1", ledger=base / "run" / "ledger.jsonl")
    lm_eval(
        *options_of(arguments),
        *("--samples", json.dumps(asked), "--output_path", str(base / "run"), "--log_samples"),
        *("--include_path", str(tasks)),
    )
    return base / "run"


def test_results_of_groups_go_out_with_how_they_were_aggregated(grouped: Path, tmp_path: Path) -> None:
    submit(tmp_path / "out", grouped)
    given = json.loads(file_of(grouped, "results_*").read_text())["groups"][GROUP]
    exported = [results for results, _ in check(tmp_path / "out").values()]
    files = {results["evaluation_results"][0]["evaluation_name"]: results for results in exported}
    assert set(files) == {TASK, CODE, GROUP}
    metrics = by_metric(files[GROUP])
    for name, weights in WEIGHTS.items():
        details, figures = metrics[name]["metric_config"]["additional_details"], metrics[name]["score_details"]
        assert figures["score"] == given[f"{name},none"]
        assert figures["uncertainty"]["standard_error"]["value"] == given[f"{name}_stderr,none"]
        assert figures["uncertainty"]["num_samples"] == QUESTIONS + 2
        assert (details["aggregation"], details["weights"]) == ("mean", weights)
        assert details["tasks"] == f"{CODE} (2),{TASK} ({QUESTIONS})"
        has_interval = "confidence_interval" in figures["uncertainty"]
        assert has_interval == (name == "acc"), "a mean of tasks alike has no interval over questions"
    typed = metrics["acc"]["generation_config"]["generation_args"]["execution_command"]
    assert f"--tasks {GROUP} " in typed


def test_the_results_of_a_group_are_those_of_the_report(grouped: Path) -> None:
    (submitted,) = sources.read([grouped])
    (group,) = submitted.groups
    model = identify(submitted, "Test Lab", "planet", None)
    content = every_eval_ever_results.results_file(submitted, group, model, "Test Lab", "other", 0.0, None)
    metrics = by_metric(content)
    del metrics["length"]  # the report's is the mean over all questions
    cells = [(run, cell) for run, cell in report_cells(grouped) if cell[0] != "length (tokens)"]
    assert {run.domain for run, _ in cells} == {GROUP}
    assert sum(agrees(heading, number, metrics, "acc") for _, (heading, number) in cells) >= 3


def test_a_result_of_a_group_that_its_tasks_do_not_give_does_not_go_out(
    grouped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(grouped, tmp_path / "run")
    file = file_of(folder, "results_*")
    harness = json.loads(file.read_text())
    for entries in (harness["groups"], harness["results"]):
        entries[GROUP]["length,none"] += 1
    file.write_text(json.dumps(harness))
    submit(tmp_path / "out", folder)
    assert f"{GROUP}: length is no mean of what its tasks have, and does not go out" in capsys.readouterr().out
    (changed,) = [
        results
        for results, _ in check(tmp_path / "out").values()
        if results["evaluation_results"][0]["evaluation_name"] == GROUP
    ]
    assert "length" not in {
        name
        for name, result in by_metric(changed).items()
        if result["score_details"]["score"] == harness["groups"][GROUP]["length,none"]
    }


@needs_validator
def test_the_board_s_validator_accepts_results_of_groups(grouped: Path, tmp_path: Path) -> None:
    submit(tmp_path / "out", grouped)
    validate(tmp_path / "out")
