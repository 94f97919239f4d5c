"""What a server of the OpenAI protocol replies: whole replies, chunks of a stream, usage and prompt logprobs.

Replies are JSON from any server, so nothing about their form is taken for granted: a field of another type than the
protocol's is a `Failure` of the attempt, which says what was wrong. No other module looks into a reply.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines.http.failures import Failure, without_page
from lm_eval_tandem.engines.http.logprobs import NOT_MEASURED, Measured, TokenLogprob, token_logprobs

T = TypeVar("T")

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
"""Put around what a server returns as `reasoning`, apart from the content, so that both are one text as generated."""
FINISHED = ("stop", "eos", "eos_token", "end_turn", "stop_sequence", "complete", "tool_calls", "function_call")
"""Finish reasons of an answer that the model ended by itself or with a stop string, as servers send them: stop (OpenAI,
vLLM, SGLang, llama.cpp, Ollama, Gemini), eos (Together), eos_token and stop_sequence (TGI), end_turn (xAI, gateways to
Anthropic), complete (Cohere). Upper and lower case count as equal."""
STOPPED_LOOPS = ("repetition",)
"""Finish reason of vLLM's repetition detection, which a user has to switch on: the answer ends there."""
CUT = ("length", "max_tokens", "model_length", "model_context_window_exceeded")
"""Finish reasons of an answer that reached its limit or the end of the window (Mistral: model_length)."""
WITHHELD = ("content_filter", "guardrail_intervened", "safety", "recitation", "sensitive", "refusal")
"""Finish reasons by which a filter withholds an answer. Another attempt would be withheld too."""
UNFINISHED = ("", "null")
"""What some servers send for null while an answer is being generated (SGLang, Ollama; KoboldCpp)."""
TEXT_PARTS = ("text", "output_text")
THINKING_PARTS = ("thinking", "reasoning")
TEXTLESS_PARTS = ("reference", "redacted_thinking")
"""Types of the parts of a content that is a list, as Mistral's and Anthropic's models send it."""
SURROGATES = re.compile("[\ud800-\udfff]")
"""Halves of characters of UTF-16, which JSON can hold alone."""
MAX_COUNT = 10**9
"""A larger number of tokens is none."""
MAX_TOKEN_ID = 2**31


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
        usage = member(reply, "usage", dict)
        prompt = None if usage is None else count(usage, "prompt_tokens")
        if usage is None or prompt is None:
            return None
        prompt_details = member(usage, "prompt_tokens_details", dict) or {}
        new_details = member(usage, "completion_tokens_details", dict) or {}
        cached = count(prompt_details, "cached_tokens")
        if cached is None:
            cached = count(usage, "prompt_cache_hit_tokens") or 0
        new, reasoning = count(usage, "completion_tokens") or 0, count(new_details, "reasoning_tokens") or 0
        return cls(prompt, min(cached, prompt), new, reasoning)


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
            It is not a completion, or the answer was interrupted, withheld, or is empty.
        """
        choice = first_choice(reply)
        if choice is None:
            raise malformed("the reply", reply)
        message = member(choice, "message", dict)
        if message is None:
            message = {"content": required(choice, "text", str)}
        finish_reason = finish_reason_of(choice, message)
        if finish_reason is None:
            raise Failure("the reply gives no finish reason, so its text may be incomplete", billed=True)
        thought, content = (whole_characters(text)[0] for text in thought_and_content(message))
        ids = token_ids_of(choice, "token_ids") or ()
        prompt_ids = token_ids_of(reply, "prompt_token_ids") or token_ids_of(choice, "prompt_token_ids") or ()
        usage = Usage.of(reply)
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
    logprobs
        Of its tokens, where they were requested.
    """

    thought: str
    content: str
    ids: tuple[int, ...] | None
    finish_reason: str | None
    marker: bool
    logprobs: tuple[TokenLogprob, ...] = ()

    @classmethod
    def of(cls, chunk: Any, columns: int | None = None) -> Delta | None:
        """Read a chunk; None where it holds no part of the answer.

        Parameters
        ----------
        chunk
            The JSON object.
        columns
            Number of most likely tokens that were requested with each token; None where no log-probabilities were.

        Raises
        ------
        Failure
            It is no chunk, or the answer was interrupted or withheld.
        """
        choice = first_choice(chunk)
        if choice is None:
            return None
        delta = member(choice, "delta", dict)
        if delta is None:
            delta = {"content": member(choice, "text", str)}
        thought, content = thought_and_content(delta)
        return cls(
            thought=thought,
            content=content,
            ids=token_ids_of(choice, "token_ids"),
            finish_reason=finish_reason_of(choice, delta),
            marker=delta.get("content") is None or bool(delta.get("role")),
            logprobs=() if columns is None else tuple(token_logprobs(choice, columns)),
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
    ids
        The server's ids of the tokens, where it returns them.
    measured
        Statistics of the tokens, where they were requested.
    """

    text: str = ""
    content: str = ""
    tokens: int = 0
    ids: tuple[int, ...] = ()
    measured: Measured = NOT_MEASURED

    def split(self, tokens: int) -> tuple[Piece, Piece]:
        """The piece in two, the first with this number of tokens and their share of the characters."""
        share = tokens / self.tokens
        n_text, n_content = (round(share * len(text)) for text in (self.text, self.content))
        first, rest = self.measured.split(tokens)
        return (
            Piece(self.text[:n_text], self.content[:n_content], tokens, self.ids[:tokens], first),
            Piece(self.text[n_text:], self.content[n_content:], self.tokens - tokens, self.ids[tokens:], rest),
        )

    @classmethod
    def joined(cls, pieces: Sequence[Piece]) -> Piece:
        """Consecutive pieces as one."""
        return cls(
            "".join(piece.text for piece in pieces),
            "".join(piece.content for piece in pieces),
            sum(piece.tokens for piece in pieces),
            tuple(number for piece in pieces for number in piece.ids),
            Measured.joined([piece.measured for piece in pieces]),
        )


def without_thinking(text: str) -> str:
    """A generated text without the thinking that the server returned apart from the content."""
    return text.partition(THINK_CLOSE)[2] if text.startswith(THINK_OPEN) else text


def malformed(what: str, value: Any) -> Failure:
    """The failure that something of an unexpected form is."""
    name = type(value).__name__
    kind = {"dict": "an object", "list": "a list", "str": "text"}.get(name, name)
    shown = " ".join(without_page(str(value)).split())
    said = "missing" if value is None else f"{kind}, {shown[:80] + '…' if len(shown) > 80 else shown!r}"
    return Failure(f"the server replied with something that is no completion: {what} is {said}", billed=True)


def member(holder: Mapping[str, Any], name: str, kind: type[T]) -> T | None:
    """A field of a JSON object; None where it is missing or null. Raises `Failure` for a value of another type."""
    value = holder.get(name)
    if value is not None and not isinstance(value, kind):
        raise malformed(name, value)
    return value


def required(holder: Mapping[str, Any], name: str, kind: type[T]) -> T:
    """A field that has to be there; raises `Failure` otherwise."""
    value = member(holder, name, kind)
    if value is None:
        raise malformed(name, value)
    return value


def count(holder: Mapping[str, Any], name: str) -> int | None:
    """A field that holds a number of tokens; None where it is missing or null. Raises `Failure` for any other value."""
    value = holder.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= MAX_COUNT or value % 1:
        raise malformed(name, value)
    return int(value)


def token_ids_of(holder: Mapping[str, Any], name: str) -> tuple[int, ...] | None:
    """A field that holds token ids; None where it is missing or null. Raises `Failure` for any other value."""
    ids = member(holder, name, list)
    if ids is None:
        return None
    if not all(type(i) is int and 0 <= i < MAX_TOKEN_ID for i in ids):
        raise malformed(name, ids)
    return tuple(ids)


def first_choice(reply: Any) -> Mapping[str, Any] | None:
    """The first choice of a reply or a chunk; None where it has none. Raises `Failure` where it is neither of them."""
    if not isinstance(reply, Mapping):
        raise malformed("the reply", reply)
    choices = member(reply, "choices", list)
    if not choices:
        return None
    if not isinstance(choices[0], Mapping):
        raise malformed("a choice", choices[0])
    return choices[0]


def thought_and_content(message: Mapping[str, Any]) -> tuple[str, str]:
    """The text of a message or a delta: the thinking, where the server separates it, and the answer after it."""
    thought = member(message, "reasoning", str) or member(message, "reasoning_content", str) or ""
    content = message.get("content")
    if content is None or isinstance(content, str):
        return thought, content or ""
    if not isinstance(content, list):
        raise malformed("content", content)
    parts = [text_of_part(part) for part in content]
    return thought + "".join(thinking for thinking, _ in parts), "".join(text for _, text in parts)


def text_of_part(part: Any) -> tuple[str, str]:
    """The text of one part of a content that is a list: its thinking and its answer, one of which is empty."""
    if isinstance(part, str):
        return "", part
    if not isinstance(part, Mapping):
        raise malformed("a part of the content", part)
    kind = member(part, "type", str) or "text"
    if kind in TEXTLESS_PARTS:
        return "", ""
    if kind in TEXT_PARTS:
        return "", required(part, "text", str)
    if kind not in THINKING_PARTS:
        raise malformed("a part of the content", part)
    inner = next((part[name] for name in (*THINKING_PARTS, "text") if part.get(name) is not None), None)
    if isinstance(inner, list):
        return "".join(text for _, text in map(text_of_part, inner)), ""
    if not isinstance(inner, str):
        raise malformed(kind, inner)
    return inner, ""


def whole_characters(text: str) -> tuple[str, str]:
    """A text with the halves of its characters put together, and the half that stands alone at its end, or "".

    Raises
    ------
    Failure
        Half a character stands alone before the end.
    """
    if not SURROGATES.search(text):
        return text, ""
    half = text[-1] if "\ud800" <= text[-1] < "\udc00" else ""
    try:
        return text[: len(text) - len(half)].encode("utf-16-le", "surrogatepass").decode("utf-16-le"), half
    except UnicodeDecodeError as error:
        raise Failure("the server sent half a character", billed=True) from error


def finish_reason_of(choice: Mapping[str, Any], message: Mapping[str, Any]) -> str | None:
    """Why an answer ended: "stop" or "length"; None where it has not ended.

    Raises
    ------
    Failure
        The answer was interrupted, for a reason that the message names; or the server's filter withheld it, or the
        model refused.
    """
    given = member(choice, "finish_reason", str) or ""
    refusal = member(message, "refusal", str)
    reason = given.lower()
    if reason in WITHHELD:
        raise Failure(f"the server's content filter withheld the answer ({given})", retryable=False, billed=True)
    if refusal:
        raise Failure(f"the model refused: {refusal[:100]}", retryable=False, billed=True)
    if reason in UNFINISHED:
        return None
    if reason in CUT:
        return "length"
    if reason in FINISHED or reason in STOPPED_LOOPS:
        return "stop"
    raise Failure(f"the server ended the answer with finish_reason={given[:100]!r}", billed=True)


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
    choice = first_choice(reply)
    if choice is None:
        raise malformed("the reply", reply)
    ids = token_ids_of(reply, "prompt_token_ids") or token_ids_of(choice, "prompt_token_ids")
    entries = member(reply, "prompt_logprobs", list) or member(choice, "prompt_logprobs", list)
    if not ids or not entries:
        raise Failure("the server returns no prompt_logprobs, which scoring needs", retryable=False)
    try:
        own = [math.nan] + [entry[str(i)]["logprob"] for i, entry in zip(ids[1:], entries[1:], strict=True)]
        top = [sorted((one["logprob"] for one in entry.values()), reverse=True)[:columns] for entry in entries[1:]]
        logprob = np.array(own, dtype=np.float32)
        most_likely = np.array(top, dtype=np.float32).reshape(-1, columns)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise malformed("prompt_logprobs", entries) from error
    if not (np.isfinite(logprob[1:]).all() and np.isfinite(most_likely).all()):
        raise malformed("prompt_logprobs", entries)
    return logprob, most_likely


@dataclass(frozen=True)
class ModelEntry:
    """A server's entry for a model in its list of models.

    Attributes
    ----------
    window
        Largest number of prompt and new tokens together, as vLLM servers report it; None where it is unknown.
    root
        The folder or hub id of the weights; None where it is unknown.
    vocabulary
        Number of different tokens, as llama.cpp's servers report it; None where it is unknown.
    """

    window: int | None = None
    root: str | None = None
    vocabulary: int | None = None

    @classmethod
    def of(cls, models: Any, name: str) -> ModelEntry:
        """The entry of a model; an empty one where the server does not list it.

        Raises
        ------
        Failure
            The reply is no list of models.
        """
        entries = member(models, "data", list) if isinstance(models, Mapping) else models  # Together sends a bare list
        if entries is not None and not isinstance(entries, list):
            raise malformed("the list of models", models)
        known = [entry for entry in entries or () if isinstance(entry, Mapping)]
        entry = next((entry for entry in known if entry.get("id") == name), {})
        # A llama-server has one model and takes any name for it.
        only = known[0] if len(known) == 1 else entry
        details = member(only, "meta", dict) or {}
        return cls(count(entry, "max_model_len") or None, member(entry, "root", str), count(details, "n_vocab") or None)
