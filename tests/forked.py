"""Python command lines in processes of their own that start at once: forks of one that has the libraries imported.

Importing torch, transformers, datasets and lm-eval takes seven times as long as most runs here. Nothing of
lm_eval_tandem is imported before the fork, so each process imports the package itself, as after a usual start. Tests of
how a process starts or ends (imports, interrupts, exit codes with threads at work) start a usual one instead.
"""

from __future__ import annotations

import atexit
import builtins
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Mapping, Sequence
from pathlib import Path

LIBRARIES = [
    *("lm_eval.__main__", "lm_eval.evaluator", "lm_eval.models", "lm_eval.models.huggingface", "lm_eval.tasks"),
    *("accelerate", "openai", "sklearn.model_selection", "sklearn.pipeline", "transformers.modeling_utils"),
    "transformers.models.llama.modeling_llama",
]
"""Imported before the fork; those that are not installed are skipped."""
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(LIBRARIES)


class Process:
    """`python ARGUMENTS` in a fork; what it prints goes to files.

    Parameters
    ----------
    arguments
        `-c CODE` or `-m MODULE`, then those of the program.
    folder
        Its working folder.
    environment
        All of its variables; those that libraries read at their import have no effect any more.
    log
        Folder for the files of its output.
    """

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path) -> None:
        self.output, self.errors = log / "stdout", log / "stderr"
        given = list(arguments), str(folder), dict(environment), str(self.output), str(self.errors)
        self._process = FORKS.Process(target=_program, args=given)
        self._process.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        """Its exit code, minus the signal that ended it, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Its exit code, once it has ended.

        Raises
        ------
        subprocess.TimeoutExpired
            It did not end within `timeout` seconds, and was killed.
        """
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise subprocess.TimeoutExpired("a fork", timeout, self.printed(), self.complained())
        return code

    def kill(self) -> None:
        """End it with signal 9, and wait for that."""
        self._process.kill()
        self._process.join()

    def printed(self) -> str:
        """Its standard output so far."""
        return self.output.read_text(encoding="utf-8") if self.output.exists() else ""

    def complained(self) -> str:
        """Its standard error so far."""
        return self.errors.read_text(encoding="utf-8") if self.errors.exists() else ""


def _program(arguments: list[str], folder: str, environment: dict[str, str], output: str, errors: str) -> None:
    """Do in this process what `python ARGUMENTS` does, to its exit code."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for path, descriptor in ((output, 1), (errors, 2)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, descriptor)
        os.close(file)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    what, program, *rest = arguments
    sys.path[:0] = [folder]
    try:
        if what == "-m":
            sys.argv = [program, *rest]
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        else:
            sys.argv = ["-c", *rest]
            sys.modules["__main__"] = main = types.ModuleType("__main__")
            vars(main)["__builtins__"] = builtins
            exec(compile(program, "<string>", "exec"), vars(main))
    except SystemExit:
        raise
    except BaseException as error:
        sys.excepthook(type(error), error, error.__traceback__)
        raise SystemExit(1) from None
    finally:  # a fork ends without what Python does at its own end
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
