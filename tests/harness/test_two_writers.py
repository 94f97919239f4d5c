"""Policies under which both models write: the same strings at every batch size, and in a run that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import tiny
from bundled import COMMON, instances
from lm_eval_tandem import pair
from lm_eval_tandem.harness import requests
from lm_eval_tandem.harness.model import TandemLM

POLICIES = ("handoff:12", "outline:12", "steps:0.05", "verify:4")
QUESTIONS, STEP_END = 6, "."


@pytest.fixture(scope="module", params=["pair", "two families"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if request.param == "pair":
        return {"mentor": str(pair.MENTOR), "intern": str(pair.INTERN)}
    base = tmp_path_factory.mktemp("families")
    window = {"max_position_embeddings": 1024}
    mentor = tiny.save(base / "mentor", "qwen3", 1, **window)
    return {
        "mentor": str(mentor),
        "intern": str(tiny.save(base / "intern", "llama", 1, tiny.other_tokenizer(), **window)),
    }


def answers(folders: dict[str, str], questions: int = QUESTIONS, **given: Any) -> dict[str, list[str]]:
    """The answers under each policy, and how many segments they have in all."""
    lm = TandemLM(**folders, **{**COMMON, "policy": POLICIES[0], "step_end": STEP_END, **given})
    found = {}
    for policy in POLICIES:
        lm.use(policy)
        found[policy] = lm.generate_until(instances(questions, max_gen_toks=24), disable_tqdm=True)
        records = {record.doc_id: record for record in lm.records}
        if policy != "outline:12":  # there the intern alone writes the answer
            assert all(sum(part.characters for part in records[doc].segments) for doc in records), policy
    lm.close()
    return found


def test_neither_the_batch_size_nor_a_run_that_was_broken_off_changes_a_string(
    folders: dict[str, str], tmp_path: Path
) -> None:
    one_by_one = answers(folders, batch_size=1)
    assert len({tuple(found) for found in one_by_one.values()}) >= 3, "the policies did the same"
    store = str(tmp_path / "store.sqlite")
    answers(folders, questions=QUESTIONS // 2, store=store)
    assert answers(folders, store=store) == one_by_one


def test_the_longest_answer_leaves_room_for_insights_in_the_intern_s_tokens(folders: dict[str, str]) -> None:
    lm = TandemLM(**folders, **{**COMMON, "policy": "stage:1", "efforts": 40})
    (task,) = requests.tasks_of(instances(1), lm.max_answer_tokens, 0)
    longest = requests.longest_answer(task, lm.settings, lm.engines)
    mentor, intern = lm.engines["mentor"], lm.engines["intern"]
    assert mentor is not None
    assert intern is not None
    prompt = len(intern.encode(lm.cascade.prompts.intern(intern, task.question, " ")))
    same = mentor.encode(task.question.text) == intern.encode(task.question.text)
    # models that are not the bundled pair hand off, so that the mentor's 40 tokens are part of the answer
    of_insights, of_answer = (40, 0) if same else (80, 40)
    assert longest == intern.window - prompt - of_insights + of_answer
    assert same == (folders["mentor"] == str(pair.MENTOR))
    lm.close()
