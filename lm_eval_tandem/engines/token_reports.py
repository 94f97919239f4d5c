"""What a call reports of its tokens while it generates them (`Prompt.on_tokens`), however often it begins again."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

from lm_eval_tandem.engines import OnTokens


class TokenReports:
    """Reports each token of a call once.

    A call may begin again: the server has broken off, or the memory was too small. Tokens that it generates again are
    not reported again, and where they are others than before, nothing more is reported.

    Parameters
    ----------
    on_tokens
        Of the call's prompt.
    """

    def __init__(self, on_tokens: OnTokens) -> None:
        self._on_tokens = on_tokens
        self._reported: list[int] = []
        self._differs = False

    def add(self, start: int, tokens: Sequence[int]) -> None:
        """Report tokens, of which `start` came before in this attempt."""
        known = self._reported[start : start + len(tokens)]
        self._differs = self._differs or known != list(tokens[: len(known)])
        new = tuple(tokens[len(known) :])
        if new and not self._differs:
            self._reported += new
            self._on_tokens(new)


class RemoteReports:
    """The same for a call that is computed in another thread, until it has ended.

    Parameters
    ----------
    on_tokens
        Of the call's prompt; it is called in the event loop that runs here.
    """

    def __init__(self, on_tokens: OnTokens) -> None:
        self._reports = TokenReports(on_tokens)
        self._loop = asyncio.get_running_loop()
        self._ended = False

    def add(self, start: int, tokens: Sequence[int]) -> None:
        """See `TokenReports.add`. From any thread."""
        with suppress(RuntimeError):  # the event loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._add, start, tokens)

    def _add(self, start: int, tokens: Sequence[int]) -> None:
        if not self._ended:
            self._reports.add(start, tokens)

    @classmethod
    @contextmanager
    def of(cls, on_tokens: OnTokens | None) -> Iterator[RemoteReports | None]:
        """Within the block the call runs; None where nobody wants its tokens."""
        reports = None if on_tokens is None else cls(on_tokens)
        try:
            yield reports
        finally:
            if reports is not None:
                reports._ended = True
