"""From collecting hidden states of the bundled pair to live cascades with them, as they are and finetuned with LoRA."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from bundled import COMMON, instances
from lm_eval_tandem import pair
from lm_eval_tandem.engines import registry
from lm_eval_tandem.engines.hf import engine as hf_engine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.judge import artefact
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.training import fit_folder, tradeoff
from lm_eval_tandem.training.collect import collect
from lm_eval_tandem.training.collected_file import read

QUESTIONS = 24


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collected")
    collect(dict(COMMON), ["tandem_pair_math_train"], folder, [], limit=QUESTIONS, mentor=False, hidden=True)
    return folder


@pytest.fixture(scope="module")
def classifiers(collected: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("classifiers")
    how: dict[str, Any] = {"model": "logistic"}
    for inputs in ("hidden", "lora"):
        fit_folder.fit([collected], folder / inputs, inputs=inputs, **how)
    return {inputs: folder / inputs for inputs in ("hidden", "lora")}


def test_collected_hidden_states_and_prompts_are_the_interns_own(collected: Path) -> None:
    data, description = read(collected)
    assert data.hidden is not None
    assert data.prompts is not None
    assert data.hidden.shape == (QUESTIONS, 4, 64)
    assert data.hidden.dtype == np.float32
    assert "batch_size" not in description["intern"]["arguments"]
    model = AutoModelForCausalLM.from_pretrained(pair.INTERN).eval()
    for q, t in ((0, 0), (3, 1), (17, 3)):
        ids = torch.tensor(np.array([data.prompts[q, t]], dtype=np.int64))
        assert ids.shape[1] == data.features[q, t, -2], "the tokens are not those of the prompt that was judged"
        with torch.inference_mode():
            state = model(ids, output_hidden_states=True).hidden_states[-1][0, -1].numpy()
        np.testing.assert_allclose(data.hidden[q, t], state, atol=2e-4)


def test_a_classifier_of_hidden_states_has_its_thresholds_and_trade_off(
    collected: Path, classifiers: dict[str, Path]
) -> None:
    for inputs, scored in (("hidden", QUESTIONS), ("lora", 7)):
        points, _ = tradeoff.thresholds([collected], classifiers[inputs], "accuracy")
        assert {"frontier", "stage:3", "chosen"} <= {point.name for point in points}
        _, scores, _ = tradeoff.out_of_sample(read(collected)[0], classifiers[inputs])
        assert len(scores) == scored
        assert "hidden state" in (classifiers[inputs] / "README.md").read_text()


def test_a_finetuned_classifier_is_the_same_to_the_byte_when_it_is_fitted_again(
    collected: Path, classifiers: dict[str, Path], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    fit_folder.fit([collected], tmp_path / "lora", inputs="lora", model="logistic")
    assert torch.equal(state, torch.get_rng_state())
    files = ("model.safetensors", "config.json", "adapter/adapter_model.safetensors", "adapter/adapter_config.json")
    for file in files:
        assert (tmp_path / "lora" / file).read_bytes() == (classifiers["lora"] / file).read_bytes()


def run(folder: Path, **arguments: Any) -> tuple[list[str], list[Record], TandemLM]:
    lm = TandemLM(**COMMON, classifier=str(folder), **arguments)
    answers = lm.generate_until(instances(), disable_tqdm=True)
    lm.close()
    return [str(answer) for answer in answers], sorted(lm.records, key=lambda record: record.doc_id), lm


@pytest.fixture(scope="module")
def fixed(tmp_path_factory: pytest.TempPathFactory) -> dict[int, tuple[list[str], list[Record]]]:
    """Answers and records of every fixed stage, where no judge is near."""
    lm = TandemLM(**COMMON, policy="stage:0", mentor=str(pair.MENTOR), intern=str(pair.INTERN))
    lm.close()
    found = {}
    for stage in range(4):
        answers, records, _ = run(Path("none"), policy=f"stage:{stage}")
        found[stage] = answers, records
    return found


@pytest.mark.parametrize("inputs", ["hidden", "lora"])
def test_a_live_cascade_answers_as_the_stage_that_it_stopped_at(
    inputs: str, classifiers: dict[str, Path], fixed: dict[int, tuple[list[str], list[Record]]], tmp_path: Path
) -> None:
    limits = np.nanmedian(artefact.load_out_of_fold(classifiers[inputs])["scores"], axis=0)
    thresholds = ":".join(f"{limit:.6f}" for limit in limits)  # about half of the questions pass
    answers, records, lm = run(classifiers[inputs], thresholds=thresholds)
    assert len({record.stage for record in records}) > 1, "the cascade stopped everywhere at one stage"
    for i, record in enumerate(records):
        plain = fixed[record.stage]
        assert answers[i] == plain[0][i], "the judge changed the answer"
        sizes = [judgement.prompt_tokens for judgement in record.stages]
        if inputs == "lora":  # the judge's pass is another model's, so the answer reuses none of it
            assert record.tokens.judge_prefill >= max(sizes)
            assert record.tokens.intern_prefill == sizes[record.stage]
        else:
            assert record.tokens.intern_prefill <= (1 if record.reason == "sufficient" else max(sizes))
    described = lm.description["judge"]
    assert described["schema"] == {"hidden": "hidden-64/1", "lora": "hidden-lora-64/1"}[inputs]

    store = tmp_path / "s.sqlite"
    kept = [run(classifiers[inputs], thresholds=thresholds, store=str(store)) for _ in range(2)]
    for again, found, _ in kept:
        assert again == answers
        assert [record.stage for record in found] == [record.stage for record in records]
        assert [record.tokens for record in found] == [record.tokens for record in records]
    again_intern = kept[1][2]._intern
    assert again_intern is not None
    assert again_intern.work.prefill_tokens == 0, "not all was in the store"
    other = run(classifiers[{"hidden": "lora", "lora": "hidden"}[inputs]], store=str(store))[2]
    assert other._intern is not None
    assert other._intern.work.judge_seconds > 0, "another view's entries were used"


def test_live_scores_are_those_of_the_collected_questions(classifiers: dict[str, Path], collected: Path) -> None:
    """Hidden states under the adapter are the same in the batches of a run as when the classifier was fitted."""
    place = {name: row for row, name in enumerate(read(collected)[0].ids)}
    kept = artefact.load_out_of_fold(classifiers["lora"])["scores"]
    lm = TandemLM(**COMMON, policy="cascade", classifier=str(classifiers["lora"]), thresholds="1:1:1:1")
    lm.generate_until(instances_of_training(QUESTIONS), disable_tqdm=True)
    lm.close()
    compared = 0
    for record in lm.records:
        expected = kept[place[f"{record.task}/{record.doc_id}"]]
        for judgement in record.stages:
            if np.isfinite(expected[judgement.stage]):
                assert judgement.score == pytest.approx(float(expected[judgement.stage]), abs=1e-3)
                compared += 1
    assert compared > 20


def instances_of_training(n: int) -> list[Any]:
    """The questions of the training task as the harness asks them."""
    from lm_eval.tasks import TaskManager

    from lm_eval_tandem import _paths

    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    task = manager.load(["tandem_pair_math_train"])["tasks"]["tandem_pair_math_train"]
    task.build_all_requests(limit=n)
    return list(task.instances)


class TestRefusedInOneSentence:
    """Before a model is loaded where that is possible."""

    @pytest.fixture
    def no_model(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def loaded(*_: object, **__: object) -> None:
            raise AssertionError("a model was loaded")

        monkeypatch.setattr(registry, "load", loaded)
        monkeypatch.setattr(hf_engine, "load_hflm", loaded)

    @pytest.mark.usefixtures("no_model")
    @pytest.mark.parametrize("inputs", ["hidden", "lora"])
    def test_an_intern_behind_a_server(self, inputs: str, classifiers: dict[str, Path]) -> None:
        with pytest.raises(
            ClassifierError, match=r"classifier=.* needs .* intern_backend=openai does not report"
        ) as refusal:
            TandemLM(mentor="big", intern="small", backend="openai", classifier=str(classifiers[inputs]))
        assert "\n" not in str(refusal.value)

    @pytest.mark.usefixtures("no_model")
    def test_collecting_from_a_server(self, tmp_path: Path) -> None:
        arguments = {"mentor": "big", "intern": "small", "intern_backend": "openai"}
        with pytest.raises(ClassifierError, match=r"collect --hidden needs .* intern_backend=openai does not report"):
            collect(arguments, ["tandem_pair_math_train"], tmp_path / "c", [], hidden=True)

    @pytest.mark.usefixtures("no_model")
    def test_a_missing_peft(
        self, classifiers: dict[str, Path], collected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(registry, "find_spec", lambda name: None)
        for work in (
            lambda: TandemLM(**COMMON, classifier=str(classifiers["lora"])),
            lambda: fit_folder.fit([collected], tmp_path / "x", inputs="lora"),
        ):
            with pytest.raises(ClassifierError, match=r'needs the package peft; install .*"\.\[peft\]"'):
                work()

    def test_hidden_states_of_another_width(self, tmp_path: Path) -> None:
        random = np.random.default_rng(0)
        judge = LogisticJudge().fit(random.normal(size=(20, 32)), np.arange(20) % 2)
        pair_of = {"mentor": "pair/mentor", "intern": "pair/intern"}
        how: dict[str, Any] = {"fitted_on": {}, "recipe": "default", "card": "", "schema": "hidden-32/1"}
        artefact.save(tmp_path / "c", judge, (0.5,) * 4, pair=pair_of, **how)
        with pytest.raises(ClassifierError, match=r"reads hidden states of 32 numbers, but .*intern has 64; use"):
            TandemLM(**COMMON, classifier=str(tmp_path / "c"))

    def test_an_adapter_of_another_intern(self, classifiers: dict[str, Path], tmp_path: Path) -> None:
        judge = artefact.load(shutil.copytree(classifiers["lora"], tmp_path / "c"))
        engine = HFEngine({"pretrained": str(pair.MENTOR), **COMMON})
        with pytest.raises(ClassifierError, match="made for another model than the intern"):
            registry.prepare(engine, judge.view, None, judge.adapter, "c")
        engine.close()
