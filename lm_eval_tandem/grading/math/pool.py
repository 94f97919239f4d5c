"""Processes that can be killed, for calls that may hang, crash or eat memory on text that a model wrote.

Each worker is an interpreter of its own behind two pipes. It is no `multiprocessing` child: it inherits no lock and no
open file, does not run the caller's `__main__` again, and so works from scripts, notebooks, servers and any thread. A
call beyond its time limit is ended by killing its worker; a worker that hung, crashed or raised is replaced, and only
the call it had is lost. Nothing here uses signals of the calling process.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import weakref
from typing import Any

from lm_eval_tandem.grading import GradingError

START = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); import runpy; runpy.run_module({!r}, run_name='__main__')"
)
MODULE = "lm_eval_tandem.grading.math.worker"
MOST = 8
"""Workers of a pool at most, whatever the number of cores: each holds some 100 MB."""
STARTING = 120.0
"""Seconds that a worker may take to start and prepare."""
CALLS = 2000
"""Calls after which a worker is replaced, so that caches of the libraries it uses do not grow for ever."""


class CallFailed(Exception):
    """A call that was given up: out of time, its process gone, or an exception; the message says which."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Pool:
    """At most `size` workers, started when needed, shared by all threads, ended with the interpreter.

    Parameters
    ----------
    prepare
        "module:function" that a new worker calls before it takes calls (slow imports), within `STARTING`.
    size
        Workers at most; by default and at most the number of cores, and never more than `MOST`.
    memory
        Address space of one worker, bytes.
    """

    def __init__(self, prepare: str = "", size: int | None = None, memory: int = 2 << 30) -> None:
        self.size = max(1, min(size or MOST, cores(), MOST))
        self.prepare = prepare
        self.memory = memory
        self._closed = False
        self._renew()
        this = weakref.ref(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _forget(this()))
        atexit.register(lambda: _close(this()))

    def _renew(self) -> None:
        self._max_concurrency = threading.BoundedSemaphore(self.size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def call(self, target: str, *arguments: Any, limit: float) -> Any:
        """What `target` ("module:function") returns for the arguments, both as JSON; waits for a free worker.

        limit: seconds of wall clock, counted from when a prepared worker has the call.

        Raises
        ------
        CallFailed
            The call took too long, ended its process, or raised.
        GradingError
            A worker cannot be started at all.
        """
        with self._max_concurrency:
            worker = self._take()
            try:
                value = worker.ask({"target": target, "arguments": arguments, "limit": limit}, limit)
            except BaseException:  # Ctrl-C too: a reply nobody waits for must not answer the next call
                self._discard(worker)
                raise
            self._give_back(worker)
            return value

    def close(self) -> None:
        """End all workers; calls under way fail, later ones are refused."""
        self._closed = True
        with self._lock:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.kill()

    @property
    def pids(self) -> list[int]:
        """The running workers' process ids."""
        with self._lock:
            return sorted(worker.process.pid for worker in self._all)

    def _take(self) -> _Worker:
        while True:
            if self._closed:
                raise GradingError("this pool of graders is closed; make another.")
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._start()
            if worker.process.poll() is None:
                return worker
            self._discard(worker)  # something else ended it while it had nothing to do

    def _start(self) -> _Worker:
        worker = _Worker(self.prepare, self.memory)
        with self._lock:
            self._all.add(worker)
        try:
            worker.receive(STARTING)
        except CallFailed as error:
            self._discard(worker)
            raise GradingError(f"a grading process could not be started: {error}.") from error
        except BaseException:
            self._discard(worker)
            raise
        if self._closed:  # while it was starting: close() may have missed it
            self._discard(worker)
        return worker

    def _give_back(self, worker: _Worker) -> None:
        if worker.calls >= CALLS or self._closed:
            self._discard(worker)
        else:
            with self._lock:
                self._idle.append(worker)

    def _discard(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
        worker.kill()


def _close(pool: Pool | None) -> None:
    if pool is not None:
        pool.close()


def _forget(pool: Pool | None) -> None:
    """In a forked child: the workers are the parent's, and a lock may be held by a thread that is not here."""
    if pool is not None:
        for worker in pool._all:
            worker.disown()
        pool._renew()


class _Worker:
    """One process and the two pipes to it; used by one thread at a time."""

    def __init__(self, prepare: str, memory: int) -> None:
        path = "\n".join(sys.path)
        command = [sys.executable, "-c", START.format(MODULE), path, str(os.getpid()), prepare, str(memory)]
        self.calls = 0
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def ask(self, request: dict[str, Any], limit: float) -> Any:
        """Send one call and wait for its value. Raises CallFailed."""
        self.calls += 1
        return self.receive(limit, json.dumps(request).encode() + b"\n")

    def receive(self, limit: float, message: bytes = b"") -> Any:
        """Write a message and read one reply within the limit, after which the process is killed. Raises CallFailed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self.signal()

        timer = threading.Timer(limit, give_up)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # it is gone: reading says so too
                self.process.stdin.write(message)
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        finally:
            timer.cancel()
            timer.join()  # else it might yet kill the process in the middle of its next call
        if late.is_set():
            raise CallFailed(f"no reply within {limit:g} s")
        if not line.endswith(b"\n"):
            raise CallFailed(f"the process ended with code {self.process.wait()}")
        reply = json.loads(line)
        if "failed" in reply:
            raise CallFailed(reply["failed"])
        return reply["value"]

    def signal(self) -> None:
        """Kill the process and what it started; do not wait."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):  # ended, and not yet waited for
                if self.process.returncode is None:
                    os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()

    def kill(self) -> None:
        """Kill the process, wait for its end, close the pipes."""
        self.signal()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def disown(self) -> None:
        """Forget a process that is no child of this one."""
        self.process.returncode = 0
