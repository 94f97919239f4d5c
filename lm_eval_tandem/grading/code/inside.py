"""The program that runs inside the sandbox, in two processes: one for the candidate's code, one for the tests.

The two share two pipes and nothing else. The tests' process calls functions of the candidate by name; arguments and
results travel as plain data (`encode`, `decode`). It never runs, imports or unpickles anything that the candidate's
process sent, and it alone has the pipe for the verdict. `sandbox.py` passes the text of this file to `python -c`, so it
imports nothing but the standard library.
"""

from __future__ import annotations

import builtins
import functools
import json
import os
import resource
import sys
import types
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

MAX_MESSAGE = 32 << 20
"""Bytes of a message; a longer one from the candidate's process ends the run."""
MAX_DETAIL = 500
"""Characters of an error's text."""


class CandidateGone(BaseException):
    """The candidate's process ended or sent an invalid message.

    It derives from BaseException so that no `except Exception` of a test hides it.
    """


class CandidateError(Exception):
    """The candidate raised an exception that is not a built-in one."""


class Channel:
    """Messages over two file descriptors: four bytes of length, big-endian, then JSON."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = os.fdopen(reading, "rb")
        self.writing = os.fdopen(writing, "wb")

    def send(self, message: Any) -> None:
        """Write one message. Raises BrokenPipeError if the other process has ended."""
        data = json.dumps(message).encode()
        self.writing.write(len(data).to_bytes(4, "big") + data)
        self.writing.flush()

    def receive(self) -> Any:
        """Read one message.

        Raises
        ------
        EOFError
            The other process has ended.
        ValueError
            The message is longer than `MAX_MESSAGE`, or is not JSON.
        """
        head = self.reading.read(4)
        if len(head) < 4:
            raise EOFError("the other process ended")
        size = int.from_bytes(head, "big")
        if size > MAX_MESSAGE:
            raise ValueError(f"a message of {size} bytes is longer than the {MAX_MESSAGE} that are allowed")
        data = self.reading.read(size)
        if len(data) < size:
            raise EOFError("the other process ended")
        return json.loads(data)


def encode(value: Any, to_reference: Callable[[Any], int]) -> Any:
    """Convert a value to what JSON can hold.

    An instance of a subclass is sent as its built-in base class: a list that overrides == arrives as a list.

    Parameters
    ----------
    value
        Any value.
    to_reference
        Returns the number that stands for a value that is not plain data.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int.__int__(value) if -(1 << 63) <= value < 1 << 63 else {"int": hex(value)}
    if isinstance(value, (str, float)):
        return str.__str__(value) if isinstance(value, str) else float.__float__(value)
    if isinstance(value, list):
        return [encode(item, to_reference) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, to_reference), encode(item, to_reference)] for key, item in value.items()]}
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset), ("iterator", Iterator)):
        if isinstance(value, kind):
            return {name: [encode(item, to_reference) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    for name, parts in (("complex", ("real", "imag")), ("range", ("start", "stop", "step"))):
        if isinstance(value, getattr(builtins, name)):
            return {name: [getattr(value, part) for part in parts]}
    if isinstance(value, (Decimal, Fraction)):
        return {type(value).__name__: str(value)}
    return {"reference": to_reference(value)}


def decode(data: Any, from_reference: Callable[[int], Any]) -> Any:
    """Convert the result of `encode` back; `from_reference` returns the value that a number stands for."""
    if isinstance(data, list):
        return [decode(item, from_reference) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind in CONTAINERS:
        return CONTAINERS[kind]([decode(item, from_reference) for item in content])
    if kind == "dict":
        return {decode(key, from_reference): decode(item, from_reference) for key, item in content}
    if kind == "reference":
        return from_reference(int(content))
    return SCALARS[kind](content)


CONTAINERS: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "iterator": iter,
}
"""How `decode` builds a container from its decoded items."""
SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    **{kind.__name__: kind for kind in (Decimal, Fraction)},
}
"""How `decode` builds any other value."""


def describe(error: BaseException) -> list[str]:
    """Return the name and the text of an error. The candidate may have defined its `__str__`, which may raise."""
    try:
        text = str(error)
    except BaseException:
        text = "its text cannot be made"
    return [type(error).__name__, text[:MAX_DETAIL]]


class Candidate:
    """The module that the candidate's sources define. Its functions are called on request of the tests' process."""

    def __init__(self) -> None:
        self.module = types.ModuleType("candidate")
        self.objects: list[Any] = []
        sys.modules["candidate"] = self.module  # dataclasses and pickle find the module of a class by its name

    def load(self, sources: list[str]) -> dict[str, Any]:
        """Run the sources in one namespace; return {} or the error."""
        try:
            for source in sources:
                code = compile(source, "candidate.py", "exec", dont_inherit=True)
                exec(code, self.module.__dict__)  # noqa: S102 - running untrusted code is what the sandbox is for
        except BaseException as error:  # SystemExit too: the candidate may raise anything
            return {"error": describe(error)}
        return {}

    def add_object(self, value: Any) -> int:
        """Store an object that is not plain data and return its number."""
        self.objects.append(value)
        return len(self.objects) - 1

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call a function by its name, or a stored object by its number.

        Returns
        -------
        dict
            "value", and "arguments" as they are after the call if the call has changed them; or "error".
        """
        try:
            target = message["target"]
            function = self.module.__dict__[target] if isinstance(target, str) else self.objects[target]
            arguments = decode(message["arguments"], self.objects.__getitem__)
            keywords = {name: decode(item, self.objects.__getitem__) for name, item in message["keywords"].items()}
            reply = {"value": encode(function(*arguments, **keywords), self.add_object)}
            after = encode(arguments, self.add_object)
            return reply if after == message["arguments"] else {**reply, "arguments": after}
        except BaseException as error:
            return {"error": describe(error)}


def serve_candidate(channel: Channel) -> None:
    """Report that the limits are set, load the candidate, and answer calls until the tests' process ends."""
    candidate = Candidate()
    channel.send({"ready": True})
    channel.send(candidate.load(channel.receive()["sources"]))
    while True:
        channel.send(candidate.call(channel.receive()))


class RemoteObject:
    """A function or an object in the candidate's process. It can be called, and equals nothing but itself."""

    def __init__(self, tests: Tests, target: str | int) -> None:
        self.tests, self.target = tests, target

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function or object in its own process. Raises what it raises, or CandidateGone."""
        return self.tests.call(self.target, list(arguments), keywords)


class Tests:
    """Runs the tests and decides the verdict.

    Attributes
    ----------
    gone : str
        Why the candidate's process can no longer be used; "" while it can.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.gone = channel, ""
        self.from_reference = functools.partial(RemoteObject, self)

    def request(self, message: Any) -> dict[str, Any]:
        """Send a message and return the reply. Raises CandidateGone."""
        try:
            self.channel.send(message)
            return dict(self.channel.receive())
        except (EOFError, BrokenPipeError):
            self.abandon("the candidate's process ended")
        except Exception as error:
            self.abandon(f"the candidate's process sent an invalid reply: {': '.join(describe(error))}")

    def abandon(self, reason: str) -> NoReturn:
        """Make "passed" impossible from here on, even if a test catches the exception. Raises CandidateGone."""
        self.gone = self.gone or reason
        raise CandidateGone(reason)

    def call(self, target: str | int, arguments: list[Any], keywords: dict[str, Any]) -> Any:
        """Call a function of the candidate; return its value or raise its error.

        Lists, dicts, sets and byte arrays among the arguments are updated in place if the candidate changed them.
        """
        message = {
            "target": target,
            "arguments": encode(arguments, self.to_reference),
            "keywords": {name: encode(item, self.to_reference) for name, item in keywords.items()},
        }
        reply = self.request(message)
        if "error" in reply:
            raise self.to_exception(reply["error"])
        try:
            value = decode(reply["value"], self.from_reference)
            after = decode(reply.get("arguments", []), self.from_reference)
        except Exception as error:
            self.abandon(f"the candidate's process sent an invalid value: {': '.join(describe(error))}")
        for mine, theirs in zip(arguments, after, strict=False):
            if isinstance(mine, (list, bytearray)) and isinstance(theirs, type(mine)):
                mine[:] = theirs
            elif isinstance(mine, (dict, set)) and isinstance(theirs, type(mine)):
                mine.clear()
                mine.update(theirs)
        return value

    def to_reference(self, value: Any) -> int:
        """Return the number of an object in the candidate's process; nothing else can be sent as a reference."""
        if isinstance(value, RemoteObject) and isinstance(value.target, int):
            return value.target
        raise TypeError(f"a test cannot pass a {type(value).__name__} to the candidate, only plain data")

    def to_exception(self, error: Any) -> Exception:
        """Return the candidate's error as an exception of the same built-in type, or as a CandidateError."""
        name, text = (str(part) for part in error)
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
            return kind(text)
        return CandidateError(f"{name}: {text}")

    def verdict(self, job: dict[str, Any]) -> dict[str, str]:
        """Run the tests and return outcome and detail. Only the last line returns "passed", after the last test."""
        try:
            loaded = self.request({"sources": job["candidate"]})
            if "error" in loaded:
                return {"outcome": "error", "detail": ": ".join(map(str, loaded["error"]))[:MAX_DETAIL]}
            namespace: dict[str, Any] = {"__name__": "tests"}
            # Setup and tests are the benchmark's own code, which is trusted.
            exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), namespace)  # noqa: S102
            namespace.update({name: RemoteObject(self, name) for name in job["names"]})
            exec(compile(job["tests"], "tests.py", "exec", dont_inherit=True), namespace)  # noqa: S102
        except AssertionError as error:
            return {"outcome": "failed", "detail": str(error)[:MAX_DETAIL]}
        except CandidateGone:
            return {"outcome": "error", "detail": self.gone}
        except BaseException as error:
            return {"outcome": "error", "detail": ": ".join(describe(error))}
        return {"outcome": "error", "detail": self.gone} if self.gone else {"outcome": "passed", "detail": ""}


def run_tests(channel: Channel, job_file: int, verdict_pipe: int) -> None:
    """Wait for the candidate's process, then run the tests; write one line of JSON after each of the two."""
    with os.fdopen(job_file, "rb") as file, os.fdopen(verdict_pipe, "w", buffering=1) as out:
        job = json.load(file)
        channel.receive()
        print(json.dumps({"ready": True}), file=out)
        print(json.dumps(Tests(channel).verdict(job)), file=out)


def confine(uid: int | None, limits: dict[str, int], strict: bool) -> None:
    """Change to an unprivileged user, if one is given, and then lower this process's limits.

    Parameters
    ----------
    uid
        User and group id of this run; None to stay the user that started it.
    limits
        Soft and hard limits, under the names of the module `resource`.
    strict
        Whether a limit that the system does not support is an error.
    """
    if uid is not None:
        os.setgroups([])
        os.setresgid(uid, uid, uid)
        os.setresuid(uid, uid, uid)
    for name, value in limits.items():
        number = getattr(resource, name)
        hard = resource.getrlimit(number)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        try:
            resource.setrlimit(number, (value, value))
        except (ValueError, OSError):
            if strict:
                raise


def main() -> None:
    """Run as the role that the first argument names; it is JSON with role, file descriptors, user id and limits."""
    settings = json.loads(sys.argv[1])
    sys.argv[1:] = []
    confine(settings["uid"], settings["limits"], settings["strict"])
    channel = Channel(settings["reading"], settings["writing"])
    if settings["role"] == "tests":
        run_tests(channel, settings["job"], settings["verdict"])
        return
    try:
        serve_candidate(channel)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the tests are over; nothing that the candidate registered with atexit runs


if __name__ == "__main__":
    main()
