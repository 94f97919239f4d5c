"""llama.cpp's server in a process of its own, which lives as long as the process that uses it.

In the same process, its handlers of signals would take the place of Python's, and a failed assertion in it would end
the run. `OwnServer` starts this module as a program. The program ends when its standard input does, so that it never
outlives its parent, however that ends.

Where the two roles share the cores, both servers have a thread for each core, and a thread that has to wait spins for
microseconds only and then sleeps (GOMP_SPINCOUNT): the one that works gets all cores, and two that work share them. On
two cores that other programs kept busy, 12 tokens of a model of 135M parameters take 0.7 seconds; with the usual long
spinning they took 113, and with none 1.1. On idle cores a thread that sleeps at once costs a third of the speed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import EngineError

LAST_WORDS = 300
"""Characters of the program's own last words that an error message repeats."""
PATIENCE = 10.0
"""Seconds that the program may take to end."""
SPIN_COUNT = "1000"
"""Rounds of libgomp's loop in which a thread waits before it sleeps: some microseconds."""
SLOT_UNIT = 256
"""llama.cpp rounds the window of a slot to a multiple of this."""
PACKAGE_FOLDER = Path(__file__).resolve().parents[3]


class OwnServer:
    """A llama-server that serves one file on a free port of this machine alone.

    Parameters
    ----------
    settings
        See `arguments.LlamaArguments.server_settings`.

    Attributes
    ----------
    address
        Base URL of the server.

    Raises
    ------
    EngineError
        The model cannot be loaded.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  it is open as long as the process runs
        paths = [str(PACKAGE_FOLDER), os.environ.get("PYTHONPATH", "")]
        environment = {
            **os.environ,
            "GOMP_SPINCOUNT": SPIN_COUNT,
            "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        }
        for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY"):  # `threads` and `SPIN_COUNT` are used instead
            environment.pop(name, None)
        self._process = subprocess.Popen(  # noqa: S603  this very module
            [sys.executable, "-m", __name__, json.dumps(settings)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=environment,
            start_new_session=True,  # Ctrl-C reaches the parent alone
        )
        self._end = weakref.finalize(self, end, self._process)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().decode().strip()
        if not self.address:
            self._process.wait()
            words = self.last_words()
            self.close()
            raise EngineError(
                f"llama.cpp could not load the model {settings['model']}: {words}; check that the file is whole and "
                "fits into memory (batch_size, max_length), and that this version of xllamacpp knows its architecture."
            )

    @property
    def ended(self) -> bool:
        """Whether the program has ended."""
        return self._process.poll() is not None

    def last_words(self) -> str:
        """The end of what the program wrote about its errors, in one line."""
        self._log.seek(0)
        words = " ".join(self._log.read().decode("utf-8", "replace").split())
        return words[-LAST_WORDS:] or f"the process ended with code {self._process.poll()}"

    def close(self) -> None:
        """End the program and wait for it."""
        self._end()


def end(process: subprocess.Popen[bytes]) -> None:
    """Close the program's standard input, at which it ends, and wait; one that does not end is killed."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()


def serve(settings: Mapping[str, Any]) -> None:
    """Serve a file until standard input ends; the server's address is the only line of standard output."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = settings["model"]
    params.n_parallel = settings["slots"]
    params.n_ctx = settings["slots"] * -(-settings["window"] // SLOT_UNIT) * SLOT_UNIT
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = settings["threads"]
    if settings["gpu_layers"] is not None:
        params.n_gpu_layers = settings["gpu_layers"]
    cache_type = getattr(xllamacpp.ggml_type, f"GGML_TYPE_{settings['cache_type'].upper()}")
    params.cache_type_k = params.cache_type_v = cache_type
    if cache_type == xllamacpp.ggml_type.GGML_TYPE_F32:  # flash attention rounds to 16 bits
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = 1  # errors
    params.warmup = params.ui = False
    server = xllamacpp.Server(params)
    with suppress(BrokenPipeError):  # the parent has ended, and so has standard input
        print(server.listening_address, flush=True)
    sys.stdin.read()
    os._exit(0)  # nothing is left to be done; ended in order, a server that has only just started may hang


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
