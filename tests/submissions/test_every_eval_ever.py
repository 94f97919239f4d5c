"""Exports for Every Eval Ever: whole, true to the results, refused where files do not fit, and without secrets.

The runs are real: tandem, an ensemble and the harness's own models on the bundled pair, a mentor behind a server on the
loopback, and the committed results.
"""

from __future__ import annotations

import copy
import json
import math
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from command_line import command, options_of
from engines.http.openai_server import serving
from lm_eval_tandem import cli, digits, pair
from lm_eval_tandem.reports.sections.accuracy import policies_table
from lm_eval_tandem.reports.sources import report_data
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Number
from lm_eval_tandem.submissions import every_eval_ever_results, every_eval_ever_samples, sources
from lm_eval_tandem.submissions.models import identify
from lm_eval_tandem.submissions.redaction import Redaction
from submissions.every_eval_ever_schema import check
from tasks.in_process import lm_eval

packing = pytest.importorskip("benchmarks.packing", reason="the tests were copied without benchmarks/")

TASK = "tandem_pair_math"
QUESTIONS = 6
PRICES = {
    **{"mentor_price_input": 2, "mentor_price_cached": 0.5, "mentor_price_output": 8},
    **{"intern_price_input": 0.4, "intern_price_cached": 0.1, "intern_price_output": 1.6},
}
RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted({file.parents[2] for file in RESULTS.glob("real/*/*/*/*/results_*.json")})
COMMITTED += [folder for folder in [RESULTS / "pair"] if folder.is_dir()]
OPTIONS = ("--organization", "Test Lab", "--relationship", "other", "--developer", "planet")

Exported = dict[Path, tuple[dict[str, Any], list[dict[str, Any]]]]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of runs for each kind of model."""
    base = tmp_path_factory.mktemp("runs")

    def run(name: str, arguments: Sequence[str], *more: str) -> None:
        output = ["--limit", str(QUESTIONS), "--output_path", str(base / name), "--log_samples"]
        lm_eval(*options_of(arguments), *output, *more)

    for policy in ("cascade", "intern"):
        kept = base / f"tandem-{policy}" / "ledger.jsonl"
        run(f"tandem-{policy}", command(TASK, policy=policy, ledger=kept, **PRICES))
    kept = base / "ensemble" / "ledger.jsonl"
    ensemble = {"models": "pair/mentor;pair/intern", "aggregation": "best_of", "scorer": "logprob:intern"}
    run("ensemble", command(TASK, "ensemble", ledger=kept, **ensemble))
    run("hf", command(TASK, "hf", pretrained=pair.INTERN))
    with serving(Path(pair.MENTOR)) as server:
        api = {"mentor": "tiny", "mentor_backend": "openai", "mentor_base_url": server.url, "intern": "pair"}
        api |= {"prompts": "pair", "guidance": "guided", "efforts": "18:24:40", "policy": "stage:2"}
        kept = base / "api" / "ledger.jsonl"
        run("api", command(TASK, **api, **{"mentor_parameters": 884480}, ledger=kept, **PRICES))
        url = f"{server.url}/completions"
        plain = command(TASK, "local-completions", base_url=url, pretrained="tiny", tokenizer_backend=None)
        run("server", plain, "--batch_size", "1")
    return base


@pytest.fixture
def cascade(runs: Path, tmp_path: Path) -> Path:
    """A copy of the cascade's run, to be changed."""
    return shutil.copytree(runs / "tandem-cascade", tmp_path / "run")


def submit(output: Path, *results: Path, options: Sequence[str] = OPTIONS) -> None:
    cli.main(["submit", "every_eval_ever", *map(str, results), "--output", str(output), *options])


def refused(capsys: pytest.CaptureFixture[str], output: Path, *results: Path, options: Sequence[str] = OPTIONS) -> str:
    """Return the sentence with which an export is refused; it leaves no file."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        submit(output, *results, options=options)
    assert ended.value.code == 1
    assert not [file for file in output.rglob("*") if file.is_file()]
    message = capsys.readouterr().err.strip()
    assert message.count("\n") == 0, message
    return message.removeprefix("lm-eval-tandem: error: ")


def only(exported: Exported) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    (found,) = exported.values()
    return found


def by_metric(results: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {result["evaluation_result_id"].rpartition("/")[2]: result for result in results["evaluation_results"]}


def file_of(folder: Path, pattern: str) -> Path:
    (file,) = folder.rglob(pattern)
    return file


def change(file: Path, how: Callable[[list[Any]], Any]) -> None:
    """Change the lines of a JSON-lines file."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    how(lines)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


# What an export holds


def test_every_kind_of_run_gives_whole_files(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    submit(tmp_path / "out", runs)
    printed = capsys.readouterr().out
    exported = check(tmp_path / "out")
    ids = sorted(results["model_info"]["id"] for results, _ in exported.values())
    checksum = json.loads(file_of(runs / "tandem-cascade", "results_*").read_text())["config"]["tandem"]["judge"][
        "sha256"
    ]
    assert ids == sorted(
        [
            f"lm-eval-tandem/tandem-pair-cascade-{checksum[:12]}",
            "lm-eval-tandem/pair-intern",
            "lm-eval-tandem/pair-intern",
            "lm-eval-tandem/ensemble-pair-all-best_of",
            "Test-Lab/tandem-tiny+pair-intern-stage-2",
            "planet/tiny",
        ]
    )
    assert "12 files in" in printed
    assert "every_eval_ever validate 'data/lm-eval-tandem/*/*/*.json*'" in printed
    assert (
        "hf upload evaleval/EEE_datastore data/lm-eval-tandem data/lm-eval-tandem --repo-type dataset --create-pr"
        in printed
    )
    assert "/eee validate changed" in printed


def test_a_cascade_says_what_it_is_made_of_and_what_it_cost(runs: Path, tmp_path: Path) -> None:
    submit(tmp_path, runs / "tandem-cascade")
    results, samples = only(check(tmp_path))
    recorded = json.loads(file_of(runs / "tandem-cascade", "results_*").read_text())["config"]["tandem"]
    details = results["model_info"]["additional_details"]
    assert details["classifier_sha256"] == recorded["judge"]["sha256"]
    assert details["policy"] == "cascade"
    assert details["thresholds"] == digits.colon_separated(recorded["thresholds"])
    for role, parameters in (("mentor", 884480), ("intern", 188416)):
        assert details[f"{role}_engine"] == "transformers"
        assert details[f"{role}_engine_version"] == recorded[role]["transformers"]
        assert details[f"{role}_deployment_type"] == "self_deployed"
        assert details[f"{role}_parameters"] == str(parameters)
    assert (details["deployment_type"], details["model_availability"]) == ("self_deployed", "open_weights")
    assert details["mentor_price_output_usd_per_million_tokens"] == "8"
    assert results["model_info"]["inference_engine"]["name"] == "transformers"
    metrics = by_metric(results)
    assert {"acc", "length", "mentor_tokens", "tflops", "bill", "dollars", "seconds", "stage"} <= set(metrics)
    assert metrics["acc"]["metric_config"]["metric_id"] == "accuracy"
    assert metrics["dollars"]["metric_config"]["metric_unit"] == "usd"
    assert metrics["dollars"]["metric_config"]["max_score"] == "Infinity"
    for name in ("length", "bill", "dollars", "seconds"):
        assert (
            float(metrics["acc"]["score_details"]["details"][f"mean_{name}"]) == metrics[name]["score_details"]["score"]
        )
    arguments = metrics["acc"]["generation_config"]["generation_args"]
    assert arguments["temperature"] == 0
    assert arguments["max_tokens"] == 200
    assert arguments["prompt_template"] == "{{question}}"
    assert arguments["execution_command"].startswith("lm_eval --model tandem --model_args policy=cascade ")
    assert len(samples) == QUESTIONS * len(metrics)


def test_samples_have_the_questions_and_answers_of_the_run(runs: Path, tmp_path: Path) -> None:
    submit(tmp_path, runs / "hf", options=(*OPTIONS, "--rows", "grade"))
    _, samples = only(check(tmp_path))
    lines = [json.loads(line) for line in file_of(runs / "hf", "samples_*").read_text().splitlines()]
    assert len(samples) == QUESTIONS
    for sample, line in zip(samples, sorted(lines, key=lambda line: line["doc_id"]), strict=True):
        assert sample["sample_id"] == str(line["doc_id"])
        assert sample["input"]["raw"] == line["doc"]["question"] == line["arguments"]["gen_args_0"]["arg_0"]
        assert sample["input"]["reference"] == [line["target"]]
        assert sample["output"]["raw"] == line["resps"][0]
        assert sample["evaluation"] == {"score": line["acc"], "is_correct": line["acc"] == 1}
        assert sample["token_usage"] is sample["performance"] is None  # the harness records neither


def test_tokens_times_and_costs_of_samples_are_the_ledger_s(runs: Path, tmp_path: Path) -> None:
    for name in ("tandem-cascade", "ensemble", "api"):
        submit(tmp_path / name, runs / name, options=(*OPTIONS, "--rows", "grade"))
        _, samples = only(check(tmp_path / name))
        _, *records = [json.loads(line) for line in (runs / name / "ledger.jsonl").read_text().splitlines()]
        for sample, record in zip(samples, records, strict=True):
            tokens, spent = record["tokens"], (record.get("spent") or {}).values()
            read = sum(tokens[key] for key in tokens if key.endswith("_prefill"))
            assert sample["token_usage"]["input_tokens"] == read + sum(one["prefill"] + one["judged"] for one in spent)
            written = tokens["mentor_new"] + tokens["intern_new"] + sum(one["new"] for one in spent)
            assert sample["token_usage"]["output_tokens"] == written > 0
            seconds = record["judge_seconds"] + record["generate_seconds"]
            assert sample["performance"]["latency_ms"] == pytest.approx(1000 * seconds)
            for key in ("tflops", "bill", "dollars"):
                assert (key in sample["metadata"]) == (record[key] is not None)
                if record[key] is not None:
                    assert float(sample["metadata"][key]) == pytest.approx(record[key])
            assert sample["metadata"]["reason"] == record["reason"]


def test_an_api_mentor_has_dollars_and_is_managed_by_whom_its_address_says(runs: Path, tmp_path: Path) -> None:
    submit(tmp_path / "here", runs / "api")
    results, _ = only(check(tmp_path / "here"))
    details = results["model_info"]["additional_details"]
    assert by_metric(results)["dollars"]["score_details"]["score"] > 0
    assert (details["mentor_deployment_type"], details["intern_deployment_type"]) == ("self_deployed",) * 2
    assert details["model_availability"] == details["mentor_model_availability"] == "unknown"
    folder = shutil.copytree(runs / "api", tmp_path / "copy")
    file = file_of(folder, "results_*")
    content = json.loads(file.read_text())
    content["config"]["model_args"]["mentor_base_url"] = "https://openrouter.ai/api/v1"
    file.write_text(json.dumps(content))
    submit(tmp_path / "there", folder, options=(*OPTIONS, "--availability", "closed_weights"))
    info = only(check(tmp_path / "there"))[0]["model_info"]
    assert info["additional_details"]["mentor_deployment_type"] == "externally_managed"
    assert info["additional_details"]["deployment_type"] == "unknown"  # one here, one there
    assert info["additional_details"]["mentor_model_availability"] == "closed_weights"
    assert info["additional_details"]["mentor_platform"] == "openrouter"
    assert "openrouter.ai" not in "".join(file.read_text() for file in (tmp_path / "there").rglob("*.json"))


def as_vllm(run: Path) -> None:
    """Change the files of a cascade's run to those that the same run has with vLLM and models of the Hub."""
    facts = {"engine": "vllm", "vllm": "0.29.0", "dtype": "torch.bfloat16", "device": "cuda", "entropy": "topk:100"}
    models = {"mentor": "Qwen/Qwen3-8B", "intern": "Qwen/Qwen3-0.6B"}

    def changed(description: dict[str, Any]) -> dict[str, Any]:
        roles = {role: {**description[role], **facts, "model": model} for role, model in models.items()}
        return {**description, **roles, "run": "tandem-Qwen3-8B+Qwen3-0.6B-cascade", "pair": "Qwen3-8B+Qwen3-0.6B"}

    file = file_of(run, "results_*")
    content = json.loads(file.read_text())
    content["config"]["tandem"] = changed(content["config"]["tandem"])
    content["config"]["model_args"] |= {**models, "backend": "vllm", "tensor_parallel_size": 1}
    file.write_text(json.dumps(content))
    change(run / "ledger.jsonl", lambda lines: lines.__setitem__(0, changed(lines[0])))


def test_models_of_the_hub_with_vllm_have_their_own_names(runs: Path, cascade: Path, tmp_path: Path) -> None:
    as_vllm(cascade)
    submit(tmp_path / "tandem", cascade)
    info = only(check(tmp_path / "tandem"))[0]["model_info"]
    assert info["id"].startswith("Test-Lab/tandem-Qwen3-8B+Qwen3-0.6B-cascade-")
    assert info["developer"] == "Test Lab"
    assert info["inference_engine"] == {"name": "vllm", "version": "0.29.0"}
    details = info["additional_details"]
    assert (details["mentor_model"], details["intern_model"]) == ("Qwen/Qwen3-8B", "Qwen/Qwen3-0.6B")
    assert (details["deployment_type"], details["model_availability"]) == ("self_deployed", "open_weights")
    other = shutil.copytree(runs / "hf", tmp_path / "other")
    file = file_of(other, "results_*")
    content = json.loads(file.read_text())
    content["config"] |= {"model": "vllm", "model_args": "pretrained=Qwen/Qwen3-0.6B,dtype=bfloat16"}
    file.write_text(json.dumps(content))
    submit(tmp_path / "vllm", other, options=OPTIONS[:-2])
    info = only(check(tmp_path / "vllm"))[0]["model_info"]
    assert (info["id"], info["developer"]) == ("Qwen/Qwen3-0.6B", "Qwen")
    assert info["inference_engine"] == {"name": "vllm"}  # the harness does not record its version


def test_packed_files_give_the_same_export(cascade: Path, tmp_path: Path) -> None:
    submit(tmp_path / "plain", cascade)
    packing.pack(cascade)
    assert not list(cascade.rglob("*.jsonl"))
    submit(tmp_path / "packed", cascade)
    (plain, rows), (packed, packed_rows) = (only(check(tmp_path / name)) for name in ("plain", "packed"))
    timed = {"seconds"}  # packed ledgers keep three digits of it
    for name, result in by_metric(plain).items():
        assert by_metric(packed)[name]["metric_config"] == result["metric_config"]
        if name not in timed:
            mine, theirs = (one["score_details"] for one in (result, by_metric(packed)[name]))
            assert (mine["score"], mine["uncertainty"]) == (theirs["score"], theirs["uncertainty"])
    for one, other in zip(rows, packed_rows, strict=True):
        for field in ("input", "output", "sample_hash", "token_usage", "sample_id"):
            assert one[field] == other[field], field


def test_samples_without_questions_have_no_inputs_and_no_hash(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    packing.pack(cascade, questions=False)
    submit(tmp_path / "out", cascade)
    assert "have no questions" in capsys.readouterr().out
    _, samples = only(check(tmp_path / "out"))
    for sample in samples:
        assert sample["input"] == {"raw": "", "formatted": None, "reference": [], "choices": None}
        assert sample["sample_hash"] is None


def test_a_choice_is_the_answer_of_a_multiple_choice_question() -> None:
    sample = {
        "arguments": {
            f"gen_args_{i}": {"arg_0": "Is it?", "arg_1": f" {text}"} for i, text in enumerate(("no", "yes"))
        },
        "resps": [[["-3.5", "False"]], [["-0.5", "True"]]],
    }
    config = {"output_type": "multiple_choice"}
    assert every_eval_ever_samples.choices_of(sample, config) == ["no", "yes"]
    assert every_eval_ever_samples.answers_of(sample, config) == ["yes"]


def test_a_group_s_few_shot_prompt_stands_beside_the_bare_question(runs: Path) -> None:
    question_of = every_eval_ever_samples.question_reader("Q: {{question}}\nA:")
    assert question_of({"question": "1 + 1?"}) == "Q: 1 + 1?\nA:"
    assert question_of({"other": "1 + 1?"}) is None
    assert every_eval_ever_samples.question_reader("question")({"question": "x"}) == "x"
    assert every_eval_ever_samples.question_reader("def doc_to_text(doc): ...")({}) is None
    assert every_eval_ever_samples.question_reader("{{''.__class__.__mro__}}")({}) is None


# Every number is the report's and the harness's


@pytest.mark.parametrize("folder", COMMITTED, ids=lambda folder: folder.name)
def test_committed_runs_have_the_numbers_of_the_report_and_of_the_harness(folder: Path) -> None:
    cells = list(report_cells(folder))
    compared = 0
    for submitted in sources.read([folder]):
        model = identify(submitted, "Test Lab", "planet", None)
        for task in submitted.tasks:
            content = every_eval_ever_results.results_file(submitted, task, model, "Test Lab", "other", 0.0, None)
            metrics = by_metric(content)
            harness = submitted.results["results"][task.name]
            for key, value in harness.items():
                name, _, _ = key.partition(",")
                if name in metrics and name not in sources.NOT_A_METRIC:
                    assert metrics[name]["score_details"]["score"] == value
                    error = metrics[name]["score_details"]["uncertainty"]["standard_error"]
                    assert error["value"] == harness[key.replace(",", "_stderr,")]
                elif isinstance(value, float):
                    assert "_stderr" in name, f"{key} was not exported"
            ours = [cell for run, cell in cells if is_same(run, task.run)]
            assert ours, f"the report does not show {submitted.name} on {task.name}"
            for heading, number in ours:
                compared += agrees(heading, number, metrics, task.run.metric)
            compare_samples(submitted, task, model)
    assert compared >= len(cells) / 2


def is_same(shown: Run, run: Run) -> bool:
    return (shown.domain, shown.identity) == (run.domain, run.identity)


def report_cells(folder: Path) -> Iterator[tuple[Run, tuple[str, Number]]]:
    """Return every number of the report's tables of policies, with its run and the heading of its column."""
    for comparison in report_data.read([folder]).comparisons:
        table = policies_table(comparison)
        for run, row in zip(comparison.rows, table.rows, strict=True):
            for heading, cell in zip(table.columns, row, strict=True):
                if isinstance(cell, Number) and run.policy in {one.policy for one in comparison.runs}:
                    yield run, (f"{heading} {comparison.unit.factor}" if "FLOPs" in heading else heading, cell)


def agrees(heading: str, number: Number, metrics: dict[str, Any], grade: str) -> bool:
    """Compare a cell of the report with what was exported; False for cells that compare runs with each other."""
    factors = {"accuracy %": (grade, 100.0), "truncated %": ("truncated", 100.0), "seconds of calls": ("seconds", 1.0)}
    factors |= {"length (tokens)": ("length", 1.0), "mentor tokens": ("mentor_tokens", 1.0)}
    for start, name in (("cost (", "tflops"), ("whole bill (", "bill")):
        if heading.startswith(start):
            factors[heading] = (name, float(heading.rpartition(" ")[2]))
    if heading not in factors:
        return False
    name, factor = factors[heading]
    details = metrics[name]["score_details"]
    assert factor * details["score"] == pytest.approx(number.value, rel=1e-9)
    if number.interval is not None:
        interval = details["uncertainty"]["confidence_interval"]
        ends = factor * interval["lower"], factor * interval["upper"]
        assert ends == pytest.approx(number.interval, rel=1e-9, abs=1e-12)
    return True


def compare_samples(submitted: sources.SubmittedRun, task: sources.TaskResults, model: Any) -> None:
    """Compare the rows of the grade with the samples, and the ledger's tokens with the totals of the run."""
    rows = list(every_eval_ever_samples.rows(task, model, "id", True, Redaction()))
    assert len(rows) == len(task.run.questions)
    grades = [row["evaluation"]["score"] for row in rows]
    assert digits.mean(grades) == digits.mean(task.run.grades)
    for row, sample in zip(rows, task.samples["none"], strict=True):
        assert row["evaluation"]["score"] == sample[task.run.metric]
        assert row["output"]["raw"] == sample["resps"][0]
    if task.records and len(submitted.tasks) == 1:
        tokens = submitted.description and submitted.config["tandem"]["totals"]["tokens"]
        written = sum(row["token_usage"]["output_tokens"] for row in rows)
        assert written == tokens["mentor_new"] + tokens["intern_new"]


# What is refused


def ledger_changes() -> dict[str, tuple[Callable[[list[Any]], Any], str]]:
    """Return changes of a ledger by name, each with a part of the sentence that refuses it."""

    def set_in(line: int, *path: str, to: Any) -> Callable[[list[Any]], Any]:
        def how(lines: list[Any]) -> None:
            place = lines[line]
            for name in path[:-1]:
                place = place[name]
            place[path[-1]] = to(place[path[-1]]) if callable(to) else to

        return how

    def more(value: Any) -> Any:
        return value + 1

    return {
        "a record is missing": (lambda lines: lines.pop(), "questions"),
        "a record is added": (
            lambda lines: lines.append({**lines[-1], "doc_id": 99}),
            "has 7 questions, the samples 6",
        ),
        "another question": (set_in(1, "doc_id", to=99), "questions"),
        "another policy": (set_in(1, "policy", to="mentor"), "has the policy mentor"),
        "a token more": (set_in(2, "tokens", "intern_new", to=more), "bill"),
        "a prompt token more": (set_in(2, "tokens", "mentor_prefill", to=more), "bill"),
        "a lower bill": (set_in(2, "bill", to=1e-9), "bill"),
        "a lower price": (set_in(2, "dollars", to=lambda value: value / 2), "costs"),
        "other seconds": (set_in(2, "generate_seconds", to=lambda value: value / 2 + 1), "generate_seconds"),
        "another stage": (set_in(2, "stage", to=more), "costs"),
        "an end at the limit": (set_in(2, "finish_reason", to="length"), "costs"),
        "refused tokens": (set_in(2, "refused_tokens", to=more), "refused_tokens"),
        "another header": (set_in(0, "version", to="9.9.9"), "version"),
        "an unknown field": (set_in(1, "tokens", "made_up", to=lambda _: 1), "other fields"),
    }


@pytest.mark.parametrize("name", ledger_changes())
def test_a_changed_ledger_is_refused(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    how, part = ledger_changes()[name]
    if name == "an unknown field":
        change(cascade / "ledger.jsonl", lambda lines: lines[1]["tokens"].update(made_up=1))
    else:
        change(cascade / "ledger.jsonl", how)
    sentence = refused(capsys, tmp_path / "out", cascade)
    assert "the ledger of tandem-pair-cascade is not that of the results" in sentence
    assert part in sentence


def test_a_task_without_costs_still_shows_a_changed_ledger(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harness's own tasks report no costs, so the run's totals are all there is to compare."""
    shown = ("length", "mentor_tokens", "tflops", "dollars", "stage", "truncated", "mflops")

    def without_costs(lines: list[Any]) -> None:
        lines[:] = [{key: value for key, value in line.items() if key not in shown} for line in lines]

    change(file_of(cascade, "samples_*"), without_costs)
    file = file_of(cascade, "results_*")
    content = json.loads(file.read_text())
    task = content["results"][TASK]
    content["results"][TASK] = {key: value for key, value in task.items() if key.partition(",")[0] not in shown}
    file.write_text(json.dumps(content))
    submit(tmp_path / "whole", cascade)
    results, _ = only(check(tmp_path / "whole"))
    assert by_metric(results)["length"]["score_details"]["score"] == task["length,none"]
    for name in ("a lower price", "another stage", "an end at the limit"):
        folder = shutil.copytree(cascade, tmp_path / name)
        change(folder / "ledger.jsonl", ledger_changes()[name][0])
        assert "is not that of the results" in refused(capsys, tmp_path / "out", folder)


def test_a_missing_ledger_is_refused_and_a_run_without_one_is_not(
    runs: Path, cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (cascade / "ledger.jsonl").rename(tmp_path / "elsewhere.jsonl")
    sentence = refused(capsys, tmp_path / "out", cascade)
    assert "was run with a ledger, ledger.jsonl, but none of the folders holds it" in sentence
    (tmp_path / "ledgers").mkdir()
    (tmp_path / "elsewhere.jsonl").rename(tmp_path / "ledgers" / "any-name.jsonl")
    submit(tmp_path / "out", cascade, tmp_path / "ledgers")
    assert only(check(tmp_path / "out"))[1][0]["token_usage"]
    submit(tmp_path / "hf", runs / "hf")
    assert "without a ledger: rows have no tokens, times and prices" in capsys.readouterr().out


def test_samples_that_are_missing_or_changed_are_refused(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = file_of(cascade, "samples_*")
    whole = file.read_text()

    def refusal(how: Callable[[list[Any]], Any]) -> str:
        file.write_text(whole)
        change(file, how)
        return refused(capsys, tmp_path / "out", cascade)

    def grade(lines: list[Any]) -> None:
        lines[0]["acc"] = 1 - lines[0]["acc"]

    assert "was computed from 6 samples of tandem_pair_math, but the samples file beside it has 5" in refusal(
        lambda lines: lines.pop()
    )
    assert "but the samples beside it have" in refusal(grade)
    assert "the samples of tandem_pair_math have other costs" in refusal(lambda lines: lines[0].update(doc_id=77))
    question = ("doc", "doc_hash", "target", "target_hash", "prompt_hash")
    assert "computed from other documents or prompts of tandem_pair_math" in refusal(
        lambda lines: lines[0].update({name: lines[1][name] for name in question})
    )
    assert "has length=" in refusal(lambda lines: lines[0].pop("length"))
    file.unlink()
    assert "run lm_eval with --log_samples" in refused(capsys, tmp_path / "out", cascade)


@pytest.mark.parametrize(
    ("entry", "value", "part"),
    [
        ("acc,none", None, "has acc=None, but the samples beside it have"),
        ("acc,none", "N/A", "has acc=N/A, but the samples beside it have"),
        ("acc,none", math.nan, "has acc=nan, but the samples beside it have"),
        ("length_stderr,none", 1e-4, "has the standard error 0.0001 for length, but the samples beside it have"),
    ],
)
def test_results_without_a_figure_or_with_another_standard_error_are_refused(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], entry: str, value: Any, part: str
) -> None:
    file = file_of(cascade, "results_*")
    content = json.loads(file.read_text())
    content["results"][TASK][entry] = value
    file.write_text(json.dumps(content))
    assert part in refused(capsys, tmp_path / "out", cascade)


def test_the_command_says_how_many_examples_were_shown(cascade: Path, tmp_path: Path) -> None:
    file = file_of(cascade, "results_*")
    content = json.loads(file.read_text())
    content["n-shot"][TASK] = 3
    file.write_text(json.dumps(content))
    submit(tmp_path / "out", cascade)
    results, _ = only(check(tmp_path / "out"))
    told = results["evaluation_results"][0]["generation_config"]["generation_args"]["execution_command"]
    assert "--num_fewshot 3" in told


def test_an_answer_that_its_writers_cannot_have_written_is_refused(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "handoff"
    lm_eval(
        *options_of(command(TASK, policy="steps:0.5", ledger=run / "ledger.jsonl")),
        *("--limit", "3", "--output_path", str(run), "--log_samples"),
    )
    submit(tmp_path / "whole", run)
    file = file_of(run, "samples_*")

    def longer(lines: list[Any]) -> None:
        lines[0]["resps"][0][0] += " and so on" * 40

    change(file, longer)
    assert "is longer than its record says" in refused(capsys, tmp_path / "out", run)


def test_other_mistakes_are_one_sentence(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    bare = OPTIONS[:-2]
    assert "give --developer NAME" in refused(capsys, out, runs / "server", options=bare)
    empty = ("--organization", " ", *bare[2:])
    assert "--organization is empty" in refused(capsys, out, runs / "hf", options=empty)
    assert "is not a folder" in refused(capsys, out, runs / "nowhere")
    assert "holds no results" in refused(capsys, out, tmp_path)
    submit(out, runs / "hf")
    before = {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}
    with pytest.raises(SystemExit):
        submit(out, runs / "hf")
    assert "has been exported" in capsys.readouterr().err
    assert before == {file: file.read_bytes() for file in out.rglob("*") if file.is_file()}


# Nothing of a machine


USER, HOST, KEY = "alice-planted", "gpu17.planted.example", "hf_PlantedSecretKey0123456789"
PLANTS = {
    "path": f"/home/{USER}/{HOST}/{KEY}",
    "end": f" (/home/{USER}/x.bin, C:\\Users\\{USER}\\y, sk-{KEY[3:]})",
    "address": f"https://{USER}:{KEY}@{HOST}:8000/v1",
}
TEXTS_OF_THE_TASK = {"doc_to_text", "until", "doc_to_target", "description"}
"""Fields of a task whose texts are part of its prompts, so that an address in them goes out."""


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all texts in a JSON value."""
    if isinstance(value, str):
        yield path
    elif isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, (*path, name))


def planted(value: Any, path: tuple[Any, ...], kind: str) -> Any:
    """Return a JSON value in which one text has the plant."""
    changed = copy.deepcopy(value)
    place = changed
    for name in path[:-1]:
        place = place[name]
    place[path[-1]] = place[path[-1]] + PLANTS[kind] if kind == "end" else PLANTS[kind]
    return changed


@pytest.fixture(scope="module")
def small(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two questions with a mentor behind a server, whose arguments say more than others'."""
    base = tmp_path_factory.mktemp("small") / "run"
    with serving(Path(pair.MENTOR)) as server:
        api = {"mentor": "tiny", "mentor_backend": "openai", "mentor_base_url": server.url, "intern": "pair"}
        api |= {"prompts": "pair", "guidance": "guided", "efforts": "18:24:40", "mentor_parameters": 884480}
        lm_eval(
            *options_of(command(TASK, **api, policy="cascade", classifier="pair", ledger=base / "ledger.jsonl")),
            *("--limit", "2", "--output_path", str(base), "--log_samples", "--gen_kwargs", "until=@@"),
        )
    return base


@pytest.mark.parametrize("kind", PLANTS)
@pytest.mark.parametrize("where", ["results", "samples", "ledger"])
def test_no_place_user_or_key_goes_out_wherever_it_stands(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str, kind: str
) -> None:
    run = shutil.copytree(small, tmp_path / "run")
    file = {"results": "results_*", "samples": "samples_*", "ledger": "ledger.jsonl"}[where]
    target, ledger, results = file_of(run, file), run / "ledger.jsonl", file_of(run, "results_*")
    lines = [
        json.loads(line) for line in (target.read_text().splitlines() if where != "results" else [target.read_text()])
    ]
    whole = {one: one.read_text() for one in (target, ledger, results)}
    exported = 0
    for path in leaves(lines[: 2 if where == "ledger" else 1]):
        if kind == "address" and (where == "samples" or TEXTS_OF_THE_TASK & set(path)):
            continue  # a question may be about an address
        for one, text in whole.items():
            one.write_text(text)
        target.write_text("".join(json.dumps(line) + "\n" for line in planted(lines, path, kind)))
        if where == "results" and path[1:3] == ("config", "tandem"):  # the head of the ledger has it too
            head, *records = [json.loads(line) for line in whole[ledger].splitlines()]
            if path[3] in head:
                head = planted(head, path[3:], kind)
                ledger.write_text("".join(json.dumps(line) + "\n" for line in [head, *records]))
        if where == "ledger" and path[0] == 0 and path[1] != "format":
            content = json.loads(whole[results])
            content["config"]["tandem"] = planted(content["config"]["tandem"], path[1:], kind)
            results.write_text(json.dumps(content))
        out = tmp_path / "out"
        try:
            submit(out, run)
        except SystemExit:  # what was planted has made files that do not fit together
            assert not [file for file in out.rglob("*") if file.is_file()]
        else:
            exported += 1
            names = "\n".join(str(file.relative_to(out)) for file in out.rglob("*"))
            for text in (names, *(file.read_text() for file in out.rglob("*") if file.is_file())):
                for secret in (USER, HOST, KEY, KEY[3:]):
                    at = text.find(secret)
                    assert at < 0, f"{path}: {text[max(0, at - 200) : at + 60]}"
        shutil.rmtree(out, ignore_errors=True)
    capsys.readouterr()
    assert exported >= {"results": 40, "samples": 0 if kind == "address" else 4, "ledger": 10}[where]


def test_a_run_in_a_home_folder_shows_nothing_of_it(
    small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "out", small)
    texts = "".join(file.read_text() for file in (tmp_path / "out").rglob("*.json*"))
    for word in (str(small), str(small.parent), str(Path.cwd()), "127.0.0.1", "ledger.jsonl", os.uname().nodename):
        assert word not in texts, word
    assert "held a key" not in capsys.readouterr().out


# The board's own validator


@pytest.mark.slow
@pytest.mark.skipif("TANDEM_EEE_VALIDATOR" not in os.environ, reason="TANDEM_EEE_VALIDATOR names no every_eval_ever")
@pytest.mark.parametrize("made", [None, *COMMITTED], ids=lambda made: made.name if made else "made by these tests")
def test_the_validator_of_the_board_finds_neither_errors_nor_warnings(
    runs: Path, cascade: Path, tmp_path: Path, made: Path | None
) -> None:
    as_vllm(cascade)
    output = tmp_path / "output"
    if made is None:
        submit(output, runs, cascade)
    else:  # rows of other metrics differ in the metric alone
        submit(output, made, options=(*OPTIONS, "--rows", "grade"))
    check(output)
    program = [os.environ["TANDEM_EEE_VALIDATOR"], "validate", "--format", "json", "data/*/*/*/*.json*"]
    done = subprocess.run(program, cwd=output, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    reports = json.loads(done.stdout)
    assert len(reports) == sum(1 for file in output.rglob("*.json*") if file.is_file())
    assert not [report for report in reports if not report["valid"] or report["warnings"]]
