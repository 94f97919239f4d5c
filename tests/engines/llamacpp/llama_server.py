"""A real llama-server on the loopback with its counts switched on: `python llama_server.py FILE SLOTS WINDOW`.

Its address is the only line of standard output; it ends with standard input.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

WINDOW = 512


@contextmanager
def serving(file: Path, slots: int = 4, window: int = WINDOW) -> Iterator[str]:
    """Serve a GGUF file until the block ends; gives the address."""
    command = [sys.executable, __file__, str(file), str(slots), str(window)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        try:
            yield server.stdout.readline().strip()
        finally:
            server.stdin.close()


def passes(address: str) -> int:
    """Number of forward passes so far: with one question at a time, one for each token and a few for prompts."""
    with urllib.request.urlopen(f"{address}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    return next(int(float(line.split()[1])) for line in lines if line.startswith("llamacpp:n_decode_total "))


def serve(file: str, slots: int, window: int) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_parallel, params.n_ctx = file, slots, slots * window
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.endpoint_metrics, params.verbosity = True, 1
    params.warmup = params.ui = False
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
