"""Results, samples and ledgers that do not fit together are refused, and what was checked is said."""

from __future__ import annotations

import copy
import json
import lzma
import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from command_line import command, options_of
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import report_data
from lm_eval_tandem.submissions import ledger_check, sources
from submissions.every_eval_ever_schema import check
from submissions.exports import OPTIONS, TASK, by_metric, change, file_of, only, refused, submit, without_checksums
from tasks.in_process import lm_eval

packing = pytest.importorskip("benchmarks.packing", reason="the tests were copied without benchmarks/")


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


def other_value(value: Any) -> Any:
    """Return another value of the same kind."""
    if isinstance(value, str):
        return f"{value} and more"
    return not value if isinstance(value, bool) else 1 if value is None else value + 1


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Return the paths of all values in a JSON value that hold no others, empty lists and mappings included."""
    if isinstance(value, (dict, list)) and value:
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, name))
    else:
        yield path


@pytest.mark.parametrize("run", ["tandem-cascade", "ensemble"])
def test_no_field_of_a_record_can_be_changed_unseen(runs: Path, tmp_path: Path, run: str) -> None:
    folder = shutil.copytree(runs / run, tmp_path / "run")
    file = folder / "ledger.jsonl"
    whole = file.read_text()
    record = json.loads(whole.splitlines()[2])
    changed = list(places(record))
    assert {"reason", "stages", "tokens", "cached", "finish_reason"} <= {path[0] for path in changed}
    for path in changed:
        content = copy.deepcopy(record)
        place = content
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = [1] if isinstance(place[path[-1]], list) else other_value(place[path[-1]])
        lines = whole.splitlines()
        file.write_text("\n".join([*lines[:2], json.dumps(content), *lines[3:]]))
        with pytest.raises(ArgumentError):
            sources.read([folder])
        assert not any(run.records for run in report_data.read([folder]).runs), path
    for removed in record:
        if removed not in ("task", "doc_id"):
            content = {name: value for name, value in record.items() if name != removed}
            lines = whole.splitlines()
            file.write_text("\n".join([*lines[:2], json.dumps(content), *lines[3:]]))
            with pytest.raises(ArgumentError):
                sources.read([folder])
    file.write_text(whole)
    (submitted,) = sources.read([folder])
    assert submitted.checked == ledger_check.WHOLE


def test_a_packed_ledger_is_checked_in_what_packing_keeps(cascade: Path, tmp_path: Path) -> None:
    results = file_of(cascade, "results_*")
    packing.pack(cascade)
    (submitted,) = sources.read([cascade])
    assert submitted.checked == ledger_check.PACKED
    packed = file_of(cascade, "ledger.jsonl.xz")
    head, *lines = lzma.decompress(packed.read_bytes()).decode().splitlines()
    packed.unlink()
    for name, value in (("reason", "fixed"), ("mentor_stages", 7)):
        changed = [json.dumps({**json.loads(lines[0]), name: value}), *lines[1:]]
        (cascade / "ledger.jsonl").write_text("\n".join([head, *changed]))
        with pytest.raises(ArgumentError, match="a field of a record is another than the run wrote"):
            sources.read([cascade])
    content = json.loads(results.read_text())
    del content["config"]["tandem"]["totals"]["ledger"]  # as before there was a checksum
    results.write_text(json.dumps(content))
    (submitted,) = sources.read([cascade])
    assert submitted.checked == ledger_check.COMPARED


def test_digits_that_packing_would_cut_cannot_be_changed_in_a_whole_ledger(cascade: Path) -> None:
    def later(lines: list[Any]) -> None:
        judgement = next(one for line in lines[1:] for one in line["stages"] if len(f"{one['seconds']:.6g}") > 6)
        judgement["seconds"] *= 1 + 1e-5

    change(cascade / "ledger.jsonl", later)
    with pytest.raises(ArgumentError, match="a field of a record is another than the run wrote"):
        sources.read([cascade])


def test_what_was_checked_of_a_ledger_is_said(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(tmp_path / "out", cascade)
    assert ledger_check.WHOLE in capsys.readouterr().out


def test_a_task_without_costs_still_shows_a_changed_ledger(
    cascade: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The harness's own tasks report no costs, so the run's totals are all there is to compare in older results."""
    shown = ("length", "mentor_tokens", "tflops", "dollars", "stage", "truncated", "mflops")

    def without_costs(lines: list[Any]) -> None:
        lines[:] = [{key: value for key, value in line.items() if key not in shown} for line in lines]

    change(file_of(cascade, "samples_*"), without_costs)
    file = file_of(cascade, "results_*")
    content = json.loads(file.read_text())
    del content["config"]["tandem"]["totals"]["ledger"]
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


@pytest.mark.parametrize("run", ["tandem-cascade", "ensemble"])
def test_an_answer_that_was_changed_without_its_grade_is_refused(
    runs: Path, run: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(runs / run, tmp_path / "run")

    def another_way(lines: list[Any]) -> None:
        lines[1]["resps"] = [["~" + lines[1]["resps"][0][0][1:]]]

    change(file_of(folder, "samples_*"), another_way)
    assert "in the samples is not the one it recorded" in refused(capsys, tmp_path / "out", folder)
    without_checksums(folder)
    submit(tmp_path / "out", folder)  # as before: such a ledger does not know the answers
    assert ledger_check.COMPARED in capsys.readouterr().out


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
