"""What a client is told of a request that fails: a status, and an error object in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from lm_eval_tandem.errors import (
    ArgumentError,
    CallError,
    ContextError,
    TandemError,
    UnreachableError,
)

RETRY_AFTER = 1
"""Seconds after which a client that was turned away may try again."""
INTERNAL = "the server failed at this request; its own log says why."


class RequestError(TandemError):
    """A request that is refused, or that failed.

    Parameters
    ----------
    status
        The HTTP status.
    message
        One sentence for the client.
    kind, code, param
        `type`, `code` and `param` of OpenAI's error object.
    headers
        Further headers of the reply.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """The reply's JSON object."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


def refusal(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """A request that cannot work as it is (400)."""
    return RequestError(400, message, code=code, param=param)


def busy(message: str) -> RequestError:
    """A request that may be sent again later (429)."""
    wait = {"Retry-After": str(RETRY_AFTER)}
    return RequestError(429, message, "rate_limit_error", "rate_limit_exceeded", headers=wait)


def in_words_of_requests(sentence: str) -> str:
    """A sentence about the harness's arguments, in the names of a request's fields.

    Examples
    --------
    >>> in_words_of_requests("request #0 does not fit: max_gen_toks=90; lower max_gen_toks (--gen_kwargs).")
    'the request does not fit: max_tokens=90; lower max_tokens.'
    """
    words = {"request #0": "the request", "max_gen_toks": "max_tokens", " (--gen_kwargs)": ""}
    for ours, theirs in words.items():
        sentence = sentence.replace(ours, theirs)
    return sentence


def request_error_of(error: Exception) -> RequestError:
    """What a client is told of an error that a question met."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextError):
        return refusal(in_words_of_requests(str(error)), code="context_length_exceeded")
    if isinstance(error, ArgumentError):
        return refusal(str(error))
    if isinstance(error, UnreachableError):
        wait = {"Retry-After": str(RETRY_AFTER)}
        return RequestError(503, str(error), "server_error", "model_unreachable", headers=wait)
    if isinstance(error, CallError):
        return RequestError(502, str(error), "server_error", "model_failed")
    if isinstance(error, TandemError):
        return RequestError(500, str(error), "server_error", "failed")
    return RequestError(500, INTERNAL, "server_error", "internal_error")
