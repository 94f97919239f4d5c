"""Runs a program that a model wrote against its tests, in a sandbox, and returns the verdict.

A run is two processes, each in a bubblewrap sandbox of its own (`inside.py`): one holds the candidate, which is the
program under test; the other holds the tests. The tests call the candidate's functions over a pipe, and arguments and
results travel as plain data. After the last test, the tests' process writes the verdict to a pipe that only it has.

The sandbox stops, at the isolation level `bubblewrap`:

- Forging the verdict. The candidate shares no file, process id or memory with the tests' process, only two pipes, and
  never receives an expected value. Exit codes, printing, `os._exit`, patched builtins or modules, walking stack frames,
  writing to memory, `atexit` and objects that equal everything change only its own process. All it can do is to answer
  calls, and a right answer is what the tests require.
- Reading. The candidate sees the system's and the interpreter's libraries (read-only), a few devices such as /dev/null,
  and its own empty /tmp: no home, /etc, /proc, environment, other process or network, not even the loopback device.
- Writing. Only its own /tmp can be written to; it lies in memory and is gone after the run.
- Using up the machine. CPU time and address space of each process, number of processes and of open files, and the
  size of each file and of /tmp are limited (see `Limits`). Output is read to its end, but only its start is kept. When
  memory runs out nevertheless, the kernel is asked to kill sandboxed processes first.
- Outliving the run. A run's process namespace ends with the run or when this process dies, and with it every process
  inside, whatever signals it ignores.
- Gaining privileges. There are no capabilities, no setuid programs and no terminal. A filter of system calls (on x86_64
  and aarch64; see `seccomp.py`) refuses namespaces, tracing, key rings, bpf, io_uring and memory that no limit counts.

No verdict depends on the load of the machine. The time limit of a program is the CPU time of its processes, which the
kernel enforces. A program that uses none, because it sleeps or waits, is given up after `Limits.idle_seconds` in which
nothing of the run was running or waiting for a CPU; a busy machine only makes this longer. Only programs that evade
both limits, by starting ever new processes with CPU time of their own, are ended by the clock, after
`Limits.wall_seconds`. Where the kernel kills a process because the machine has no memory left, a second run decides.

The sandbox does not stop:

- Faults of the kernel itself, and side channels such as timing and load.
- Use of CPU and memory up to the limits. Memory is limited per process, so one run may use `Limits.processes` times
  `Limits.memory`.

Older systems: bubblewrap before 0.7 cannot limit the size of /tmp, so there nothing is writable. Linux before 5.14
counts processes per user and not per sandbox, so a run of an ordinary user may not be able to start any process.

At the isolation level `process` (environment variable TANDEM_SANDBOX=process, for machines without bubblewrap) both
processes are plain subprocesses of the same user, with the same limits where the system has them, a temporary folder
and a cleared environment. That stops accidents, not malice: the program can read and write the user's files, use the
network, leave a daemon behind, and kill or trace the user's other processes, so it can also forge its verdict. For root
the number of processes is then not limited.

Differences from running program and tests in one process: only the standard library can be imported; an import of
another module fails where the program first uses it. A result that is not plain data (a generator, a function, an
instance of the candidate's own class) stays in its process: the tests can call it, iterate it and read its attributes,
but it is equal only to itself. Lists, dicts and sets that the tests pass to the candidate are updated in place after
each call. The interpreter's hash seed is fixed, so that a verdict can be reproduced.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import math
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
from lm_eval_tandem.grading.code.watch import LOOK_SECONDS, Watch, is_gone
from lm_eval_tandem.machine import cores

VARIABLE = "TANDEM_SANDBOX"
"""Environment variable that chooses the isolation level."""
LEVELS = ("bubblewrap", "process")
"""Isolation levels; the first is the default."""
INSIDE = Path(__file__).with_name("inside.py")
"""The program that runs in the sandbox."""
START_SECONDS = 30.0
"""Longest time until both processes report that their limits are set; the time limits of the run start after it."""
END_SECONDS = 5.0
"""Longest wait for the kernel to end a killed sandbox."""
CORES = cores()

KILLED = "a process of the run was killed"

_slots = threading.BoundedSemaphore(CORES)
_sandbox_numbers = itertools.count(os.getpid())


class SandboxError(GradingError):
    """The sandbox does not start or does not work on this machine."""


@dataclass(frozen=True)
class Limits:
    """What one run may use.

    Attributes
    ----------
    seconds
        CPU time of each process, rounded up to whole seconds.
    idle_seconds
        Time in which no process of the run runs or waits for a CPU.
    wall_seconds
        Wall clock of the run: the last resort, see the head of this file.
    memory
        Address space of each process, in bytes.
    processes
        Number of processes of each of the two sandboxes.
    file_size
        Size of a single file, in bytes.
    tmp_size
        Size of /tmp, in bytes.
    open_files
        Number of open files of each process.
    output
        Bytes of the printed output that are kept.
    """

    seconds: float = 10.0
    idle_seconds: float = 30.0
    wall_seconds: float = 600.0
    memory: int = 1 << 30
    processes: int = 8
    file_size: int = 16 << 20
    tmp_size: int = 64 << 20
    open_files: int = 64
    output: int = 16 << 10

    def rlimits(self) -> dict[str, int]:
        """Return the limits that the kernel enforces per process, under the names of the module `resource`."""
        return {
            "RLIMIT_AS": self.memory,
            "RLIMIT_CPU": math.ceil(self.seconds),
            "RLIMIT_FSIZE": self.file_size,
            "RLIMIT_NOFILE": self.open_files,
            "RLIMIT_NPROC": self.processes,
            "RLIMIT_CORE": 0,
        }


@dataclass(frozen=True)
class Program:
    """A candidate and its tests, all as Python source.

    Attributes
    ----------
    candidate
        Untrusted sources, run one after the other in one namespace.
    tests
        Source of the tests. The candidate passes if this source runs to its end without an exception.
    names
        Functions or classes of the candidate that the tests call.
    setup
        Trusted source that runs before the tests in their namespace; `names` replace what it defines.
    """

    candidate: tuple[str, ...]
    tests: str
    names: tuple[str, ...]
    setup: str = ""


@dataclass(frozen=True)
class Verdict:
    """How a run ended.

    Attributes
    ----------
    outcome
        "passed"; "failed" (an assertion was false); "error" (another exception or a crash); or "timeout".
    detail
        The error in words; "" if the candidate passed.
    output
        The start of what both processes printed.
    seconds
        Wall clock of the whole run, its start and end included.
    isolation
        The isolation level of the run.
    """

    outcome: str
    detail: str
    output: str
    seconds: float
    isolation: str

    @property
    def passed(self) -> bool:
        """Whether the tests ran to their end."""
        return self.outcome == "passed"


def isolation_level() -> str:
    """Return the requested isolation level: the value of TANDEM_SANDBOX, or `bubblewrap`.

    Raises
    ------
    ArgumentError
        The variable holds another value than those in `LEVELS`.
    """
    level = os.environ.get(VARIABLE) or LEVELS[0]
    if level not in LEVELS:
        raise ArgumentError(f"{VARIABLE}={level} is not an isolation level; set it to one of {', '.join(LEVELS)}.")
    return level


def require() -> str:
    """Check that the sandbox works here, with one trial run per process, and return its isolation level.

    Raises
    ------
    SandboxError
        It does not work; the message says why, and what to install.
    ArgumentError
        TANDEM_SANDBOX is not an isolation level.
    """
    level = isolation_level()
    if problem := _problem(level):
        raise SandboxError(
            f"this task runs code that a model wrote, and its sandbox does not work here ({problem}); install "
            f"bubblewrap (`apt-get install bubblewrap`, `dnf install bubblewrap`), in a container also allow user "
            f"namespaces, or accept a plain subprocess without isolation by {VARIABLE}=process."
        )
    return level


@functools.cache
def _problem(level: str) -> str:
    """Why a trial run fails; "" if it passes."""
    trial = Program(("import hashlib, random\ndef one():\n    return 1\n",), "assert one() == 1\n", ("one",))
    try:
        verdict = _run(trial, Limits(), level)
    except SandboxError as error:
        return str(error)
    return "" if verdict.passed else f"a trial run ended with {verdict.outcome}: {verdict.detail}"


def run(program: Program, limits: Limits | None = None) -> Verdict:
    """Run a program in the sandbox. May be called from any thread; at most `CORES` runs are active at once.

    Parameters
    ----------
    program
        The candidate and its tests.
    limits
        By default `Limits()`.

    Returns
    -------
    Verdict
        Whatever the program does, it ends in one of the outcomes of a verdict.

    Raises
    ------
    SandboxError
        The sandbox did not start, in two attempts. Nothing that the program does has this effect.

    Examples
    --------
    >>> run(Program(("def double(x): return 2 * x",), "assert double(3) == 6", ("double",))).outcome
    'passed'
    """
    limits, level = limits or Limits(), isolation_level()
    with _slots:
        try:
            verdict = _run(program, limits, level)
        except SandboxError:
            return _run(program, limits, level)
        # The program may have killed itself, or the kernel has, because the machine's memory had run out.
        return _run(program, limits, level) if verdict.detail == KILLED else verdict


def _run(program: Program, limits: Limits, level: str) -> Verdict:
    start = time.monotonic()
    with ExitStack() as stack:
        to_candidate, to_tests, verdict, output = (Pipe(stack) for _ in range(4))
        job = stack.enter_context(tempfile.TemporaryFile())
        job.write(json.dumps(vars(program)).encode())
        job.seek(0)
        descriptors = {
            "candidate": {"reading": to_candidate.reading, "writing": to_tests.writing},
            "tests": {
                "reading": to_tests.reading,
                "writing": to_candidate.writing,
                "job": job.fileno(),
                "verdict": verdict.writing,
            },
        }
        stop_all = stack.enter_context(ExitStack())
        candidate, tests = (
            stop_all.enter_context(SandboxedProcess(role, inherited, output.writing, limits, level))
            for role, inherited in descriptors.items()
        )
        # A pipe ends only when nobody holds its writing end, so this process gives up its copies.
        for pipe in (to_candidate, to_tests):
            pipe.close_reading()
        for pipe in (to_candidate, to_tests, verdict, output):
            pipe.close_writing()
        reader = Reader(verdict.reading, output.reading, limits.output)
        started = reader.wait(lambda: reader.lines >= 1 or reader.closed, START_SECONDS) and reader.lines >= 1
        outcome, detail = _judge(reader, candidate, tests, limits) if started else ("", "")
        stop_all.close()
        reader.drain(END_SECONDS)
        if not started:
            messages = reader.output.strip().splitlines() or ["it did not start in time"]
            raise SandboxError(messages[-1][:300])
        return Verdict(outcome, detail, reader.output, time.monotonic() - start, level)


def _judge(reader: Reader, candidate: SandboxedProcess, tests: SandboxedProcess, limits: Limits) -> tuple[str, str]:
    """Wait for the end of a run that has started; return its outcome and its detail.

    Where a process has ended early, its exit status says whether its CPU time was used up.
    """
    watch = Watch([candidate.first, tests.first], reader, limits.idle_seconds, limits.wall_seconds)
    reported = {"outcome": "ended", "detail": "the tests ended without a verdict"}
    if given_up := watch.wait(lambda: reader.lines >= 2 or reader.closed):
        return "timeout", given_up
    if reader.lines >= 2:
        reported = json.loads(reader.verdict.splitlines()[1])
    if reported["outcome"] != "ended":
        return reported["outcome"], reported["detail"]
    ended = candidate if reader.lines >= 2 else tests
    if given_up := watch.wait(lambda: ended.process.poll() is not None):
        return "timeout", given_up
    if ended.signal == signal.SIGXCPU:
        return "timeout", f"more than {limits.seconds:g} s of CPU time"
    if ended.signal == signal.SIGKILL:
        return "error", KILLED
    return "error", reported["detail"]


class SandboxedProcess:
    """Context manager: one of the two processes of a run. At exit it is dead, with everything it started.

    Parameters
    ----------
    role
        "candidate" or "tests".
    descriptors
        File descriptors that the process inherits, by the names that `inside.py` uses.
    output
        File descriptor of its standard output and standard error.
    limits
        What the run may use.
    level
        The isolation level.
    """

    def __init__(self, role: str, descriptors: dict[str, int], output: int, limits: Limits, level: str) -> None:
        self.role, self.descriptors, self.output, self.limits, self.level = role, descriptors, output, limits, level

    def __enter__(self) -> SandboxedProcess:
        isolated = self.level == "bubblewrap"
        settings = {
            "role": self.role,
            "uid": bubblewrap.user_id(next(_sandbox_numbers)) if isolated and os.geteuid() == 0 else None,
            "limits": self.limits.rlimits(),
            "strict": isolated,
            **self.descriptors,
        }
        python = [os.path.realpath(sys.executable), "-u", "-s", "-S", "-B", "-c", _inside_source()]
        self.cleanup = ExitStack()
        try:
            self.information = Pipe(self.cleanup) if isolated else None
            if self.information:
                prefix, extra = bubblewrap.command(self.limits.tmp_size, self.information.writing, self.cleanup)
                folder, home = "/", bubblewrap.PRIVATE_TMP
            else:
                prefix, extra = [], []
                folder = home = self.cleanup.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
            self.process = subprocess.Popen(  # noqa: S603 - untrusted code reaches it only through a pipe or a file
                [*bubblewrap.KILLED_FIRST, *prefix, *python, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=self.output,
                stderr=self.output,
                env=bubblewrap.environment(home),
                cwd=folder,
                pass_fds=[*self.descriptors.values(), *extra],
                start_new_session=True,
            )
        except OSError as error:
            self.cleanup.close()
            raise SandboxError(str(error)) from None
        except BaseException:
            self.cleanup.close()
            raise
        if self.information:
            self.information.close_writing()
        return self

    @functools.cached_property
    def first(self) -> int:
        """Id of the first process of the sandbox, or of the process itself where there is no sandbox (yet).

        When it dies, the kernel kills all others of its namespace, and delays its own end until they are gone.
        """
        if not self.information:
            return self.process.pid
        os.set_blocking(self.information.reading, False)
        with contextlib.suppress(BlockingIOError):
            return bubblewrap.first_process(os.read(self.information.reading, 1 << 10)) or self.process.pid
        return self.process.pid

    def wait(self, seconds: float) -> bool:
        """Wait for the process to end by itself; return whether it has."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(seconds)
        return self.process.returncode is not None

    @property
    def signal(self) -> int:
        """Number of the signal that has ended the process (bubblewrap adds 128 to it); 0 or less if none has."""
        status = self.process.returncode
        return -status if status < 0 else status - 128

    def kill(self) -> None:
        """Kill everything that the process has started, and wait until it is gone.

        With bubblewrap, that is when the first process of its namespace is gone. Bubblewrap itself may end before.
        """
        if self.first != self.process.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.first, signal.SIGKILL)
            end = time.monotonic() + END_SECONDS
            while not (self.wait(LOOK_SECONDS) and is_gone(self.first)) and time.monotonic() < end:
                time.sleep(0.001)
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.cleanup.close()


@functools.cache
def _inside_source() -> str:
    return INSIDE.read_text(encoding="utf-8")
