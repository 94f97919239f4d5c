"""How long to wait before the next attempt of a call, and when to stop trying.

Three limits end the attempts: an error that no retry can mend, a call's own limits (`retries`, `total_timeout`), and
no call at all reaching a server for `give_up` seconds. What an error means is read in `failures`.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

from lm_eval_tandem.engines.http.failures import Failure
from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.errors import CallError, UnreachableError

FIRST_WAIT, LONGEST_WAIT = 0.25, 4.0
"""Seconds before the second attempt, which double with each further one, and their limit."""
LONGEST_REQUESTED_WAIT = 60.0
"""Largest number of seconds that a server's Retry-After is followed; one that asks for more is asked again then."""


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
    clean
        Removes secrets from the words of a server (`failures.ErrorReader.without_key`).

    Attributes
    ----------
    failures
        The failed attempts so far.
    """

    def __init__(self, options: Options, reachability: Reachability, name: str, clean: Callable[[str], str]) -> None:
        self.failures: list[Failure] = []
        self._options, self._reachability, self._name, self._clean = options, reachability, name, clean
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
        what = self._clean(f"{options.model}: {failure}")
        if failure.unreached:
            self._reachability.report_unreached(str(failure))
        if not failure.retryable:
            raise CallError(what) from failure
        if (failure.retry_after or 0.0) > LONGEST_REQUESTED_WAIT:
            what += f" (asks to wait {failure.retry_after:g} s, of which {LONGEST_REQUESTED_WAIT:g} are waited)"
        if attempts > options.retries:
            raise CallError(f"{what} (after {attempts} attempts)") from failure
        wait = self._wait_seconds(failure, attempts)
        spent = 0.0 if self._started is None else time.monotonic() - self._started
        if spent + wait > options.total_timeout:
            raise CallError(
                f"{what} (after {attempts} attempts; total_timeout={options.total_timeout:g} s)"
            ) from failure
        await asyncio.sleep(wait)

    def _wait_seconds(self, failure: Failure, attempts: int) -> float:
        # Jitter spreads the next attempts of calls that failed together; it is no secret.
        jitter = random.Random(f"{self._name}/{attempts}").random()  # noqa: S311
        if failure.retry_after is not None:
            return min(LONGEST_REQUESTED_WAIT, failure.retry_after) * (1 + 0.1 * jitter)
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (attempts - 1)) * (0.5 + 0.5 * jitter)
