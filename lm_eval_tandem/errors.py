"""What a user can mend: one small hierarchy, one sentence per message (given, allowed, next step)."""

from __future__ import annotations

import sys
from types import TracebackType


class TandemError(Exception):
    """Base of every error that the user of the package can mend."""


class ArgumentError(TandemError):
    """A model argument, or a combination of them, that cannot work."""


class ClassifierError(TandemError):
    """A sufficiency classifier that is missing, broken, or made for another schema or pair."""


class StoreError(TandemError):
    """A store of finished generations that is not one, or belongs to another version."""


class ContextError(TandemError):
    """A prompt that does not fit into a role's window; nothing is ever truncated silently."""


class EngineError(TandemError):
    """An engine that cannot do what the run needs (score a prompt, batch this architecture, load this model)."""


class CallError(EngineError):
    """A call to a server that failed for good: an error of its question alone; the others go on."""


class UnreachableError(EngineError):
    """A server that no call reaches any more: the run ends, what is finished is kept."""


def print_plainly() -> None:
    """Make an uncaught `TandemError` end the process with its sentence alone, without a traceback (exit code 1)."""
    if getattr(sys.excepthook, "_tandem", False):
        return
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TandemError):
            print(f"tandem: error: {error}", file=sys.stderr)
        else:
            former(kind, error, trace)

    hook._tandem = True  # type: ignore[attr-defined]
    sys.excepthook = hook
