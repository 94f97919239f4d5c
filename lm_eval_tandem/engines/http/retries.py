"""How often and how long a call is tried, and when to give up."""

from __future__ import annotations

import asyncio
import random
import time

from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.errors import CallError, UnreachableError

FIRST_WAIT, LONGEST_WAIT = 0.25, 4.0


class Failure(Exception):
    """One attempt that came to nothing.

    again: another one may succeed. wait: seconds that the server asked to wait. lost: no server was reached.
    billed: the server had begun to answer, so the prompt is charged. tokens: generated tokens that arrived.
    """

    def __init__(
        self, reason: str, again: bool = True, wait: float | None = None, lost: bool = False, billed: bool = False
    ) -> None:
        super().__init__(reason)
        self.again, self.wait, self.lost, self.billed = again, wait, lost, billed
        self.tokens = 0


class Reachability:
    """Whether any server can be reached at all, over all calls of an engine."""

    def __init__(self, name: str, give_up: float) -> None:
        self._name, self._give_up = name, give_up
        self._since: float | None = None

    def reached(self) -> None:
        """A server replied, whatever it said."""
        self._since = None

    def lost(self, reason: str) -> None:
        """A call reached none. Raises UnreachableError once none has for `give_up` seconds."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        if now - self._since >= self._give_up:
            raise UnreachableError(
                f"no call has reached {self._name} for {now - self._since:.0f} seconds ({reason}); "
                "look whether the server runs, then start the same command again."
            )


class Retries:
    """The patience with one call. `name` makes the jitter of its waits: the same in every run."""

    def __init__(self, options: Options, line: Reachability, name: str) -> None:
        self.failures: list[Failure] = []
        self._options, self._line, self._name = options, line, name
        self._began: float | None = None

    def begin(self) -> None:
        """An attempt has its connection: from the first one the time counts."""
        self._began = time.monotonic() if self._began is None else self._began

    async def after(self, failure: Failure) -> None:
        """Wait until the next attempt is due.

        Raises
        ------
        CallError
            There shall be no other.
        UnreachableError
            No server has been reached for long.
        """
        options = self._options
        self.failures.append(failure)
        tried = len(self.failures)
        if failure.lost:
            self._line.lost(str(failure))
        if not failure.again:
            raise CallError(f"{options.model}: {failure}") from failure
        if tried > options.retries:
            raise CallError(f"{options.model}: {failure} (after {tried} attempts)") from failure
        wait = self._wait(failure, tried)
        spent = time.monotonic() - (self._began or time.monotonic())
        if spent + wait > options.total_timeout:
            raise CallError(
                f"{options.model}: {failure} (after {tried} attempts; total_timeout={options.total_timeout:g} s)"
            ) from failure
        await asyncio.sleep(wait)

    def _wait(self, failure: Failure, tried: int) -> float:
        share = random.Random(f"{self._name}/{tried}").random()
        if failure.wait is not None:
            return failure.wait * (1 + 0.1 * share)
        return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** (tried - 1)) * (0.5 + 0.5 * share)
