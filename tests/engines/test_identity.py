"""What a model reads is part of its identity, by content: another adapter at the same path is another model."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PretrainedConfig

import architectures
from engines.conformance import TEXTS, run
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.identity import ENGINE_PACKAGES, hub_commit, model_identity, optional_packages
from lm_eval_tandem.store import Store, key_of


def identity(**arguments: Any) -> str:
    return key_of(model_identity("org/model", arguments, None, engine="hf"))


ARGUMENTS = {
    "peft": lambda path: {"peft": str(path)},
    "delta": lambda path: {"delta": str(path)},
    "tokenizer": lambda path: {"tokenizer": str(path)},
    "lora": lambda path: {"lora_local_path": str(path)},
    "in a dict": lambda path: {"default_mm_loras": {"image": str(path)}},
    "in a list": lambda path: {"lora_modules": [{"name": "a", "path": str(path)}]},
    "in JSON": lambda path: {"speculative_config": json.dumps({"model": str(path)})},
    "after a name": lambda path: {"lora_modules": [f"mine={path}"]},
    "relative": lambda path: {"peft": os.path.relpath(path)},
    "a path": lambda path: {"anything": path},
}
"""Ways in which an argument names a file or folder."""


@pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=ARGUMENTS)
@pytest.mark.parametrize("is_folder", [True, False])
def test_the_content_of_what_an_argument_names_counts(tmp_path: Path, arguments: Any, is_folder: bool) -> None:
    path = tmp_path / "adapter"
    file = path / "deep" / "weights.bin" if is_folder else path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"one")
    first, moment = identity(**arguments(path)), file.stat().st_mtime_ns
    assert identity(**arguments(path)) == first
    file.write_bytes(b"two")
    os.utime(file, ns=(moment, moment + 1))
    second = identity(**arguments(path))
    file.write_bytes(b"one")
    os.utime(file, ns=(moment, moment + 2))
    assert second != first == identity(**arguments(path))


def test_the_same_content_elsewhere_is_the_same_model(tmp_path: Path) -> None:
    one = architectures.save(tmp_path / "one", "llama")
    shutil.copytree(one, tmp_path / "two")
    (tmp_path / "two" / "README.md").write_text("Two.")
    (tmp_path / "two" / "checkpoint-5").mkdir()
    (tmp_path / "two" / "checkpoint-5" / "model.safetensors").write_bytes(b"earlier")
    identities = [model_identity(str(tmp_path / name), {}, None) for name in ("one", "two")]
    assert identities[0] == identities[1]
    (tmp_path / "two" / "chat_template.jinja").write_text("{{ messages }}")
    assert model_identity(str(tmp_path / "two"), {}, None) != identities[0]


def test_a_word_that_is_no_path_stays_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = identity(revision="main", dtype="float32", enable_thinking=True, max_length=5)
    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "file").write_text("x")
    assert identity(revision="main", dtype="float32", enable_thinking=True, max_length=5) == before
    assert identity(revision="other", dtype="float32", enable_thinking=True, max_length=5) != before
    assert identity(batch_size=3, device="cpu") == identity(batch_size=4)
    assert identity(chat_template="{% if x %}\n" + "y" * 5000) != identity(chat_template="{% if x %}")


def test_a_hub_id_is_its_commit_where_the_cache_knows_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert hub_commit("org/adapter", "main") is None
    unknown = identity(peft="org/adapter")
    references = tmp_path / "models--org--adapter" / "refs"
    references.mkdir(parents=True)
    found = []
    for commit in ("a" * 40, "b" * 40):
        (references / "main").write_text(commit)
        assert hub_commit("org/adapter", "main") == commit
        found.append(identity(peft="org/adapter"))
    assert len({unknown, *found}) == 3


def test_an_adapter_that_was_trained_again_gets_new_answers(tmp_path: Path) -> None:
    folder, adapter = architectures.save(tmp_path / "base", "llama"), tmp_path / "adapter"
    store = Store(tmp_path / "store")
    texts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        adapted = get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False))
        adapted.save_pretrained(adapter)
        arguments = {"pretrained": str(folder), "peft": str(adapter), "dtype": "float32", "device": "cpu"}
        engine = HFEngine(arguments)
        cached = CachedEngine(engine, store)
        texts.append(run(cached.generate(Prompt(TEXTS[0]), Sampling(12))).text)
        again = CachedEngine(engine, store)
        assert run(again.generate(Prompt(TEXTS[0]), Sampling(12))).text == texts[-1]
        assert (cached.hits, again.hits) == (0, 1)
        engine.close()
    store.close()
    assert texts[0] != texts[1]


@pytest.mark.parametrize(
    ("arguments", "saved", "packages"),
    [
        ({}, None, []),
        ({"peft": "adapter", "load_in_4bit": False}, None, ["peft"]),
        ({"load_in_4bit": True}, BitsAndBytesConfig(load_in_4bit=True), ["bitsandbytes"]),
        ({}, {"quant_method": "bitsandbytes"}, ["bitsandbytes"]),
        ({"gguf_file": "m.gguf"}, {"quant_method": "gptq"}, ["gguf", "gptqmodel"]),
        ({}, {"quant_method": "none that is known"}, []),
    ],
)
def test_the_packages_that_compute_a_model_count(
    arguments: dict[str, Any], saved: Any, packages: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Optimum, which gptq can need too, is not installed here."""
    monkeypatch.setattr("lm_eval_tandem.engines.identity.is_installed", lambda package: package != "optimum")
    config = PretrainedConfig() if saved is None else PretrainedConfig(quantization_config=saved)
    assert optional_packages(arguments, config) == packages
    assert set(packages) <= set(ENGINE_PACKAGES)
