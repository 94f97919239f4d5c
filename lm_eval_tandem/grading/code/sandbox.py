"""Runs a program that nobody has read, and says whether it passes its tests.

Each run is two processes, in a bubblewrap sandbox each (`inside.py`): one holds the candidate's code, the other the
tests. The tests call the candidate's functions over a pipe; arguments and results travel as plain data. The verdict is
a line the tests' process writes on a pipe of its own, after the last test.

Stopped, at the isolation level `bubblewrap`:

- Forging the verdict. Whatever the candidate's code does to its own process (exit codes, printing, `os._exit`,
  patching builtins, `sys`, `json` or assert helpers, walking frames, writing memory, atexit, objects equal to
  everything), it has no file, process number or memory in common with the tests' process, only two pipes, and never
  sees an expected value. All it can do is answer calls, and a right answer is what the tests ask for.
- Reading: it sees the system's and the interpreter's libraries, read-only, /dev/null and its like, and an empty /tmp
  of its own. No home, no /etc, no /proc, no environment, no other process; no network, not even a loopback.
- Changing anything outside. All that is writable is its own /tmp, in memory, gone with the run.
- Using up the machine: wall clock, CPU time, address space per process, number of processes, open files, size of a file
  and of /tmp are limited (`Limits`), output is read but kept up to a bound, and when memory runs out all the same the
  kernel is asked to end sandboxed processes first.
- Staying: when the run ends, so does its process namespace with everything in it, whatever signals it ignores; also
  when this process dies.
- Further privileges: no capabilities, no setuid, a session of its own without a terminal; a filter of system calls
  (x86_64, aarch64) refuses namespaces, tracing, key rings, bpf, io_uring and memory that no limit counts.

Not stopped: errors of the kernel itself, side channels such as timing and load, and using CPU and memory up to the
limits for as long as they allow; memory is limited per process, so a run may take `processes` times as much. bubblewrap
before 0.7 cannot limit the size of /tmp, so there nothing is writable. Before Linux 5.14 the kernel counts
processes per user and not per sandbox, so for ordinary users a run may not be able to start any.

At the level `process` (environment variable TANDEM_SANDBOX=process, for machines without bubblewrap) both are plain
subprocesses of the same user, with the same limits where the system knows them, a temporary folder to start in and a
cleared environment. That stops accidents, not malice: such code can read and write all the user's files, use the
network, leave a daemon behind, kill or trace any process of the user's, among them the one with the tests, and so forge
its verdict. For root there is no limit on processes then.

What differs from running code and tests in one process: the standard library is all there is to import; a result that
is no plain data (an object of the code's own class, a function) is known to the tests by reference only, equal to
nothing but itself; lists, dicts and sets given to the code are updated in place after each call. The interpreter's hash
seed is fixed, so that a verdict can be had again.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading import GradingError
from lm_eval_tandem.grading.code import bubblewrap
from lm_eval_tandem.grading.code.pipes import Pipe, Reader

VARIABLE = "TANDEM_SANDBOX"
LEVELS = ("bubblewrap", "process")
INSIDE = Path(__file__).with_name("inside.py")
START_SECONDS = 30.0
"""Until both processes have said that their limits hold; only then the run's own clock starts."""
END_SECONDS = 5.0
"""For the kernel to take a killed sandbox down."""
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

_places = threading.BoundedSemaphore(CORES)
_numbers = itertools.count(os.getpid())


class SandboxError(GradingError):
    """The sandbox cannot be had, or does not work, on this machine."""


@dataclass(frozen=True)
class Limits:
    """What one run may use. Sizes in bytes; CPU time is limited to the seconds of wall clock, rounded up, plus one."""

    seconds: float = 10.0
    memory: int = 1 << 30
    processes: int = 8
    file_size: int = 16 << 20
    tmp_size: int = 64 << 20
    open_files: int = 64
    output: int = 16 << 10

    def rlimits(self) -> dict[str, int]:
        """Per process, under the names of the module `resource`."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": int(self.seconds) + 2,
            "RLIMIT_FSIZE": self.file_size,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Program:
    """Code and its tests.

    Attributes
    ----------
        candidate: sources of the code nobody has read, run one after the other in one namespace.
        tests: source of the tests; it passes if it runs to its end.
        names: functions or classes of the candidate's that the tests call.
        before: trusted source that runs ahead of the tests, among them (the candidate's names win).
    """

    candidate: tuple[str, ...]
    tests: str
    names: tuple[str, ...]
    before: str = ""


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes
    ----------
        outcome: "passed", "failed" (an assertion), "error" (anything else that was raised, or a crash) or "timeout".
        detail: the error, in words.
        output: the start of what was printed.
        seconds: wall clock of the whole run.
        isolation: the level it ran at.
    """

    outcome: str
    detail: str
    output: str
    seconds: float
    isolation: str

    @property
    def passed(self) -> bool:
        """Whether every test passed."""
        return self.outcome == "passed"


def isolation() -> str:
    """The level asked for: `bubblewrap`, or what TANDEM_SANDBOX says. Raises ArgumentError for anything else."""
    level = os.environ.get(VARIABLE) or LEVELS[0]
    if level not in LEVELS:
        raise ArgumentError(f"{VARIABLE}={level} is no isolation level; it is one of {', '.join(LEVELS)}.")
    return level


def require() -> str:
    """The level that runs will have, after trying it out once per process.

    Raises
    ------
    SandboxError
        It does not work here; the sentence says why, and what to install.
    """
    level = isolation()
    if problem := _problem(level):
        raise SandboxError(
            f"this task runs code that a model wrote, and its sandbox does not work here ({problem}); install "
            f"bubblewrap (`apt-get install bubblewrap`, `dnf install bubblewrap`), in a container also allow user "
            f"namespaces, or accept a plain subprocess without isolation by {VARIABLE}=process."
        )
    return level


@functools.cache
def _problem(level: str) -> str:
    trial = Program(("import hashlib, random\ndef one():\n    return 1\n",), "assert one() == 1\n", ("one",))
    try:
        verdict = _run(trial, Limits(), level)
    except SandboxError as error:
        return str(error)
    return "" if verdict.passed else f"a trial run ended with {verdict.outcome}: {verdict.detail}"


def run(program: Program, limits: Limits | None = None) -> Verdict:
    """Run a program in the sandbox, from any thread; at most as many run at once as there are cores.

    Raises
    ------
    SandboxError
        The sandbox did not start, twice. Nothing that the program does has this effect.
    """
    limits, level = limits or Limits(), isolation()
    with _places:
        try:
            return _run(program, limits, level)
        except SandboxError:
            return _run(program, limits, level)


def _run(program: Program, limits: Limits, level: str) -> Verdict:
    start = time.monotonic()
    with ExitStack() as stack:
        to_code, to_tests, verdict, output = (Pipe(stack) for _ in range(4))
        job = stack.enter_context(tempfile.TemporaryFile())
        job.write(json.dumps(vars(program)).encode())
        job.seek(0)
        sides = {
            "candidate": {"reading": to_code.reading, "writing": to_tests.writing},
            "tests": {
                "reading": to_tests.reading,
                "writing": to_code.writing,
                "job": job.fileno(),
                "verdict": verdict.writing,
            },
        }
        processes = [
            stack.enter_context(Sandboxed(role, descriptors, output.writing, limits, level))
            for role, descriptors in sides.items()
        ]
        for pipe in (to_code, to_tests):
            pipe.close_reading()
        for pipe in (to_code, to_tests, verdict, output):
            pipe.close_writing()
        reader = Reader(verdict.reading, output.reading, limits.output)
        started = reader.wait(lambda: reader.lines >= 1, START_SECONDS)
        ended = started and reader.wait(lambda: reader.lines >= 2, limits.seconds)
        late = not ended and not reader.closed
        for process in processes:
            process.kill()
        reader.drain(END_SECONDS)
        if not started:
            said = reader.output.strip().splitlines() or ["it did not start in time"]
            raise SandboxError(said[-1][:300])
        outcome, detail = "error", "the tests ended without a verdict"
        if late:
            outcome, detail = "timeout", f"no verdict after {limits.seconds:g} s"
        elif ended:
            given = json.loads(reader.verdict.splitlines()[1])
            outcome, detail = given["outcome"], given["detail"]
        return Verdict(outcome, detail, reader.output, time.monotonic() - start, level)


class Sandboxed:
    """One of the two processes of a run; left, it is dead, and so is everything it started."""

    def __init__(self, role: str, descriptors: dict[str, int], output: int, limits: Limits, level: str) -> None:
        self.role, self.descriptors, self.output, self.limits, self.level = role, descriptors, output, limits, level

    def __enter__(self) -> Sandboxed:
        isolated = self.level == "bubblewrap"
        given = {
            "role": self.role,
            "uid": bubblewrap.user_number(next(_numbers)) if isolated and os.geteuid() == 0 else None,
            "limits": self.limits.rlimits(),
            "strict": isolated,
            **self.descriptors,
        }
        python = [os.path.realpath(sys.executable), "-u", "-s", "-S", "-B", "-c", _inside(), json.dumps(given)]
        self.ended = ExitStack()
        try:
            if isolated:
                prefix, extra = bubblewrap.command(self.limits.tmp_size, self.ended)
                folder = "/"
            else:
                prefix, extra = [], []
                folder = self.ended.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self.process = subprocess.Popen(
                [*bubblewrap.FIRST_TO_DIE, *prefix, *python],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                env=bubblewrap.environment(folder if not isolated else "/tmp"),
                cwd=folder,
                pass_fds=[*self.descriptors.values(), *extra],
                start_new_session=True,
            )
        except OSError as error:
            self.ended.close()
            raise SandboxError(str(error)) from None
        except BaseException:
            self.ended.close()
            raise
        return self

    def kill(self) -> None:
        """End it: bubblewrap's death takes the namespace along, a plain subprocess's group is killed."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.ended.close()


@functools.cache
def _inside() -> str:
    return INSIDE.read_text(encoding="utf-8")
