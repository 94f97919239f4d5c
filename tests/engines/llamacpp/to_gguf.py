"""Small models of transformers as GGUF files, so that llama.cpp runs them in tests: float32, tokenizer included.

llama.cpp has a fixed list of ways to split text before its merges, and that of the bundled pair's tokenizer is none of
them. So the file also holds the tokenizer as its own JSON, under the key that GGUF has for it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

NAMES = {
    "llama": {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    },
    "gpt2": {
        "transformer.wte": "token_embd",
        "transformer.wpe": "position_embd",
        "transformer.ln_f": "output_norm",
        "lm_head": "output",
        "ln_1": "attn_norm",
        "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output",
        "ln_2": "ffn_norm",
        "mlp.c_fc": "ffn_up",
        "mlp.c_proj": "ffn_down",
    },
}
"""What the parts of a model are called in transformers and in GGUF."""


def save(folder: Path, file: Path, *, embed_tokenizer: bool = True) -> Path:
    """Write the model of a folder (llama, qwen3 or gpt2) as a GGUF file.

    Parameters
    ----------
    folder
        Of a model that transformers has saved.
    file
        The file to write.
    embed_tokenizer
        Whether the file holds the tokenizer's own JSON, too.
    """
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    kind = model.config.model_type
    writer = gguf.GGUFWriter(file, kind)
    add_sizes(writer, kind, model.config)
    add_tokenizer(writer, folder, embed_tokenizer)
    names = NAMES["gpt2" if kind == "gpt2" else "llama"]
    tied = bool(model.config.tie_word_embeddings)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and tied:
            continue
        writer.add_tensor(renamed(name, names), values_of(name, tensor, kind, model.config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def add_sizes(writer: gguf.GGUFWriter, kind: str, config: Any) -> None:
    """The numbers that describe the network."""
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
        return
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, embedded: bool) -> None:
    """The vocabulary, its special tokens and the chat template; `embedded`: the tokenizer's own JSON as well."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if i in special else gguf.TokenType.NORMAL for i in range(len(tokens))]
    )
    # llama.cpp wants a list of merges; these are of characters that no text holds together
    writer.add_token_merges(["! !"])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)
    if embedded:
        writer.add_string("tokenizer.huggingface.json", tokenizer.backend_tokenizer.to_str())


def renamed(name: str, names: dict[str, str]) -> str:
    """A parameter's name in GGUF."""
    module, _, kind = name.rpartition(".")
    if module in names:
        return f"{names[module]}.{kind}"
    _, _, rest = module.partition(".h." if ".h." in module else ".layers.")
    layer, _, part = rest.partition(".")
    return f"blk.{layer}.{names[part]}.{kind}"


def values_of(name: str, tensor: torch.Tensor, kind: str, config: Any) -> np.ndarray[Any, Any]:
    """A parameter as GGUF stores it.

    llama's rotary pairs are neighbours there, where transformers has halves; gpt2's matrices are transposed.
    """
    if kind == "llama" and (name.endswith(("q_proj.weight", "k_proj.weight"))):
        rows, columns = tensor.shape
        heads = rows // config.head_dim
        tensor = tensor.view(heads, 2, config.head_dim // 2, columns).transpose(1, 2).reshape(rows, columns)
    if kind == "gpt2" and tensor.ndim == 2 and ".h." in name:
        tensor = tensor.T
    return np.ascontiguousarray(tensor.numpy())
