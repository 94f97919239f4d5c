"""A question that cannot be answered fails alone: under every policy the others are answered, counted and kept."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

import tiny
from bundled import COMMON, instances
from engines.http.openai_server import Behaviour, serving
from lm_eval_tandem.errors import ArgumentError, ContextError, EngineError, StoreError, UnreachableError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.requests import sampling_of

N = 6
LONG = 2
"""The question whose insights are one word for the mentor and more than its whole window for the intern."""


class Words:
    """A tokenizer whose tokens are words."""

    def encode(self, text: str) -> list[int]:
        return list(range(len(text.split())))


@register_model("tandem-test-wordy")
class Wordy(LM):
    """A text mentor: a short hint; for the question that `marked` is part of, one word of 600 digits."""

    tokenizer, max_length, max_gen_toks, batch_size = Words(), 10_000, 90, 4

    def __init__(self, pretrained: str) -> None:
        super().__init__()
        self.marked, self.asked = pretrained, 0

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        self.asked += len(requests)
        return ["7" * 600 if self.marked in request.args[0] else "Count on." for request in requests]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
        raise NotImplementedError


def wordy(policy: str, folder: Path) -> TandemLM:
    """A pair of `Wordy` and the bundled intern, with a judge that no stage satisfies."""
    marked = str(instances(N)[LONG].args[0])
    judged = {"classifier": "pair", "thresholds": "1:1:1:1"} if policy in ("cascade", "llm_cascade", "escalate") else {}
    files = {"store": str(folder / "s.sqlite"), "ledger": str(folder / "l.jsonl")}
    return TandemLM(
        mentor=marked, mentor_backend="tandem-test-wordy", intern="pair", policy=policy, **judged, **files, **COMMON
    )


@pytest.mark.parametrize("policy", ["stage:1", "stage:3", "cascade", "llm_cascade", "escalate"])
def test_insights_too_long_for_the_intern_fail_their_question_alone(policy: str, tmp_path: Path) -> None:
    """The mentor's tokenizer counts one token, so that no check before the run can know."""
    lm = wordy(policy, tmp_path)
    sentence = (
        rf"1 of {N} questions failed \(t #{LONG}\).* exceed the window of .* 512 tokens.*the other {N - 1} are in"
    )
    with pytest.raises(EngineError, match=sentence):
        lm.generate_until(instances(N), disable_tqdm=True)
    lm.close()
    header, *records = map(json.loads, (tmp_path / "l.jsonl").read_text().splitlines())
    assert header["policy"] == policy
    assert [record["doc_id"] for record in records] == [i for i in range(N) if i != LONG]

    again = wordy(policy, tmp_path)
    with pytest.raises(EngineError, match=f"1 of {N} questions failed"):
        again.generate_until(instances(N), disable_tqdm=True)
    work = again.totals()["computed"]
    assert work["mentor"]["decode_tokens"] == 0, "the mentor was asked again for what the store has"
    shorter = [one for i, one in enumerate(instances(N)) if i != LONG]
    before = again.totals()["computed"]["intern"]["decode_tokens"]
    assert len(again.generate_until(shorter, disable_tqdm=True)) == N - 1
    assert again.totals()["computed"]["intern"]["decode_tokens"] == before, "an answer was computed again"
    again.close()


@pytest.mark.parametrize("policy", ["intern", "mentor", "budget_forcing:5", "stage:2"])
def test_a_failed_call_fails_its_question_alone(policy: str, tmp_path: Path) -> None:
    """The server refuses one question; asked again with the same store, it is asked this question alone."""
    asked = instances(N, max_gen_toks=12)
    refused = {str(asked[LONG].args[0])[:40]: {"message": {"content": ""}, "finish_reason": "content_filter"}}
    behaviour = Behaviour(fixed_choices=refused)
    with serving(tiny.save(tmp_path / "model"), behaviour) as server:
        model = {"base_url": server.url, "retries": 0}
        role = "intern" if policy == "intern" else "mentor"
        given = {role: "tiny", f"{role}_backend": "openai", **{f"{role}_{k}": v for k, v in model.items()}}
        other = {"intern": "pair", **COMMON} if policy == "stage:2" else {}
        arguments = {"policy": policy, "store": str(tmp_path / "s.sqlite"), "efforts": "5:9", **given, **other}
        lm = TandemLM(**arguments)
        with pytest.raises(EngineError, match=rf"1 of {N} questions failed \(t #{LONG}\)"):
            lm.generate_until(asked, disable_tqdm=True)
        lm.close()
        assert len(lm.records) == N - 1
        behaviour.fixed_choices.clear()
        lm = TandemLM(**arguments)
        before = len(server.requests)
        assert len(lm.generate_until(asked, disable_tqdm=True)) == N
        lm.close()
        first, *rest = server.requests[before:]
        assert str(asked[LONG].args[0])[:40] in json.dumps(first), "an answered question was asked again"
        assert len(rest) <= (policy in ("budget_forcing:5", "stage:2")), "more than the failed question was asked"


def test_a_refused_key_ends_the_run(tmp_path: Path) -> None:
    """Every other question would meet the same refusal."""
    asked = instances(N, max_gen_toks=12)
    with serving(tiny.save(tmp_path / "model"), Behaviour()) as server:
        lm = TandemLM(policy="mentor", mentor="tiny", mentor_backend="openai", base_url=server.url, retries=0)
        server.key = "another"
        with pytest.raises(UnreachableError, match="wants a key"):
            lm.generate_until(asked, disable_tqdm=True)
        lm.close()


def test_a_store_that_breaks_ends_the_run_and_is_no_place_to_go_on_from(tmp_path: Path) -> None:
    lm = TandemLM(policy="intern", store=str(tmp_path / "s.sqlite"), **COMMON)
    with sqlite3.connect(tmp_path / "s.sqlite") as db:
        db.execute("DROP TABLE finished")
    with pytest.raises(StoreError, match=r"cannot be read any more .* run again\.$"):
        lm.generate_until(instances(N), disable_tqdm=True)
    lm.close()


def test_budget_forcing_reserves_its_cue() -> None:
    """Prompt and answer fill the window to the last token: the cue between thought and answer does not fit."""
    lm = TandemLM(policy="budget_forcing:5", **COMMON)
    mentor = lm.engines["mentor"]
    assert mentor is not None
    (asked,) = instances(1)
    full = mentor.window - len(mentor.encode(str(asked.args[0])))
    with pytest.raises(ContextError, match=r"t #0 does not fit"):
        lm.generate_until(instances(1, max_gen_toks=full), disable_tqdm=True)
    cue = len(mentor.encode(str(asked.args[0]) + lm.cascade.prompts.longest_end_of_thinking)) - 1
    assert len(lm.generate_until(instances(1, max_gen_toks=full - cue), disable_tqdm=True)) == 1
    lm.close()


def test_staged_insights_reserve_what_asks_for_a_deeper_pass(tmp_path: Path) -> None:
    words = tmp_path / "w.json"
    words.write_text(json.dumps({"request": " I:", "open": " I:", "close": " A:", "deepen": " deeper:" * 30}))
    lm = TandemLM(policy="stage:3", insights="staged", prompts=str(words), efforts="5:9:12", **COMMON)
    mentor = lm.engines["mentor"]
    assert mentor is not None
    text = "7" * (mentor.window - 40)
    (asked,) = instances(1, max_gen_toks=1)
    asked.arguments = (text, asked.args[1])
    with pytest.raises(ContextError, match=r"does not fit into the window of .*mentor"):
        lm.generate_until([asked], disable_tqdm=True)
    lm.close()


def test_two_requests_of_one_document_are_two_questions() -> None:
    """As different requests, with repeats, and as the copy that fills up a process's share."""
    lm = TandemLM(policy="stage:1", **COMMON)
    one, two = instances(2, 2, do_sample=True, temperature=1.5)
    two.doc_id = one.doc_id
    answers = lm.generate_until([one, one, two, two, two], disable_tqdm=True)
    assert len(answers) == 5
    assert {record.key for record in lm.records} == {("t", 0, repeat) for repeat in range(4)}
    assert answers[4] == answers[2], "the copy was answered otherwise"
    assert len(set(answers)) > 2
    lm.close()


@pytest.mark.parametrize(
    ("generation", "temperature"),
    [
        ({"do_sample": True, "temperature": 0.0}, 0.0),
        ({"do_sample": True, "temperature": 0}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": None}, 1.0),
        ({"temperature": 0.7}, 0.7),
        ({"do_sample": False, "temperature": 0.7}, 0.0),
        ({}, 0.0),
    ],
)
def test_a_temperature_of_zero_is_greedy(generation: dict[str, Any], temperature: float) -> None:
    assert sampling_of({**generation, "max_gen_toks": 5}, 256, 1).temperature == temperature


def test_zeros_are_values() -> None:
    found = sampling_of({"do_sample": True, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "until": None}, 256, 0)
    assert (found.top_p, found.top_k, found.min_p, found.seed, found.stop) == (1.0, 0, 0.0, 0, ())


@pytest.mark.parametrize(
    ("generation", "sentence"),
    [
        ({"max_gen_toks": 0}, "max_gen_toks=0 has to be 1 or more"),
        ({"until": ["\n", ""]}, "until holds an empty text"),
        ({"do_sample": True, "temperature": -1}, "temperature=-1 has to be 0"),
    ],
)
def test_generation_arguments_with_a_value_without_a_meaning_are_refused(
    generation: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        sampling_of({"do_sample": False, **generation}, 256, 1)
