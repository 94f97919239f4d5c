"""A process with a server of its own ends at once, with the exit code of what happened, and so does the server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

import tiny
from engines.llamacpp.local import NEEDS_LLAMACPP

pytestmark = NEEDS_LLAMACPP

PROGRAM = """
    import asyncio, sys
    from lm_eval_tandem import errors
    from lm_eval_tandem.engines import Prompt, Sampling
    from lm_eval_tandem.engines.llamacpp.engine import LlamaEngine
    from lm_eval_tandem.event_loop import EventLoopThread

    errors.print_plainly()
    engine = LlamaEngine(sys.argv[1], {"batch_size": 2, "threads": 1})

    async def ask():
        calls = [asyncio.ensure_future(engine.generate(Prompt(f"Mira has {n}"), Sampling(4000))) for n in range(50)]
        # Calls can fail once the server ends; asyncio complains of errors that nobody reads.
        read = asyncio.gather(*calls, return_exceptions=True)
        while engine.work.calls < 2:
            await asyncio.sleep(0.01)
        print(engine._server._process.pid, flush=True)
        ENDING
        await asyncio.gather(*calls)

    EventLoopThread().run(ask())
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from engines.llamacpp import to_gguf

    folder = tmp_path_factory.mktemp("model")
    return to_gguf.save(tiny.save(folder, max_position_embeddings=9000), folder / "model.gguf")


@pytest.fixture
def started(file: Path, tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM.replace("ENDING", request.param)))
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(file)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores interrupts; so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    yield process
    process.kill()


def server_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.strip().isdecimal(), process.communicate()[1]
    return int(line)


def assert_ends(pid: int) -> None:
    deadline = time.monotonic() + 60
    with suppress(psutil.NoSuchProcess):
        while psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, "the server runs on"
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("started", "code"), [("return", 0), ("raise errors.EngineError('it is gone.')", 1)], indirect=["started"]
)
def test_the_server_ends_with_a_process_that_ends(started: subprocess.Popen[str], code: int) -> None:
    server = server_of(started)
    _, err = started.communicate(timeout=500)
    assert started.returncode == code, err
    assert err.endswith("tandem: error: it is gone.\n") == (code == 1)
    assert_ends(server)


@pytest.mark.parametrize("started", ["pass"], indirect=True)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_server_ends_with_a_process_that_is_ended(started: subprocess.Popen[str], how: signal.Signals) -> None:
    server = server_of(started)
    started.send_signal(how)
    _, err = started.communicate(timeout=500)
    assert started.returncode == -how, err  # shells show 128 + the signal
    assert ("tandem: interrupted" in err) == (how == signal.SIGINT)
    assert_ends(server)


@pytest.mark.parametrize("started", ["engine._server._process.kill()"], indirect=True)
def test_a_server_that_dies_ends_the_run_with_one_sentence(started: subprocess.Popen[str]) -> None:
    _, err = started.communicate(timeout=500)
    assert started.returncode == 1
    assert "tandem: error: the llama.cpp server of " in err
    assert "has ended: the process ended with code -9; finished answers are kept" in " ".join(err.split())


@pytest.mark.parametrize("read", [True, False], ids=["its address is read", "nobody reads its address"])
def test_a_server_ends_whose_parent_has_ended_while_it_loaded(file: Path, read: bool) -> None:
    from lm_eval_tandem.engines.llamacpp import child
    from lm_eval_tandem.engines.llamacpp.arguments import LlamaArguments

    settings = json.dumps(LlamaArguments.read(str(file), {"batch_size": 2, "threads": 1}).server_settings(512))
    for _ in range(3):  # ended in order, it hung three times of three
        process = subprocess.Popen(
            [sys.executable, "-m", child.__name__, settings],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        if read:
            assert process.stdout.readline().startswith("http://127.0.0.1:")
        process.stdout.close()
        try:
            assert process.wait(60) == 0, process.communicate()[1]
        finally:
            process.kill()
