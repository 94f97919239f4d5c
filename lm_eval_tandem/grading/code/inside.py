"""The program that runs inside the sandbox, in two processes: one for the candidate's code, one for the tests.

The two share two pipes and nothing else. The tests' process calls functions of the candidate by name; arguments and
results travel as plain data (`encode`, `decode`), and all other objects stay where they are (`RemoteObject`). It never
runs, imports or unpickles anything that the candidate's process sent, and it alone has the pipe for the verdict.
`sandbox.py` passes the text of this file to `python -c`, so it imports nothing but the standard library.
"""

from __future__ import annotations

import builtins
import datetime
import importlib
import json
import operator
import os
import resource
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from fractions import Fraction
from typing import Any, NoReturn

MAX_MESSAGE = 32 << 20
"""Bytes of a message; a longer one from the candidate's process ends the run."""
MAX_DETAIL = 500
"""Characters of an error's text."""
ENDED = "the candidate's process ended"


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


def encode(value: Any, other: Callable[[Any], Any]) -> Any:
    """Convert a value to what JSON can hold.

    An instance of a subclass is sent as its built-in base class: a list that overrides == arrives as a list.

    Parameters
    ----------
    value
        Any value.
    other
        Converts a value that is not plain data.
    """
    if value is None or value is True or value is False:
        return value
    if isinstance(value, int):
        return int.__int__(value) if -(1 << 63) <= value < 1 << 63 else {"int": hex(value)}
    if isinstance(value, (str, float)):
        return str.__str__(value) if isinstance(value, str) else float.__float__(value)
    if isinstance(value, list):
        return [encode(item, other) for item in value]
    if isinstance(value, dict):
        return {"dict": [[encode(key, other), encode(item, other)] for key, item in value.items()]}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return {"record": [[*value._fields], *(encode(item, other) for item in value)]}
    for name, kind in CONTAINERS.items():
        if isinstance(value, kind):
            return {name: [encode(item, other) for item in value]}
    if isinstance(value, (bytes, bytearray)):
        return {"bytes" if isinstance(value, bytes) else "bytearray": value.hex()}
    for name, (kind, parts) in ARGUMENTS.items():
        if isinstance(value, kind):
            return {name: [getattr(value, part) for part in parts]}
    for kind in TEXTS:
        if isinstance(value, kind):
            return {kind.__name__: str(value)}
    return other(value)


def decode(data: Any, from_reference: Callable[[Any], Any]) -> Any:
    """Convert the result of `encode` back; `from_reference` returns the object that a reference stands for."""
    if isinstance(data, list):
        return [decode(item, from_reference) for item in data]
    if not isinstance(data, dict):
        return data
    ((kind, content),) = data.items()
    if kind in BUILDERS:
        return BUILDERS[kind]([decode(item, from_reference) for item in content])
    if kind == "dict":
        return {decode(key, from_reference): decode(item, from_reference) for key, item in content}
    if kind == "reference":
        return from_reference(content)
    return SCALARS[kind](content)


class Record(tuple[Any, ...]):
    """A named tuple. Its fields are attributes, but no code is made from their names, as `namedtuple` does."""

    def __new__(cls, parts: list[Any]) -> Record:
        """Make one from its list of field names, followed by its items."""
        record = super().__new__(cls, parts[1:])
        fields = [str(name) for name in parts[0]]
        vars(record).update(zip(fields, record, strict=True), _fields=tuple(fields))
        return record

    def _asdict(self) -> dict[str, Any]:
        return dict(zip(vars(self)["_fields"], self, strict=True))


CONTAINERS: dict[str, Any] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "keys": type({}.keys()),
    "values": type({}.values()),
    "items": type({}.items()),
}
"""Types whose values are sent item by item."""
BUILDERS: dict[str, Callable[[list[Any]], Any]] = {
    **CONTAINERS,
    "keys": lambda items: dict.fromkeys(items).keys(),
    "values": lambda items: dict(enumerate(items)).values(),
    "items": lambda items: dict(items).items(),
    "iterator": iter,
    "record": Record,
}
"""How `decode` builds a container from its decoded items."""
ARGUMENTS: dict[str, tuple[type, tuple[str, ...]]] = {
    "complex": (complex, ("real", "imag")),
    "range": (range, ("start", "stop", "step")),
    "timedelta": (datetime.timedelta, ("days", "seconds", "microseconds")),
}
"""Types whose values are sent as the arguments that make them again."""
TEXTS = (datetime.datetime, datetime.date, datetime.time, Decimal, Fraction)
"""Types whose values are sent as text. A datetime is a date too, so it comes first."""
SCALARS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16),
    "bytes": bytes.fromhex,
    "bytearray": bytearray.fromhex,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
    "timedelta": lambda parts: datetime.timedelta(*parts),
    **{kind.__name__: kind for kind in (Decimal, Fraction)},
    **{kind.__name__: kind.fromisoformat for kind in (datetime.datetime, datetime.date, datetime.time)},
}
"""How `decode` builds any other value."""


def describe(error: BaseException) -> list[str]:
    """Return the name and the text of an error, and the name of the built-in error that it is a kind of.

    The candidate may have defined its `__str__`, which may raise.
    """
    try:
        text = str(error)
    except BaseException:
        text = "its text cannot be made"
    known = next(kind for kind in type(error).__mro__ if vars(builtins).get(kind.__name__) is kind)
    return [type(error).__name__, text[:MAX_DETAIL], known.__name__]


OPERATIONS: dict[str, Callable[..., Any]] = {
    "getattr": getattr,
    "setattr": setattr,
    "getitem": operator.getitem,
    "iter": iter,
    "next": next,
    "len": len,
    "bool": bool,
    "str": str,
}
"""What tests can do with an object in the candidate's process, besides calling it.

No comparison is among them: it would show the candidate what is expected, and let it decide.
"""


class Candidate:
    """The module that the candidate's sources define. Its functions are called on request of the tests' process."""

    def __init__(self) -> None:
        self.module = types.ModuleType("candidate")
        self.objects: list[Any] = []
        self.numbers: dict[int, int] = {}
        self.missing: dict[str | None, BaseException] = {}
        sys.modules["candidate"] = self.module  # dataclasses and pickle find the module of a class by its name

    def load(self, sources: list[str]) -> dict[str, Any]:
        """Run the sources in one namespace; return {} or the error."""
        try:
            for source in sources:
                try:
                    self.execute(compile(source, "candidate.py", "exec", dont_inherit=True))
                except ModuleNotFoundError:
                    self.execute(self.without_missing_modules(source))
        except BaseException as error:  # SystemExit too: the candidate may raise anything
            return {"error": describe(self.cause(error))}
        return {}

    def execute(self, code: types.CodeType) -> None:
        """Run compiled code in the namespace."""
        exec(code, self.module.__dict__)  # noqa: S102 - running untrusted code is what the sandbox is for

    def without_missing_modules(self, source: str) -> types.CodeType:
        """Compile the source without those of its outermost imports that fail: many programs never use them."""
        import ast  # most candidates need no syntax tree

        tree = ast.parse(source)
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                node.names = [name for name in node.names if self.is_there(node, name)]
        tree.body = [node for node in tree.body if getattr(node, "names", True)]
        return compile(tree, "candidate.py", "exec", dont_inherit=True)

    def is_there(self, node: Any, name: Any) -> bool:
        """Whether the module of one name of an import statement (nodes of a syntax tree) can be imported."""
        try:
            importlib.import_module(getattr(node, "module", None) or name.name)
        except ModuleNotFoundError as error:
            self.missing[name.asname or name.name.partition(".")[0]] = error
            return False
        return True

    def cause(self, error: BaseException) -> BaseException:
        """Return the error, or if it is a name that a missing module should have defined, that of the import."""
        if not isinstance(error, NameError):
            return error
        return self.missing.get(error.name, self.missing.get("*", error))

    def to_reference(self, value: Any) -> dict[str, int]:
        """Return the reference to an object that is not plain data; one object has one number."""
        number = self.numbers.setdefault(id(value), len(self.objects))
        if number == len(self.objects):
            self.objects.append(value)
        return {"reference": number}

    def from_reference(self, reference: str | int) -> Any:
        """Return the object with a name in the candidate's module, or with a number."""
        if isinstance(reference, int):
            return self.objects[reference]
        if reference not in self.module.__dict__:
            raise NameError(f"name '{reference}' is not defined", name=reference)
        return self.module.__dict__[reference]

    def call(self, message: dict[str, Any]) -> dict[str, Any]:
        """Call an object, or one of `OPERATIONS` with it.

        Returns
        -------
        dict
            "value", and "arguments" as they are after the call if the call has changed them; or "error".
        """
        try:
            arguments = decode(message["arguments"], self.from_reference)
            keywords = {name: decode(item, self.from_reference) for name, item in message["keywords"].items()}
            target = self.from_reference(message["target"])
            operation = message["operation"]
            value = OPERATIONS[operation](target, *arguments) if operation else target(*arguments, **keywords)
            reply = {"value": encode(value, self.to_reference)}
            after = encode(arguments, self.to_reference)
            return reply if after == message["arguments"] else {**reply, "arguments": after}
        except BaseException as error:
            return {"error": describe(self.cause(error))}


def serve_candidate(channel: Channel) -> None:
    """Report that the limits are set, load the candidate, and answer calls until the tests' process ends."""
    candidate = Candidate()
    channel.send({"ready": True})
    channel.send(candidate.load(channel.receive()["sources"]))
    while True:
        channel.send(candidate.call(channel.receive()))


class RemoteObject:
    """A function or an object in the candidate's process.

    It can be called and iterated, and has its attributes, items and length. It equals nothing but itself.
    """

    def __init__(self, tests: Tests, reference: str | int) -> None:
        vars(self).update(_tests=tests, _reference=reference)

    def __call__(self, *arguments: Any, **keywords: Any) -> Any:
        """Call the function or object in its own process. Raises what it raises, or CandidateGone."""
        return self._tests.call(self._reference, arguments, keywords)

    def _do(self, operation: str, *arguments: Any) -> Any:
        return self._tests.call(self._reference, arguments, {}, operation)

    def __getattr__(self, name: str) -> Any:
        return self._do("getattr", name)

    def __setattr__(self, name: str, value: Any) -> None:
        self._do("setattr", name, value)

    def __getitem__(self, key: Any) -> Any:
        return self._do("getitem", key)

    def __iter__(self) -> Any:
        return self._do("iter")

    def __next__(self) -> Any:
        return self._do("next")

    def __len__(self) -> Any:
        return self._do("len")

    def __bool__(self) -> Any:
        return self._do("bool")

    def __str__(self) -> Any:
        return self._do("str")


class Tests:
    """Runs the tests and decides the verdict.

    Attributes
    ----------
    gone : str
        Why the candidate's process can no longer be used; "" while it can.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel, self.gone = channel, ""
        self.objects: dict[str | int, RemoteObject] = {}

    def request(self, message: Any) -> dict[str, Any]:
        """Send a message and return the reply. Raises CandidateGone."""
        try:
            self.channel.send(message)
            return dict(self.channel.receive())
        except (EOFError, BrokenPipeError):
            self.abandon(ENDED)
        except Exception as error:
            self.abandon(f"the candidate's process sent an invalid reply: {': '.join(describe(error)[:2])}")

    def abandon(self, reason: str) -> NoReturn:
        """Make "passed" impossible from here on, even if a test catches the exception. Raises CandidateGone."""
        self.gone = self.gone or reason
        raise CandidateGone(reason)

    def call(
        self, target: str | int, arguments: Sequence[Any], keywords: dict[str, Any], operation: str | None = None
    ) -> Any:
        """Call an object of the candidate, or one of `OPERATIONS` with it; return the value or raise its error.

        Lists, dicts, sets and byte arrays among the arguments are updated in place if the candidate changed them.
        """
        message = {
            "target": target,
            "operation": operation,
            "arguments": [encode(item, self.to_reference) for item in arguments],
            "keywords": {name: encode(item, self.to_reference) for name, item in keywords.items()},
        }
        reply = self.request(message)
        if "error" in reply:
            raise self.to_exception(reply["error"])
        try:
            value = decode(reply["value"], self.from_reference)
            after = decode(reply.get("arguments", []), self.from_reference)
        except Exception as error:
            self.abandon(f"the candidate's process sent an invalid value: {': '.join(describe(error)[:2])}")
        for mine, theirs in zip(arguments, after, strict=False):
            if isinstance(mine, (list, bytearray)) and isinstance(theirs, type(mine)):
                mine[:] = theirs
            elif isinstance(mine, (dict, set)) and isinstance(theirs, type(mine)):
                mine.clear()
                mine.update(theirs)
        return value

    def from_reference(self, reference: Any) -> RemoteObject:
        """Return what stands for an object of the candidate: for one object always the same."""
        return self.objects.setdefault(reference, RemoteObject(self, reference))

    def to_reference(self, value: Any) -> dict[str, Any]:
        """Convert an argument that is not plain data: an object of the candidate, or an iterator of the tests."""
        if isinstance(value, RemoteObject):
            return {"reference": vars(value)["_reference"]}
        if isinstance(value, Iterator):
            return {"iterator": [encode(item, self.to_reference) for item in value]}
        raise TypeError(f"a test cannot pass a {type(value).__name__} to the candidate, only plain data")

    def to_exception(self, error: Any) -> Exception:
        """Return the candidate's error as an exception of the built-in type that it is, or as a CandidateError."""
        name, text, known = (str(part) for part in error)
        kind = vars(builtins).get(known)
        if not isinstance(kind, type) or not issubclass(kind, Exception) or issubclass(kind, UnicodeError):
            return CandidateError(f"{name}: {text}")
        if name == known:
            return kind(text)
        return CandidateError(f"{name}: {text}") if kind is Exception else kind(f"{name}: {text}")

    def verdict(self, job: dict[str, Any]) -> dict[str, str]:
        """Run the tests and return outcome and detail. Only the last line returns "passed", after the last test."""
        try:
            loaded = self.request({"sources": job["candidate"]})
            if "error" in loaded:
                return {"outcome": "error", "detail": ": ".join(map(str, loaded["error"][:2]))[:MAX_DETAIL]}
            namespace: dict[str, Any] = {"__name__": "tests"}
            # Setup and tests are the benchmark's own code, which is trusted.
            exec(compile(job["setup"], "setup.py", "exec", dont_inherit=True), namespace)  # noqa: S102
            namespace.update({name: self.from_reference(name) for name in job["names"]})
            exec(compile(job["tests"], "tests.py", "exec", dont_inherit=True), namespace)  # noqa: S102
        except AssertionError as error:
            return {"outcome": "failed", "detail": str(error)[:MAX_DETAIL]}
        except CandidateGone:
            return self.given_up()
        except BaseException as error:
            return {"outcome": "error", "detail": ": ".join(describe(error)[:2])}
        return self.given_up() if self.gone else {"outcome": "passed", "detail": ""}

    def given_up(self) -> dict[str, str]:
        """Return the outcome if the candidate is gone; "ended" if its exit status has to say why."""
        return {"outcome": "ended" if self.gone == ENDED else "error", "detail": self.gone}


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
        # A process that ends by SIGXCPU, at its soft limit, has used up its time; SIGKILL could have other causes.
        pair = (value, value + 1 if name == "RLIMIT_CPU" else value)
        soft, hard = (limit if hard == resource.RLIM_INFINITY else min(limit, hard) for limit in pair)
        try:
            resource.setrlimit(number, (soft, hard))
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
