"""One line per request: what it was, how it ended and what it took; never a text of a client, a header or a key."""

from __future__ import annotations

import json
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TextIO

from lm_eval_tandem.ledger import Record
from lm_eval_tandem.server.work import Answered

ENTRY = "lm_eval_tandem.entry"
"""The key of a request's entry in its ASGI scope."""
OTHER_ROUTE = "other"
"""What stands for a path that is none of the server's: what a client made up is not repeated."""
CLIENT_GONE = 499
"""The status of a request whose client hung up before the reply was complete, as nginx has it."""


@dataclass
class Entry:
    """What is known of one request.

    Attributes
    ----------
    method, route
        The route is the path as the server names it, or `OTHER_ROUTE`.
    status
        Of the reply; 0 before it has begun.
    model
        The name that was asked for, where it is one of the server's.
    stream
        Whether the reply is a stream.
    answered
        The answers that were complete.
    error
        The code of the error, or its type; "" where there was none.
    first_text
        Seconds to the first piece of a stream; None without one.
    """

    method: str
    route: str = OTHER_ROUTE
    status: int = 0
    model: str = ""
    stream: bool = False
    answered: Sequence[Answered] = ()
    error: str = ""
    first_text: float | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    started: float = field(default_factory=time.perf_counter)

    @property
    def seconds(self) -> float:
        """Since the request came in."""
        return time.perf_counter() - self.started

    @property
    def records(self) -> list[Record]:
        """Of the answers that were complete."""
        return [answered.record for answered in self.answered if answered.record is not None]


def fields(entry: Entry) -> Mapping[str, Any]:
    """The entries of a request's line."""
    line: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "id": entry.id,
        "method": entry.method,
        "route": entry.route,
        "status": entry.status,
        "seconds": round(entry.seconds, 6),
    }
    if entry.model:
        line |= {"model": entry.model, "stream": entry.stream}
    if entry.first_text is not None:
        line["first_text_seconds"] = round(entry.first_text, 6)
    if entry.error:
        line["error"] = entry.error
    if entry.answered:
        line["prompt_tokens"] = sum(answered.prompt_tokens for answered in entry.answered)
        line["completion_tokens"] = sum(answered.completion_tokens for answered in entry.answered)
    if entry.records:
        line["answers"] = [
            {
                "policy": record.policy,
                "stage": record.stage,
                "reason": record.reason,
                **({} if record.spent else {"mentor_tokens": record.tokens.mentor_new}),
                "length": record.length,
                "tflops": record.tflops,
                "dollars": record.dollars,
            }
            for record in entry.records
        ]
    return line


class RequestLog:
    """Writes the lines.

    Parameters
    ----------
    file
        Where to; standard output by default.
    """

    def __init__(self, file: TextIO | None = None) -> None:
        self._file = sys.stdout if file is None else file

    def write(self, entry: Entry) -> None:
        """Write the line of a request that has ended."""
        print(json.dumps(fields(entry)), file=self._file, flush=True)
