"""What a server of the OpenAI protocol replies: whole replies, chunks of a stream, usage and prompt logprobs.

Replies are JSON objects from any server, so nothing about their form is taken for granted: what cannot be read is a
`Failure` of the attempt.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines.http.retries import Failure

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""Put around what a server returns as `reasoning`, apart from the content, so that both are one text as generated."""
MALFORMED = (KeyError, IndexError, TypeError, ValueError, AttributeError)
"""Exceptions of reading a JSON object that has another form than the protocol's."""


@dataclass(frozen=True)
class Usage:
    """Numbers of tokens as the server bills them.

    Attributes
    ----------
    prompt, cached
        Tokens of the prompt, and those of them that came from the server's cache.
    new, reasoning
        Generated tokens, hidden reasoning included, and those of them that are reasoning.
    """

    prompt: int
    cached: int
    new: int
    reasoning: int = 0

    @classmethod
    def of(cls, reply: Mapping[str, Any]) -> Usage | None:
        """The usage in a reply or in a chunk of a stream; None where it has none."""
        usage = reply.get("usage") or {}
        if "prompt_tokens" not in usage:
            return None
        prompt_details = usage.get("prompt_tokens_details") or {}
        new_details = usage.get("completion_tokens_details") or {}
        cached = prompt_details.get("cached_tokens") or usage.get("prompt_cache_hit_tokens") or 0
        reasoning = new_details.get("reasoning_tokens") or 0
        return cls(int(usage["prompt_tokens"]), int(cached), int(usage.get("completion_tokens") or 0), int(reasoning))


@dataclass(frozen=True)
class Reply:
    """A whole reply to one request.

    Attributes
    ----------
    text
        Everything generated, thinking between `THINK_OPEN` and `THINK_CLOSE`.
    content
        The part after the thinking.
    finish_reason
        "stop" or "length".
    ids, prompt_ids
        The server's token ids of generated text and prompt; empty where it does not return them.
    usage
        None where the server does not report it.
    """

    text: str
    content: str
    finish_reason: str
    ids: tuple[int, ...]
    prompt_ids: tuple[int, ...]
    usage: Usage | None

    @classmethod
    def of(cls, reply: Any, may_be_empty: bool = False) -> Reply:
        """Read a reply.

        Parameters
        ----------
        reply
            The JSON object.
        may_be_empty
            Whether an end without any text is a valid reply, as it is when an earlier text is continued.

        Raises
        ------
        Failure
            It is not a completion, the answer was withheld, or it is empty.
        """
        try:
            choice = reply["choices"][0]
            message = choice.get("message") or {"content": choice["text"]}
            thought, content = reasoning_of(message), message.get("content") or ""
            ids = tuple(choice.get("token_ids") or ())
            prompt_ids = tuple(reply.get("prompt_token_ids") or choice.get("prompt_token_ids") or ())
            usage = Usage.of(reply)
            finish_reason = finish_reason_of(choice.get("finish_reason"), message.get("refusal")) or "stop"
        except MALFORMED as error:
            raise Failure("the server replied with something that is no completion", billed=True) from error
        text = (THINK_OPEN + thought + (THINK_CLOSE if content else "") if thought else "") + content
        if not text and not (finish_reason == "stop" and (ids or may_be_empty)):
            raise empty_reply(finish_reason, usage)
        return cls(text, content, finish_reason, ids, prompt_ids, usage)


@dataclass(frozen=True)
class Delta:
    """What one chunk of a stream adds to the answer.

    Attributes
    ----------
    thought, content
        New text: of the thinking, and of the answer after it.
    ids
        The server's token ids of the new text; None where it does not return them.
    finish_reason
        "stop" or "length" where the chunk ends the answer, otherwise None.
    marker
        Whether the chunk has no content field, or announces the role: without text it then stands for no token.
    """

    thought: str
    content: str
    ids: tuple[int, ...] | None
    finish_reason: str | None
    marker: bool

    @classmethod
    def of(cls, chunk: Any) -> Delta | None:
        """Read a chunk; None where it holds no part of the answer.

        Raises
        ------
        Failure
            The answer was withheld.
        """
        choice = (chunk.get("choices") or [None])[0]
        if choice is None:
            return None
        delta = choice.get("delta") or {"content": choice.get("text")}
        finish_reason = finish_reason_of(choice.get("finish_reason"), delta.get("refusal"))
        marker = delta.get("content") is None or bool(delta.get("role"))
        ids = choice.get("token_ids")
        return cls(
            thought=reasoning_of(delta),
            content=delta.get("content") or "",
            ids=None if ids is None else tuple(ids),
            finish_reason=finish_reason,
            marker=marker,
        )


@dataclass
class Piece:
    """A part of a stream.

    Attributes
    ----------
    text
        Its text, thinking and its marks included.
    content
        The part of the text that is not thinking.
    tokens
        Number of its tokens.
    """

    text: str
    content: str
    tokens: int

    def split(self, tokens: int) -> tuple[Piece, Piece]:
        """The piece in two, the first with this number of tokens and their share of the characters."""
        share = tokens / self.tokens
        n_text, n_content = (round(share * len(text)) for text in (self.text, self.content))
        return (
            Piece(self.text[:n_text], self.content[:n_content], tokens),
            Piece(self.text[n_text:], self.content[n_content:], self.tokens - tokens),
        )


def reasoning_of(message: Mapping[str, Any]) -> str:
    """The model's thinking, where the server separates it from the content."""
    return str(message.get("reasoning") or message.get("reasoning_content") or "")


def finish_reason_of(reason: str | None, refusal: str | None = None) -> str | None:
    """Why an answer ended: "stop" or "length"; None where it has not ended.

    Raises
    ------
    Failure
        The server's filter withheld the answer, or the model refused.
    """
    if reason == "content_filter":
        raise Failure("the server's content filter withheld the answer", retryable=False, billed=True)
    if refusal:
        raise Failure(f"the model refused: {refusal[:100]}", retryable=False, billed=True)
    if reason is None:
        return None
    return "length" if reason == "length" else "stop"


def empty_reply(finish_reason: str | None, usage: Usage | None) -> Failure:
    """The failure that a reply without any text is; it names hidden reasoning where that used all tokens."""
    if usage is not None and usage.new and finish_reason == "length":
        return Failure(
            f"nothing but hidden reasoning within {usage.new} tokens; raise the efforts (or max_gen_toks), "
            "or give reasoning_effort=low",
            retryable=False,
            billed=True,
        )
    return Failure("the reply was empty", billed=True)


def prompt_logprobs(reply: Any, columns: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Log-probabilities of a prompt's n tokens from a vLLM server's reply.

    Parameters
    ----------
    reply
        The JSON object.
    columns
        Number K of most likely tokens that were requested at each position.

    Returns
    -------
    logprob : float32 of shape (n,)
        Of each token; the first is NaN.
    top : float32 of shape (n - 1, K)
        Of the most likely tokens at each position after the first, the most likely one first.

    Raises
    ------
    Failure
        The server returned none.
    """
    try:
        choice = reply["choices"][0]
        ids = reply.get("prompt_token_ids") or choice["prompt_token_ids"]
        entries = reply.get("prompt_logprobs") or choice["prompt_logprobs"]
        own = [math.nan] + [entry[str(i)]["logprob"] for i, entry in zip(ids[1:], entries[1:], strict=True)]
        top = [sorted((one["logprob"] for one in entry.values()), reverse=True)[:columns] for entry in entries[1:]]
    except MALFORMED as error:
        raise Failure("the server returns no prompt_logprobs, which scoring needs", retryable=False) from error
    return np.array(own, dtype=np.float32), np.array(top, dtype=np.float32).reshape(-1, columns)
