"""The arguments of `backend=llamacpp`, with their types, defaults and descriptions, and their checks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lm_eval_tandem.engines.entropy import EntropyMethod
from lm_eval_tandem.engines.http.options import OptionSet, check_url, option
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.machine import cores

CACHE_TYPES = ("f32", "f16", "bf16", "q8_0")
IGNORED = ("max_batch_size", "device")
"""Arguments that the harness gives to every model and that mean nothing here."""
AUTO_BATCH_SIZE = 8
"""Slots of the server where batch_size is `auto`."""
LONGEST_WINDOW = 4096
"""The window in tokens where none is given: the memory of the cache grows with it, slot by slot."""
EXACT_VOCABULARY = 4096
"""The largest vocabulary whose entropies are exact where `entropy=` is not given: the server sends 85 bytes for each
token of it, at every position."""
ESTIMATE = "topk:100"
"""How entropies are obtained for larger ones."""


@dataclass(frozen=True)
class LlamaArguments(OptionSet):
    """What a user may set for a model run by llama.cpp, each as mentor_<name>= or intern_<name>=.

    Attributes
    ----------
    model
        The GGUF file, or any name for a model at `base_url`.
    """

    model: str
    base_url: str | None = option(
        None, "Address of a llama-server that runs already; several, separated by semicolons, share the load."
    )
    batch_size: int = option(1, "Number of questions that the server works on at once (its slots); auto is 8.")
    max_length: int | None = option(
        None,
        "Context window in tokens of each question; without it the model's own, but at most 4096, since the memory of "
        "the cache grows with it.",
    )
    max_gen_toks: int = option(256, "Largest number of tokens of an answer where the task sets none.")
    threads: int | None = option(None, "Number of CPU threads; without it, one for each core.")
    gpu_layers: int | None = option(None, "Number of layers on a GPU; without it, as many as fit.")
    cache_type: str = option(
        "f16", "Numbers of the cache: f32 (which also turns flash attention off), f16, bf16 or q8_0."
    )
    entropy: str | None = option(
        None,
        "exact, or topk:K for an estimate from the K most likely tokens; without it exact for vocabularies of up to "
        "4096 tokens, otherwise topk:100.",
    )
    tokenizer: str | None = option(
        None, "Folder or hub id of a tokenizer of transformers; without it, the file's own as llama.cpp reads it."
    )
    prefix_token_id: int | None = option(
        None,
        "Token that stands for an empty text, and before a text whose likelihood is wanted; without it the tokenizer's "
        "first token, or its end token where it has none.",
    )
    parameters: float | None = option(None, "Number of the model's parameters; without it, counted in the file.")
    enable_thinking: bool | None = option(
        None, "Value of enable_thinking for the chat template; without it the template's own default."
    )
    think_end_token: str | None = option(None, "Text that ends the thinking in an answer.")
    timeout: float = option(3600.0, "Seconds to wait for a reply.")

    @classmethod
    def read(cls, model: str, arguments: Mapping[str, Any]) -> LlamaArguments:
        """The arguments of a model, whose values may be text.

        Raises
        ------
        ArgumentError
            An argument does not accept its value.
        """
        given = {name: value for name, value in arguments.items() if name not in IGNORED and value is not None}
        if str(given.get("batch_size", "")).startswith("auto"):
            given["batch_size"] = AUTO_BATCH_SIZE
        chosen = cls(model, **cls.converted(given))
        if chosen.cache_type not in CACHE_TYPES:
            raise ArgumentError(f"cache_type={chosen.cache_type} is not known; use one of {', '.join(CACHE_TYPES)}.")
        if chosen.entropy is not None:
            EntropyMethod.parse(chosen.entropy)
        for url in chosen.urls:
            check_url(url)
        return chosen

    @property
    def urls(self) -> tuple[str, ...]:
        """Addresses of the servers that run already."""
        given = (url.strip().rstrip("/").removesuffix("/v1") for url in (self.base_url or "").split(";"))
        return tuple(url for url in given if url)

    def entropy_method(self, vocabulary: int) -> EntropyMethod:
        """How entropies over this number of tokens are obtained."""
        usual = "exact" if vocabulary <= EXACT_VOCABULARY else ESTIMATE
        return EntropyMethod.parse(self.entropy or usual)

    def server_settings(self, window: int) -> dict[str, Any]:
        """The settings of an own server, for `child`; `window` is the number of tokens of each slot."""
        return {
            "model": os.path.abspath(os.path.expanduser(self.model)),
            "slots": self.batch_size,
            "window": window,
            "threads": self.threads or cores(),
            "gpu_layers": self.gpu_layers,
            "cache_type": self.cache_type,
        }
