"""OpenAI's requests: read strictly, and turned into one shape for both endpoints.

A field that is not known, or that asks for something the server does not do, is refused with its name; nothing is
ignored in silence. A field whose value asks for nothing (`tools: []`, `presence_penalty: 0`) is accepted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm_eval_tandem.server.errors import refusal
from lm_eval_tandem.server.unsupported import (
    NOTHING_OF_CHATS,
    NOTHING_OF_COMPLETIONS,
    NOTHING_OF_MESSAGES,
    NOTHING_OF_STREAM_OPTIONS,
    Nothing,
    check_nothing,
)

MAX_STOPS, MAX_STOP_CHARACTERS = 16, 256
"""Largest number of stop strings, and their largest length."""
MAX_N = 16
"""Largest number of answers to one prompt."""
MAX_SEED = 2**63
LOWEST_TEMPERATURE = 1e-10
"""Smallest temperature beside 0. A logit that is divided by less may be infinite, and then no token can be drawn."""
LOWEST_PENALTY, HIGHEST_PENALTY = 0.01, 100.0
"""Bounds of `repetition_penalty`, for the same reason."""
THOUGHTS = ("reasoning_content", "reasoning")
"""Fields of a turn of the assistant that clients send back as they got them; no model reads them."""

TokenIds = tuple[int, ...]
Turns = list[dict[str, str]]
Request = TypeVar("Request", bound="GenerationRequest")


class Strict(BaseModel):
    """An object whose fields have exactly their types, and no others."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class TextPart(Strict):
    """A part of a message's content; other kinds than text are refused."""

    type: Literal["text"]
    text: str


class Message(Strict):
    """One turn of a conversation; `THOUGHTS` may be beside it."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(fail_fast=True)]

    @property
    def turn(self) -> dict[str, str]:
        """As the harness carries it; `developer` is the newer name of `system`."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class StreamOptions(Strict):
    """`stream_options`."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class TandemOptions(Strict):
    """`tandem`, which OpenAI does not have.

    Attributes
    ----------
    insights
        Return what the mentor wrote for the intern as `reasoning_content`.
    events
        Stream what happens before and beside the answer, too.
    """

    insights: bool = False
    events: bool = False


StopString = Annotated[str, Field(min_length=1, max_length=MAX_STOP_CHARACTERS)]


class GenerationRequest(BaseModel):
    """The fields that both endpoints share."""

    model_config = ConfigDict(strict=True, extra="allow", frozen=True, allow_inf_nan=False)

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    seed: Annotated[int, Field(ge=-MAX_SEED, lt=MAX_SEED)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(ge=LOWEST_PENALTY, le=HIGHEST_PENALTY)] | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_N)] | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None


class ChatRequest(GenerationRequest):
    """The body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], Field(min_length=1, fail_fast=True)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    tandem: TandemOptions | None = None


class CompletionRequest(GenerationRequest):
    """The body of `POST /v1/completions`; `prompt` is read by `prompts_of`."""

    prompt: Any
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=1)] | None = None


@dataclass(frozen=True)
class Asked:
    """A request, whichever endpoint it came to.

    Attributes
    ----------
    is_chat
        Whether it came to the chat endpoint.
    model
        The name that was asked for.
    prompts
        One conversation, or texts or token ids.
    sampling
        The fields of `engines.Sampling` that were given.
    max_tokens, seed
        None where they were not given.
    n
        Answers to each prompt.
    stream, include_usage, events
        Whether the reply is a stream, its last chunk holds the usage, and it tells what happens beside the answer.
    insights, echo
        Whether the insights are returned, and whether prompts stand before the answers.
    logprobs
        None for none; otherwise how many of the likeliest tokens are wanted beside the chosen one.
    """

    is_chat: bool
    model: str
    prompts: tuple[Turns | str | TokenIds, ...]
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    seed: int | None = None
    n: int = 1
    stream: bool = False
    include_usage: bool = False
    events: bool = False
    insights: bool = False
    echo: bool = False
    logprobs: int | None = None

    @property
    def answers(self) -> int:
        """Number of answers that were asked for."""
        return len(self.prompts) * self.n


def read_chat(body: bytes) -> Asked:
    """The body of a request for a chat completion; raises `RequestError` for what cannot be answered."""
    given = read(ChatRequest, body, NOTHING_OF_CHATS)
    for number, message in enumerate(given.messages):
        extra = message.model_extra or {}
        if message.role == "assistant":
            extra = {name: value for name, value in extra.items() if name not in THOUGHTS}
        check_nothing(extra, NOTHING_OF_MESSAGES, f"messages.{number}.")
    if given.max_tokens == 0:
        raise refusal("max_tokens is 0, so there is nothing to answer; give 1 or more.", "max_tokens")
    if given.max_tokens is not None and given.max_completion_tokens not in (None, given.max_tokens):
        raise refusal("max_tokens and max_completion_tokens were both given, and differ; give one.", "max_tokens")
    tandem = given.tandem or TandemOptions()
    if tandem.events and not (given.stream and (given.n or 1) == 1):
        raise refusal("tandem.events needs stream: true and a single answer (n: 1).", "tandem.events")
    return Asked(
        is_chat=True,
        prompts=([message.turn for message in given.messages],),
        events=tandem.events,
        insights=tandem.insights,
        logprobs=0 if given.logprobs else None,
        **common(given, given.max_tokens or given.max_completion_tokens, tandem.events),
    )


def read_completion(body: bytes) -> Asked:
    """The body of a request for a completion; raises `RequestError` for what cannot be answered."""
    given = read(CompletionRequest, body, NOTHING_OF_COMPLETIONS)
    if given.max_tokens == 0 and not given.echo:
        raise refusal("max_tokens is 0, so there is nothing to answer; give 1 or more, or echo: true.", "max_tokens")
    return Asked(
        is_chat=False,
        prompts=prompts_of(given.prompt),
        echo=bool(given.echo),
        logprobs=given.logprobs,
        **common(given, given.max_tokens, False),
    )


def common(given: GenerationRequest, max_tokens: int | None, with_usage: bool) -> dict[str, Any]:
    """The entries of `Asked` that both endpoints share; a stream `with_usage` ends with it unasked."""
    options = given.stream_options or StreamOptions()
    check_nothing(options.model_extra or {}, NOTHING_OF_STREAM_OPTIONS, "stream_options.")
    if options.include_usage and not given.stream:
        raise refusal("stream_options was given without stream: true; leave it out.", "stream_options")
    if given.temperature is not None and 0 < given.temperature < LOWEST_TEMPERATURE:
        raise refusal(f"temperature is below {LOWEST_TEMPERATURE:g}; give 0 for greedy answers.", "temperature")
    sampling = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
    chosen: dict[str, Any] = {name: getattr(given, name) for name in sampling if getattr(given, name) is not None}
    if given.stop is not None:
        chosen["stop"] = (given.stop,) if isinstance(given.stop, str) else tuple(given.stop)
    return {
        "model": given.model,
        "sampling": chosen,
        "max_tokens": max_tokens,
        "seed": given.seed,
        "n": given.n or 1,
        "stream": bool(given.stream),
        "include_usage": with_usage or bool(options.include_usage),
    }


def read(kind: type[Request], body: bytes, nothing: Nothing) -> Request:
    """A request's body, checked; `nothing` are the fields that may be there with a value that asks for nothing."""
    try:
        given = kind.model_validate_json(body)
    except ValidationError as error:
        raise refusal(*sentence_of(error)) from None
    check_nothing(given.model_extra or {}, nothing)
    return given


def sentence_of(error: ValidationError) -> tuple[str, str | None]:
    """The first fault of a body as a sentence, without what was given, and the name of its field."""
    first = telling_fault(error.errors(include_url=False, include_input=False))
    fault = first["msg"][0].lower() + first["msg"][1:]
    if first["type"] == "json_invalid":
        return f"the body is no JSON ({fault.removeprefix('invalid JSON: ')}).", None
    # Of a field with several allowed types the place also names the type that was tried.
    names = [str(part) for part in first["loc"] if isinstance(part, int) or is_field_name(str(part))]
    place = ".".join(names)[:200]
    if not place:
        return f"the body has to be a JSON object ({fault}).", None
    if first["type"] == "extra_forbidden":
        return f"the field {place} is not known or not supported; leave it out.", place
    return f"{place}: {fault}.", place


def telling_fault(faults: Sequence[Any]) -> Any:
    """The fault of the first wrong field that says most; of several allowed types that is the one which was meant."""
    depth = 3 if faults[0]["loc"][:1] == ("messages",) else 1
    of_field = [fault for fault in faults if fault["loc"][:depth] == faults[0]["loc"][:depth]]
    return next((fault for fault in of_field if not fault["type"].endswith("_type")), faults[0])


def is_field_name(part: str) -> bool:
    """Whether a part of a fault's place is a field, and not a type that was tried for it."""
    return part.isidentifier() and part != "str"


def prompts_of(prompt: Any) -> tuple[str | TokenIds, ...]:
    """The prompts of a completion: a text, token ids, or a list of either."""
    if isinstance(prompt, str):
        return (prompt,)
    if isinstance(prompt, list) and prompt:
        if all(type(one) is int for one in prompt):
            return (tuple(prompt),)
        if all(isinstance(one, str) for one in prompt):
            return tuple(prompt)
        if all(isinstance(one, list) and one and all(type(id_) is int for id_ in one) for one in prompt):
            return tuple(tuple(one) for one in prompt)
    raise refusal("prompt has to be a text, a list of token ids, or a list of texts or of such lists.", "prompt")
