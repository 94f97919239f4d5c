"""Hidden states, and a model that reads with an adapter: exact, without a second pass, and apart from the answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from engines.conformance import TEXTS, run, together
from lm_eval_tandem import pair
from lm_eval_tandem.engines import DEFAULT_VIEW, Prompt, Sampling, ScoringView, registry
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.lora_adapter import CONFIG, WEIGHTS, Adapter, LoraShape
from lm_eval_tandem.engines.limits import require_default_view
from lm_eval_tandem.errors import ClassifierError, EngineError
from lm_eval_tandem.store import Store

HIDDEN = ScoringView(hidden=True)
ADAPTED = ScoringView(hidden=True, adapter="mine")


def opened(folder: Path, batch_size: int = 4) -> HFEngine:
    return HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": batch_size})


@dataclass
class Model:
    """The same weights in transformers, one prompt at a time."""

    folder: Path

    def __post_init__(self) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self.folder)

    def hidden(self, text: str) -> Any:
        with torch.inference_mode():
            found = self.model(self.tokenizer(text, return_tensors="pt").input_ids, output_hidden_states=True)
        return found.hidden_states[-1][0, -1].numpy()


@pytest.fixture(scope="module", params=["llama", "qwen3", "gpt2", "mistral", "pair"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    if request.param == "pair":
        return pair.INTERN
    return tiny.save(tmp_path_factory.mktemp(request.param), request.param)


@pytest.mark.parametrize("batch_size", [1, 16])
def test_the_hidden_state_is_that_of_one_prompt_alone(folder: Path, batch_size: int) -> None:
    reference, engine = Model(folder), opened(folder, batch_size)

    async def grow(text: str) -> Any:
        """At once, and in a session that has read half of it."""
        await engine.score(Prompt(text[: len(text) // 2] + " end", session=text), HIDDEN)
        return await engine.score(Prompt(text, session=text), HIDDEN), await engine.score(Prompt(text), HIDDEN)

    for text, found in zip(TEXTS, run(together(*map(grow, TEXTS))), strict=True):
        for stats in found:
            assert stats.hidden.dtype == np.float32
            assert stats.hidden.shape == (engine.hidden_size,)
            np.testing.assert_allclose(stats.hidden, reference.hidden(text), atol=2e-4, rtol=1e-4)
    engine.close()


def test_a_hidden_state_costs_no_pass_and_changes_no_statistics() -> None:
    work = []
    for view in (DEFAULT_VIEW, HIDDEN):
        engine = opened(pair.INTERN)

        async def read(text: str, engine: HFEngine = engine, view: ScoringView = view) -> Any:
            for part in (text[: len(text) // 2], text, text):
                stats = await engine.score(Prompt(part, session=text), view)
            return stats

        found = run(together(*map(read, TEXTS)))
        work.append((engine.work.prefill_tokens, engine.work.recomputed_tokens, [stats.entropy for stats in found]))
        assert all((stats.hidden is None) == (view == DEFAULT_VIEW) for stats in found)
        engine.close()
    assert work[0][:2] == work[1][:2]
    for one, other in zip(work[0][2], work[1][2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)


def test_the_store_keeps_views_apart(tmp_path: Path) -> None:
    store, engine = Store(tmp_path / "s"), opened(pair.INTERN)
    first = CachedEngine(engine, store)
    plain, seen = (run(first.score(Prompt(TEXTS[0]), view)) for view in (DEFAULT_VIEW, HIDDEN))
    assert first.hits == 0
    assert plain.hidden is None
    assert seen.hidden is not None
    again = CachedEngine(engine, store)
    same, known = (run(again.score(Prompt(TEXTS[0]), view)) for view in (DEFAULT_VIEW, HIDDEN))
    assert again.hits == 2
    assert same.hidden is None
    np.testing.assert_array_equal(known.hidden, seen.hidden)
    engine.close()
    store.close()


# A model that reads with an adapter


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp(request.param), request.param, seed=2)


def trained(base: Path, folder: Path) -> Path:
    """An adapter that changes much, as if it had been trained."""
    torch.manual_seed(5)
    adapter = Adapter(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), LoraShape(4, 8))
    adapter.load({name: 0.3 * torch.randn(parameter.shape) for name, parameter in adapter.weights.items()})
    folder.mkdir()
    for name, content in adapter.files(str(base)).items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(base, tmp_path_factory.mktemp("adapter") / "a")


@pytest.fixture
def adapted(base: Path, adapter: Path) -> Iterator[HFEngine]:
    engine = opened(base)
    engine.load_adapter(adapter, "mine")
    yield engine
    engine.close()


def test_the_adapted_model_reads_as_in_peft_and_answers_as_if_it_had_no_adapter(
    base: Path, adapter: Path, adapted: HFEngine
) -> None:
    plain, with_adapter = Model(base), Model(base)
    with_adapter.model = PeftModel.from_pretrained(with_adapter.model, str(adapter)).eval()
    without = opened(base)

    async def question(text: str) -> Any:
        """Judge, judge again, answer, judge once more: each starts from what is its own."""
        half = text[: len(text) // 2]
        await adapted.score(Prompt(half, session=text), ADAPTED)
        one = await adapted.score(Prompt(text, session=text), ADAPTED)
        answer = await adapted.generate(Prompt(text, session=text), Sampling(9))
        two = await adapted.score(Prompt(text, session=text), ADAPTED)
        base = await adapted.score(Prompt(text, session=text), HIDDEN)
        return one, two, base, answer

    found = run(together(*map(question, TEXTS)))
    answers = run(together(*(without.generate(Prompt(text), Sampling(9)) for text in TEXTS)))
    for text, (one, two, own, answer), expected in zip(TEXTS, found, answers, strict=True):
        for stats in (one, two):
            np.testing.assert_allclose(stats.hidden, with_adapter.hidden(text), atol=2e-3, rtol=1e-3)
        np.testing.assert_allclose(own.hidden, plain.hidden(text), atol=2e-4, rtol=1e-4)
        assert answer.token_ids == expected.token_ids
        assert answer.cached_tokens == 0
        if len(one) > 2:
            assert np.abs(one.hidden - own.hidden).max() > 0.1
    without.close()


def test_each_pass_of_a_session_goes_on_from_its_own_kind_alone(adapted: HFEngine) -> None:
    text = TEXTS[4]
    size = len(adapted.encode(text))

    async def read(view: ScoringView) -> int:
        return (await adapted.score(Prompt(text, session="s"), view)).cached_tokens

    async def all_kinds() -> list[int]:
        return [await read(view) for view in (ADAPTED, ADAPTED, HIDDEN, HIDDEN, ADAPTED)]

    assert run(all_kinds()) == [0, size - 1, 0, size - 1, size - 1]
    adapted.release("s")
    assert run(all_kinds())[0] == 0


def test_views_mixed_in_one_batch_are_each_their_own(base: Path, adapter: Path) -> None:
    engine, alone = opened(base, 16), opened(base, 1)
    for one in (engine, alone):
        one.load_adapter(adapter, "mine")
    views = [(DEFAULT_VIEW, HIDDEN, ADAPTED)[i % 3] for i in range(len(TEXTS))]
    mixed = run(together(*(engine.score(Prompt(text), view) for text, view in zip(TEXTS, views, strict=True))))
    for text, view, stats in zip(TEXTS, views, mixed, strict=True):
        single = run(alone.score(Prompt(text), view))
        assert (stats.hidden is None) == (not view.hidden)
        np.testing.assert_allclose(stats.entropy[1:], single.entropy[1:], atol=2e-4)
        if view.hidden:
            np.testing.assert_allclose(stats.hidden, single.hidden, atol=2e-3, rtol=1e-3)
    engine.close()
    alone.close()


def broken(folder: Path, **changes: Any) -> Path:
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **changes}))
    return folder


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "PREFIX_TUNING"}, "describes no LoRA adapter"),
        ({"r": "8"}, "where whole numbers belong"),
        ({"target_modules": ".*"}, "names no layers"),
        ({"r": 5}, "made for another model"),
        ({"target_modules": ["nowhere"]}, "cannot be given a LoRA adapter"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], words: str
) -> None:
    base = tiny.save(tmp_path / "m")
    folder = broken(trained(base, tmp_path / "a"), **changes)
    with pytest.raises(ClassifierError, match=words) as refusal:
        Adapter.read(AutoModelForCausalLM.from_pretrained(base), folder, "x")
    assert "\n" not in str(refusal.value)


def test_an_adapter_of_other_weights_or_beside_another_is_refused(tmp_path: Path) -> None:
    base = tiny.save(tmp_path / "m")
    folder = trained(base, tmp_path / "a")
    with pytest.raises(ClassifierError, match="made for another model"):
        Adapter.read(AutoModelForCausalLM.from_pretrained(pair.MENTOR), folder, "x")
    (folder / WEIGHTS).write_bytes(safetensors.numpy.save({"x": np.zeros(1)}))
    with pytest.raises(ClassifierError, match="made for another model"):
        Adapter.read(AutoModelForCausalLM.from_pretrained(base), folder, "x")
    (folder / WEIGHTS).write_bytes(b"none")
    with pytest.raises(ClassifierError, match="holds no LoRA adapter"):
        Adapter.read(AutoModelForCausalLM.from_pretrained(base), folder, "x")
    engine = HFEngine({"pretrained": str(base), "peft": str(trained(base, tmp_path / "b")), "device": "cpu"})
    with pytest.raises(ClassifierError, match="is loaded with a PEFT adapter"):
        engine.load_adapter(tmp_path / "b", "x")
    with pytest.raises(EngineError, match="has no adapter x loaded"):
        run(engine.score(Prompt("Say"), ScoringView(True, "x")))
    engine.close()


def test_engines_that_tell_statistics_alone_refuse_before_and_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    require_default_view(DEFAULT_VIEW, "m")
    for view in (HIDDEN, ADAPTED):
        with pytest.raises(EngineError, match="m runs in an engine that reports no hidden states"):
            require_default_view(view, "m")
        for backend in ("vllm", "openai", "local-completions"):
            with pytest.raises(ClassifierError, match=f"c needs .* intern_backend={backend} does not report; use"):
                registry.check_view(view, backend, "c")
        registry.check_view(view, "hf", "c")
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    registry.check_view(HIDDEN, "hf", "c")
    with pytest.raises(ClassifierError, match=r'c needs the package peft; .*pip install "\.\[peft\]"'):
        registry.check_view(ADAPTED, "hf", "c")
