"""Models with random weights, for benchmarks: nothing is downloaded, and no answer of theirs means anything.

`save_model` saves small ones with their weights. For those that would take minutes to save, `save_shape` leaves it to
the engines to make up the weights, on the device that they load them to, and `randomise` gives them sensible values.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

END = 0
"""The end token."""
WINDOW = 8192
"""Largest number of tokens of a text."""
WEIGHT_DEVIATION = 0.02
"""Standard deviation of random weights."""
LOGIT_DEVIATION = 3.0
"""Standard deviation of the logits after `randomise`: over 152k tokens, entropies of about 7 nats."""


@dataclass(frozen=True)
class Shape:
    """The shape of a decoder-only transformer of the Llama architecture (that of Qwen2 but for some biases).

    Attributes
    ----------
    width, layers, heads, kv_heads, inner
        Size of the residual stream, number of layers, of attention heads and of those with keys and values, and size of
        the feed-forward layer.
    vocabulary
        Number of tokens.
    tied
        Whether the output layer is the input layer.
    """

    width: int
    layers: int
    heads: int
    kv_heads: int
    inner: int
    vocabulary: int
    tied: bool = False

    @property
    def parameters(self) -> int:
        """Number of all parameters."""
        head = self.width // self.heads
        attention = 2 * self.width * head * (self.heads + self.kv_heads)
        layer = attention + 3 * self.width * self.inner + 2 * self.width
        return self.layers * layer + self.width + (1 if self.tied else 2) * self.vocabulary * self.width

    @property
    def cached_numbers(self) -> int:
        """Numbers that the key-value cache holds for each token."""
        return 2 * self.layers * self.kv_heads * (self.width // self.heads)


SHAPES = {
    "32B": Shape(5120, 64, 40, 8, 27648, 152064),
    "7B": Shape(3584, 28, 28, 4, 18944, 152064),
    "1.5B": Shape(1536, 28, 12, 2, 8960, 151936, tied=True),
    "0.5B": Shape(896, 24, 14, 2, 4864, 151936, tied=True),
    "4.5M": Shape(256, 4, 8, 4, 768, 2000),
    "0.7M": Shape(128, 2, 4, 2, 384, 2000),
}
"""Those of Qwen2.5, and of R1-Distill-Qwen, the paper's models; the last two are for tests."""


def shape_of(parameters: float, vocabulary: int) -> Shape:
    """Return the shape of a transformer with about this many parameters, embeddings included.

    It has heads of 32 and 8 layers, or 16 from 100 million parameters on (the paper's models have 28 and 64).
    """
    layers = 8 if parameters < 1e8 else 16
    width = 32
    while 2 * vocabulary * (width + 32) + layers * 10 * (width + 32) ** 2 < parameters:
        width += 32
    remaining = parameters - 2 * vocabulary * width - layers * 4 * width**2
    heads = width // 32
    return Shape(width, layers, heads, heads, max(32, round(remaining / (3 * layers * width))), vocabulary)


def save_model(folder: Path, shape: Shape, seed: int) -> Path:
    """Save a model with random weights and a tokenizer whose tokens are words, and return the folder.

    The end token's logit is always 0, which is never the largest, so every text has its full length.
    """
    save_tokenizer(folder, shape.vocabulary)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(configuration(shape))
    with torch.no_grad():
        model.lm_head.weight[END] = 0
    model.save_pretrained(folder)
    return folder


def save_shape(folder: Path, shape: Shape) -> Path:
    """Save a model without its weights, which engines then make up where they load it, and return the folder.

    transformers makes up what a file of weights lacks, but it wants a file; vLLM needs `load_format=dummy`. Afterwards
    `randomise` gives the weights sensible values.
    """
    save_tokenizer(folder, shape.vocabulary)
    configuration(shape).save_pretrained(folder)
    save_file({"model.norm.weight": torch.ones(shape.width)}, folder / "model.safetensors", {"format": "pt"})
    return folder


def configuration(shape: Shape) -> LlamaConfig:
    """Return the configuration of transformers."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        intermediate_size=shape.inner,
        tie_word_embeddings=shape.tied,
        max_position_embeddings=WINDOW,
        initializer_range=WEIGHT_DEVIATION,
        eos_token_id=END,
        pad_token_id=END,
        bos_token_id=None,
        architectures=["LlamaForCausalLM"],
    )


def save_tokenizer(folder: Path, vocabulary: int) -> None:
    """Save a tokenizer whose tokens are the words w1, w2, … and the end token."""
    words = {"</s>": END, **{f"w{i}": i for i in range(1, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)


@torch.inference_mode()
def randomise(model: Any) -> None:
    """Set all weights of a loaded model of transformers or vLLM, in place.

    The last norm's weights are random as well, so that logits spread as widely as those of a trained model, and a model
    whose output layer is its input layer does not repeat its last token. The end token's logit is 0, which is never the
    largest, so every text has its full length.
    """
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            weight.normal_(0.0, WEIGHT_DEVIATION)
        else:
            weight.fill_(1.0 if "norm" in name else 0.0)
    norm = model.model.norm.weight
    norm.normal_(0.0, LOGIT_DEVIATION / (WEIGHT_DEVIATION * norm.numel() ** 0.5))
    if model.lm_head.weight.numel():  # vLLM's build for CPUs keeps some weights in a form of its own
        model.lm_head.weight[END] = 0.0
