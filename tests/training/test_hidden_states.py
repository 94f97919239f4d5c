"""Classifiers of hidden states: fitting, the artefact with its adapter, and what is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from lm_eval_tandem.engines import DEFAULT_VIEW, ScoringView
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import artefact, input_schemas, sufficiency
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.reports.sections import importance
from lm_eval_tandem.reports.sources import judge_scores
from lm_eval_tandem.training.dataset import Collected, concatenate
from lm_eval_tandem.training.fit import fit_sufficiency
from lm_eval_tandem.training.recipes import RECIPES

WIDTH = 12
ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


def collected(questions: int = 100, seed: int = 0, width: int = WIDTH) -> Collected:
    """Hidden states in which a direction tells whether the answer is right."""
    random = np.random.default_rng(seed)
    ease = random.normal(0, 1, (questions, 1)) + np.array([-0.5, 0.3, 1.0])
    hidden = random.normal(0, 1, (questions, 3, width)).astype(np.float32)
    hidden[..., 3] = ease + random.normal(0, 0.3, ease.shape)
    prompts = np.empty((questions, 3), dtype=object)
    for q, t in np.ndindex(questions, 3):
        prompts[q, t] = random.integers(0, 50, 5 + t).astype(np.int32)
    cost = np.broadcast_to([1.0, 2.0, 4.0], (questions, 3))
    return Collected(
        [f"{seed}/{q}" for q in range(questions)],
        random.normal(size=(questions, 3, 18)),
        ease > 0,
        cost,
        np.full((questions, 3), 4.0),
        hidden=hidden,
        prompts=prompts,
    )


@pytest.fixture(scope="module")
def data() -> Collected:
    return collected()


@pytest.mark.parametrize("model", [None, "logistic"])
def test_hidden_states_are_fitted_by_default_with_the_papers_network(data: Collected, model: str | None) -> None:
    made = fit_sufficiency(data, inputs="hidden", model=model)
    assert made.report["model"] == (model or "mlp")
    assert made.report["inputs"] == "hidden"
    assert made.schema == "hidden-12/1"
    assert made.probe is None
    assert made.report["questions_out_of_sample"] == len(data.ids)
    assert all(stage["auc"] > 0.7 for stage in made.report["stages"])
    if model is None:
        assert isinstance(made.estimator, SufficiencyClassifier)
        assert made.estimator.hidden == (64, 32)
        papers = fit_sufficiency(data, "paper", inputs="hidden")
        assert papers.estimator.get_params()["epochs"] == 3
        assert papers.report["questions_out_of_sample"] == 30


def test_the_default_recipe_still_chooses_among_the_same_inputs() -> None:
    assert RECIPES["default"].inputs == ("statistics", "probe", "statistics+probe")
    assert RECIPES["paper"].inputs == ("statistics",)


def test_a_finetuned_intern_is_judged_by_questions_that_it_did_not_learn_from(data: Collected) -> None:
    held_out_of: list[NDArray[np.bool_]] = []

    def finetune(prompts: Any, labels: NDArray[np.int64], held_out: NDArray[np.bool_], seed: int) -> Any:
        """Gives the labels of the questions that it learns from, and 0 for the rest."""
        assert prompts is data.prompts
        assert seed == 42
        held_out_of.append(held_out)
        return np.where(held_out[:, None, None], 0.0, labels[..., None] * np.ones(WIDTH)).astype(np.float32)

    made = fit_sufficiency(data, inputs="lora", model="logistic", finetune=finetune)
    assert made.schema == "hidden-lora-12/1"
    assert made.report["questions_out_of_sample"] == 30
    np.testing.assert_array_equal(np.isnan(made.scores).any(axis=1), ~held_out_of[0])
    assert np.ptp(made.scores[held_out_of[0]]) < 1e-9, "scores are of questions that it learned from"


def test_what_was_not_collected_is_named_with_the_next_step(data: Collected) -> None:
    bare = dataclasses.replace(data, hidden=None, prompts=None)
    with pytest.raises(ClassifierError, match="without the intern's hidden states; collect again with --hidden"):
        fit_sufficiency(bare, inputs="hidden")
    with pytest.raises(ClassifierError, match="without the prompts' tokens"):
        fit_sufficiency(bare, inputs="lora", finetune=lambda *_: np.zeros((100, 3, WIDTH), np.float32))
    with pytest.raises(ClassifierError, match="lm-eval-tandem fit"):
        fit_sufficiency(data, inputs="lora")
    with pytest.raises(ClassifierError, match="12 numbers, not of 8 as the schema hidden-8/1"):
        data.inputs("hidden-8/1")
    assert concatenate([data, bare]).hidden is None
    both = concatenate([data, collected(20, 1)])
    assert both.hidden is not None
    assert both.hidden.shape == (120, 3, WIDTH)
    assert both.prompts is not None
    assert both.prompts.shape == (120, 3)
    assert both.subset(np.array([119])).prompts[0, 2] is both.prompts[119, 2]  # type: ignore[index]


def test_schemas_of_hidden_states_name_their_width() -> None:
    assert (
        input_schemas.names("hidden-3/1")
        == input_schemas.names("hidden-lora-3/1")
        == ("hidden_0", "hidden_1", "hidden_2")
    )
    assert input_schemas.width("hidden-lora-4096/1") == 4096
    assert input_schemas.width(input_schemas.STATISTICS) is None
    assert input_schemas.uses_adapter("hidden-lora-3/1")
    assert not input_schemas.uses_adapter("hidden-3/1")
    for unknown in ("hidden-0/1", "hidden-3/2", "hidden/1", "hidden-lora/1", "hidden-3/1x", None):
        with pytest.raises(ClassifierError, match="'hidden-D/1' and 'hidden-lora-D/1'"):
            input_schemas.names(unknown)


def saved(folder: Path, data: Collected, lora: bool) -> Path:
    schema = input_schemas.hidden(WIDTH, lora)
    estimator = LogisticJudge().fit(data.inputs(input_schemas.hidden(WIDTH)).reshape(-1, WIDTH), np.ravel(data.correct))
    artefact.save(
        folder, estimator, (0.5, 0.5, 0.5), pair={"mentor": "large", "intern": "small"}, fitted_on={}, recipe="default",
        card="#", schema=schema, adapter=ADAPTER if lora else None,
    )  # fmt: skip
    return folder


def test_an_artefact_names_the_view_that_the_intern_has_to_take(data: Collected, tmp_path: Path) -> None:
    plain, lora = (artefact.load(saved(tmp_path / str(kind), data, kind), stages=3) for kind in (False, True))
    assert (plain.width, plain.adapter, plain.view) == (WIDTH, None, ScoringView(hidden=True))
    assert lora.adapter == tmp_path / "True" / "adapter"
    assert lora.width == WIDTH
    assert lora.view.hidden
    assert lora.view.adapter == sufficiency.combined_checksum(lora.config["adapter"])
    assert all((lora.adapter / name).read_bytes() == content for name, content in ADAPTER.items())
    for judge in (plain, lora):
        state = data.hidden_states()[5, 1].astype(np.float64)
        assert judge.reads_prompt
        assert judge.score(judge.inputs(state)) == judge.score(state)
        with pytest.raises(ClassifierError, match="12 finite numbers"):
            judge.score(judge.inputs(np.zeros(18)))
        record = {"stages": [{"features": [0.0] * 18}], "tokens": {"intern_new": 3}}
        assert judge_scores.input_vector(record, judge) is None
        missing = importance.importance_part(judge, [], must_fit=False)
        assert "hidden states, whose entries have no meaning one by one" in missing.reason  # type: ignore[union-attr]
    assert plain.view != DEFAULT_VIEW


def changed(**changes: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        config = {name: value for name, value in config.items() if value is not None}
        (folder / "config.json").write_text(json.dumps(config))

    return change


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


REFUSALS: dict[str, tuple[Callable[[Path], object], str]] = {
    "another width": (changed(schema="hidden-lora-13/1"), "names other features"),
    "no adapter named": (changed(adapter=None), "has no LoRA adapter, which does not go with its schema"),
    "an adapter for a plain schema": (changed(schema="hidden-12/1"), "has a LoRA adapter, which does not go"),
    "a missing file": (
        lambda folder: (folder / "adapter" / "adapter_config.json").unlink(),
        "lacks a file of its LoRA",
    ),
    "other weights": (
        lambda folder: (folder / "adapter" / "adapter_model.safetensors").write_bytes(b"wights"),
        "adapter_model.safetensors is corrupted",
    ),
    "a file elsewhere": (changed(adapter={"../model.safetensors": digest(b"")}), "as names of files with checksums"),
    "a list": (changed(adapter=["adapter_config.json"]), "as names of files with checksums"),
    "a probe": (changed(probe={"tokens": 8, "max_entropy": None, "piece": 8}), "has a probe"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_a_broken_artefact_is_refused_in_one_sentence(data: Collected, tmp_path: Path, case: str) -> None:
    spoil, words = REFUSALS[case]
    spoil(saved(tmp_path / "c", data, lora=True))
    with pytest.raises(ClassifierError, match=words) as refusal:
        artefact.load(tmp_path / "c")
    assert "\n" not in str(refusal.value)
    assert str(refusal.value).endswith(".")
