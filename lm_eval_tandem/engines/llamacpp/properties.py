"""What a llama-server says about itself and its model."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from lm_eval_tandem.errors import EngineError

REPLY_TIMEOUT = 60.0
"""Seconds to wait for a reply to a request that computes nothing."""


@dataclass(frozen=True)
class Properties:
    """What is known of a server and the model that it serves.

    Attributes
    ----------
    slots
        Number of texts that it works on at once.
    window
        Largest number of tokens of each.
    vocabulary
        Number of different tokens.
    parameters
        Number of stored weights; None where it does not say it.
    chat_template, bos_token, eos_token
        Texts of its tokenizer; "" for none.
    model
        What tells its model from others, as JSON values.
    """

    slots: int
    window: int
    vocabulary: int
    parameters: int | None
    chat_template: str
    bos_token: str
    eos_token: str
    model: dict[str, Any]

    @classmethod
    def of(cls, url: str) -> Properties:
        """Ask the server at this address.

        Raises
        ------
        EngineError
            It cannot be reached, or is no llama-server.
        """
        props, models = ask(url, "/props"), ask(url, "/v1/models")
        try:
            entry = models["data"][0]
            meta = entry["meta"]
            return cls(
                slots=int(props["total_slots"]),
                window=int(props["default_generation_settings"]["n_ctx"]),
                vocabulary=int(meta["n_vocab"]),
                parameters=meta.get("n_params"),
                chat_template=str(props.get("chat_template") or ""),
                bos_token=str(props.get("bos_token") or ""),
                eos_token=str(props.get("eos_token") or ""),
                model={"file": str(props.get("model_path")), "build": props.get("build_info"), **meta},
            )
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EngineError(
                f"the server at {url} does not reply as a llama-server does ({type(error).__name__}: {error}); "
                "give the address of one, or use backend=openai for other servers."
            ) from error


def ask(url: str, path: str, body: dict[str, Any] | None = None) -> Any:
    """The reply to a request that computes nothing: tokens of a text, text of tokens, properties.

    Raises
    ------
    EngineError
        No reply.
    """
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"Content-Type": "application/json"})  # noqa: S310  see `check_url`
    try:
        with urllib.request.urlopen(request, timeout=REPLY_TIMEOUT) as reply:  # noqa: S310
            return json.loads(reply.read())
    except (OSError, ValueError) as error:  # URLError and a broken connection are OSErrors
        raise EngineError(
            f"the llama-server at {url} does not reply to {path} ({error}); check its address, and that it runs."
        ) from error
