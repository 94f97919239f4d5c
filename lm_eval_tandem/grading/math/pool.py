"""A pool of worker processes for calls that may hang, crash or exhaust memory on text that a model wrote.

Each worker is a fresh interpreter that runs `worker.py`, connected by two pipes. It is not a `multiprocessing` child:
it inherits no locks and no open files and does not run the caller's `__main__` again, so a pool works in scripts,
notebooks, servers and any thread. A call that exceeds its time limit is ended by killing its worker. A worker that
hung, crashed or raised is replaced, and only its current call is lost. Nothing here uses signals of this process.
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
from lm_eval_tandem.machine import cores

BOOTSTRAP = (
    "import sys; sys.path[:] = sys.argv.pop(1).split('\\n'); import runpy; runpy.run_module({!r}, run_name='__main__')"
)
"""Code of a new interpreter: set the module search path to that of this process, then run a module."""
MODULE = "lm_eval_tandem.grading.math.worker"
MAX_WORKERS = 8
"""Largest number of workers of a pool, whatever the number of cores: each takes about 100 MB."""
START_SECONDS = 600.0
"""Seconds that a worker may take to start and prepare; many, since the machine may be busy with the model."""
MAX_CALLS = 2000
"""Number of calls after which a worker is replaced, so that the caches of the libraries it uses cannot grow forever."""


class CallFailed(Exception):
    """A call exceeded its time limit, ended its process or raised an exception; the message says which."""


class Pool:
    """Workers that are started when needed, shared by all threads and ended with the interpreter.

    Parameters
    ----------
    prepare
        "module:function" that a new worker calls first, such as slow imports, within `START_SECONDS`; "" for nothing.
    size
        Largest number of workers; by default, and at most, the number of cores and `MAX_WORKERS`.
    memory
        Address space of one worker in bytes.

    Examples
    --------
    >>> pool = Pool(size=1)
    >>> pool.call("operator:add", 1, 2, limit=5)
    3
    >>> pool.close()
    """

    def __init__(self, prepare: str = "", size: int | None = None, memory: int = 2 << 30) -> None:
        self.size = max(1, min(size or MAX_WORKERS, cores(), MAX_WORKERS))
        self.prepare = prepare
        self.memory = memory
        self._closed = False
        self._reset()
        reference = weakref.ref(self)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: _disown_workers(reference()))
        atexit.register(lambda: _close(reference()))

    def _reset(self) -> None:
        """Start without workers, with fresh locks."""
        self._slots = threading.BoundedSemaphore(self.size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()

    def call(self, target: str, *arguments: Any, limit: float, wall_limit: float | None = None) -> Any:
        """Call a function in a worker and return its value; wait until a worker is free.

        Parameters
        ----------
        target
            The function, as "module:function".
        *arguments
            Its arguments; they and the value have to be what JSON can hold.
        limit
            Seconds of CPU time.
        wall_limit
            Seconds of wall clock, counted from when a prepared worker has the call; by default as `limit`. Give more
            where the verdict should not depend on what else the machine does.

        Raises
        ------
        CallFailed
            The call exceeded its limit, ended its process or raised an exception.
        GradingError
            The pool is closed, or a worker cannot be started.
        """
        with self._slots:
            worker = self._take()
            try:
                call = {"target": target, "arguments": arguments, "limit": limit}
                value = worker.request(call, wall_limit or limit)
            except BaseException:  # Ctrl-C too: the late reply must not be taken for that of the next call
                self._discard(worker)
                raise
            self._give_back(worker)
            return value

    def close(self) -> None:
        """End all workers: current calls fail, and later ones raise GradingError."""
        self._closed = True
        with self._lock:
            workers, self._all, self._idle = self._all, set(), []
        for worker in workers:
            worker.kill()

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers, sorted."""
        with self._lock:
            return sorted(worker.process.pid for worker in self._all)

    def _take(self) -> _Worker:
        """An idle worker that still runs, or a new one."""
        while True:
            if self._closed:
                raise GradingError("this pool of grading processes is closed; create another one.")
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            if worker is None:
                return self._start()
            if worker.process.poll() is None:
                return worker
            self._discard(worker)  # something else ended it while it was idle

    def _start(self) -> _Worker:
        worker = _Worker(self.prepare, self.memory)
        with self._lock:
            self._all.add(worker)
        try:
            worker.receive(START_SECONDS)
        except CallFailed as error:
            self._discard(worker)
            raise GradingError(f"a grading process could not be started: {error}.") from error
        except BaseException:
            self._discard(worker)
            raise
        if self._closed:  # close() was called while the worker was starting, and may not have ended it
            self._discard(worker)
        return worker

    def _give_back(self, worker: _Worker) -> None:
        if worker.calls >= MAX_CALLS or self._closed:
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


def _disown_workers(pool: Pool | None) -> None:
    """Reset a pool in a forked child: the workers belong to the parent, whose threads may hold the locks."""
    if pool is not None:
        for worker in pool._all:
            worker.disown()
        pool._reset()


class _Worker:
    """One worker process and the two pipes to it; used by one thread at a time."""

    def __init__(self, prepare: str, memory: int) -> None:
        path = "\n".join(sys.path)
        command = [sys.executable, "-c", BOOTSTRAP.format(MODULE), path, str(os.getpid()), prepare, str(memory)]
        self.calls = 0
        self.process = subprocess.Popen(  # noqa: S603 - this interpreter and this package; a model's text is data
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )

    def request(self, call: dict[str, Any], limit: float) -> Any:
        """Send one call and return its value. Raises CallFailed."""
        self.calls += 1
        return self.receive(limit, json.dumps(call).encode() + b"\n")

    def receive(self, limit: float, message: bytes = b"") -> Any:
        """Send a message and return the value of the next reply; kill the process at the limit. Raises CallFailed."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        timed_out = threading.Event()

        def end() -> None:
            timed_out.set()
            self.send_kill()

        timer = threading.Timer(limit, end)
        timer.daemon = True
        timer.start()
        try:
            with contextlib.suppress(BrokenPipeError):  # the process has ended, which reading reports
                self.process.stdin.write(message)
                self.process.stdin.flush()
            line = self.process.stdout.readline()
        except ValueError as error:  # close() has closed the pipes meanwhile
            raise CallFailed("the pool was closed during the call") from error
        finally:
            timer.cancel()
            timer.join()  # it must not fire during the next call
        if timed_out.is_set():
            raise CallFailed(f"no reply within {limit:g} s")
        if not line.endswith(b"\n"):
            raise CallFailed(f"the process ended with code {self.process.wait()}")
        reply = json.loads(line)
        if "failed" in reply:
            raise CallFailed(reply["failed"])
        return reply["value"]

    def send_kill(self) -> None:
        """Kill the process and what it started, without waiting for the end."""
        if os.name == "posix":
            with contextlib.suppress(ProcessLookupError, PermissionError):  # it has just ended
                if self.process.returncode is None:
                    os.killpg(self.process.pid, signal.SIGKILL)
        else:
            self.process.kill()

    def kill(self) -> None:
        """Kill the process, wait until it has ended, and close the pipes."""
        self.send_kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def disown(self) -> None:
        """Stop managing a process that is not a child of this one."""
        self.process.returncode = 0
