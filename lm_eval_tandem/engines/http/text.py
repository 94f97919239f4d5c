"""Text in place of tokens: how conversations and generated text are represented for models that are reached as text.

The cascade passes prompts as text and generated tokens as integers (`engines.Prompt`). Where only text is known:

- a *rendered* conversation is a record of a JSON text sequence (RFC 7464): a record separator, the messages as JSON
  and a line feed. What follows is the start of the answer, so that text can be appended as to any rendered prompt;
- *token ids* of generated text are its UTF-8 bytes, 0 to 255; if the server returns token ids, these come first, each
  with `SERVER_ID_OFFSET` added;
- the *number* of tokens is counted by a tokenizer, or estimated as one for every `BYTES_PER_TOKEN` bytes.
"""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Literal, NoReturn

from lm_eval_tandem.engines import Messages
from lm_eval_tandem.engines.tokenizer import remembered
from lm_eval_tandem.errors import EngineError, loading

RECORD_SEPARATOR = "\x1e"
SERVER_ID_OFFSET = 256
"""Token ids below are UTF-8 bytes; those from here on are a server's own ids plus this number."""
BYTES_PER_TOKEN = 4
"""The estimate without a tokenizer: English text has 4 to 5 bytes per token, most other languages fewer."""
CONTINUE_REQUEST = (
    "Go on exactly where your last message breaks off. Repeat nothing of it and say nothing about going on."
)
"""The user's message that asks for the rest of a text where a server cannot continue a partial answer. It is part of
the prompt, so another wording changes results."""
Counting = Literal["by the server", "by pieces", "by a tokenizer", "by bytes"]
"""How the tokens of a stream are counted while it runs: by the token ids that the server returns, by its chunks where
each is one token, by a tokenizer, or by the length of the text. Part of a store's key."""


def encode_chat(messages: Messages, generation_prompt: bool = True) -> str:
    """A conversation as the text of a prompt.

    Parameters
    ----------
    messages
        (role, content) pairs.
    generation_prompt
        False: if the last message is the assistant's, it is the start of the answer.
    """
    partial_answer = ""
    if not generation_prompt and messages and messages[-1][0] == "assistant":
        messages, partial_answer = messages[:-1], messages[-1][1]
    return f"{RECORD_SEPARATOR}{json.dumps(messages, ensure_ascii=False)}\n{partial_answer}"


def decode_chat(text: str) -> tuple[Messages | None, str]:
    """The messages in a prompt's text and the text after them, which starts the answer.

    For plain text, which `encode_chat` has not made, the messages are None and the text is the whole prompt.

    Examples
    --------
    >>> decode_chat(encode_chat((("user", "1 + 1?"),)) + "It is")
    ((('user', '1 + 1?'),), 'It is')
    """
    if not text.startswith(RECORD_SEPARATOR):
        return None, text
    line, _, partial_answer = text[1:].partition("\n")
    return tuple((role, content) for role, content in json.loads(line)), partial_answer


def encode_reply(text: str, ids: Iterable[int] = ()) -> tuple[int, ...]:
    """Generated text as token ids: the server's ids, if it returns them, then the text's bytes."""
    return (*(SERVER_ID_OFFSET + i for i in ids), *text.encode("utf-8", "replace"))


def decode_reply(token_ids: Sequence[int]) -> str:
    """The text that `encode_reply` encoded, without an incomplete last character."""
    return bytes(i for i in token_ids if i < SERVER_ID_OFFSET).decode("utf-8", "ignore")


def server_ids(token_ids: Sequence[int]) -> list[int]:
    """The server's own token ids that `encode_reply` encoded."""
    return [i - SERVER_ID_OFFSET for i in token_ids if i >= SERVER_ID_OFFSET]


class TokenCounter:
    """Counts the tokens of prompts and generated texts.

    Parameters
    ----------
    tokenizer
        Folder or hub id; None to estimate by `BYTES_PER_TOKEN`.

    Attributes
    ----------
    exact
        Whether there is a tokenizer.

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

            with loading(f"tokenizer={tokenizer}"):
                self._tokenizer = AutoTokenizer.from_pretrained(tokenizer)
        self._encoded = remembered(self._encode)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens of the tokenizer; 0 without one."""
        return 0 if self._tokenizer is None else len(self._tokenizer)

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt's text.

        Without a tokenizer the ids stand for `BYTES_PER_TOKEN` bytes each: their number is the estimate, and prompts
        that start alike have ids that start alike.
        """
        return list(self._encoded(text))

    def count(self, text: str) -> int:
        """Number of tokens of a generated text."""
        if self._tokenizer is None:
            return math.ceil(len(text.encode("utf-8", "replace")) / BYTES_PER_TOKEN)
        with self._lock:
            return len(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _encode(self, text: str) -> tuple[int, ...]:
        messages, partial_answer = decode_chat(text)
        plain = plain_text(messages, partial_answer)
        if self._tokenizer is None:
            data = plain.encode("utf-8", "replace")
            return tuple(
                int.from_bytes(data[i : i + BYTES_PER_TOKEN], "big") for i in range(0, len(data), BYTES_PER_TOKEN)
            )
        with self._lock:
            if messages is not None and self._tokenizer.chat_template:
                history = [{"role": role, "content": content} for role, content in messages]
                rendered = self._tokenizer.apply_chat_template(history, add_generation_prompt=True, tokenize=False)
                return tuple(self._tokenizer(rendered + partial_answer, add_special_tokens=False).input_ids)
            return tuple(self._tokenizer(plain).input_ids)


def plain_text(messages: Messages | None, text: str) -> str:
    """A prompt without any template, from what `decode_chat` returns: the messages' contents, then the text."""
    return text if messages is None else "\n".join(content for _, content in messages) + text


class TextOnlyLM:
    """lm-eval's model interface (`lm_eval.api.model.LM`) for a model that is reached as text alone.

    The harness uses it for everything but answers. What needs tokens or likelihoods is refused with an EngineError.

    Parameters
    ----------
    name
        Of the model.
    max_length
        Its window in tokens.
    max_gen_toks
        Largest number of tokens of an answer where the task sets none.
    """

    tokenizer = None
    device = "cpu"

    def __init__(self, name: str, max_length: int, max_gen_toks: int) -> None:
        self.name, self.max_length, self.max_gen_toks = name, max_length, max_gen_toks

    @property
    def tokenizer_name(self) -> str:
        """Fingerprint for the harness's request cache."""
        return self.name.replace("/", "__")

    def apply_chat_template(self, history: Sequence[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as `encode_chat` represents it; the server applies the template."""
        return encode_chat(tuple((turn["role"], turn["content"]) for turn in history), add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """An empty template, because the server has its own."""
        return ""

    @property
    def eot_token_id(self) -> int:
        """Refused: no tokens are known."""
        self._refuse("an end token")

    def loglikelihood(self, requests: Any, disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Refused: no likelihoods are known."""
        self._refuse("likelihoods")

    loglikelihood_rolling: Any = loglikelihood

    def _refuse(self, what: str) -> NoReturn:
        raise EngineError(
            f"{self.name} answers with text alone, and this needs {what}; use tasks of the kind generate_until, "
            "or name a role with backend=hf, vllm or llamacpp in loglikelihood=…"
        )
