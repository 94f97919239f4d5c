"""The options of a model behind a server, with their types, defaults and descriptions, and their checks."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.errors import ArgumentError

PUBLIC_URL, PUBLIC_KEY = "https://api.openai.com/v1", "OPENAI_API_KEY"
"""OpenAI's own server, and the environment variable of its key, which no other server gets unless `api_key_env` names
it."""
CHAT_PATH, COMPLETIONS_PATH = "/chat/completions", "/completions"
"""Where a server answers a conversation, and where it continues plain text or token ids."""
RESUME_MODES = ("auto", "ids", "prefix", "stream")
UNKNOWN_WINDOW = 1_000_000
"""The window in tokens where neither server nor user gives one: the server itself then refuses a prompt that is too
long."""
LEAST = {"retries": 0, "parameters": 1, "prefix_token_id": 0}
"""The smallest value of an option, where it is not 1 for a whole number and 0 for another."""
ABOVE_ZERO = ("timeout", "total_timeout")
"""Options for which 0 is no value."""
UNLIMITED = ("timeout", "total_timeout", "give_up")
"""Options that may be infinite ("inf")."""
SECRET_WORDS = ("key", "token", "secret", "password", "signature")
"""Words in the name of a query parameter whose value is a secret."""
IGNORED = ("batch_size", "max_batch_size", "device")
"""Arguments that the harness gives to every model and that have no effect on a server's."""


def option(default: Any, description: str) -> Any:
    """A field of an `OptionSet` with its default value and its description in one sentence."""
    return field(default=default, metadata={"description": description})


class OptionSet:
    """Base class of dataclasses whose fields are options (`option`) of one model, beside its name, `model`."""

    @classmethod
    def names(cls) -> set[str]:
        """The names of all options; the model's name is none of them."""
        return {entry.name for entry in cls._entries()}

    @classmethod
    def described(cls) -> list[tuple[str, str, Any, str]]:
        """All options for a table: name, type, default and description, in the order of their definition.

        The type is that of a set value ("str", "int", "float", "bool" or "JSON object"); a default of None means that
        the option is not set.
        """
        rows = []
        for entry in cls._entries():
            default = entry.default if entry.default_factory is MISSING else entry.default_factory()
            kind = str(entry.type).removesuffix(" | None")
            kind = "JSON object" if kind.startswith("Mapping") else kind
            rows.append((entry.name, kind, default, str(entry.metadata["description"])))
        return rows

    @classmethod
    def converted(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """The given values, which may be text, as values of their options.

        Raises
        ------
        ArgumentError
            An option does not accept its value.
        """
        kinds = {entry.name: str(entry.type) for entry in cls._entries()}
        return {name: converted(name, value, kinds[name]) for name, value in given.items()}

    @classmethod
    def _entries(cls) -> list[Field[Any]]:
        return [entry for entry in fields(cls) if entry.name != "model"]  # type: ignore[arg-type]


@dataclass(frozen=True)
class Options(OptionSet):
    """What a user may set for a model behind a server, each as mentor_<name>= or intern_<name>=.

    `described` lists the options with their types, defaults and descriptions.

    Attributes
    ----------
    model
        Name of the model at the server.
    """

    model: str
    base_url: str = option(
        PUBLIC_URL, "Address of the server; several, separated by semicolons, share the load of one model."
    )
    api_key_env: str | None = option(
        None,
        "Name of the environment variable that holds the API key; without it OPENAI_API_KEY is sent to api.openai.com, "
        "and no key to any other server.",
    )
    resume: str = option(
        "auto",
        "How the mentor continues its text from stage to stage: ids (the server returns token ids and accepts them as "
        "a prompt, as vLLM does), prefix (the server continues the last message, continue_final_message), stream (one "
        "stream per question is kept open), or auto (ids where the server returns them, otherwise stream).",
    )
    tokenizer: str | None = option(
        None, "Folder or hub id of the tokenizer that counts tokens; without one, 4 bytes count as one token."
    )
    send_ids: bool = option(
        False,
        "Send prompts as token ids of tokenizer=, its chat template applied here, to the completions endpoint; vLLM, "
        "SGLang and llama-server accept them.",
    )
    vocabulary: int | None = option(
        None,
        "Number of tokens of the vocabulary, for estimated entropies; without it that of tokenizer= or as the server "
        "reports it, otherwise 262144, which is more than nearly all models have.",
    )
    parameters: float | None = option(None, "Number of the model's parameters, from which its TFLOPs are computed.")
    max_length: int | None = option(
        None, "Context window in tokens, where the server does not report it or a shorter one is wanted."
    )
    max_gen_toks: int = option(256, "Largest number of tokens of an answer where the task sets none.")
    concurrency: int = option(16, "Number of connections that are open at the same time.")
    retries: int = option(12, "Number of times that a failed call is tried again.")
    timeout: float = option(300.0, "Seconds to wait for a reply, or for the next part of a stream.")
    total_timeout: float = option(3600.0, "Seconds that one call may take with all its retries.")
    give_up: float = option(30.0, "Seconds without any call reaching a server after which the run ends.")
    price_input: float | None = option(None, "Dollars per million prompt tokens.")
    price_cached: float | None = option(
        None, "Dollars per million prompt tokens from the server's cache; without it they cost as much as others."
    )
    price_output: float | None = option(None, "Dollars per million generated tokens.")
    enable_thinking: bool | None = option(
        None, "Value of enable_thinking for the server's chat template; without it the template's own default."
    )
    reasoning_effort: str | None = option(None, "Value of reasoning_effort for models that have one, such as low.")
    extra_body: Mapping[str, Any] = field(
        default_factory=dict,
        metadata={
            "description": "Further fields of every request; on the command line all of --model_args has to be one "
            "JSON object then."
        },
    )
    think_end_token: str | None = option(
        None, "Text that ends the thinking in an answer, where the server does not separate the two itself."
    )
    entropy: str | None = option(
        None,
        "With topk:K the judge's entropies are estimated from the K most likely tokens, of prompts too where the "
        "server reports them (vLLM); without it, topk:20 for the tokens of answers, or as many as the server reports.",
    )

    @classmethod
    def read(cls, model: str, arguments: Mapping[str, Any]) -> Options:
        """The options of a model from its arguments, whose values may be text.

        Raises
        ------
        ArgumentError
            An option does not accept its value.
        """
        given = {name: value for name, value in arguments.items() if name not in IGNORED and value is not None}
        options = cls(model, **cls.converted(given))
        if options.resume not in RESUME_MODES:
            raise ArgumentError(f"resume={options.resume} is not known; use one of {', '.join(RESUME_MODES)}.")
        for url in options.urls:
            check_url(url)
        if options.send_ids and options.tokenizer is None:
            raise ArgumentError("send_ids=True needs tokenizer=…, the folder or hub id of the tokenizer of the model.")
        Prices.read(vars(options))
        return options

    @property
    def urls(self) -> tuple[str, ...]:
        """Base URLs of the servers."""
        return tuple(url.strip().rstrip("/") for url in self.base_url.split(";") if url.strip())

    @property
    def prices(self) -> Prices | None:
        """Prices of the model's tokens; None where they are not given."""
        return Prices.read(vars(self))

    @property
    def key_variable(self) -> str:
        """Name of the environment variable that holds the API key."""
        return PUBLIC_KEY if self.api_key_env is None else self.api_key_env

    def takes_key(self, url: str) -> bool:
        """Whether the key is sent to this server: where `api_key_env` names one, otherwise only to OpenAI's own."""
        return self.api_key_env is not None or is_public(url)

    def key(self) -> str:
        """The API key from the environment; "" where none is sent.

        Raises
        ------
        ArgumentError
            A key is needed, and the environment variable is not set.
        """
        if not self.key_variable.isidentifier():  # perhaps the key itself, which is not printed
            raise ArgumentError("api_key_env= has to be the name of an environment variable; put the key into that.")
        takers = [url for url in self.urls if self.takes_key(url)]
        key = os.environ.get(self.key_variable, "").strip() if takers else ""
        if takers and not key:
            raise ArgumentError(
                f"the environment variable {self.key_variable} is not set; put the API key for {takers[0]} into it."
            )
        return key


def converted(name: str, value: Any, kind: str) -> Any:
    """The value of an option, converted to the type that its annotation `kind` names."""
    least = LEAST.get(name, 1 if kind.startswith("int") else 0)
    try:
        if kind.startswith(("int", "float")):
            number = math.nan if isinstance(value, bool) else float(value)
            too_large = math.isinf(number) and name not in UNLIMITED
            broken = kind.startswith("int") and number % 1 != 0
            if not number >= least or (number == 0 and name in ABOVE_ZERO) or too_large or broken:
                raise ValueError(value)
            return int(number) if kind.startswith("int") else number
        if kind.startswith("bool"):
            return {"true": True, "false": False}[str(value).lower()]
        if kind.startswith("Mapping"):
            return dict(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, KeyError) as error:
        raise ArgumentError(f"{name}={value} has to be {allowed(name, kind, least)}.") from error
    return str(value)


def allowed(name: str, kind: str, least: int) -> str:
    """Which values an option accepts, as the end of a sentence."""
    if kind.startswith("int"):
        return f"a whole number, {least} or more"
    if kind.startswith("float"):
        return "a number above 0" if name in ABOVE_ZERO else f"a number, {least} or more"
    if kind.startswith("bool"):
        return "True or False"
    return (
        "a JSON object; on the command line all of --model_args is one JSON object then, as in "
        """--model_args '{"mentor": "…", "mentor_extra_body": {"top_k": 20}}'"""
    )


def is_public(url: str) -> bool:
    """Whether an address is that of OpenAI's own servers, reached by an encrypted connection."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return parts.scheme == "https" and (host == "api.openai.com" or host.endswith(".api.openai.com"))


def check_url(url: str) -> None:
    """Refuse what is not a web address, or contains a secret that would be printed and stored with the results."""
    try:
        parts = urlsplit(url)
        well_formed = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        parts, well_formed = urlsplit(""), False
    names = [name for name, _ in parse_qsl(parts.query, keep_blank_values=True)]
    secrets = [name for name in names if any(word in name.lower() for word in SECRET_WORDS)]
    if "@" in url.rpartition("://")[2].partition("/")[0] or secrets:
        raise ArgumentError(
            f"base_url of {parts.hostname or 'the server'} contains a secret that would be printed and stored with the "
            "results; leave it out, put it into an environment variable, and name that variable in api_key_env=…."
        )
    if not well_formed:
        raise ArgumentError(f"base_url={url} is no web address; give one like http://127.0.0.1:8000/v1.")
