"""Which models answer: what is measured is what the models hold, and the choice follows from it by hand."""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from engines.conformance import TEXTS, run
from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.ensembles.reference_file import UNKNOWN, Reference, read_reference, reference_of, write_reference
from lm_eval_tandem.ensembles.selection import (
    ASSESSMENT,
    assess,
    assessment_prompt,
    default_count,
    measure,
    select_by_assessment,
    select_by_zscore,
    select_random,
    zscores,
)
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.training.reference import collect_reference

USUAL = Reference(ppl_mean=10.0, ppl_std=2.0, conf_mean=0.5, conf_std=0.1, questions=4)
REFERENCE = {"a": USUAL, "b": replace(USUAL, ppl_mean=20.0, ppl_std=4.0), "c": USUAL, "d": USUAL}
MEASURED = {"a": (9.0, 0.55), "b": (16.0, 0.6), "c": (12.0, 0.5), "d": (12.0, 0.5)}
QUESTION = Question("", (("system", "Be brief."), ("user", "What is 2 + 3?"), ("assistant", "It is")), False)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: tiny.save(tmp_path_factory.mktemp(kind), kind, seed=3) for kind in ("llama", "gpt2")}


@pytest.fixture(scope="module")
def engines(folders: dict[str, Path]) -> Iterator[dict[str, HFEngine]]:
    given = {"dtype": "float32", "device": "cpu", "batch_size": 4}
    engines = {kind: HFEngine({"pretrained": str(folder), **given}) for kind, folder in folders.items()}
    yield engines
    for engine in engines.values():
        engine.close()


class BruteForce:
    """A model in transformers."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder)

    def distributions(self, text: str) -> tuple[list[int], Any]:
        ids = self.tokenizer(text).input_ids
        with torch.inference_mode():
            return ids, torch.softmax(self.model(torch.tensor([ids])).logits[0].double(), -1)

    def measure(self, text: str) -> tuple[float, float]:
        ids, p = self.distributions(text)
        chosen = [float(p[i - 1, ids[i]]) for i in range(1, len(ids))]
        perplexity = math.exp(-sum(map(math.log, chosen)) / len(chosen))
        return perplexity, float(p[:-1].amax(-1).mean())

    def assess(self, prompt: str, replies: tuple[str, str]) -> float:
        start = len(self.tokenizer(prompt).input_ids)
        values = []
        for reply in replies:
            ids, p = self.distributions(prompt + reply)
            assert ids[:start] == self.tokenizer(prompt).input_ids
            values.append(math.prod(float(p[i - 1, ids[i]]) for i in range(start, len(ids))))
        return values[0] - values[1]


@pytest.fixture(scope="module")
def brute(folders: dict[str, Path]) -> dict[str, BruteForce]:
    return {kind: BruteForce(folder) for kind, folder in folders.items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("session", [None, "s"])
def test_measure_and_assess_are_those_of_a_forward_pass(
    engines: dict[str, HFEngine], brute: dict[str, BruteForce], kind: str, session: str | None
) -> None:
    engine, model, text = engines[kind], brute[kind], TEXTS[4]
    measured = run(measure(engine, text, session))
    assert measured.values == pytest.approx(model.measure(text), rel=1e-4)
    assert measured.texts == (text,)
    prompt = assessment_prompt(engine, Question(text))
    assert prompt == text + ASSESSMENT
    for asked, replies in ((prompt, (" Yes", " No")), (prompt + "\n", ("Yes", "No"))):
        before = engine.work.prefill_tokens
        said = run(assess(engine, asked, session))
        assert said.value == pytest.approx(model.assess(asked, replies), rel=1e-3, abs=1e-9)
        assert said.texts == tuple(asked + reply for reply in replies)
        if session and asked == prompt:  # the question is not read again, nor is the prompt for the second reply
            assert engine.work.prefill_tokens - before < len(engine.encode(ASSESSMENT)) + 12
    with pytest.raises(ArgumentError, match="a question of 1 token has no perplexity"):
        run(measure(engine, "x", session))
    engine.release("s")


def test_a_chat_question_is_asked_in_the_last_user_turn_without_a_begun_answer(engines: dict[str, HFEngine]) -> None:
    engine = engines["llama"]
    turns = (("system", "Be brief."), ("user", "What is 2 + 3?" + ASSESSMENT))
    assert assessment_prompt(engine, QUESTION) == engine.render(turns)


def test_zscores_and_the_selection_are_those_computed_by_hand() -> None:
    assert zscores(MEASURED, REFERENCE) == pytest.approx({"a": 1.0, "b": 2.0, "c": -1.0, "d": -1.0})
    assert default_count(MEASURED, REFERENCE) == 2
    assert select_by_zscore(MEASURED, REFERENCE) == ["b", "a"]
    assert select_by_zscore(MEASURED, REFERENCE, 3) == ["b", "a", "c"]
    assert select_by_zscore(dict(reversed(MEASURED.items())), REFERENCE, 3) == ["b", "a", "d"]
    hard = {label: (30.0, confidence) for label, (_, confidence) in MEASURED.items()}
    assert default_count(hard, REFERENCE) == 3
    assert default_count(hard | {"a": (10.0, 0.5)}, REFERENCE) == 2  # 3 of 4 are fewer than 90 %; the mean is no more
    assert select_by_zscore({"a": (math.inf, 0.5), "b": (20.0, 0.5)}, REFERENCE, 1) == ["b"]
    assert default_count({"a": (math.inf, 0.5)}, REFERENCE) == 1
    for count in (0, 5):
        with pytest.raises(ArgumentError, match=f"^{count} models cannot be selected of 4; give a number from 1 to 4"):
            select_by_zscore(MEASURED, REFERENCE, count)
    with pytest.raises(ArgumentError, match=r"statistics of a, b, c, d, but not of e; collect it with .* --reference"):
        zscores({"e": (1.0, 1.0)}, REFERENCE)


def test_the_most_confident_model_is_the_one_that_says_yes_more_than_usual() -> None:
    assessed = {"a": 0.5, "b": 0.7, "c": 0.7}
    assert select_by_assessment(assessed) == select_by_assessment(assessed, REFERENCE) == "b"
    usual = {label: replace(USUAL, assessment_mean=mean) for label, mean in (("a", 0.1), ("b", 0.6), ("c", 0.7))}
    assert select_by_assessment(assessed, usual) == "a"


def test_a_random_selection_depends_on_seed_and_question_alone() -> None:
    names = ["a", "b", "c", "d"]
    drawn = [select_random(names, 2, 7, ("task", doc, 0)) for doc in range(600)]
    assert drawn == [select_random(names, 2, 7, ("task", doc, 0)) for doc in range(600)]
    assert drawn[0] == ["b", "d"]  # by sha256sum
    assert drawn != [select_random(names, 2, 8, ("task", doc, 0)) for doc in range(600)]
    assert drawn != [select_random(names, 2, 7, ("task", doc, 1)) for doc in range(600)]
    assert all(one == sorted(set(one)) and len(one) == 2 for one in drawn)
    counts = Counter(name for one in drawn for name in one)
    assert all(240 < counts[name] < 360 for name in names)
    assert select_random(names, 4, 7, ("task", 0, 0)) == names


def test_a_reference_file_reads_as_it_was_written_and_others_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "reference.json"
    models = {"a": USUAL, "b": replace(USUAL, assessment_mean=-0.25)}
    write_reference(file, models, {"task": "coins"})
    assert read_reference(file, ["b", "a"]) == models
    content = json.loads(file.read_text())
    assert (content["format"], content["task"]) == ("tandem-reference/1", "coins")
    with pytest.raises(ArgumentError, match=r"but not of c; collect it with `lm-eval-tandem collect --reference`"):
        read_reference(file, ["a", "c"])
    with pytest.raises(ArgumentError, match=r"none.json cannot be read .*; collect it with"):
        read_reference(tmp_path / "none.json")
    good = content["models"]["a"]
    for changed, words in (
        ({**content, "format": "tandem-reference/2"}, "is no reference file of the format tandem-reference/1"),
        ({**content, "models": {"a": {**good, "ppl_std": 0.0}}}, "for a: ppl_std of a reference has to be above 0"),
        ({**content, "models": {"a": {**good, "conf_mean": "1"}}}, "conf_mean .* has to be a finite number, not '1'"),
        ({**content, "models": {"a": {**good, "more": 1}}}, "has to hold .* of a, and nothing else"),
    ):
        file.write_text(json.dumps(changed))
        with pytest.raises(ArgumentError, match=words) as refusal:
            read_reference(file)
        assert "\n" not in str(refusal.value)
    (tmp_path / "file").touch()
    with pytest.raises(ArgumentError, match="cannot be written"):
        write_reference(tmp_path / "file" / "reference.json", models, {})


def test_a_reference_of_an_older_version_does_not_say_how_questions_were_rendered(tmp_path: Path) -> None:
    file = tmp_path / "reference.json"
    write_reference(file, {"a": replace(USUAL, chat_template=None)}, {})
    assert read_reference(file)["a"].chat_template is None
    content = json.loads(file.read_text())
    del content["models"]["a"]["chat_template"]
    file.write_text(json.dumps(content))
    assert read_reference(file) == {"a": USUAL}
    assert USUAL.chat_template == UNKNOWN
    content["models"]["a"]["chat_template"] = True
    file.write_text(json.dumps(content))
    with pytest.raises(ArgumentError, match="for a: chat_template of a reference has to be a checksum or null"):
        read_reference(file)


def test_a_reference_is_named_alike_whatever_it_says_of_templates() -> None:
    """The names of runs hold a checksum of it."""
    assert repr(USUAL) == repr(replace(USUAL, chat_template=None))


@pytest.mark.parametrize("label", ["m", "./m", "b/../m", "absolute"])
def test_names_of_the_same_folder_are_of_the_same_model(
    label: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "b").mkdir()
    monkeypatch.chdir(tmp_path)
    write_reference(Path("reference.json"), {"./m": USUAL}, {})
    assert str(tmp_path) not in Path("reference.json").read_text()
    label = str(tmp_path / "m") if label == "absolute" else label
    assert reference_of(label, read_reference(Path("reference.json"), [label])) == USUAL
    with pytest.raises(ArgumentError, match=r"holds statistics of \./m, but not of b;"):
        read_reference(Path("reference.json"), ["b"])


def test_a_collected_reference_is_that_of_all_questions_that_every_model_can_read(
    engines: dict[str, HFEngine], brute: dict[str, BruteForce], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [TEXTS[0], "x", TEXTS[2], TEXTS[3]]  # the second has one token
    file = tmp_path / "reference.json"
    with caplog.at_level(logging.WARNING):
        found = collect_reference(engines, map(Question, texts), file, {"task": "mine"}, disable_tqdm=True)
    assert "1 of 4 questions are left out, the first because a question of 1 token" in caplog.text
    assert read_reference(file, engines) == found
    for kind, model in brute.items():
        values = torch.tensor([model.measure(text) for text in texts if text != "x"], dtype=torch.float64)
        said = [model.assess(text + ASSESSMENT, (" Yes", " No")) for text in texts if text != "x"]
        deviations = values.std(0, correction=0)
        one = found[kind]
        assert (one.ppl_mean, one.conf_mean) == pytest.approx(values.mean(0).tolist(), rel=1e-4)
        assert (one.ppl_std, one.conf_std) == pytest.approx(deviations.tolist(), rel=1e-3)
        assert one.assessment_mean == pytest.approx(sum(said) / 3, rel=1e-3, abs=1e-9)
        assert one.questions == 3
        assert one.chat_template is None
    for asked, words in (
        (["x", TEXTS[0]], r"1 of 2 questions could be .* \(the first"),
        ([TEXTS[0]] * 2, "that differ"),
    ):
        with pytest.raises(ArgumentError, match=words):
            collect_reference(engines, map(Question, asked), tmp_path / "no.json", {}, disable_tqdm=True)
    assert not (tmp_path / "no.json").exists()
