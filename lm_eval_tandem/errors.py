"""Errors that a user of the package can mend.

Each message is one sentence: what was given, what is allowed, what to do next. A `TandemError` that nothing catches
ends the process with that sentence and exit code 1 (`print_plainly`).
"""

from __future__ import annotations

import sys
from types import TracebackType


class TandemError(Exception):
    """Base class of all errors of this package that a user can mend."""


class ArgumentError(TandemError):
    """A model argument, or a combination of them, that cannot work."""


class ClassifierError(TandemError):
    """A sufficiency classifier that is missing, broken, or made for another schema or pair."""


class StoreError(TandemError):
    """A file that is no store of finished generations, or one of another version."""


class ContextError(TandemError):
    """A prompt that does not fit into a model's window; nothing is ever truncated silently.

    Raised before anything runs where the lengths are known by then, otherwise by the call, as an error of its question.
    """


class EngineError(TandemError):
    """An engine that cannot do what the run needs (score a prompt, batch this architecture, load this model)."""


class CallError(EngineError):
    """A call that failed after all retries: an error of its question alone; other questions continue."""


class UnreachableError(EngineError):
    """A server that no call reaches, or serves, any more: the run ends, and finished answers are kept."""


ENDS_THE_RUN = (UnreachableError, StoreError)
"""What no other question could escape; every other `TandemError` that a question meets is an error of it alone."""


INTERRUPTED = "interrupted; finished calls are in the store, where one was given: run again with it to go on."
"""What Ctrl-C prints."""
INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells have it."""


def print_plainly() -> None:
    """Make an uncaught `TandemError` print its sentence instead of a traceback, and Ctrl-C a sentence of its own.

    The exit code stays 1 for an error, and after Ctrl-C the process ends by the signal, which shells report as 130.
    """
    if getattr(sys.excepthook, "_tandem", False):
        return
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TandemError):
            print(f"tandem: error: {error}", file=sys.stderr)
        elif isinstance(error, KeyboardInterrupt):
            print(f"\ntandem: {INTERRUPTED}", file=sys.stderr)
        else:
            former(kind, error, trace)

    hook._tandem = True  # type: ignore[attr-defined]
    sys.excepthook = hook
