"""OpenAI's replies: whole ones, and the chunks of a stream, for both endpoints."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lm_eval_tandem.harness.own_questions import record_entries
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.server.listener import Event
from lm_eval_tandem.server.measuring import REPLACEMENT, MeasuredToken
from lm_eval_tandem.server.work import Answered, Work

JUDGED = ("stage", "score", "threshold", "mentor_tokens", "prompt_tokens", "seconds", "probe_tokens")
"""Entries of a judgement that are told; the others are for fitting classifiers."""
LIKELIER = "<other>"
"""In `top_logprobs`, the name of a likeliest token of which engines report the log-probability alone."""


@dataclass
class Replies:
    """Writes what one request gets.

    Parameters
    ----------
    is_chat
        Which endpoint's shapes.
    model
        The name that was asked for.
    fingerprint
        Of the loaded models and their settings.
    """

    is_chat: bool
    model: str
    fingerprint: str
    id: str = field(init=False)
    created: int = field(init=False)

    def __post_init__(self) -> None:
        self.id = ("chatcmpl-" if self.is_chat else "cmpl-") + uuid.uuid4().hex
        self.created = int(time.time())

    def head(self, kind: str) -> dict[str, Any]:
        """What every reply and chunk begins with."""
        fingerprint = {"system_fingerprint": self.fingerprint}
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, **fingerprint}

    def whole(self, work: Work, answers: Sequence[Answered]) -> dict[str, Any]:
        """The reply with all answers."""
        choices = [self._choice(work, index, answered) for index, answered in enumerate(answers)]
        kind = "chat.completion" if self.is_chat else "text_completion"
        return {**self.head(kind), "choices": choices, "usage": usage(work, answers)}

    def _choice(self, work: Work, index: int, answered: Answered) -> dict[str, Any]:
        reason, measured = answered.finish_reason, logprobs(self.is_chat, answered.tokens)
        if not self.is_chat:
            return {"index": index, "text": answered.text, "logprobs": measured, "finish_reason": reason}
        message: dict[str, Any] = {"role": "assistant", "content": answered.text, "refusal": None}
        if work.asked.insights:
            message["reasoning_content"] = answered.insight
        return {"index": index, "message": message, "logprobs": measured, "finish_reason": reason}

    # Chunks

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """One chunk of a stream."""
        kind = "chat.completion.chunk" if self.is_chat else "text_completion"
        return {**self.head(kind), "choices": choices, **more}

    def first(self, index: int, echoed: str) -> dict[str, Any]:
        """The choice of an answer's first chunk; `echoed` is its prompt, where that is wanted."""
        if self.is_chat:
            return self._part(index, {"role": "assistant", "content": ""})
        return self._part(index, echoed)

    def text(self, index: int, text: str) -> dict[str, Any]:
        """The choice of a chunk with more of the answer."""
        return self._part(index, {"content": text} if self.is_chat else text)

    def insight(self, index: int, text: str) -> dict[str, Any]:
        """The choice of a chunk with more of what the mentor writes for the intern."""
        return self._part(index, {"reasoning_content": text})

    def last(self, index: int, answered: Answered) -> dict[str, Any]:
        """The choice of an answer's last chunk."""
        part = self._part(index, {} if self.is_chat else "")
        measured = logprobs(self.is_chat, answered.tokens)
        return part | {"logprobs": measured, "finish_reason": answered.finish_reason}

    def _part(self, index: int, part: Any) -> dict[str, Any]:
        name = "delta" if self.is_chat else "text"
        return {"index": index, name: part, "logprobs": None, "finish_reason": None}


def event_entries(event: Event) -> dict[str, Any] | None:
    """What a stream tells of an event under `tandem`; None for more of the answer, which choices hold."""
    if event.kind == "insight":
        return {"type": "insight", "stage": event.stage, "text": event.text}
    if event.kind == "answer":
        return {"type": "answer", "writer": event.text, "stage": event.stage}
    if event.judgement is None:
        return None
    judgement = event.judgement
    return {
        "type": "judged",
        "stage": judgement.stage,
        "score": judgement.score,
        "threshold": judgement.threshold,
        "passed": event.passed,
        "mentor_tokens": judgement.mentor_tokens,
    }


def usage(work: Work, answers: Sequence[Answered]) -> dict[str, Any]:
    """What a request took: OpenAI's fields about prompts and answers, and everything else under `tandem`."""
    prompt = sum(answered.prompt_tokens for answered in answers[:: work.asked.n])
    completion = sum(answered.completion_tokens for answered in answers)
    found = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    records = [record_of(work, answered) for answered in answers]
    return {**found, "tandem": records[0] if len(records) == 1 else {"answers": records}}


def record_of(work: Work, answered: Answered) -> dict[str, Any]:
    """What is told of one answer: its record, and what else it takes to have it again."""
    if answered.record is None:
        return {"policy": answered.policy}
    entries = record_entries(answered.record)
    entries["stages"] = [
        {name: value for name, value in judgement.items() if name in JUDGED} for judgement in entries["stages"]
    ]
    if answered.record.spent:
        del entries["tokens"]  # of mentor and intern; `spent` has those of each model
    if work.asked.sampling.get("temperature"):
        entries["seed"] = work.seed
    if answered.is_fallback:
        entries["fallback"] = True
    return entries


def record_tokens(record: Record) -> Mapping[str, Mapping[str, int]]:
    """The tokens of each model of a record: those that it generated, and those that it read."""
    if record.spent:
        return {name: {"generated": one.new, "read": one.prefill + one.judged} for name, one in record.spent.items()}
    tokens = record.tokens
    return {
        "mentor": {"generated": tokens.mentor_new + tokens.mentor_unused, "read": tokens.mentor_prefill},
        "intern": {
            "generated": tokens.intern_new + tokens.intern_unused,
            "read": tokens.intern_prefill + tokens.judge_prefill,
        },
    }


def logprobs(is_chat: bool, tokens: Sequence[MeasuredToken] | None) -> dict[str, Any] | None:
    """The log-probabilities of tokens, as an endpoint writes them; None where they were not asked for."""
    if tokens is None:
        return None
    if is_chat:
        content = [
            {
                "token": token.text,
                "logprob": token.logprob,
                "bytes": None if REPLACEMENT in token.text else list(token.text.encode()),
                "top_logprobs": [],
            }
            for token in tokens
        ]
        return {"content": content, "refusal": None}
    offsets = [0]
    for token in tokens:
        offsets.append(offsets[-1] + len(token.text))
    return {
        "tokens": [token.text for token in tokens],
        "token_logprobs": [token.logprob for token in tokens],
        "top_logprobs": [likeliest(token) for token in tokens],
        "text_offset": offsets[:-1],
    }


def likeliest(token: MeasuredToken) -> dict[str, float] | None:
    """The token itself and, where another one was likelier, that one's log-probability."""
    if token.logprob is None or token.best is None:
        return None
    return {token.text: token.logprob} | ({} if token.best <= token.logprob else {LIKELIER: token.best})
