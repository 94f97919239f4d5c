"""What runs inside the sandbox: one process that holds the candidate's code, another that holds the tests.

The two share two pipes and nothing else. The tests' process calls functions of the candidate's by name; arguments and
results travel as plain data. It never runs, imports or unpickles anything the candidate's process sent, and it alone
holds the pipe on which the verdict leaves. `sandbox.py` hands the text of this file to `python -c`, so it imports
nothing but the standard library.
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

LARGEST_MESSAGE = 32 << 20  # bytes; a longer one from the candidate's process ends the run
LARGEST_DETAIL = 500  # characters of an error's text


class Gone(BaseException):
    """The candidate's process ended or sent what is no answer; a BaseException, so that no test swallows it."""


class CandidateError(Exception):
    """The candidate raised something that is no built-in exception."""


class Channel:
    """Messages over two file descriptors: four bytes of length, then JSON."""

    def __init__(self, reading: int, writing: int) -> None:
        self.reading = os.fdopen(reading, "rb")
        self.writing = os.fdopen(writing, "wb")

    def send(self, message: Any) -> None:
        """Write one message; BrokenPipeError if the other side is gone."""
        data = json.dumps(message).encode()
        self.writing.write(len(data).to_bytes(4, "big") + data)
        self.writing.flush()

    def receive(self) -> Any:
        """Read one message; EOFError if the other side is gone, ValueError if it is none."""
        head = self.reading.read(4)
        if len(head) < 4:
            raise EOFError("the other process ended")
        size = int.from_bytes(head, "big")
        if size > LARGEST_MESSAGE:
            raise ValueError(f"a message of {size} bytes, at most {LARGEST_MESSAGE} are taken")
        data = self.reading.read(size)
        if len(data) < size:
            raise EOFError("the other process ended")
        return json.loads(data)


def encode(value: Any, refer: Callable[[Any], int]) -> Any:
    """A value as JSON; what is no plain data becomes a reference, numbered by `refer`.

    Subclasses travel as what they are built on: a list that overrides == arrives as a list.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int.__int__(value) if -(1 << 63) <= value < 1 << 63 else {"int": hex(value)}
    if isinstance(value, (str, float)):
        return str.__str__(value) if isinstance(value, str) else float.__float__(value)
    if isinstance(value, list):
        return [encode(item, refer) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in value.items()]}
    for name, kind in (("tuple", tuple), ("set", set), ("frozenset", frozenset), ("iterator", Iterator)):
        if isinstance(value, kind):
            return {name: [encode(item, refer) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    for name, parts in (("complex", ("real", "imag")), ("range", ("start", "stop", "step"))):
        if isinstance(value, getattr(builtins, name)):
            return {name: [getattr(value, part) for part in parts]}
    if isinstance(value, (Decimal, Fraction)):
        return {type(value).__name__: str(value)}
    return {"reference": refer(value)}


def decode(data: Any, resolve: Callable[[int], Any]) -> Any:
    """The value of `encode`; `resolve` gives what a reference stands for."""
    if isinstance(data, list):
        return [decode(item, resolve) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind in BUILT:
        return BUILT[kind]([decode(item, resolve) for item in content])
    if kind == "dict":
        return {decode(key, resolve): decode(item, resolve) for key, item in content}
    if kind == "reference":
        return resolve(int(content))
    return READ[kind](content)


BUILT: dict[str, Callable[[list[Any]], Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset, "iterator": iter}
READ: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    **{kind.__name__: kind for kind in (Decimal, Fraction)},
}


def described(error: BaseException) -> list[str]:
    """Name and text of an error."""
    try:
        text = str(error)
    except BaseException:
        text = "its text cannot be made"
    return [type(error).__name__, text[:LARGEST_DETAIL]]


class Candidate:
    """The module that the candidate's sources make, and its functions at the other process's call."""

    def __init__(self) -> None:
        self.module = types.ModuleType("candidate")
        self.objects: list[Any] = []
        sys.modules["candidate"] = self.module  # dataclasses and pickle look their module up by name

    def load(self, sources: list[str]) -> dict[str, Any]:
        """Run the sources in one namespace."""
        try:
            for source in sources:
                exec(compile(source, "candidate.py", "exec", dont_inherit=True), self.module.__dict__)
        except BaseException as error:  # SystemExit and whatever else the code raises
            return {"error": described(error)}
        return {}

    def refer(self, value: Any) -> int:
        """Keep an object and number it."""
        self.objects.append(value)
        return len(self.objects) - 1

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call a function by name (or a kept object); also says how it changed its arguments in place."""
        try:
            target = message["target"]
            function = self.module.__dict__[target] if isinstance(target, str) else self.objects[target]
            arguments = decode(message["arguments"], self.objects.__getitem__)
            named = {name: decode(item, self.objects.__getitem__) for name, item in message["named"].items()}
            reply = {"value": encode(function(*arguments, **named), self.refer)}
            after = encode(arguments, self.refer)
            return reply if after == message["arguments"] else {**reply, "arguments": after}
        except BaseException as error:
            return {"error": described(error)}


def hold_candidate(channel: Channel) -> None:
    """Say that the limits hold, then load and answer calls until the tests' process is gone."""
    candidate = Candidate()
    channel.send({"ready": True})
    channel.send(candidate.load(channel.receive()["sources"]))
    while True:
        channel.send(candidate.call(channel.receive()))


class Remote:
    """A function or an object of the candidate's; equal to nothing but itself."""

    def __init__(self, tests: Tests, target: str | int) -> None:
        self.tests, self.target = tests, target

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self.tests.call(self.target, list(arguments), named)


class Tests:
    """The tests and the verdict on them."""

    def __init__(self, channel: Channel) -> None:
        self.channel, self.gone = channel, ""
        self.resolve = functools.partial(Remote, self)

    def ask(self, message: Any) -> dict[str, Any]:
        """Send and receive; Gone if that cannot be."""
        try:
            self.channel.send(message)
            return dict(self.channel.receive())
        except (EOFError, BrokenPipeError):
            self.give_up("the process of the code ended")
        except Exception as error:
            self.give_up(f"the process of the code sent what is no answer: {': '.join(described(error))}")

    def give_up(self, why: str) -> NoReturn:
        """Nothing that follows can count any more, even if a test catches this."""
        self.gone = self.gone or why
        raise Gone(why)

    def call(self, target: str | int, arguments: list[Any], named: dict[str, Any]) -> Any:
        """Call the candidate's function: its value, or its error; lists, dicts and sets change in place as its did."""
        message = {
            "target": target,
            "arguments": encode(arguments, self.refer),
            "named": {name: encode(item, self.refer) for name, item in named.items()},
        }
        reply = self.ask(message)
        if "error" in reply:
            raise self.raised(reply["error"])
        try:
            value = decode(reply["value"], self.resolve)
            after = decode(reply.get("arguments", []), self.resolve)
        except Exception as error:
            self.give_up(f"the process of the code sent what is no value: {': '.join(described(error))}")
        for mine, theirs in zip(arguments, after, strict=False):
            if isinstance(mine, (list, bytearray)) and isinstance(theirs, type(mine)):
                mine[:] = theirs
            elif isinstance(mine, (dict, set)) and isinstance(theirs, type(mine)):
                mine.clear()
                mine.update(theirs)
        return value

    def refer(self, value: Any) -> int:
        """The number of an object of the candidate's."""
        if isinstance(value, Remote) and isinstance(value.target, int):
            return value.target
        raise TypeError(f"a test cannot hand a {type(value).__name__} to the code, only plain data")

    def raised(self, error: Any) -> Exception:
        """The candidate's error, as itself if it is a built-in one."""
        name, text = (str(part) for part in error)
        kind = getattr(builtins, name, None)
        if isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, UnicodeError):
            return kind(text)
        return CandidateError(f"{name}: {text}")

    def verdict(self, job: dict[str, Any]) -> dict[str, str]:
        """Run the tests. `passed` is said in one place: after their last line, by this process."""
        try:
            loaded = self.ask({"sources": job["candidate"]})
            if "error" in loaded:
                return {"outcome": "error", "detail": ": ".join(map(str, loaded["error"]))[:LARGEST_DETAIL]}
            space: dict[str, Any] = {"__name__": "tests"}
            exec(compile(job["before"], "before.py", "exec", dont_inherit=True), space)
            space.update({name: Remote(self, name) for name in job["names"]})
            exec(compile(job["tests"], "tests.py", "exec", dont_inherit=True), space)
        except AssertionError as error:
            return {"outcome": "failed", "detail": str(error)[:LARGEST_DETAIL]}
        except Gone:
            return {"outcome": "error", "detail": self.gone}
        except BaseException as error:
            return {"outcome": "error", "detail": ": ".join(described(error))}
        return {"outcome": "error", "detail": self.gone} if self.gone else {"outcome": "passed", "detail": ""}


def hold_tests(channel: Channel, job_file: int, verdict_pipe: int) -> None:
    """Wait for the candidate's process, then give a verdict: one line of JSON for each."""
    with os.fdopen(job_file, "rb") as file, os.fdopen(verdict_pipe, "w", buffering=1) as out:
        job = json.load(file)
        channel.receive()
        print(json.dumps({"ready": True}), file=out)
        print(json.dumps(Tests(channel).verdict(job)), file=out)


def confine(uid: int | None, limits: dict[str, int], strict: bool) -> None:
    """Give up root for a user number of the run's own, then lower the limits, hard ones too."""
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
            if strict:  # a plain subprocess may run where not every limit is known
                raise


def main() -> None:
    """Role, descriptors and limits come as JSON in the first argument."""
    given = json.loads(sys.argv[1])
    sys.argv[1:] = []
    confine(given["uid"], given["limits"], given["strict"])
    channel = Channel(given["reading"], given["writing"])
    if given["role"] == "tests":
        hold_tests(channel, given["job"], given["verdict"])
        return
    try:
        hold_candidate(channel)
    except (EOFError, BrokenPipeError):
        os._exit(0)  # the tests are over; nothing of the candidate's runs at exit


if __name__ == "__main__":
    main()
