"""The options of a model behind a server, with their types, defaults and descriptions, and their checks."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.errors import ArgumentError

PUBLIC_URL = "https://api.openai.com/v1"
RESUME_MODES = ("auto", "ids", "prefix", "stream")
UNKNOWN_WINDOW = 1_000_000
"""The window in tokens where neither server nor user gives one: the server itself then refuses a prompt that is too
long."""
IGNORED = ("batch_size", "max_batch_size", "device")
"""Arguments that the harness gives to every model and that have no effect on a server's."""


def option(default: Any, description: str) -> Any:
    """A field of `Options` with its default value and its description in one sentence."""
    return field(default=default, metadata={"description": description})


@dataclass(frozen=True)
class Options:
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
    api_key_env: str = option("OPENAI_API_KEY", "Name of the environment variable that holds the API key.")
    resume: str = option(
        "auto",
        "How the mentor continues its text from stage to stage: ids (the server returns token ids and accepts them as "
        "a prompt, as vLLM does), prefix (the server continues the last message, continue_final_message), stream (one "
        "stream per question is kept open), or auto (ids where the server returns them, otherwise stream).",
    )
    tokenizer: str | None = option(
        None, "Folder or hub id of the tokenizer that counts tokens; without one, 4 bytes count as one token."
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
        metadata={"description": "Further fields of every request, as JSON text or a dictionary."},
    )
    think_end_token: str | None = option(
        None, "Text that ends the thinking in an answer, where the server does not separate the two itself."
    )
    entropy: str | None = option(
        None,
        "Setting topk:K lets an intern behind a vLLM server score prompts, with entropies estimated from the K most "
        "likely tokens.",
    )

    @classmethod
    def names(cls) -> set[str]:
        """The names of all options; the model's name is none of them."""
        return {entry.name for entry in fields(cls)} - {"model"}

    @classmethod
    def described(cls) -> list[tuple[str, str, Any, str]]:
        """All options for a table: name, type, default and description, in the order of their definition.

        The type is that of a set value ("str", "int", "float", "bool" or "JSON object"); a default of None means that
        the option is not set.
        """
        rows = []
        for entry in fields(cls):
            if entry.name != "model":
                default = entry.default if entry.default_factory is MISSING else entry.default_factory()
                kind = str(entry.type).removesuffix(" | None")
                kind = "JSON object" if kind.startswith("Mapping") else kind
                rows.append((entry.name, kind, default, str(entry.metadata["description"])))
        return rows

    @classmethod
    def read(cls, model: str, arguments: Mapping[str, Any]) -> Options:
        """The options of a model from its arguments, whose values may be text.

        Raises
        ------
        ArgumentError
            An option does not accept its value.
        """
        given = {name: value for name, value in arguments.items() if name not in IGNORED and value is not None}
        kinds = {entry.name: str(entry.type) for entry in fields(cls)}
        options = cls(model, **{name: converted(name, value, kinds[name]) for name, value in given.items()})
        if options.resume not in RESUME_MODES:
            raise ArgumentError(f"resume={options.resume} is not known; use one of {', '.join(RESUME_MODES)}.")
        for url in options.urls:
            check_url(url)
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

    def key(self) -> str:
        """The API key from the environment; "" for a server that needs none.

        Raises
        ------
        ArgumentError
            A key is needed, and the environment variable is not set.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and (self.api_key_env != "OPENAI_API_KEY" or PUBLIC_URL in self.urls):
            raise ArgumentError(
                f"the environment variable {self.api_key_env} is not set; put the API key for {self.urls[0]} into it."
            )
        return key


def converted(name: str, value: Any, kind: str) -> Any:
    """The value of an option, converted to the type that its annotation `kind` names."""
    try:
        if kind.startswith("int"):
            if float(value) != int(float(value)) or float(value) < (0 if name == "retries" else 1):
                raise ValueError(value)
            return int(float(value))
        if kind.startswith("float"):
            if float(value) < 0:
                raise ValueError(value)
            return float(value)
        if kind.startswith("bool"):
            return {"true": True, "false": False}[str(value).lower()]
        if kind.startswith("Mapping"):
            return dict(json.loads(value) if isinstance(value, str) else value)
    except (TypeError, ValueError, KeyError) as error:
        wanted = {"int": "a whole number", "flo": "a number", "boo": "True or False", "Map": "a JSON object"}
        raise ArgumentError(f"{name}={value} has to be {wanted[kind[:3]]}.") from error
    return str(value)


def check_url(url: str) -> None:
    """Refuse what is not a web address, or contains a secret that would be printed and stored with the results."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"base_url={url} is no web address; give one like http://127.0.0.1:8000/v1.")
    secrets = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in ("key", "token"))]
    if parts.password or parts.username or secrets:
        raise ArgumentError(
            f"base_url of {parts.hostname} contains a secret that would be printed and stored with the results; "
            "leave it out and set the environment variable OPENAI_API_KEY (or the one named by api_key_env=)."
        )
