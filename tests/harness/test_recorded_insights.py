"""`record_insights=True`: the record of a question holds what the mentor wrote for the intern, stage by stage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.packing import pack
from bundled import COMMON, instances
from command_line import command, run_forked
from lm_eval_tandem import ledger_file
from lm_eval_tandem.cli import main
from lm_eval_tandem.engines import Engine, Prompt, Sampling
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.requests import tasks_of
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.pair import problems
from lm_eval_tandem.reports.sources import report_data
from lm_eval_tandem.training.collect import collect

QUESTIONS = 4
POLICIES: list[dict[str, Any]] = [
    {"policy": "cascade"},
    {"policy": "cascade", "insights": "staged"},
    {"policy": "cascade", "guidance": "handoff"},
    {"policy": "escalate"},
    {"policy": "llm_cascade", "thresholds": "0.99:0.99:0.99:0.99"},
    {"policy": "stage:1"},
    {"policy": "stage:3", "insights": "staged"},
    {"policy": "stage:2", "guidance": "handoff"},
    {"policy": "stage:2", "record_features": "answers"},
    {"policy": "outline:20"},
    {"policy": "handoff:10"},
]


def answers(**given: Any) -> tuple[list[str], list[Record], TandemLM]:
    """The answers to a few questions, their records, and the closed model."""
    lm = TandemLM(**{**COMMON, **given})
    texts = lm.generate_until(instances(QUESTIONS), disable_tqdm=True)
    lm.close()
    return list(map(str, texts)), sorted(lm.records, key=lambda record: record.doc_id), lm


def insights(records: list[Record]) -> list[list[tuple[int, str | None]]]:
    return [[(entry.stage, entry.insight) for entry in record.stages] for record in records]


@pytest.fixture(scope="module")
def pair() -> Iterator[TandemLM]:
    lm = TandemLM(**COMMON, policy="stage:1")
    yield lm
    lm.close()


def written(engine: Engine | None, text: str, tokens: int) -> str:
    """What a model writes after a text, in one call."""
    assert engine is not None
    return engine.decode(asyncio.run(engine.generate(Prompt(text), Sampling(tokens))).token_ids)


@pytest.mark.parametrize("given", POLICIES, ids=str)
def test_each_stage_holds_the_text_that_the_intern_read(given: dict[str, Any], pair: TandemLM, tmp_path: Path) -> None:
    """One question at a time, many at once, and from a store; answers and costs are those of a run without it."""
    if given.get("insights") == "staged":  # the bundled models know no such request, but any words are read
        words = {"request": " Insights:", "open": " Insights:", "close": " Steps:", "deepen": " Deeper:"}
        (tmp_path / "words.json").write_text(json.dumps(words))
        given = {**given, "prompts": str(tmp_path / "words.json")}
    plain, without, _ = answers(**given)
    texts, records, lm = answers(**given, record_insights=True, batch_size=1)
    assert texts == plain
    assert [record.tokens for record in records] == [record.tokens for record in without]
    assert [record.bill for record in records] == [record.bill for record in without]
    assert not any("insight" in entry for line in ledger_file.lines_of(without) for entry in line["stages"])
    found = insights(records)
    stored = {**given, "record_insights": True, "store": str(tmp_path / "s.sqlite")}
    for _ in range(2):
        again, others, last = answers(**stored)
        assert (again, insights(others)) == (texts, found)
    assert last.totals()["found_in_store"] > 0
    assert last.totals()["computed"]["mentor"]["decode_tokens"] == 0
    prompts, mentor, intern = lm.cascade.prompts, *pair.engines.values()
    assert intern is not None
    tasks = {task.doc_id: task for task in tasks_of(instances(QUESTIONS), 90, 42)}
    guided = 0
    for record in records:
        question = tasks[record.doc_id].question
        assert record.stages, "no stage is in the record"
        if record.stage > 0:
            assert record.stages[-1].stage >= record.stage
        for entry in record.stages:
            assert entry.insight is not None
            assert bool(entry.insight) == (entry.stage > 0)
            assert entry.prompt_tokens == len(intern.encode(prompts.intern(intern, question, entry.insight)))
            if entry.insight and prompts.insights == "cutoff":
                asked = prompts.mentor(mentor, question)
                assert entry.insight == written(mentor, asked, entry.mentor_tokens)
            guided += bool(entry.insight)
        assert all(b.insight.startswith(a.insight) for a, b in zip(record.stages, record.stages[1:], strict=False))
        if prompts.hands_off and record.stage > 0:
            (at_stage,) = [entry for entry in record.stages if entry.stage == record.stage]
            assert texts[record.doc_id].startswith(str(at_stage.insight))
    assert guided, "the mentor wrote nothing"


@pytest.mark.parametrize("policy", ["intern", "mentor", "stage:0", "steps:1", "verify:9", "budget_forcing:20"])
def test_where_the_mentor_writes_nothing_for_the_intern_nothing_is_added(policy: str) -> None:
    """Steps of the mentor are parts of the answer, and so in no need of an entry."""
    plain, without, _ = answers(policy=policy)
    texts, records, _ = answers(policy=policy, record_insights=True)
    assert texts == plain
    assert [record.stages for record in records] == [record.stages for record in without] == [[]] * QUESTIONS


def test_the_command_line_writes_them_and_a_report_reads_them_whole_or_packed(tmp_path: Path) -> None:
    found = []
    for size in ("1", "16"):
        folder = tmp_path / size
        given = {"policy": "cascade", "record_insights": True, "ledger": folder / "ledger.jsonl", "batch_size": size}
        asked = [*command("tandem_pair_math", **given), "--limit", "12", "--log_samples", "--output_path", str(folder)]
        folder.mkdir()
        run_forked(asked, folder)
        header, *lines = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
        assert str(tmp_path) not in json.dumps(lines)
        assert "record_insights" not in header, "it is no setting that tells runs apart"
        found.append({line["doc_id"]: [(one["stage"], one["insight"]) for one in line["stages"]] for line in lines})
    assert found[0] == found[1]
    assert any(text for stages in found[0].values() for _, text in stages)
    for packed in (False, True):
        if packed:
            pack(folder)
        (run,) = report_data.read([folder]).runs
        read = {one["doc_id"]: [(entry["stage"], entry["insight"]) for entry in one["stages"]] for one in run.records}
        assert read == found[1]


def test_run_shows_them_beside_the_answers_to_own_questions(tmp_path: Path) -> None:
    rows = problems.rows("math", "test", QUESTIONS)
    (tmp_path / "in.jsonl").write_text("".join(json.dumps({"question": row["question"]}) + "\n" for row in rows))
    _, records, _ = answers(policy="stage:2", record_insights=True)
    for given in ({"record_insights": True}, {}, {"record_insights": True}):
        config = {"model_args": {**COMMON, "policy": "stage:2", **given}, "gen_kwargs": {"max_gen_toks": 90}}
        (tmp_path / "c.yaml").write_text(json.dumps(config))
        files = ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]
        main(["run", str(tmp_path / "c.yaml"), *files])
        told = [json.loads(line)["tandem"]["stages"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        if given:
            shown = [[(one["stage"], one["insight"]) for one in stages] for stages in told]
            assert shown == insights(records)
        else:
            assert told == [[]] * QUESTIONS


def test_lm_eval_refuses_them_where_no_record_is_written() -> None:
    """The harness has no other place for them; `run` has, and so has who uses the model in Python."""
    for name, value, said in (
        ("record_insights", True, True),
        ("record_insights", "true", True),
        ("record_features", "True", True),
        ("record_features", "answers", "answers"),
    ):
        with pytest.raises(ArgumentError, match=rf"^{name}={said} has no effect without ledger=FILE"):
            TandemLM.create_from_arg_obj({**COMMON, name: value})
    with pytest.raises(ArgumentError, match=r"^record_insights=x has to be True or False"):
        TandemLM.create_from_arg_string("record_insights=x,ledger=l.jsonl")


def test_what_is_no_truth_value_is_refused_and_collections_set_it_themselves(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"^record_insights=text has to be True or False\."):
        TandemLM(**COMMON, record_insights="text")
    with pytest.raises(ArgumentError, match="collect sets record_insights itself; leave record_insights=True out"):
        collect({**COMMON, "record_insights": True}, ["tandem_pair_math_train"], tmp_path, ())
