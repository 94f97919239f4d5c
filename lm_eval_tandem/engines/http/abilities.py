"""What a server supports, found out by small requests: how it continues a text, which log-probabilities it reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.entropy import EntropyMethod
from lm_eval_tandem.engines.http.client import ServerPool
from lm_eval_tandem.engines.http.failures import Failure
from lm_eval_tandem.engines.http.logprobs import LogprobRequest
from lm_eval_tandem.engines.http.options import CHAT_PATH, COMPLETIONS_PATH, UNKNOWN_WINDOW, Options
from lm_eval_tandem.engines.http.replies import ModelEntry, Reply
from lm_eval_tandem.engines.http.retries import Retries
from lm_eval_tandem.engines.http.single import prompt_fields, request_body
from lm_eval_tandem.engines.http.stream import Stream
from lm_eval_tandem.engines.http.text import Counting, TokenCounter, encode_chat
from lm_eval_tandem.errors import CallError, EngineError

PROBE_TOKENS = 16
"""Tokens that are generated to find out what a server can do."""
STARTUP_RETRIES = 3
"""Retries of these first requests: a mistyped address is reported within seconds."""
USUAL_COLUMNS = (20, 5)
"""Numbers of most likely tokens that are tried: what OpenAI and vLLM allow with a chat, and OpenAI with plain text."""
LARGE_VOCABULARY = 262_144
"""Taken for the size of a vocabulary that is not known; nearly all are smaller, and a bound stays one."""
UNCERTAIN = "Name any animal. One word:"
"""A prompt after which a model has a choice."""
SAME = 0.1
"""By how much the probability of the most likely token may differ between two requests for the same place."""


@dataclass(frozen=True)
class ServerAbilities:
    """What a server turned out to support.

    Attributes
    ----------
    entry
        Its entry for the model in its list of models; an empty one where it has none.
    resume
        How a text is continued: "ids", "prefix" or "stream".
    counting
        How the tokens of a stream are counted.
    """

    entry: ModelEntry
    resume: str
    counting: Counting


async def probe(servers: ServerPool, counter: TokenCounter) -> ServerAbilities:
    """Find out what a server supports: by its list of models, one small request, and a second one for streams.

    Raises
    ------
    EngineError
        The server cannot be used, or not with the `resume=` that is set.
    """
    options = servers.options
    body = request_body(options, Sampling(max_tokens=PROBE_TOKENS), return_ids=options.resume in ("auto", "ids"))
    body["messages"] = [{"role": "user", "content": "Hi"}]
    impatient = replace(options, retries=min(options.retries, STARTUP_RETRIES))

    async def attempt(number: int) -> Reply:
        return Reply.of(await servers.post(CHAT_PATH, body, "", number))

    try:
        entry = await servers.retry(servers.model_entry, servers.retries("list", impatient))
        reply = await servers.retry(attempt, servers.retries("look", impatient))
        returns_ids = bool(reply.ids and reply.prompt_ids)
    except CallError as error:
        if "output limit" not in str(error) and "hidden reasoning" not in str(error):
            raise EngineError(f"{error}; check the model's name and the server, {options.urls[0]}.") from error
        # The model thinks, and the few tokens were too few for an answer. So the server works.
        returns_ids = False
    if options.resume == "ids" and not returns_ids:
        raise EngineError(
            f"resume=ids needs a server that returns token ids (vLLM does), and that of {options.model} does not; "
            "use resume=stream, or resume=prefix where it can continue the last message."
        )
    resume = options.resume if options.resume != "auto" else "ids" if returns_ids else "stream"
    counting: Counting = "by a tokenizer" if counter.exact else "by bytes"
    if returns_ids:
        counting = "by the server"
    elif resume == "stream" and await streams_each_token(servers, counter, body, impatient):
        counting = "by pieces"
    return ServerAbilities(entry, resume, counting)


async def streams_each_token(
    servers: ServerPool, counter: TokenCounter, body: Mapping[str, Any], options: Options
) -> bool:
    """Whether a server sends each token as one chunk of a stream, as most do."""
    retries = servers.retries("pieces", options)

    async def attempt(_: int) -> bool:
        stream = Stream("", (), "", counter.count)
        await read_once(servers, stream, CHAT_PATH, body, retries, UNKNOWN_WINDOW)
        usage = stream.usage
        # An end token is billed and has no chunk.
        return usage is not None and 0 <= usage.new - usage.reasoning - stream.pieces <= 1

    return await servers.retry(attempt, retries, takes_connection=False)


async def read_once(
    servers: ServerPool, stream: Stream, path: str, body: Mapping[str, Any], retries: Retries, tokens: int
) -> None:
    """Let a stream receive the answer to a request, read so many tokens of it at most, and close it."""
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    stream.start(servers.stream(stream.started, path, streamed, "", retries))
    try:
        await stream.read(tokens, servers.options.timeout)
    except Exception as error:  # the client raises many kinds of exceptions, which `failure` distinguishes
        raise servers.errors.failure(error) from error
    finally:
        stream.close()


@dataclass(frozen=True)
class Measuring:
    """Which statistics of generated tokens a server reports.

    Attributes
    ----------
    request
        What measured calls ask for; None where it reports nothing that can be used.
    fault
        Why not; otherwise "".
    tempered
        Whether temperature changes them, so that they are those of the model at a temperature of 0 or 1 alone.
    """

    request: LogprobRequest | None = None
    fault: str = ""
    tempered: bool = False


async def find_logprobs(
    servers: ServerPool, counter: TokenCounter, method: EntropyMethod | None, vocabulary: int
) -> Measuring:
    """Find out by small requests which log-probabilities of generated tokens a server reports.

    Parameters
    ----------
    servers, counter
        Of the engine.
    method
        The number of most likely tokens that the user asks for; None for as many as there are, up to 20.
    vocabulary
        Number of tokens of the vocabulary.
    """
    wanted = USUAL_COLUMNS if method is None else (method.top or 1,)
    faults: dict[str, str] = {}
    found: dict[str, int] = {}
    prompts = {CHAT_PATH: encode_chat((("user", UNCERTAIN),)), COMPLETIONS_PATH: UNCERTAIN}
    if servers.options.send_ids:
        prompts = {COMPLETIONS_PATH: UNCERTAIN}
    tempered = False
    for path, text in prompts.items():
        if path == COMPLETIONS_PATH and not servers.has_completions:
            continue
        for columns in wanted:
            try:
                tops = [
                    await first_tokens(servers, counter, text, LogprobRequest(columns, vocabulary), temperature)
                    for temperature in (0.0, 1.0, 2.0)
                ]
            except CallError as error:
                faults.setdefault(path, str(error))
                continue
            n = max(len(top) for top in tops)  # OpenAI says that there may be fewer in rare cases
            likeliest = [float(np.exp(top[0])) for top in tops]
            if abs(likeliest[0] - likeliest[1]) > SAME:
                faults[path] = "its log-probabilities are those of its sampling, not of the model"
            elif method is not None and n < min(columns, vocabulary):
                faults[path] = f"it reports the {n} most likely tokens at most"
            else:
                faults.pop(path, None)
                found[path] = n
                tempered |= abs(likeliest[1] - likeliest[2]) > SAME
            break
    name = servers.options.model
    way_on = (
        "use a classifier that reads no tokens of the answer, policy=stage:N, which needs none, or another server or "
        "backend for the intern"
    )
    refused = {
        path: f"the server of {name} reports no log-probabilities of generated tokens at {path}: {fault}; {way_on}."
        for path, fault in faults.items()
    }
    if not found:
        return Measuring(fault="; ".join(refused.values()))
    return Measuring(LogprobRequest(min(found.values()), vocabulary, refused), tempered=tempered)


async def first_tokens(
    servers: ServerPool, counter: TokenCounter, text: str, request: LogprobRequest, temperature: float
) -> Any:
    """The log-probabilities of the most likely tokens at the start of an answer, (K,), after its stream was checked."""
    options = servers.options
    impatient = replace(options, retries=min(options.retries, STARTUP_RETRIES))
    retries = servers.retries("logprobs", impatient)
    path, fields = prompt_fields(servers, counter, "stream", Prompt(text))
    tokens = PROBE_TOKENS if temperature == 0 else 1
    body = request_body(options, Sampling(max_tokens=tokens, temperature=temperature), return_ids=False)
    body |= {**fields, **request.fields(path)}

    async def attempt(_: int) -> Any:
        stream = Stream("", (), "", counter.count, tokens, request)
        await read_once(servers, stream, path, body, retries, tokens)
        if not len(stream.first_top):
            raise Failure("it sends none in a stream", retryable=False)
        return stream.first_top

    return await servers.retry(attempt, retries, takes_connection=False)
