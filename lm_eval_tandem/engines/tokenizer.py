"""What engines share whose weights and tokenizer are on this machine, inside one of lm-eval's own models."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from lm_eval_tandem.engines import Messages

ENCODED = 1024
"""Prompts whose token ids are remembered: each is looked at several times (does it fit, what is new, the call)."""
HASHED_BYTES = 256 * 2**20
"""Weight files up to this size are identified by their content, larger ones by size and time of change."""


class LocalTokenizer:
    """Chat template and tokenizer of `lm`, for one thread at a time. `tokenize` gives ids as `lm` makes them."""

    def __init__(self, lm: Any, tokenize: Callable[[str], Sequence[int]]) -> None:
        self.lm = lm
        self._tokenizer = threading.RLock()

        @lru_cache(ENCODED)
        def encoded(text: str) -> tuple[int, ...]:
            with self._tokenizer:
                return tuple(tokenize(text)) or (int(lm.prefix_token_id),)

        self._encoded = encoded

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`."""
        history = [{"role": role, "content": content} for role, content in messages]
        with self._tokenizer:
            return str(self.lm.apply_chat_template(history, add_generation_prompt=generation_prompt))

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`."""
        return list(self._encoded(text))


def weights_identity(folder: Path) -> dict[str, str] | None:
    """What a local folder of weights holds, file by file; None where it is no folder."""
    if not folder.is_dir():
        return None
    found = {}
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".safetensors", ".bin", ".json", ".model", ".gguf"):
            continue
        state = file.stat()
        if state.st_size <= HASHED_BYTES:
            found[file.name] = hashlib.sha256(file.read_bytes()).hexdigest()
        else:
            found[file.name] = f"{state.st_size} bytes, {state.st_mtime_ns}"
    return found
