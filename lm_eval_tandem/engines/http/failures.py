"""Failed attempts: what an exception of the client library, or an error that a server reports, means for a call.

A server reports an error by an HTTP status, or with status 200 by an `error` object in place of an answer: in a whole
reply, in a choice, or in a chunk of a stream. Both are read here, and its own words are passed on.
"""

from __future__ import annotations

import asyncio
import html
import math
import re
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Any

import openai

from lm_eval_tandem import errors
from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.errors import EngineError, UnreachableError

RETRIED_STATUSES = (408, 409, 425, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""
TRANSPORT_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio")
"""Packages whose exceptions mean that an established connection broke."""
PAGE = re.compile(r"<(?:!doctype\s+html|html|head)\b", re.I)
"""Start of an HTML page, which proxies send in place of an error."""


class Failure(Exception):
    """One attempt that failed.

    Parameters
    ----------
    reason
        What happened, in words for the error message.
    retryable
        Whether another attempt may succeed.
    retry_after
        Seconds that the server asks to wait; None where it does not.
    unreached
        Whether no server was reached.
    billed
        Whether the server had started to answer, so that it charges for the prompt.
    """

    def __init__(
        self,
        reason: str,
        retryable: bool = True,
        retry_after: float | None = None,
        unreached: bool = False,
        billed: bool = False,
    ) -> None:
        super().__init__(reason)
        self.retryable, self.retry_after, self.unreached, self.billed = retryable, retry_after, unreached, billed


class ErrorReader:
    """Turns errors into `Failure`s, without ever repeating the API key.

    Parameters
    ----------
    options
        Of the model.
    key
        The API key, which servers may quote in their errors; "" for none.
    report_reply
        Called for every error that a server replied with.
    """

    def __init__(self, options: Options, key: str, report_reply: Callable[[], None]) -> None:
        self._options, self._key, self._report_reply = options, key, report_reply

    def failure(self, error: Exception) -> Failure:
        """What an exception of an attempt means.

        Raises
        ------
        UnreachableError
            No call can succeed: the key is refused or the account has no credit.
        Exception
            The same one, where it comes neither from the client library nor from the network.
        """
        if isinstance(error, Failure):
            return error
        if isinstance(error, EngineError):
            raise error
        seconds = self._options.timeout
        if isinstance(error, (TimeoutError, asyncio.TimeoutError, openai.APITimeoutError)):
            connected = not is_connecting(error.__cause__)
            return Failure(f"no reply within {seconds:g} seconds", billed=connected, unreached=not connected)
        if isinstance(error, openai.APIConnectionError):
            cause = error.__cause__ or error
            if is_connecting(cause):
                return Failure(f"the connection failed: {self.one_line(cause)}", unreached=True)
            return Failure(f"the connection broke: {self.one_line(cause)}", billed=True)
        if type(error).__module__.partition(".")[0] in TRANSPORT_PACKAGES:
            return Failure(f"the connection broke: {self.one_line(error)}", billed=True)
        if isinstance(error, openai.APIStatusError):
            self._report_reply()
            how = f"the server replied with status {error.status_code}"
            wait = requested_wait(error.response.headers)
            return self._by_status(how, error.status_code, error_code(error.body), self.message(error), wait)
        if isinstance(error, openai.APIError) and error.body is not None:
            return self.reported(error.body)
        # A RecursionError is how Python's JSON parser reports objects that are nested too deeply.
        if isinstance(error, (openai.APIError, ValueError, RecursionError)):
            return Failure(f"the reply cannot be read: {self.one_line(error)}", billed=True)
        raise error

    def reported(self, error: Any) -> Failure:
        """What an error object that came with status 200 means; its code, if it is an HTTP status, counts as one.

        Raises
        ------
        UnreachableError
            As `failure`.
        """
        code = error_code(error)
        message = self.one_line(error_text(error) or error)
        if code.isdecimal() and 400 <= int(code) < 600:
            return self._by_status(f"the server reported error {code}", int(code), code, message, None)
        return Failure(f"the server reported an error: {message}", billed=True)

    def message(self, error: openai.APIStatusError) -> str:
        """The server's own words about an error, in one line."""
        return self.one_line(error_text(error.body) or error.message)

    def one_line(self, message: object) -> str:
        """A message in one line, shortened, the key blotted out; of an HTML page its title or first line."""
        return errors.one_line(self.without_key(" ".join(without_page(str(message)).split())))

    def without_key(self, text: str) -> str:
        """The text with the key blotted out."""
        return text.replace(self._key, "…") if self._key else text

    def _by_status(self, how: str, status: int, code: str, message: str, wait: float | None) -> Failure:
        server = self._options.urls[0]
        if status == 401 and not self._key:
            raise UnreachableError(
                f"{server} wants a key (401): {message}; put it into an environment variable and give that variable's "
                "name as mentor_api_key_env=… (or api_key_env=… for both models). Without it no key is sent, except "
                "that of OPENAI_API_KEY to api.openai.com."
            )
        if status == 401:
            raise UnreachableError(
                f"{server} refuses the key in {self._options.key_variable} (401): {message}; "
                "set the environment variable to a valid one, or name another with mentor_api_key_env=…."
            )
        if code == "insufficient_quota" or status == 402:
            raise UnreachableError(f"the account at {server} has no credit left ({status}): {message}")
        retryable = status in RETRIED_STATUSES or status >= 500
        return Failure(f"{how}: {message}", retryable, wait if retryable else None)


def without_page(message: str) -> str:
    """A message with an HTML page in it cut down to the page's title, or its first line of text."""
    page = PAGE.search(message)
    if page is None:
        return message
    before, text = message[: page.start()], message[page.start() :]
    title = re.search(r"<title\b[^>]*>(.*?)</title>", text, re.I | re.S)
    body = re.sub(r"<(script|style)\b.*?</\1>|<!--.*?-->|<[^>]*>", "\n", text, flags=re.I | re.S)
    lines = [line.strip() for line in (title[1].replace("\n", " ") if title else body).splitlines() if line.strip()]
    return before + html.unescape(lines[0] if lines else "an empty HTML page")


def is_connecting(error: BaseException | None) -> bool:
    """Whether an exception of the transport means that no connection was established."""
    return type(error).__name__ in ("ConnectError", "ConnectTimeout", "UnsupportedProtocol", "ProxyError")


def error_in(reply: Any) -> Any:
    """The error that a reply or a chunk of a stream reports in place of an answer; None where it reports none."""
    if not isinstance(reply, Mapping):
        return None
    if "error" in (reply.get("object"), reply.get("type")):
        return reply.get("error") or reply
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    return reply.get("error") or (choice.get("error") if isinstance(choice, Mapping) else None) or None


def error_text(error: Any) -> str:
    """A server's own words, from the body of an error in any of the forms that servers use; "" where it has none."""
    if isinstance(error, list) and error:
        return error_text(error[0])
    if isinstance(error, str):
        return error
    if not isinstance(error, Mapping):
        return ""
    said = next((error[name] for name in ("message", "error", "detail") if error.get(name)), "")
    words = said if isinstance(said, str) else error_text(said) or str(said)
    # Routers put the words of the provider behind them here.
    metadata = error.get("metadata")
    raw = metadata.get("raw") if isinstance(metadata, Mapping) else None
    return f"{words} ({raw})" if raw else words


def error_code(error: Any) -> str:
    """The code in the body of an error, such as "429" or "insufficient_quota"; "" where it has none."""
    if isinstance(error, list) and error:
        return error_code(error[0])
    if not isinstance(error, Mapping):
        return ""
    code = error.get("code")
    if code is None and isinstance(error.get("error"), (Mapping, list)):
        return error_code(error["error"])
    return "" if code is None else str(code)


def requested_wait(headers: Mapping[str, str]) -> float | None:
    """Seconds that a server asks to wait, by the headers retry-after-ms or retry-after; None where it does not."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif "retry-after" not in headers:
            return None
        elif headers["retry-after"].replace(".", "", 1).isdecimal():
            seconds = float(headers["retry-after"])
        else:
            seconds = max(0.0, parsedate_to_datetime(headers["retry-after"]).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):  # a header of neither form counts as none
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None
