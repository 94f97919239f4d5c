"""From the prompts of a request to questions: conversations as the harness renders them, texts, and token ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.engines import Engine, Prompt
from lm_eval_tandem.engines.tokenizer import LocalTokenizer
from lm_eval_tandem.errors import ContextError
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.own_questions import chat_prompt_of
from lm_eval_tandem.harness.requests import question_of
from lm_eval_tandem.server.errors import refusal
from lm_eval_tandem.server.measuring import REPLACEMENT
from lm_eval_tandem.server.protocol import TokenIds, Turns

TURN = 16
"""Characters as which `characters` counts a turn beside its text: about as many a template adds."""
FIRST_TOKENS = 8
"""Leading tokens of a prompt of ids, of which some have to be the tokens of their own text."""


def question(prompt: Turns | str | TokenIds, lm: AnsweringLM, reader: Engine, system: str) -> Question:
    """The question of a prompt, as the harness would ask it.

    Parameters
    ----------
    prompt
        A conversation, a text, or token ids.
    lm
        The loaded model.
    reader
        The model whose token ids they are.
    system
        A text that opens every conversation; "" for none.

    Raises
    ------
    RequestError
        The ids are those of no text.
    EngineError
        The chat template does not accept the conversation.
    """
    if isinstance(prompt, str):
        return Question(prompt)
    if isinstance(prompt, tuple):
        return Question(text_of_ids(prompt, reader))
    turns = [{"role": "system", "content": system}, *prompt] if system else prompt
    return question_of(chat_prompt_of(turns, lm))


def text_of_ids(ids: TokenIds, reader: Engine) -> str:
    """The text of token ids."""
    text = tokenizer_of(reader, ids).text_of(ids)
    if REPLACEMENT in text:
        raise refusal("the token ids of prompt end or begin within a character; send the prompt as text.", "prompt")
    return text


def prompt_to_score(prompt: str | TokenIds, reader: Engine) -> Prompt:
    """What an engine reads to score a prompt: of ids, exactly these.

    A call's input is a text and the ids after it, so the first ids have to be those that a text has.
    """
    if isinstance(prompt, str):
        return Prompt(prompt)
    tokenizer = tokenizer_of(reader, prompt)
    for first in range(1, min(FIRST_TOKENS, len(prompt)) + 1):
        text = tokenizer.text_of(prompt[:first])
        if tuple(reader.encode(text)) == prompt[:first]:
            return Prompt(text, prompt[first:])
    raise refusal(
        f"prompt does not begin with token ids that {reader.name} has for a text; where the model puts a token before "
        "every text, send that, too (add_bos_token=True of lm-eval), or send the prompt as text.",
        "prompt",
    )


def characters(prompts: Sequence[Turns | str | TokenIds]) -> int:
    """The size of prompts in characters; a token counts as one, a turn as a few beside its text."""
    return sum(
        sum(TURN + len(turn["content"]) for turn in prompt) if isinstance(prompt, list) else len(prompt)
        for prompt in prompts
    )


def check_size(text: str, reader: Engine) -> int:
    """The number of tokens of a prompt's text, which is counted only where it may fit into the window.

    Raises
    ------
    ContextError
        It does not.
    """
    bound = reader.token_bound if isinstance(reader, LocalTokenizer) else None
    fewest = 0 if bound is None else bound.fewest(text)
    size = fewest if fewest > reader.window else len(reader.encode(text))
    if size > reader.window:
        raise ContextError(
            f"the prompt does not fit into the window of {reader.name}, {reader.window} tokens: it has at least "
            f"{size}; send a shorter one."
        )
    return size


def tokenizer_of(reader: Engine, ids: Sequence[int]) -> LocalTokenizer:
    """The engine, if it has a tokenizer of its own that knows all of these ids."""
    tokenizer: Any = reader.lm.tokenizer if isinstance(reader, LocalTokenizer) else None
    if not isinstance(reader, LocalTokenizer) or not hasattr(tokenizer, "__len__"):
        raise refusal(f"{reader.name} takes no token ids; send the prompt as text.", "prompt")
    size = len(tokenizer)
    unknown = next((one for one in ids if not 0 <= one < size), None)
    if unknown is not None:
        raise refusal(
            f"prompt holds the token id {unknown}, but {reader.name} has those from 0 to {size - 1}.", "prompt"
        )
    return reader
