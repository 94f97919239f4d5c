"""What a reward model reads: a question and an answer as token ids, and where the steps of the answer end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jinja2

from lm_eval_tandem.engines import Messages
from lm_eval_tandem.engines.rating import Candidate
from lm_eval_tandem.errors import ContextError, EngineError, one_line

PLACE = "the-answer-goes-here"
"""Stands for the answer while a chat template is applied, so that the template leaves the answer as it is."""


@dataclass(frozen=True)
class Reading:
    """What the model reads of a candidate.

    Attributes
    ----------
    ids
        Token ids of question and answer.
    ends
        For a process reward model: the positions of the last tokens of the steps that are rated.
    """

    ids: list[int]
    ends: tuple[int, ...] = ()


class AnswerReader:
    """Turns candidates into what a reward model reads.

    With a chat template that is the conversation (a plain question is the user's message) with the answer as the
    assistant's message, otherwise question, line break and answer.

    Parameters
    ----------
    name
        Of the model, for messages.
    tokenizer
        The model's.
    separator
        What separates the steps of an answer; None where the answer is read as a whole.
    window
        The largest number of tokens; None for any.
    """

    def __init__(self, name: str, tokenizer: Any, separator: str | None, window: int | None) -> None:
        self._name, self._tokenizer, self._separator, self._window = name, tokenizer, separator, window
        self._special = special_tokens(tokenizer)

    def read(self, candidate: Candidate) -> Reading:
        """Question and answer as tokens.

        Raises
        ------
        ContextError
            They exceed the window.
        EngineError
            The chat template does not accept the conversation.
        """
        reading = (
            Reading(self._whole(candidate)) if self._separator is None else self._steps(candidate, self._separator)
        )
        if self._window is not None and len(reading.ids) > self._window:
            raise ContextError(
                f"a question and an answer of {len(reading.ids)} tokens exceed the window of the reward model "
                f"{self._name}, {self._window} tokens; lower max_gen_toks, or use a reward model with a longer window."
            )
        return reading

    def _whole(self, candidate: Candidate) -> list[int]:
        answer = candidate.begun + candidate.text
        if self._tokenizer.chat_template:
            return self._encode(self._render(candidate, answer))
        before, after = self._special
        return [*before, *self._encode(f"{candidate.question}\n{answer}"), *after]

    def _steps(self, candidate: Candidate, separator: str) -> Reading:
        """The answer's steps are encoded one by one, as TRL does, so that no token reaches beyond a step's end."""
        if self._tokenizer.chat_template:
            head, found, tail = self._render(candidate, PLACE).rpartition(PLACE)
            if not found:
                raise EngineError(f"the chat template of {self._name} leaves out the answer; use another reward model.")
            ids, after = self._encode(head), self._encode(tail)
        else:
            before, after = self._special
            ids = [*before, *self._encode(candidate.question + "\n")]
        ends = []
        for step, is_rated in split_steps(candidate.begun, candidate.text, separator):
            ids += self._encode(step) + self._encode(separator)
            if is_rated:
                ends.append(len(ids) - 1)
        return Reading([*ids, *after], tuple(ends))

    def _render(self, candidate: Candidate, answer: str) -> str:
        messages: Messages = candidate.messages or (("user", candidate.question),)
        if messages[-1][0] == "assistant":  # the first words of the answer
            messages, answer = messages[:-1], messages[-1][1] + answer
        turns = [{"role": role, "content": content} for role, content in (*messages, ("assistant", answer))]
        try:
            return str(self._tokenizer.apply_chat_template(turns, tokenize=False))
        except (jinja2.TemplateError, ValueError) as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise EngineError(
                f"the chat template of {self._name} does not accept a conversation of the turns {roles} "
                f"({one_line(error)}); use another reward model, or leave out --system_instruction."
            ) from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False).input_ids) if text else []


def special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """Token ids that a tokenizer puts before and after every text of its own accord, such as [CLS] and [SEP]."""
    plain = list(tokenizer("a", add_special_tokens=False).input_ids)
    whole = list(tokenizer("a").input_ids)
    start = next((i for i in range(len(whole)) if whole[i : i + len(plain)] == plain), 0)
    return whole[:start], whole[start + len(plain) :]


def split_steps(begun: str, text: str, separator: str) -> list[tuple[str, bool]]:
    r"""The steps of an answer without their separators, each with whether any of its words are in `text`.

    Pieces without words are no steps.

    Examples
    --------
    >>> split_steps("One.\n\nTw", "o.\n\nThree.", "\n\n")
    [('One.', False), ('Two.', True), ('Three.', True)]
    """
    steps, start = [], 0
    for step in (begun + text).split(separator):
        if step.strip():
            steps.append((step, bool(step[max(0, len(begun) - start) :].strip())))
        start += len(step) + len(separator)
    return steps
