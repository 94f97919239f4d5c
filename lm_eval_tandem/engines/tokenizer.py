"""What the engines with local weights (`hf`, `vllm`) share: tokenizer, chat template and identity of the weights."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_tandem.engines import Messages

ENCODED_PROMPTS = 1024
"""Prompts whose token ids are remembered: each is encoded for the window check, for accounting and for the call."""
HASHED_BYTES = 256 * 2**20
"""Weight files of up to this size are identified by their content, larger ones by size and modification time."""
WITHOUT_EFFECT = ("pretrained", "batch_size", "max_batch_size", "device")
"""Arguments that are no part of a model's identity: the weights are identified by themselves, the others change no
output."""


class LocalTokenizer:
    """Base class of engines around one of lm-eval's own models: prompts to token ids, one thread at a time.

    Parameters
    ----------
    lm
        lm-eval's model, with its tokenizer and chat template.
    tokenize
        Token ids of a text as `lm` computes them.
    """

    cannot_score = ""

    def __init__(self, lm: Any, tokenize: Callable[[str], Sequence[int]]) -> None:
        self.lm = lm
        self._tokenizer_lock = threading.RLock()

        @lru_cache(ENCODED_PROMPTS)
        def encoded(text: str) -> tuple[int, ...]:
            with self._tokenizer_lock:
                return tuple(tokenize(text)) or (int(lm.prefix_token_id),)

        self._encoded = encoded

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`."""
        history = [{"role": role, "content": content} for role, content in messages]
        with self._tokenizer_lock:
            return str(self.lm.apply_chat_template(history, add_generation_prompt=generation_prompt))

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`. An empty text is the model's prefix token."""
        return list(self._encoded(text))


def model_identity(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The part of `Engine.identity` that names the weights and the arguments they are loaded with."""
    return {
        "model": weights_identity(Path(model)) or model,
        "arguments": {key: str(value) for key, value in sorted(arguments.items()) if key not in WITHOUT_EFFECT},
    }


def weights_identity(folder: Path) -> dict[str, str] | None:
    """A fingerprint of each file of a folder of weights; None if it is not a folder."""
    if not folder.is_dir():
        return None
    fingerprints = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".safetensors", ".bin", ".json", ".model", ".gguf"):
            continue
        state = file.stat()
        if state.st_size <= HASHED_BYTES:
            fingerprints[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            fingerprints[file.name] = f"{state.st_size} bytes, {state.st_mtime_ns}"
    return fingerprints
