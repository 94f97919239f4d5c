"""Exports for Every Eval Ever: whole, and true to the results.

The runs are real: tandem, an ensemble and the harness's own models on the bundled pair, a mentor behind a server on the
loopback (`conftest`), and the committed results.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import binomtest

from command_line import command, options_of
from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.submissions import (
    every_eval_ever,
    every_eval_ever_results,
    every_eval_ever_samples,
    ledger_check,
    scores,
    sources,
)
from lm_eval_tandem.submissions.models import identify
from lm_eval_tandem.submissions.redaction import Redaction
from lm_eval_tandem.submissions.task_results import TaskResults
from submissions.every_eval_ever_schema import check
from submissions.exports import (
    OPTIONS,
    PRICES,
    QUESTIONS,
    TASK,
    by_metric,
    change,
    file_of,
    needs_validator,
    only,
    refused,
    submit,
    validate,
)
from submissions.report_numbers import agrees, report_cells
from tasks.in_process import lm_eval

packing = pytest.importorskip("benchmarks.packing", reason="the tests were copied without benchmarks/")

RESULTS = Path(__file__).parents[2] / "results"
COMMITTED = sorted({file.parents[2] for file in RESULTS.glob("real/*/*/*/*/results_*.json")})
COMMITTED += [folder for folder in [RESULTS / "pair"] if folder.is_dir()]


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
    assert " --tasks tandem_pair_math --include_path task_configs " in arguments["execution_command"]
    assert len(samples) == QUESTIONS * len(metrics)


def test_a_limit_is_printed_and_stands_in_the_files(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "out", runs / "tandem-intern")
    assert f"  {TASK}: {QUESTIONS} of 1,000 questions, and the files say so" in capsys.readouterr().out
    results, _ = only(check(tmp_path / "out"))
    for result in results["evaluation_results"]:
        details = result["generation_config"]["additional_details"]
        assert details["questions"] == f"{QUESTIONS} of 1,000 questions"
        assert float(details["limit"]) == QUESTIONS


def test_a_missing_developer_is_asked_for_before_samples_and_ledgers_are_read(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(runs / "server", tmp_path / "runs")
    for file in (tmp_path / "runs").rglob("samples_*"):
        file.write_text("no samples")
    sentence = refused(capsys, tmp_path / "out", tmp_path / "runs", options=OPTIONS[:4])
    assert "does not say who made the model; give --developer NAME." in sentence


def test_the_size_is_printed_and_how_large_files_become_smaller(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    submit(tmp_path / "small", runs / "tandem-cascade")
    said = capsys.readouterr().out
    size = sum(file.stat().st_size for file in (tmp_path / "small").rglob("*.json*"))
    assert f"2 files in {tmp_path / 'small' / 'data' / 'lm-eval-tandem'}, {size / 1e6:,.1f} MB. Nothing was" in said
    assert "--rows grade" not in said
    monkeypatch.setattr(every_eval_ever, "LARGE", size // 2)
    submit(tmp_path / "large", runs / "tandem-cascade")
    assert "with --rows grade they have a row per question" in capsys.readouterr().out
    submit(tmp_path / "grade", runs / "tandem-cascade", options=(*OPTIONS, "--rows", "grade"))
    assert "--rows grade" not in capsys.readouterr().out
    assert sum(file.stat().st_size for file in (tmp_path / "grade").rglob("*.json*")) < size / 2


def test_a_folder_has_no_revision_and_a_share_of_all_ends_at_1(runs: Path, tmp_path: Path) -> None:
    file = file_of(runs / "hf", "results_*")
    assert json.loads(file.read_text())["config"]["model_revision"] == "main"
    submit(tmp_path / "hf", runs / "hf")
    results, _ = only(check(tmp_path / "hf"))
    assert "revision" not in results["model_info"]["additional_details"]
    for n in range(1, 2000):
        low, high = wilson(n, n)
        assert high == 1
        assert low == pytest.approx(binomtest(n, n).proportion_ci(method="wilson").low, abs=1e-12)


@pytest.mark.parametrize("run", ["tandem-cascade", "ensemble"])
def test_figures_of_a_whole_run_are_named_by_what_they_are(runs: Path, tmp_path: Path, run: str) -> None:
    submit(tmp_path, runs / run)
    results, _ = only(check(tmp_path))
    given = results["source_metadata"]["additional_details"]
    details = {name: float(text) for name, text in given.items() if name != "exported_by"}
    lines = (runs / run / "ledger.jsonl").read_text().splitlines()[1:]
    records = [json.loads(line) for line in lines]
    assert details["total_questions"] == len(records) == QUESTIONS
    expected = {
        "mean_tflops": digits.mean([record["tflops"] for record in records]),
        "mean_bill_tflops": digits.mean([record["bill"] for record in records]),
        "mean_refused_tokens": digits.mean([record["refused_tokens"] for record in records]),
        "share_truncated": digits.mean([record["finish_reason"] == "length" for record in records]),
    }
    if run == "ensemble":
        for name in records[0]["spent"]:
            spent = [record["spent"][name] for record in records]
            expected |= {f"total_{name}_{what}": digits.total([one[what] for one in spent]) for what in ("new", "bill")}
        expected["mean_length"] = digits.mean([sum(s["new"] for s in record["spent"].values()) for record in records])
    else:
        tokens = [record["tokens"]["mentor_new"] + record["tokens"]["intern_new"] for record in records]
        dollars = [record["dollars"] for record in records]
        for name in records[0]["tokens"]:
            expected[f"total_{name}"] = sum(record["tokens"][name] for record in records)
        expected |= {"mean_length": digits.mean(tokens), "dollars_per_1000_questions": 1000 * digits.mean(dollars)}
        stages = [record["stage"] for record in records]
        expected |= {f"share_stage_{stage}": stages.count(stage) / len(stages) for stage in stages}
        assert set(details) == set(expected) | {"total_questions"}
    assert {name: details[name] for name in expected} == pytest.approx(expected)


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
            scores = ",".join(f"{name}:{score}" for name, score in record.get("response_scores", {}).items())
            assert sample["metadata"].get("response_scores", "") == scores
            assert sample["token_usage"]["input_tokens_cache_read"] == sum(record["cached"].values())


def test_cached_prompt_tokens_are_those_that_the_price_of_cached_tokens_was_asked_for(tmp_path: Path) -> None:
    """With every other price at 0, dollars count them; a fixed stage is not judged, so every call is paid for."""
    only_cached = {"price_input": 0, "price_cached": 1_000_000, "price_output": 0}
    prices = {f"{role}_{name}": price for role in ("mentor", "intern") for name, price in only_cached.items()}
    kept = tmp_path / "run" / "ledger.jsonl"
    arguments = command(TASK, policy="stage:2", ledger=kept, **prices)
    lm_eval(*options_of(arguments), "--limit", "3", "--output_path", str(tmp_path / "run"), "--log_samples")
    submit(tmp_path / "out", tmp_path / "run", options=(*OPTIONS, "--rows", "grade"))
    _, samples = only(check(tmp_path / "out"))
    cached = [sample["token_usage"]["input_tokens_cache_read"] for sample in samples]
    assert cached == [round(float(sample["metadata"]["dollars"])) for sample in samples]
    assert sum(cached) > 0
    change(kept, lambda lines: [line.pop("cached", None) for line in lines])
    results = file_of(tmp_path / "run", "results_*")
    content = json.loads(results.read_text())
    del content["config"]["tandem"]["totals"]["ledger"]  # results of older versions have neither
    results.write_text(json.dumps(content))
    submit(tmp_path / "older", tmp_path / "run", options=(*OPTIONS, "--rows", "grade"))
    _, samples = only(check(tmp_path / "older"))
    assert not any("input_tokens_cache_read" in sample["token_usage"] for sample in samples)


def test_runs_of_one_policy_that_were_asked_differently_both_go_out(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "short" / "ledger.jsonl"
    arguments = command(TASK, policy="cascade", ledger=kept, **PRICES)
    more = ("--limit", "3", "--output_path", str(tmp_path / "short"), "--log_samples")
    lm_eval(*options_of(arguments), *more, "--gen_kwargs", "max_gen_toks=60")
    submit(tmp_path / "out", runs / "tandem-cascade", tmp_path / "short")
    ids = [results["evaluation_id"] for results, _ in check(tmp_path / "out").values()]
    assert sorted("max_gen_toks-60" in one for one in ids) == [False, True]
    kept.unlink()
    shutil.rmtree(tmp_path / "short")
    lm_eval(*options_of(arguments), *more)  # newer, and on fewer questions
    submit(tmp_path / "fewer", runs / "tandem-cascade", tmp_path / "short")
    printed = capsys.readouterr().out
    assert "which has fewer questions (3; 6 were taken)" in printed
    assert len(only(check(tmp_path / "fewer"))[1]) > QUESTIONS


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
        assert submitted.checked in ("", ledger_check.COMPARED, ledger_check.PACKED)  # older results have no checksum
        model = identify(submitted, "Test Lab", "planet", None)
        for task in submitted.tasks:
            content = every_eval_ever_results.results_file(submitted, task, model, "Test Lab", "other", 0.0, None)
            metrics = by_metric(content)
            harness = submitted.results["results"][task.name]
            for key, value in harness.items():
                name, _, _ = key.partition(",")
                if name in metrics and name not in scores.NOT_A_METRIC:
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


def compare_samples(submitted: sources.SubmittedRun, task: TaskResults, model: Any) -> None:
    """Compare the rows of the grade with the samples, and the ledger's tokens with the totals of the run."""
    rows = list(every_eval_ever_samples.rows(task, model, "id", True, Redaction()))
    assert len(rows) == len(task.run.questions)
    grades = [row["evaluation"]["score"] for row in rows]
    assert digits.mean(grades) == digits.mean(task.run.grades)
    for row, sample in zip(rows, task.samples["none"], strict=True):
        assert row["evaluation"]["score"] == sample[task.run.metric]
        assert row["output"]["raw"] == sample["resps"][0]
    if task.records and len(submitted.tasks) == 1:
        totals = submitted.description and submitted.config["tandem"]["totals"]
        of_roles = totals["tokens"]["mentor_new"] + totals["tokens"]["intern_new"]
        of_an_ensemble = sum(model["new"] for model in totals.get("models", {}).values())
        assert sum(row["token_usage"]["output_tokens"] for row in rows) == of_roles + of_an_ensemble


# The board's own validator


@needs_validator
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
    validate(output)
