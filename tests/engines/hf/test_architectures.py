"""Every architecture gives what one pass over one prompt gives: its cache is used only in the ways that it bears."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import architectures
from engines.conformance import TEXTS, EngineConformance, Reference, run, together
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.hf import kv_cache, scoring
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import EngineError

REUSED = ["bloom", "falcon", "falcon_alibi", "gpt_neox", "opt", "phi", "qwen2"]
"""Their caches bear gaps, so that what was read once is used again."""
COUNTING_CELLS = ["gpt_neo", "mpt"]
"""They take the distance of two tokens from the cells in between, empty or not."""
SLIDING = ["gemma2", "mistral"]
STATES = ["falcon_h1", "jamba", "lfm2", "mamba", "mamba2", "qwen3_5", "qwen3_next", "recurrent_gemma", "bamba"]
"""They keep a state instead of a cache, or beside one."""


def opened(folder: Path, batch_size: int = 4, **arguments: Any) -> HFEngine:
    return HFEngine(
        {"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": batch_size, **arguments}
    )


def reference_of(folder: Path) -> Reference:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(folder))


async def grow(engine: HFEngine, text: str, draft: tuple[int, ...]) -> Any:
    """A question as the cascade asks it: judged twice, probed, and answered in two calls, the first with a draft."""
    await engine.score(Prompt(text[: len(text) // 2], session=text))
    stats = await engine.score(Prompt(text, session=text))
    first = await engine.generate(Prompt(text, session=text, draft=draft), Sampling(5))
    rest = await engine.generate(Prompt(text, first.token_ids, text), Sampling(4))
    return stats, first.token_ids + rest.token_ids


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("kind", [*REUSED, *COUNTING_CELLS, *SLIDING, *STATES, "git"])
def test_questions_that_grow_are_those_of_one_pass(tmp_path: Path, kind: str, batch_size: int) -> None:
    folder = architectures.save(tmp_path, kind)
    reference, engine = reference_of(folder), opened(folder, batch_size)
    drafts = [(*reference.greedy(text, 12)[: 1 + i % 3], 5, 6) for i, text in enumerate(TEXTS)]
    found = run(together(*(grow(engine, text, draft) for text, draft in zip(TEXTS, drafts, strict=True))))
    engine.close()
    for text, (stats, ids) in zip(TEXTS, found, strict=True):
        logprob, entropy = reference.stats(text)
        np.testing.assert_allclose(stats.logprob[1:], logprob, atol=1e-3, err_msg=text)
        np.testing.assert_allclose(stats.entropy[1:], entropy, atol=1e-3, err_msg=text)
        assert list(ids) == reference.greedy(text, len(ids)), text


@pytest.mark.parametrize(
    ("kinds", "reuses"), [(REUSED, True), (COUNTING_CELLS, False), (SLIDING, False), (STATES, False)]
)
def test_what_was_read_is_used_again_exactly_where_that_is_right(
    tmp_path: Path, kinds: list[str], reuses: bool
) -> None:
    for kind in kinds:
        engine = opened(architectures.save(tmp_path / kind, kind))
        engine.close()
        assert engine.reads_drafts is reuses, kind


def test_a_window_larger_than_the_prompts_of_the_check_is_found(tmp_path: Path) -> None:
    """GPT-Neo's own window has 256 tokens."""
    configuration = architectures.configuration("gpt_neo")
    configuration.window_size = 256
    model = AutoModelForCausalLM.from_config(configuration)
    AutoTokenizer.from_pretrained(architectures.save(tmp_path, "gpt_neo")).save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    engine = opened(tmp_path)
    engine.close()
    assert not engine.reads_drafts


def rename_cache(monkeypatch: pytest.MonkeyPatch, model_class: type[PreTrainedModel], name: str) -> None:
    """Make a class of models accept its cache under another name."""
    forward: Any = model_class.forward
    signature = inspect.signature(forward)
    (known,) = signature.parameters.keys() & {"cache", "cache_params", "past_key_values"}

    def renamed(self: PreTrainedModel, *args: Any, **kwargs: Any) -> Any:
        return forward(self, *args, **{known if key == name else key: value for key, value in kwargs.items()})

    parameters = [
        parameter.replace(name=name) if parameter.name == known else parameter
        for parameter in signature.parameters.values()
    ]
    renamed.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    monkeypatch.setattr(model_class, "forward", renamed)


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
@pytest.mark.parametrize("kind", ["llama", "mamba"])
def test_the_name_of_the_cache_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str, name: str
) -> None:
    """transformers renamed `past_key_values` and `cache_params` to `cache` within its major release 5."""
    folder = architectures.save(tmp_path, kind)
    reference = reference_of(folder)
    expected = [reference.greedy(text, 9) for text in TEXTS]
    rename_cache(monkeypatch, type(reference.model), name)
    engine = opened(folder)
    found = run(together(*(grow(engine, text, (5, 6)) for text in TEXTS)))
    engine.close()
    assert [list(ids) for _, ids in found] == [
        tokens[: len(ids)] for tokens, (_, ids) in zip(expected, found, strict=True)
    ]
    assert engine.reads_drafts is (kind == "llama")


@pytest.mark.parametrize("kind", ["jamba", "mamba", "qwen3_5", "gemma2"])
def test_long_prompts_are_scored_exactly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: str) -> None:
    """Some states cannot be continued by several tokens at once, so those prompts are not read in parts."""
    folder = architectures.save(tmp_path, kind)
    for module in (kv_cache, scoring):
        monkeypatch.setattr(module, "MAX_SCORED_LOGITS", 40_000)
    engine = opened(folder)
    EngineConformance().test_score_is_exact_over_the_whole_vocabulary(engine, reference_of(folder))
    engine.close()


@pytest.mark.parametrize("kind", COUNTING_CELLS)
def test_a_batch_has_no_more_cells_than_the_window(tmp_path: Path, kind: str) -> None:
    """A long prompt and a long answer of different questions would together exceed what these models allow for."""
    folder = architectures.save(tmp_path, kind)
    reference, engine = reference_of(folder), opened(folder)
    questions = [(TEXTS[4] * 7, 4), ("x", 300), (TEXTS[0], 9)]
    found = run(together(*(engine.generate(Prompt(text), Sampling(n)) for text, n in questions)))
    engine.close()
    for (text, n), completion in zip(questions, found, strict=True):
        assert list(completion.token_ids) == reference.greedy(text, n)


def test_a_pad_token_beyond_the_embeddings_does_no_harm(tmp_path: Path) -> None:
    """Finetuned models often come with a tokenizer that was given one, and embeddings that were not."""
    folder = architectures.save(tmp_path, "llama")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"pad_token": "<another pad>"})
    tokenizer.save_pretrained(folder)
    reference, engine = reference_of(folder), opened(folder)
    assert engine.lm.tokenizer.pad_token_id >= reference.model.config.vocab_size
    EngineConformance().test_greedy_tokens_are_those_of_one_prompt_alone(engine, reference)
    engine.close()


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_model_with_a_peft_adapter_is_batched_exactly(tmp_path: Path, kind: str) -> None:
    folder = architectures.save(tmp_path / "base", kind)
    layers = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"]}[kind]
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    adapted = get_peft_model(base, LoraConfig(r=4, target_modules=layers, init_lora_weights=False)).eval()
    adapted.save_pretrained(tmp_path / "adapter")
    engine = opened(folder, peft=str(tmp_path / "adapter"))
    reference = Reference(adapted, AutoTokenizer.from_pretrained(folder))
    found = run(together(*(grow(engine, text, (5, 6)) for text in TEXTS)))
    engine.close()
    for text, (stats, ids) in zip(TEXTS, found, strict=True):
        np.testing.assert_allclose(stats.entropy[1:], reference.stats(text)[1], atol=1e-3)
        assert list(ids) == reference.greedy(text, len(ids)), text


@pytest.mark.parametrize("kind", ["minimax", "openai-gpt", "rwkv", "t5", "xlstm"])
def test_a_type_that_cannot_be_run_is_named_before_its_weights_are_read(tmp_path: Path, kind: str) -> None:
    folder = architectures.save_without_weights(tmp_path, kind)
    with pytest.raises(EngineError, match=f"{folder} is a model of the type {kind}, which .*; name a") as refusal:
        opened(folder)
    assert "\n" not in str(refusal.value)
