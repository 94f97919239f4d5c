"""What engines share that see only text: conversations carried in a prompt, answers in an alphabet, tokens estimated.

A rendered conversation is one JSON text sequence (RFC 7464): a record separator, the messages as JSON, a line feed;
what follows is the beginning of the answer. So text can be added to it as to any rendered prompt.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any, NoReturn

from lm_eval_tandem.engines import Messages
from lm_eval_tandem.engines.tokenizer import ENCODED
from lm_eval_tandem.errors import EngineError

SEPARATOR = "\x1e"
SERVER_ID_OFFSET = 256
"""Token ids below are UTF-8 bytes of the text; those above are a server's own ids, shifted by so much."""
BYTES_PER_TOKEN = 4
"""The estimate where no tokenizer is given: English text has 4 to 5 bytes a token, most others have fewer."""
CONTINUE_REQUEST = (
    "Go on exactly where your last message breaks off. Repeat nothing of it and say nothing about going on."
)
"""Asks for the rest of a text where a server cannot go on in it."""


def encode_chat(messages: Messages, generation_prompt: bool = True) -> str:
    """A conversation as the text of a prompt; without a generation prompt its last turn is the answer's beginning."""
    begun = ""
    if not generation_prompt and messages and messages[-1][0] == "assistant":
        messages, begun = messages[:-1], messages[-1][1]
    return f"{SEPARATOR}{json.dumps(messages, ensure_ascii=False)}\n{begun}"


def decode_chat(text: str) -> tuple[Messages | None, str]:
    """The conversation that `encode_chat` wrote (None for plain text), and the start of its answer (or the text)."""
    if not text.startswith(SEPARATOR):
        return None, text
    line, _, begun = text[1:].partition("\n")
    return tuple((role, content) for role, content in json.loads(line)), begun


def encode_reply(text: str, ids: Iterable[int] = ()) -> tuple[int, ...]:
    """Generated text in the alphabet: the server's ids, where it tells them, then the bytes."""
    return (*(SERVER_ID_OFFSET + i for i in ids), *text.encode("utf-8", "replace"))


def decode_reply(token_ids: Sequence[int]) -> str:
    """The text in a sequence of letters; an incomplete last character is left out."""
    return bytes(i for i in token_ids if i < SERVER_ID_OFFSET).decode("utf-8", "ignore")


def server_ids(token_ids: Sequence[int]) -> list[int]:
    """The server's own ids in a sequence of letters."""
    return [i - SERVER_ID_OFFSET for i in token_ids if i >= SERVER_ID_OFFSET]


def cut(text: str, stop: Sequence[str], think_end: str | None = None) -> tuple[str, bool]:
    """The text after the thinking and before the first stop string, and whether one was found."""
    if think_end:
        text = text.split(think_end)[-1].lstrip()
    places = [place for place in (text.find(word) for word in stop if word) if place >= 0]
    return (text[: min(places)], True) if places else (text, False)


class Counter:
    """Token ids of prompts: by a tokenizer (folder or hub id), or about `BYTES_PER_TOKEN` bytes a token.

    Raises
    ------
    EngineError
        The tokenizer cannot be loaded.
    """

    def __init__(self, tokenizer: str | None = None) -> None:
        self._tokenizer: Any = None
        self._lock = threading.RLock()
        self.exact = tokenizer is not None
        if tokenizer is not None:
            from transformers import AutoTokenizer

            try:
                self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
            except (OSError, ValueError, ImportError) as error:
                reason = " ".join(str(error).split())[:300]
                raise EngineError(f"tokenizer={tokenizer} could not be loaded: {reason}") from error
        self._encoded = lru_cache(ENCODED)(self._encode)

    @property
    def vocabulary(self) -> int:
        """How many different tokens the tokenizer has; 0 without one."""
        return 0 if self._tokenizer is None else len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Ids of a prompt; without a tokenizer they mean nothing but their number, and equal beginnings are equal."""
        return list(self._encoded(text))

    def count(self, text: str) -> int:
        """How many tokens a generated text has."""
        if self._tokenizer is None:
            return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)
        with self._lock:
            return len(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _encode(self, text: str) -> tuple[int, ...]:
        messages, begun = decode_chat(text)
        plain = begun if messages is None else "\n".join(content for _, content in messages) + begun
        if self._tokenizer is None:
            data = plain.encode("utf-8", "replace")
            return tuple(
                int.from_bytes(data[i : i + BYTES_PER_TOKEN], "big") for i in range(0, len(data), BYTES_PER_TOKEN)
            )
        with self._lock:
            if messages is not None and self._tokenizer.chat_template:
                history = [{"role": role, "content": content} for role, content in messages]
                plain = self._tokenizer.apply_chat_template(history, add_generation_prompt=True, tokenize=False) + begun
                return tuple(self._tokenizer(plain, add_special_tokens=False).input_ids)
            return tuple(self._tokenizer(plain).input_ids)


class TextLM:
    """What the harness asks the answering model for beside answers, where that model is reached as text alone."""

    tokenizer = None
    device = "cpu"

    def __init__(self, name: str, max_length: int, max_gen_toks: int) -> None:
        self.name, self.max_length, self.max_gen_toks = name, max_length, max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint for the harness's request cache."""
        return self.name.replace("/", "__")

    def apply_chat_template(self, history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as it is: the server has the template."""
        return encode_chat(tuple((turn["role"], turn["content"]) for turn in history), add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """None of its own: the server has it."""
        return ""

    @property
    def eot_token_id(self) -> int:
        """Raises EngineError: no tokens are seen."""
        self._refuse("an end token")

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Raises EngineError: no likelihoods are seen."""
        self._refuse("likelihoods")

    loglikelihood_rolling: Any = loglikelihood

    def _refuse(self, what: str) -> NoReturn:
        raise EngineError(
            f"{self.name} answers with text alone, and this needs {what}; use tasks of the kind generate_until, "
            "or name a role with backend=hf in loglikelihood=…"
        )
