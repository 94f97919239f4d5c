"""Calls over a network: what a user may set, how often and how long to try, when to give up."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.errors import ArgumentError

PUBLIC = "https://api.openai.com/v1"
RESUME = ("auto", "ids", "prefix", "stream")
UNKNOWN_WINDOW = 1_000_000
"""Where neither the server nor the user says: then the server itself refuses what is too long."""
IGNORED = ("batch_size", "max_batch_size", "device")
"""The harness gives these to every model; here they mean nothing."""


@dataclass(frozen=True)
class Options:
    """What a user may set for a model behind a server, as mentor_<name>= or intern_<name>=.

    model: its name at the server. base_url: one or several, with ";" between them: they share the load.
    api_key_env: the environment variable that holds the key.
    resume: how the mentor goes on in its text: "ids" (the server tells token ids and takes them: vLLM), "prefix"
        (it goes on in the last message: `continue_final_message`), "stream" (one stream a question is kept open),
        "auto" (ids where the server tells them, otherwise stream).
    tokenizer: folder or hub id, to count prompts; without it 4 bytes are taken for a token.
    parameters: of the model, for Eq. 12. max_length: its window in tokens. max_gen_toks: an answer's default length.
    concurrency: connections at once. retries: of one call. timeout: seconds without a reply (of a stream: without a
        piece of it). total_timeout: seconds of one call with everything tried. give_up: seconds in which no call
        reaches any server until the run ends.
    price_input, price_cached, price_output: dollars per million tokens.
    enable_thinking, reasoning_effort, extra_body: go to the server (extra_body as JSON text or a dictionary).
    think_end_token: ends the thinking in an answer, where the server does not part the two itself.
    entropy: "topk:K" bounds the intern's entropy from the K likeliest tokens where the server has no exact one.
    """

    model: str
    base_url: str = PUBLIC
    api_key_env: str = "OPENAI_API_KEY"
    resume: str = "auto"
    tokenizer: str | None = None
    parameters: float | None = None
    max_length: int | None = None
    max_gen_toks: int = 256
    concurrency: int = 16
    retries: int = 12
    timeout: float = 300.0
    total_timeout: float = 3600.0
    give_up: float = 30.0
    price_input: float | None = None
    price_cached: float | None = None
    price_output: float | None = None
    enable_thinking: bool | None = None
    reasoning_effort: str | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    think_end_token: str | None = None
    entropy: str | None = None

    @classmethod
    def names(cls) -> set[str]:
        """The arguments, without the model's name."""
        return {entry.name for entry in fields(cls)} - {"model"}

    @classmethod
    def read(cls, model: str, arguments: Mapping[str, Any]) -> Options:
        """The options with their types checked.

        Raises
        ------
        ArgumentError
            One has no such value.
        """
        given = {name: value for name, value in arguments.items() if name not in IGNORED and value is not None}
        kinds = {entry.name: str(entry.type) for entry in fields(cls)}
        options = cls(model, **{name: typed(name, value, kinds[name]) for name, value in given.items()})
        if options.resume not in RESUME:
            raise ArgumentError(f"resume={options.resume} is not known; use one of {', '.join(RESUME)}.")
        for url in options.urls:
            check_url(url)
        Prices.read(vars(options))
        return options

    @property
    def urls(self) -> tuple[str, ...]:
        """The servers."""
        return tuple(url.strip().rstrip("/") for url in self.base_url.split(";") if url.strip())

    @property
    def prices(self) -> Prices | None:
        """What tokens cost; cached ones as much as others unless said otherwise."""
        return Prices.read(vars(self))

    def key(self) -> str:
        """The API key from the environment; servers of one's own need none.

        Raises
        ------
        ArgumentError
            A key is needed and the variable is not set.
        """
        key = os.environ.get(self.api_key_env, "").strip()
        if not key and (self.api_key_env != "OPENAI_API_KEY" or PUBLIC in self.urls):
            raise ArgumentError(
                f"the environment variable {self.api_key_env} is not set; put the API key for {self.urls[0]} into it."
            )
        return key


def typed(name: str, value: Any, kind: str) -> Any:
    """The value as the option's type, said in `kind`."""
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
    """Refuse what is no web address, or holds a secret that would be printed and kept with the results."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ArgumentError(f"base_url={url} is no web address; give one like http://127.0.0.1:8000/v1.")
    secrets = [name for name, _ in parse_qsl(parts.query) if any(word in name.lower() for word in ("key", "token"))]
    if parts.password or parts.username or secrets:
        raise ArgumentError(
            f"base_url of {parts.hostname} holds a secret that would be printed and kept with the results; "
            "leave it out and set the environment variable OPENAI_API_KEY (or the one named by api_key_env=)."
        )
