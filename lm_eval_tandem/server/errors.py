"""What a client is told of a request that fails: a status, and an error object in OpenAI's shape."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lm_eval_tandem.errors import (
    ArgumentError,
    CallError,
    ContextError,
    EngineError,
    TandemError,
    UnreachableError,
)

RETRY_AFTER = 1
"""Seconds after which a client that was turned away may try again."""


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

    def in_words(self, message: str) -> RequestError:
        """The same error with another sentence."""
        return RequestError(self.status, message, self.kind, self.code, self.param, self.headers)

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


def stopping() -> RequestError:
    """A request that the server does not answer any more, because it has been told to end (503)."""
    wait = {"Retry-After": str(RETRY_AFTER)}
    message = "the server is being stopped, and the answer was not complete in time; ask again, or another server."
    return RequestError(503, message, "server_error", "stopping", headers=wait)


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


def request_error_of(error: Exception, request: str) -> RequestError:
    """What a client is told of an error that a question met.

    Where the fault is not the client's, that is a sentence of ours alone: errors of models quote their servers, with
    addresses, accounts and paths, which are for the log.

    Parameters
    ----------
    error
        What was raised.
    request
        The id of the request, under which the log says more.
    """
    if isinstance(error, RequestError):
        return error
    if isinstance(error, ContextError):
        return refusal(in_words_of_requests(str(error)), code="context_length_exceeded")
    if isinstance(error, ArgumentError):
        return refusal(str(error))
    more = f"the server's log says more under the request's id, {request}."
    if isinstance(error, UnreachableError) or (isinstance(error, CallError) and is_unreached(error)):
        what = f"{model_of(error)} cannot be reached, or refuses its service{status_of(error)}; try again later"
        wait = {"Retry-After": str(RETRY_AFTER)}
        return RequestError(503, f"{what}; {more}", "server_error", "model_unreachable", headers=wait)
    if isinstance(error, CallError):
        what = f"{model_of(error)} failed at this request{status_of(error)}; try again"
        return RequestError(502, f"{what}; {more}", "server_error", "model_failed")
    code = "failed" if isinstance(error, TandemError) else "internal_error"
    return RequestError(500, f"the server failed at this request; {more}", "server_error", code)


def model_of(error: EngineError) -> str:
    """The model whose engine failed, as a sentence names it."""
    return f"the {error.role}" if error.role else "a model"


def is_unreached(error: BaseException) -> bool:
    """Whether the last attempt of a call found no server to connect to, however long others have been trying."""
    return any(getattr(cause, "unreached", False) for cause in causes_of(error))


def status_of(error: BaseException) -> str:
    """The kind of status that a model's server replied with, in words for a sentence; "" where there was none."""
    for cause in causes_of(error):
        status = getattr(cause, "status_code", None)
        if isinstance(status, int) and 400 <= status < 600:
            return f" (its own server replied with a status {status // 100}xx)"
    return ""


def causes_of(error: BaseException) -> Iterator[BaseException]:
    """The error, and what it came from, the last cause first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
