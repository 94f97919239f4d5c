"""A real `vllm serve` on the loopback, for tests of whatever speaks its protocol. Needs vLLM beside the tests."""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

INSTALLED = importlib.util.find_spec("vllm") is not None
PATIENCE = 600.0
"""Seconds that a server may take to start; a tiny model takes 30 to 60."""
CPU = {
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "TORCH_COMPILE_DISABLE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}
TESTS = Path(__file__).parents[2]
SWITCH = "TANDEM_TEST_PACE"
"""The environment variable by which a server's processes know the file `slow_while`."""
SMALL = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(2**28), "--block-size", "32")


@contextmanager
def serve(model: Path | str, *arguments: str, name: str = "served", slow_while: Path | None = None) -> Iterator[str]:
    """Serve the model as `name` until the block ends; gives the base URL, as in http://127.0.0.1:8000/v1.

    arguments: further ones of `vllm serve`; they go after, and so before, those of `SMALL`.
    slow_while: a file; while it exists, the server writes no faster than one of a large model (`paced`).
    Raises AssertionError with the end of the server's log where it does not start.
    """
    port = free_port()
    program = Path(sys.executable).parent / "vllm"
    command = [str(program), "serve", str(model), "--host", "127.0.0.1", "--port", str(port)]
    command += ["--served-model-name", name, *SMALL, *arguments]
    environment = {**os.environ, **CPU}
    if slow_while is not None:
        command += ["--logits-processors", "engines.vllm.paced:Pace"]
        environment |= {"PYTHONPATH": str(TESTS), SWITCH: str(slow_while)}
    with TemporaryFile() as log:
        # A group of its own: the engine's processes are children of the server's and end with the group.
        server = subprocess.Popen(
            command, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            if not healthy(server, f"http://127.0.0.1:{port}/health"):
                log.seek(0)
                raise AssertionError(f"vllm serve did not start:\n{log.read().decode(errors='replace')[-6000:]}")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            end(server)


def free_port() -> int:
    """A port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def healthy(server: subprocess.Popen[bytes], address: str) -> bool:
    """Wait until the server answers; False if it ended or took too long."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends and server.poll() is None:
        try:
            with opener.open(address, timeout=5) as reply:
                if reply.status == 200:
                    return True
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    return False


def end(server: subprocess.Popen[bytes]) -> None:
    """Ask the whole group to end, then make it."""
    for kind, patience in ((signal.SIGTERM, 15), (signal.SIGKILL, 15)):
        try:
            os.killpg(server.pid, kind)
        except ProcessLookupError:  # nothing of the group is left
            break
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    server.wait(1)
