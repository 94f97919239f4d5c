"""Errors that a user of the package can mend.

Each message is one sentence: what was given, what is allowed, what to do next. A `TandemError` that nothing catches
ends the process with that sentence and exit code 1 (`print_plainly`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import accumulate
from types import TracebackType
from typing import Any


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
    """An engine that cannot do what the run needs (score a prompt, batch this architecture, load this model).

    Attributes
    ----------
    role
        Whose engine it was, "mentor" or "intern", where somebody has noted it; else "".
    """

    role = ""


class ViewError(EngineError):
    """A call to score a prompt that requests more than token statistics of an engine that reports only those."""


class CallError(EngineError):
    """A call that failed after all retries: an error of its question alone; other questions continue."""


class UnreachableError(EngineError):
    """A server that no call reaches, or serves, any more: the run ends, and finished answers are kept."""


ENDS_THE_RUN = (UnreachableError, StoreError)
"""What no other question could escape; every other `TandemError` that a question meets is an error of it alone."""


LONGEST_REASON = 300
"""Characters of an error of another library that a message repeats."""


INTERRUPTED = "interrupted; finished calls are in the store, where one was given: run again with it to go on."
"""What Ctrl-C prints."""
INTERRUPTED_CODE = 130
"""Exit code after Ctrl-C, as shells have it."""


def one_line(message: object, longest: int = LONGEST_REASON) -> str:
    """A reason from elsewhere as one line, cut at the end of a sentence or line, otherwise of a word.

    Parameters
    ----------
    message
        An exception, or a text; its lines are joined.
    longest
        The number of characters to keep at most.
    """
    lines = [" ".join(line.split()) for line in str(message).splitlines()]
    lines = [line for line in lines if line]
    text = " ".join(lines)
    if len(text) <= longest:
        return text
    ends = [end.start() + 1 for end in re.finditer(r"[.!?](?= )", text)]
    ends += [end - 1 for end in accumulate(len(line) + 1 for line in lines)]
    last = max((end for end in ends if end <= longest), default=0)
    if last >= longest // 5:  # what is shorter says too little
        return text[:last]
    word = text.rfind(" ", 0, longest)
    return text[: word if word > 0 else longest - 1] + "…"


def reason_of(error: Exception) -> str:
    """Why another library failed, as one line, with the kind of an error whose words alone say too little.

    Examples
    --------
    >>> reason_of(ValueError("no such folder")), reason_of(KeyError("weight")), reason_of(AssertionError())
    ('no such folder', "KeyError: 'weight'", 'AssertionError')
    """
    said, kind = one_line(error), type(error).__name__
    if isinstance(error, (OSError, ValueError, TypeError, ImportError, RuntimeError)) and said:
        return said
    return f"{kind}: {said}" if said else kind


@contextmanager
def loading(what: str, advice: str = "") -> Iterator[None]:
    """Turn whatever another library raises while something is loaded into one sentence.

    Parameters
    ----------
    what
        The subject of the sentence, such as "the model NAME".
    advice
        What to do, as the end of the sentence: "; give …".

    Raises
    ------
    EngineError
        It could not be loaded; a `TandemError` passes as it is.
    """
    try:
        yield
    except TandemError:
        raise
    except Exception as error:  # transformers, torch and lm-eval raise exceptions of any kind
        raise EngineError(f"{what} could not be loaded: {reason_of(error).rstrip('.')}{advice}.") from error


def without_content(error: Exception) -> str:
    """Why a YAML file cannot be read, without the lines of it that the parser quotes: a key may be in them."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return one_line(error)
    return f"line {mark.line + 1}: {getattr(error, 'problem', None) or 'it is no YAML'}"


def install(extra: str) -> str:
    """How to install an extra of the package, for the sentence that says what is missing."""
    return f'pip install ".[{extra}]" in a checkout'


def print_plainly(model: str = "") -> None:
    """Make an uncaught `TandemError` print its sentence instead of a traceback, and Ctrl-C a sentence of its own.

    The exit code stays 1 for an error, and after Ctrl-C the process ends by the signal, which shells report as 130.

    Parameters
    ----------
    model
        The name of the model with which the sentences begin from now on; "" leaves it as it is, at first "tandem".
    """
    installed: Any = sys.excepthook
    if hasattr(installed, "of_model"):
        installed.of_model = model or installed.of_model
        return
    former = sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if isinstance(error, TandemError):
            print(f"{hook.of_model}: error: {error}", file=sys.stderr)  # type: ignore[attr-defined]
        elif isinstance(error, KeyboardInterrupt):
            print(f"\n{hook.of_model}: {INTERRUPTED}", file=sys.stderr)  # type: ignore[attr-defined]
        else:
            former(kind, error, trace)

    hook.of_model = model or "tandem"  # type: ignore[attr-defined]
    sys.excepthook = hook
