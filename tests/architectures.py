"""Tiny random models of many architectures, made on the fly from their configurations, with the bundled tokenizer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.configuration_utils import PretrainedConfig

from lm_eval_tandem import pair

WINDOW = 512
COMMON = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": WINDOW}
DENSE = {**COMMON, "intermediate_size": 96}
GROUPED = {**DENSE, "num_key_value_heads": 1}
GPT = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": WINDOW}
MIXED = ["linear_attention", "full_attention"]
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "head_dim": 32,
    "layer_types": MIXED,
}
MAMBA2 = {"mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 8, "mamba_n_groups": 1}
JAMBA = {"attn_layer_period": 2, "attn_layer_offset": 1, "num_experts": 2, "num_experts_per_tok": 1}

SETTINGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GROUPED),
    "qwen2": ("Qwen2Config", GROUPED),
    "qwen3": ("Qwen3Config", {**GROUPED, "head_dim": 32}),
    "gpt2": ("GPT2Config", GPT),
    "gpt_neox": ("GPTNeoXConfig", DENSE),
    "opt": ("OPTConfig", {**COMMON, "word_embed_proj_dim": 64, "ffn_dim": 96}),
    "phi": ("PhiConfig", DENSE),
    "falcon": ("FalconConfig", {**COMMON, "alibi": False}),
    "falcon_alibi": ("FalconConfig", {**COMMON, "alibi": True, "parallel_attn": False}),
    "bloom": ("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 2}),
    "mpt": ("MptConfig", {"d_model": 64, "n_heads": 2, "n_layers": 2, "max_seq_len": WINDOW}),
    "gpt_neo": (
        "GPTNeoConfig",
        {
            "hidden_size": 64,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 16,
            "max_position_embeddings": WINDOW,
        },
    ),
    "gemma2": ("Gemma2Config", {**GROUPED, "head_dim": 32, "sliding_window": 8}),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": 8}),
    "mamba": ("MambaConfig", {"hidden_size": 64, "num_hidden_layers": 2, "state_size": 8}),
    "mamba2": (
        "Mamba2Config",
        {
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "state_size": 8,
            "num_heads": 4,
            "head_dim": 32,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    "jamba": ("JambaConfig", {**GROUPED, **JAMBA, "mamba_d_state": 8, "use_mamba_kernels": False}),
    "falcon_h1": ("FalconH1Config", {**GROUPED, **MAMBA2, "mamba_d_ssm": 64, "mamba_n_heads": 4}),
    "bamba": ("BambaConfig", {**GROUPED, **MAMBA2, "attn_layer_indices": [1], "mamba_n_heads": 8}),
    "qwen3_5": ("Qwen3_5TextConfig", {**GROUPED, **LINEAR}),
    "qwen3_next": (
        "Qwen3NextConfig",
        {
            **GROUPED,
            **LINEAR,
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
    "lfm2": ("Lfm2Config", {**GROUPED, "layer_types": ["conv", "full_attention"]}),
    "recurrent_gemma": (
        "RecurrentGemmaConfig",
        {**GROUPED, "num_hidden_layers": 3, "lru_width": 64, "attention_window_size": 8},
    ),
    "git": ("GitConfig", DENSE),
    "rwkv": ("RwkvConfig", {"hidden_size": 64, "num_hidden_layers": 2, "context_length": WINDOW}),
    "xlstm": ("xLSTMConfig", {"hidden_size": 64, "num_heads": 2, "num_blocks": 2}),
    "minimax": ("MiniMaxConfig", {**GROUPED, "layer_types": MIXED}),
    "openai-gpt": ("OpenAIGPTConfig", GPT),
    "t5": ("T5Config", {"d_model": 64, "num_layers": 2, "num_heads": 2}),
}
"""For each kind, its class of configuration and what differs from that class's defaults."""


def configuration(kind: str) -> PretrainedConfig:
    """The configuration of a tiny model, with weights large enough for varied text."""
    name, settings = SETTINGS[kind]
    tokenizer = AutoTokenizer.from_pretrained(pair.INTERN)
    make: Callable[..., PretrainedConfig] = getattr(transformers, name)
    return make(
        vocab_size=len(tokenizer),
        initializer_range=0.2,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=None,
        **settings,
    )


def save(folder: Path, kind: str, seed: int = 0) -> Path:
    """Save a tiny random model of this kind, with a tokenizer, into the folder."""
    torch.manual_seed(seed)
    AutoModelForCausalLM.from_config(configuration(kind)).float().save_pretrained(folder)
    AutoTokenizer.from_pretrained(pair.INTERN).save_pretrained(folder)
    return folder


def save_without_weights(folder: Path, kind: str) -> Path:
    """Save what `save` does except for the weights."""
    configuration(kind).save_pretrained(folder)
    AutoTokenizer.from_pretrained(pair.INTERN).save_pretrained(folder)
    return folder
