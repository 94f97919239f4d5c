"""`TandemLM` as the harness uses it: what it refuses, what it keeps, what it reports."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.api.model import CachingLM
from lm_eval.models.huggingface import HFLM

import tiny
from bundled import COMMON, instances
from lm_eval_tandem import _paths, ledger_file, pair
from lm_eval_tandem.errors import ArgumentError, ClassifierError, ContextError, EngineError, StoreError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.requests import Answer, tasks_of
from lm_eval_tandem.harness.run_report import shares

CLASSIFIER = _paths.classifiers() / "pair"


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that begins to load a model."""

    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(HFLM, "__init__", loaded)
    return


def test_a_classifier_that_was_fitted_on_other_insights_is_named(caplog: pytest.LogCaptureFixture) -> None:
    TandemLM(**COMMON).close()
    assert "scores mean little" not in caplog.text
    TandemLM(efforts="18:24:30", **COMMON).close()
    assert "classifier=pair was fitted with efforts=18:24:40, and this run has 18:24:30" in " ".join(
        caplog.text.replace(str(CLASSIFIER), "pair").split()
    )


def test_other_paths_to_the_models_of_a_classifier_are_the_same_pair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    for source, name in ((pair.MENTOR, "m"), (pair.INTERN, "i"), (CLASSIFIER, "c")):
        shutil.copytree(source, name)
    config = json.loads(Path("c/config.json").read_text())
    Path("c/config.json").write_text(json.dumps({**config, "pair": {"mentor": "./m", "intern": str(tmp_path / "i")}}))
    given = {"classifier": "./c", "efforts": "18:24:40", "prompts": "pair", **COMMON}
    TandemLM(mentor="m", intern="./i", **given).close()
    assert "was fitted on the pair" not in caplog.text
    TandemLM(mentor="m", intern="m", **given).close()
    assert "was fitted on the pair" in caplog.text


@pytest.mark.parametrize("as_chats", [None, False, True])
def test_a_classifier_that_was_fitted_on_questions_rendered_otherwise_is_named(
    as_chats: bool | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(CLASSIFIER, tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    if as_chats is not None:  # classifiers of earlier versions do not say
        config["fitted_on"]["apply_chat_template"] = as_chats
    (tmp_path / "c" / "config.json").write_text(json.dumps(config))
    lm = TandemLM(classifier=str(tmp_path / "c"), **COMMON)
    for is_chat in (False, True):
        caplog.clear()
        lm._has_warned_of_rendering = False
        requests = instances(2, max_gen_toks=4)
        for request in requests:
            question, generation = request.args
            chat = lm.apply_chat_template([{"role": "user", "content": question}])
            request.arguments = (chat if is_chat else question, generation)
        lm.generate_until(requests, disable_tqdm=True)
        said = [record.message for record in caplog.records if "chat templates" in record.message]
        assert len(said) == (as_chats is not None and as_chats != is_chat)
    lm.close()


@pytest.mark.usefixtures("no_model")
class TestRefusedBeforeAModelIsLoaded:
    """One clear sentence each."""

    def test_no_classifier_for_a_foreign_pair(self, tmp_path: Path) -> None:
        with pytest.raises(ClassifierError, match=r"none is known for the pair big\+small; fit one with"):
            TandemLM(mentor="org/big", intern="org/small")

    def test_a_classifier_of_another_schema(self, tmp_path: Path) -> None:
        shutil.copytree(CLASSIFIER, tmp_path / "c")
        config = json.loads((tmp_path / "c" / "config.json").read_text())
        (tmp_path / "c" / "config.json").write_text(json.dumps({**config, "schema": "statistics-99/7"}))
        with pytest.raises(ClassifierError, match="statistics-99/7"):
            TandemLM(classifier=str(tmp_path / "c"))

    def test_a_corrupted_classifier(self, tmp_path: Path) -> None:
        shutil.copytree(CLASSIFIER, tmp_path / "c")
        weights = bytearray((tmp_path / "c" / "model.safetensors").read_bytes())
        weights[-3] ^= 1
        (tmp_path / "c" / "model.safetensors").write_bytes(weights)
        with pytest.raises(ClassifierError, match="corrupt"):
            TandemLM(classifier=str(tmp_path / "c"))

    def test_a_classifier_for_another_number_of_stages(self) -> None:
        with pytest.raises(ClassifierError, match="4 stages"):
            TandemLM(efforts="17:23")

    def test_a_corrupted_store(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("no store at all, only a text" * 50)
        with pytest.raises(StoreError, match="cannot be used as a store"):
            TandemLM(store=str(tmp_path / "s"))
        assert (tmp_path / "s").read_text().startswith("no store")

    def test_a_ledger_of_another_run(self, tmp_path: Path) -> None:
        """The one that is there would be lost."""
        file, asked = tmp_path / "l.jsonl", r"give each run a ledger file of its own, or remove the file\."
        head = {
            "policy": "stage:1",
            "pair": "pair",
            "mentor": {"model": "pair/mentor"},
            "intern": {"model": "pair/intern"},
        }
        ledger_file.write(file, [], head)
        written = file.read_bytes()
        with pytest.raises(ArgumentError, match=rf"holds .* policy=stage:1 of .* which policy=stage:2 of .*; {asked}"):
            TandemLM(ledger=str(file), policy="stage:2")
        with pytest.raises(ArgumentError, match=rf"policy=stage:1 of pair/mentor and pair/intern, .*; {asked}"):
            TandemLM(ledger=str(file), policy="stage:1", mentor="org/big", intern="pair")
        with pytest.raises(EngineError, match="a model was loaded"):  # past all checks: the same run again
            TandemLM(ledger=str(file), policy="stage:1")
        assert file.read_bytes() == written

    def test_the_ledger_of_the_same_model_by_another_path_is_that_of_the_same_run(self, tmp_path: Path) -> None:
        (tmp_path / "big").mkdir()
        (tmp_path / "other" / "big").mkdir(parents=True)
        head = {"policy": "mentor", "pair": "big", "mentor": {"model": os.path.relpath(tmp_path / "big")}}
        ledger_file.write(tmp_path / "l.jsonl", [], head)
        given = {"policy": "mentor", "intern": "pair", "ledger": str(tmp_path / "l.jsonl")}
        with pytest.raises(EngineError, match="a model was loaded"):
            TandemLM(mentor=str(tmp_path / "big"), **given)
        with pytest.raises(ArgumentError, match=r"holds the ledger of another run, policy=mentor of .*big, which"):
            TandemLM(mentor=str(tmp_path / "other" / "big"), **given)

    @pytest.mark.parametrize("content", ["my notes\n", '{"question": "mine"}\n', "[" * 100_000, "\xff\xfe"])
    def test_a_file_that_is_no_ledger(self, tmp_path: Path, content: str) -> None:
        file = tmp_path / "rows.jsonl"
        file.write_text(content, encoding="latin-1")
        with pytest.raises(ArgumentError, match=r"rows\.jsonl holds something else than a ledger"):
            TandemLM(ledger=str(file), policy="stage:1")
        with pytest.raises(ArgumentError, match="is a folder; give the name of a file"):
            TandemLM(ledger=str(tmp_path), policy="stage:1")
        assert file.read_text(encoding="latin-1") == content

    def test_a_mentor_that_is_not_there(self) -> None:
        with pytest.raises(ArgumentError, match="is no folder"):
            TandemLM(mentor="/no/such/model", intern="org/small", policy="stage:1")


def test_a_context_that_cannot_fit_is_refused_before_anything_runs(tmp_path: Path) -> None:
    lm = TandemLM(policy="stage:3", store=str(tmp_path / "s"), **COMMON)
    asked = instances(3)
    asked[2].arguments = ("word " * 600, asked[2].args[1])
    with pytest.raises(ContextError, match=r"t #2 does not fit into the window .* 512 tokens.*shorten the prompt"):
        lm.generate_until(asked, disable_tqdm=True)
    assert lm.store is not None
    assert len(lm.store) == 0
    lm.close()


def test_a_cache_that_would_give_old_answers_is_refused(tmp_path: Path) -> None:
    lm = TandemLM(policy="intern", **COMMON)
    with pytest.raises(ArgumentError, match=r"--use_cache .* give store=FILE"):
        CachingLM(lm, str(tmp_path / "cache.db"))
    lm.close()


def test_what_stands_in_the_model_arguments_goes_before_what_the_harness_adds() -> None:
    added = {"batch_size": 2, "max_batch_size": None, "device": "cpu"}
    given = {"policy": "intern", "dtype": "float32", "batch_size": 8}
    text = ",".join(f"{name}={value}" for name, value in given.items())
    for lm in (TandemLM.create_from_arg_obj(given, added), TandemLM.create_from_arg_string(text, added)):
        assert lm._intern is not None
        assert lm._intern.max_concurrency == 8
        lm.close()


def test_the_same_run_again_replaces_its_ledger(tmp_path: Path) -> None:
    file = tmp_path / "l.jsonl"
    for questions in (3, 2):
        lm = TandemLM(policy="intern", ledger=str(file), **COMMON)
        lm.generate_until(instances(questions), disable_tqdm=True)
        lm.close()
        assert len(file.read_text().splitlines()) == 1 + questions


def test_the_batch_size_can_be_found_by_itself() -> None:
    lm = TandemLM(policy="intern", **{**COMMON, "batch_size": "auto", "max_batch_size": 4})
    assert [engine.max_concurrency for engine in (lm._intern,) if engine is not None] == [4]
    assert len(lm.generate_until(instances(5), disable_tqdm=True)) == 5
    lm.close()


def test_generation_arguments_without_a_meaning_are_named() -> None:
    lm = TandemLM(policy="intern", **COMMON)
    with pytest.raises(ArgumentError, match="num_beams"):
        lm.generate_until(instances(1, num_beams=4), disable_tqdm=True)
    lm.close()


def test_answers_carry_their_cost_and_totals_add_up(tmp_path: Path) -> None:
    lm = TandemLM(policy="cascade", ledger=str(tmp_path / "l.jsonl"), record_features=True, **COMMON)
    answers = lm.generate_until(instances(), disable_tqdm=True)
    assert all(isinstance(answer, Answer) for answer in answers)
    metrics = [answer.metrics for answer in answers if isinstance(answer, Answer)]
    assert set(metrics[0]) == {"length", "mentor_tokens", "tflops", "stage", "truncated"}
    info = lm.get_model_info()["tandem"]
    assert info["run"] == "tandem-pair-cascade"
    assert info["thresholds"]
    assert info["mentor"]["model"] == "pair/mentor"
    totals = info["totals"]
    assert totals["questions"] == 12
    assert totals["tflops"] == pytest.approx(sum(m["tflops"] for m in metrics) / 12)
    assert totals["length"] == pytest.approx(sum(m["length"] for m in metrics) / 12)
    lines = [json.loads(line) for line in (tmp_path / "l.jsonl").read_text().splitlines()]
    assert len(lines) == 13
    assert len(lines[1]["stages"][0]["features"]) == 14
    assert json.dumps(info)
    lm.close()


@pytest.mark.parametrize(("allowed", "cut"), [(4, 12), (200, 0)])
def test_a_run_warns_of_many_answers_that_were_cut(allowed: int, cut: int, caplog: pytest.LogCaptureFixture) -> None:
    lm = TandemLM(policy="intern", **COMMON)
    lm.generate_until(instances(max_gen_toks=allowed), disable_tqdm=True)
    lm.close()
    sentences = [record.message for record in caplog.records if "were cut" in record.message]
    assert [sentence.split(" answers")[0] for sentence in sentences] == [f"{cut} of 12"] * (cut > 0)
    assert all("raise max_gen_toks" in sentence for sentence in sentences)


def test_a_store_shares_the_mentors_text_and_changes_nothing(tmp_path: Path) -> None:
    store = str(tmp_path / "s.sqlite")

    def answered(policy: str, **more: Any) -> tuple[list[str], dict[str, Any]]:
        lm = TandemLM(policy=policy, **COMMON, **more)
        found = lm.generate_until(instances(), disable_tqdm=True)
        totals = lm.totals()
        lm.close()
        return found, totals

    plain, undisturbed = answered("cascade")
    _, high = answered("stage:3", store=store)
    first, totals = answered("cascade", store=store)
    again, repeated = answered("cascade", store=store)
    assert plain == first == again
    assert totals["computed"]["mentor"]["decode_tokens"] == 0, "the mentor wrote again what the store had"
    idle = {"judge_seconds": 0.0}  # but for the classifier, which judges again
    assert repeated["computed"]["intern"] | idle == repeated["computed"]["mentor"] | idle
    assert repeated["computed"]["intern"]["decode_tokens"] == repeated["computed"]["intern"]["prefill_tokens"] == 0
    assert repeated["computed"]["intern"]["prefill_tokens"] == 0
    for name in ("tflops", "bill_tflops", "length", "tokens", "stage_share"):
        assert undisturbed[name] == totals[name] == repeated[name], f"{name} depends on the store"
    assert high["found_in_store"] == 0
    assert undisturbed["judge_share"] > undisturbed["refused_share"] >= 0


def test_a_policy_with_a_number_of_its_own_leaves_the_settings_of_the_run() -> None:
    """So it is reported beside the other policies of the pair, and the next policy is that of the run again."""

    def answered(lm: TandemLM) -> tuple[list[str], dict[str, Any]]:
        return lm.generate_until(instances(4), disable_tqdm=True), lm.totals()["tokens"]

    one_stage = TandemLM(policy="stage:1", guidance="handoff", efforts="20", **COMMON)
    begun = answered(one_stage)
    one_stage.close()
    lm = TandemLM(policy="handoff:20", **COMMON)
    settings = {name: value for name, value in lm.description.items() if name not in ("run", "policy")}
    assert answered(lm) == begun
    lm.use("stage:1")
    guided = answered(lm)
    assert guided[0] != begun[0]
    lm.use("handoff:20")
    assert answered(lm) == begun
    lm.use("outline:20")
    assert answered(lm)[0] not in (begun[0], guided[0])
    assert {name: value for name, value in lm.description.items() if name not in ("run", "policy")} == settings
    assert lm.description["policy"] == "outline:20"
    lm.close()


def test_what_was_refused_is_part_of_what_judging_takes() -> None:
    worked = {
        "mentor": {"generate_seconds": 2.0, "judge_seconds": 0.0},
        "intern": {"generate_seconds": 10.0, "judge_seconds": 1.0},
    }
    totals = {"computed": worked, "tokens": {"intern_new": 100}, "refused_tokens": 2.0, "questions": 10}
    assert shares(totals) == {"judge_share": pytest.approx(3 / 10), "refused_share": pytest.approx(2 / 10)}
    idle = {"intern": {"generate_seconds": 0.0, "judge_seconds": 1.0}}
    assert shares({"computed": idle}) == {"judge_share": 0.0, "refused_share": 0.0}


def test_repeats_are_sampled_apart_and_the_same_again() -> None:
    def sampled(seed: int) -> list[str]:
        lm = TandemLM(policy="stage:1", seed=seed, **COMMON)
        asked = [copy for one in instances(4, 3, do_sample=True, temperature=1.5) for copy in [one] * 3]
        found = lm.generate_until(asked, disable_tqdm=True)
        assert [record.repeat for record in sorted(lm.records, key=lambda r: r.key)] == [0, 1, 2] * 4
        lm.close()
        return found

    one, again, other = sampled(1), sampled(1), sampled(2)
    assert one == again != other
    assert any(len(set(one[first : first + 3])) > 1 for first in range(0, 12, 3))


def test_messages_reach_each_role_in_its_own_template(tmp_path: Path) -> None:
    folders = {role: tiny.save(tmp_path / role, "llama", seed) for seed, role in enumerate(["mentor", "intern"])}
    (folders["mentor"] / "chat_template.jinja").write_text(
        "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
    )
    words = tmp_path / "words.json"
    words.write_text('{"request": " Insights:", "open": " Insights:", "close": " Steps:"}')
    models = {role: str(path) for role, path in folders.items()}
    lm = TandemLM(**models, policy="stage:1", efforts="5:9", prompts=str(words), **COMMON)
    context = lm.apply_chat_template([{"role": "user", "content": "One?"}])
    assert str(context) == "One?", "the harness sees what the answering model would see"
    asked = Instance("generate_until", {}, (context, {"until": [], "max_gen_toks": 4}), 0, ("t", 0, 1))
    (task,) = tasks_of([asked], 256, 0)
    assert lm.cascade.mentor is not None
    shown = lm.cascade.prompts.mentor(lm.cascade.mentor, task.question)
    assert shown.startswith("<user>One?")
    assert shown.endswith("<go>")
    assert len(lm.generate_until([asked], disable_tqdm=True)) == 1
    lm.close()
