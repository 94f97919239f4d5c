"""What the engines with local weights (`hf`, `vllm`) share: tokenizer and chat template."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Any, TypeVar

import jinja2

from lm_eval_tandem.engines import Messages
from lm_eval_tandem.engines.settled import incomplete_character
from lm_eval_tandem.engines.token_bound import TokenBound
from lm_eval_tandem.errors import EngineError

Ids = TypeVar("Ids")
ENCODED_PROMPTS, LONG_PROMPTS = 1024, 16
"""Prompts whose token ids are remembered: each is encoded for the window check, for accounting and for the call."""
LONG_PROMPT = 32_768
"""Characters beyond which only `LONG_PROMPTS` are remembered, so that no number of long prompts fills the memory."""


TOLD_TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"
"""Name under which tokenizers of transformers note that they have warned of a text longer than the window."""


def remembered(encode: Callable[..., Ids]) -> Callable[..., Ids]:
    """The same function of a text, whose results for the last texts are remembered: of many short ones, of few long."""
    of_short, of_long = lru_cache(ENCODED_PROMPTS)(encode), lru_cache(LONG_PROMPTS)(encode)

    def encoded(text: str, *more: Any) -> Ids:
        return (of_short if len(text) <= LONG_PROMPT else of_long)(text, *more)

    return encoded


class LocalTokenizer:
    """Base class of engines around one of lm-eval's own models: prompts to token ids, one thread at a time.

    Parameters
    ----------
    lm
        lm-eval's model, with its tokenizer and chat template.
    tokenize
        Token ids of a text as `lm` computes them.

    Raises
    ------
    EngineError
        The tokenizer has no end token.
    """

    cannot_score = cannot_measure = ""

    def __init__(self, lm: Any, tokenize: Callable[[str], Sequence[int]]) -> None:
        require_end_token(lm.tokenizer.name_or_path, lm.tokenizer)
        getattr(lm.tokenizer, "deprecation_warnings", {})[TOLD_TOO_LONG] = True  # engines check the window themselves
        self.lm = lm
        self._tokenizer_lock = lock = threading.RLock()

        def encoded(text: str) -> tuple[int, ...]:
            with lock:
                return tuple(tokenize(text)) or (int(lm.prefix_token_id),)

        self._encoded = remembered(encoded)

    def render(self, messages: Messages, generation_prompt: bool = True) -> str:
        """See `Engine.render`. A system text that the template has no place for opens the first user turn.

        Raises
        ------
        EngineError
            The model has no chat template, or its template does not accept the conversation.
        """
        name = self.lm.tokenizer.name_or_path
        with self._tokenizer_lock:
            if not self.lm.tokenizer.chat_template:
                raise EngineError(
                    f"the tokenizer of {name} has no chat template; leave out apply_chat_template, "
                    "or name a model that was trained on conversations."
                )
            try:
                if any(role == "system" for role, _ in messages) and not self._shows_system:
                    messages = without_system_role(messages)
                return self._apply_template(messages, generation_prompt)
            except (jinja2.TemplateError, ValueError) as error:
                roles = ", ".join(role for role, _ in messages)
                raise EngineError(
                    f"the chat template of {name} does not accept a conversation of the turns {roles} ({error}); "
                    "leave out apply_chat_template, fewshot_as_multiturn or system_instruction."
                ) from error

    def _apply_template(self, messages: Messages, generation_prompt: bool) -> str:
        history = [{"role": role, "content": content} for role, content in messages]
        return str(self.lm.apply_chat_template(history, add_generation_prompt=generation_prompt))

    @cached_property
    def _shows_system(self) -> bool:
        """Whether the template writes system texts; some refuse the role, whereupon lm-eval drops the text."""
        mark = "in-the-system-turn"
        return mark in self._apply_template((("system", mark), ("user", "in-the-user-turn")), True)

    def stop(self, session: str) -> None:
        """See `Engine.stop`. These engines generate nothing between calls, or end it at the next one."""

    @cached_property
    def _incomplete_character(self) -> tuple[int, ...]:
        """See `settled.incomplete_character`."""
        with self._tokenizer_lock:
            return incomplete_character(lambda text: self.lm.tokenizer.encode(text, add_special_tokens=False))

    def text_of(self, token_ids: Sequence[int]) -> str:
        """The text of a prompt's token ids: special tokens included, U+FFFD for parts of characters."""
        with self._tokenizer_lock:
            return str(self.lm.tokenizer.decode(list(token_ids), skip_special_tokens=False))

    def encode(self, text: str) -> list[int]:
        """See `Engine.encode`. An empty text is the model's prefix token."""
        return list(self._encoded(text))

    @cached_property
    def token_bound(self) -> TokenBound | None:
        """The fewest tokens of a text, which takes no time to know; None where the tokenizer has no such bound."""
        return TokenBound.of(self.lm.tokenizer)


def without_system_role(messages: Messages) -> Messages:
    r"""The conversation with its system texts at the start of the first user turn.

    Examples
    --------
    >>> without_system_role((("system", "Be brief."), ("user", "1 + 1 = ?")))
    (('user', 'Be brief.\n\n1 + 1 = ?'),)
    """
    system = [content for role, content in messages if role == "system"]
    rest = [(role, content) for role, content in messages if role != "system"]
    first = next((i for i, (role, _) in enumerate(rest) if role == "user"), None)
    if first is None:
        return (("user", "\n\n".join(system)), *rest)
    rest[first] = ("user", "\n\n".join([*system, rest[first][1]]))
    return tuple(rest)


def require_end_token(name: str, tokenizer: Any) -> None:
    """Refuse a tokenizer that has no end token: lm-eval needs one to find the end of an answer.

    Raises
    ------
    EngineError
        It has none.
    """
    if tokenizer.eos_token_id is None:
        raise EngineError(
            f"the tokenizer of {name} has no end token; set eos_token in its tokenizer_config.json, "
            "or give another one as tokenizer=…."
        )
