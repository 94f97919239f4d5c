"""Failed attempts: what an error means, how long to wait before the next attempt, and when to stop trying.

Three limits end the attempts: an error that no retry can mend, a call's own limits (`retries`, `total_timeout`), and
no call at all reaching a server for `give_up` seconds.
"""

from __future__ import annotations

import asyncio
import random
import time
from email.utils import parsedate_to_datetime

import openai

from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.errors import CallError, EngineError, UnreachableError

FIRST_WAIT, LONGEST_WAIT = 0.25, 4.0
"""Seconds before the second attempt, which double with each further one, and their limit."""
RETRIED_STATUSES = (408, 409, 425, 429)
"""HTTP statuses below 500 after which another attempt may succeed."""
TRANSPORT_PACKAGES = ("httpx", "httpx2", "httpcore", "httpcore2", "h11", "anyio")
"""Packages whose exceptions mean that an established connection broke."""


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


class Reachability:
    """Watches, over all calls of an engine, whether any server can be reached at all.

    Parameters
    ----------
    name
        Of the model, for the error message.
    give_up
        Seconds without a reply to any call after which `report_unreached` raises.
    """

    def __init__(self, name: str, give_up: float) -> None:
        self._name, self._give_up = name, give_up
        self._unreached_since: float | None = None

    def report_reply(self) -> None:
        """A server replied, perhaps with an error."""
        self._unreached_since = None

    def report_unreached(self, reason: str) -> None:
        """An attempt reached no server.

        Raises
        ------
        UnreachableError
            None has been reached for `give_up` seconds.
        """
        now = time.monotonic()
        self._unreached_since = now if self._unreached_since is None else self._unreached_since
        elapsed = now - self._unreached_since
        if elapsed >= self._give_up:
            raise UnreachableError(
                f"no call has reached {self._name} for {elapsed:.0f} seconds ({reason}); "
                "check that the server runs, then start the same command again."
            )


class Retries:
    """The attempts of one call: counts failures, waits between attempts, and ends them.

    Parameters
    ----------
    options
        Their `retries` and `total_timeout` are the limits.
    reachability
        Shared by all calls of the engine.
    name
        Of the call; it seeds the jitter of the waits, which are therefore the same in every run.

    Attributes
    ----------
    failures
        The failed attempts so far.
    """

    def __init__(self, options: Options, reachability: Reachability, name: str) -> None:
        self.failures: list[Failure] = []
        self._options, self._reachability, self._name = options, reachability, name
        self._started: float | None = None

    def start(self) -> None:
        """An attempt has its connection. The first one starts the clock of `total_timeout`."""
        self._started = time.monotonic() if self._started is None else self._started

    async def wait_after(self, failure: Failure) -> None:
        """Record a failed attempt and wait until the next one is due.

        Raises
        ------
        CallError
            There is no next attempt: the call has failed.
        UnreachableError
            No server has been reached for `give_up` seconds.
        """
        options = self._options
        self.failures.append(failure)
        attempts = len(self.failures)
        if failure.unreached:
            self._reachability.report_unreached(str(failure))
        if not failure.retryable:
            raise CallError(f"{options.model}: {failure}") from failure
        if attempts > options.retries:
            raise CallError(f"{options.model}: {failure} (after {attempts} attempts)") from failure
        wait = self._wait_seconds(failure, attempts)
        spent = time.monotonic() - (self._started or time.monotonic())
        if spent + wait > options.total_timeout:
            raise CallError(
                f"{options.model}: {failure} (after {attempts} attempts; total_timeout={options.total_timeout:g} s)"
            ) from failure
        await asyncio.sleep(wait)

    def _wait_seconds(self, failure: Failure, attempts: int) -> float:
        # Jitter spreads the next attempts of calls that failed together; it is no secret.
        jitter = random.Random(f"{self._name}/{attempts}").random()  # noqa: S311
        if failure.retry_after is not None:
            return failure.retry_after * (1 + 0.1 * jitter)
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempts - 1)) * (0.5 + 0.5 * jitter)


class ErrorReader:
    """Turns exceptions of the client library into `Failure`s, without ever repeating the API key.

    Parameters
    ----------
    options
        Of the model.
    key
        The API key, which servers may quote in their errors; "" for none.
    reachability
        Told of every error that a server replied with.
    """

    def __init__(self, options: Options, key: str, reachability: Reachability) -> None:
        self._options, self._key, self._reachability = options, key, reachability

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
            connected = "Connect" not in type(error.__cause__).__name__
            return Failure(f"no reply within {seconds:g} seconds", billed=connected, unreached=not connected)
        if isinstance(error, openai.APIConnectionError):
            return Failure(f"the connection failed: {self._one_line(error.__cause__ or error)}", unreached=True)
        if type(error).__module__.partition(".")[0] in TRANSPORT_PACKAGES:
            return Failure(f"the connection broke: {self._one_line(error)}", billed=True)
        if isinstance(error, openai.APIStatusError):
            self._reachability.report_reply()
            return self._status_failure(error)
        if isinstance(error, (openai.APIError, ValueError)):
            return Failure(f"the reply cannot be read: {self._one_line(error)}", billed=True)
        raise error

    def message(self, error: openai.APIStatusError) -> str:
        """The server's own words about an error, in one line."""
        body = error.body
        message = body.get("message") if isinstance(body, dict) else None
        return self._one_line(message or error.message)

    def _status_failure(self, error: openai.APIStatusError) -> Failure:
        status, message = error.status_code, self.message(error)
        server = self._options.urls[0]
        if status == 401:
            raise UnreachableError(
                f"{server} refuses the key in {self._options.api_key_env} (401): {message}; "
                "set the environment variable to a valid one."
            )
        if error.code == "insufficient_quota" or status == 402:
            raise UnreachableError(f"the account at {server} has no credit left ({status}): {message}")
        retryable = status in RETRIED_STATUSES or status >= 500
        wait = requested_wait(error) if retryable else None
        return Failure(f"the server replied with status {status}: {message}", retryable, wait)

    def _one_line(self, message: object) -> str:
        """The first 300 characters of a message in one line, the key blotted out."""
        text = " ".join(str(message).split())
        return (text.replace(self._key, "…") if self._key else text)[:300]


def requested_wait(error: openai.APIStatusError) -> float | None:
    """Seconds that a server asks to wait, by the headers retry-after-ms or retry-after; None where it does not."""
    headers = error.response.headers
    try:
        if "retry-after-ms" in headers:
            return float(headers["retry-after-ms"]) / 1000
        value = headers.get("retry-after")
        if value is None:
            return None
        if value.replace(".", "", 1).isdecimal():
            return float(value)
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError):  # a header of neither form counts as none
        return None
