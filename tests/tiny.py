"""Tiny random models of several architectures, made on the fly, with the bundled pair's tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig, MistralConfig, Qwen3Config
from transformers.configuration_utils import PretrainedConfig

from lm_eval_tandem import pair

SIZES = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 256}


def config(kind: str, vocabulary: int) -> PretrainedConfig:
    """A configuration of the architecture `kind`: llama, qwen3 (grouped heads), mistral (sliding window) or gpt2."""
    if kind == "gpt2":
        return GPT2Config(vocab_size=vocabulary, n_embd=64, n_layer=2, n_head=2, n_positions=256)
    if kind == "llama":
        return LlamaConfig(vocab_size=vocabulary, intermediate_size=128, **SIZES)
    if kind == "qwen3":
        return Qwen3Config(
            vocab_size=vocabulary, intermediate_size=128, num_key_value_heads=1, head_dim=32, layer_types=None, **SIZES
        )
    if kind == "mistral":
        return MistralConfig(
            vocab_size=vocabulary, intermediate_size=128, num_key_value_heads=1, sliding_window=8, **SIZES
        )
    raise ValueError(kind)


def other_tokenizer() -> Any:
    """A tokenizer of another family than the pair's: characters, merged by what is frequent in a few sentences."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = [*map(chr, range(33, 127)), "\u0120", "\u010a"]  # as ByteLevel writes blanks and line breaks
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator([" there are some coins here and the answer ends with them. How many?"] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def save(folder: Path, kind: str = "llama", seed: int = 0, tokenizer: Any = None, **changes: Any) -> Path:
    """Save a tiny random model with a tokenizer into the folder; weights large enough for varied text.

    `changes` are values of its configuration; without another the tokenizer is that of the pair.
    """
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(pair.INTERN)
    torch.manual_seed(seed)
    settings = config(kind, len(tokenizer))
    settings.initializer_range = 0.2
    for name, value in changes.items():
        setattr(settings, name, value)
    settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    settings.bos_token_id = None
    model = AutoModelForCausalLM.from_config(settings).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_script(folder: Path, text: str, prompt: str = "x") -> Path:
    """Save a model that generates this text, then its end token, after any prompt that is as long as this one.

    Each position has a code, and the output layer maps it to one token; the layers between add nothing.
    """
    tokenizer = AutoTokenizer.from_pretrained(pair.INTERN)
    start = len(tokenizer(prompt).input_ids) - 1
    script = [*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
    codes = {token: code for code, token in enumerate(dict.fromkeys(script))}
    settings = config("gpt2", len(tokenizer))
    settings.tie_word_embeddings = False
    settings.eos_token_id, settings.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    settings.bos_token_id = None
    model = AutoModelForCausalLM.from_config(settings).float()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.zero_()
        model.transformer.ln_f.weight.fill_(1)
        model.lm_head.weight.zero_()
        for position, token in enumerate(script, start):
            model.transformer.wpe.weight[position, codes[token]] = 1
        for token, code in codes.items():
            model.lm_head.weight[token, code] = 1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
