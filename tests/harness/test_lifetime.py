"""Engines are freed, and a process ends at once and with the exit code of what happened."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import weakref
from pathlib import Path
from typing import Any

import psutil
import pytest

import tiny
from bundled import COMMON
from command_line import PATIENCE
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import EngineError
from lm_eval_tandem.harness.model import TandemLM

DECODING = """
    import asyncio, sys
    from lm_eval_tandem import errors
    from lm_eval_tandem.engines import Prompt, Sampling
    from lm_eval_tandem.engines.hf.engine import HFEngine
    from lm_eval_tandem.event_loop import EventLoopThread

    errors.print_plainly()
    engine = HFEngine({"pretrained": sys.argv[1], "dtype": "float32", "device": "cpu", "batch_size": 8})

    async def ask():
        calls = [asyncio.ensure_future(engine.generate(Prompt(f"Mira has {n}"), Sampling(8000))) for n in range(8)]
        while engine.work.decode_tokens < 16:
            await asyncio.sleep(0.01)
        print("decoding", flush=True)
        ENDING
        await asyncio.gather(*calls)

    EventLoopThread().run(ask())
"""
REGISTERED = """
    import asyncio, sys, time
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
    from lm_eval_tandem.engines import Prompt, Sampling
    from lm_eval_tandem.engines.http.registered import RegisteredEngine
    from lm_eval_tandem.event_loop import EventLoopThread

    @register_model("tandem-test-slow")
    class Slow(LM):
        def __init__(self, pretrained):
            super().__init__()

        def generate_until(self, requests, disable_tqdm=False):
            print("decoding", flush=True)
            for _ in range(60_000):
                time.sleep(0.1)
            return ["x" for _ in requests]

        loglikelihood = loglikelihood_rolling = None

    engine = RegisteredEngine("tandem-test-slow", "x", {})
    EventLoopThread().run(engine.generate(Prompt("x"), Sampling(5)))
"""


def started(tmp_path: Path, program: str) -> subprocess.Popen[str]:
    (tmp_path / "program.py").write_text(textwrap.dedent(program))
    tiny.save(tmp_path / "model", max_position_embeddings=9000)  # a random model writes to its limit
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "program.py"), str(tmp_path / "model")],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background job ignores interrupts; so would what it starts.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


@pytest.mark.parametrize(("ending", "code"), [("raise errors.EngineError('a server is gone.')", 1), ("return", 0)])
def test_a_process_ends_with_its_own_exit_code_while_rows_decode(tmp_path: Path, ending: str, code: int) -> None:
    process = started(tmp_path, DECODING.replace("ENDING", ending))
    out, err = process.communicate(timeout=PATIENCE)
    assert "decoding" in out, err
    assert process.returncode == code, err
    assert "terminate called" not in err
    if code == 1:
        assert err.endswith("tandem: error: a server is gone.\n")


@pytest.mark.parametrize("program", [DECODING.replace("ENDING", "pass"), REGISTERED], ids=["hf", "registered"])
def test_an_interrupt_ends_the_process_before_its_batch(tmp_path: Path, program: str) -> None:
    process = started(tmp_path, program)
    assert process.stdout is not None
    assert process.stdout.readline() == "decoding\n"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=PATIENCE)  # the batch of the registered model takes longer
    # A shell shows the signal as 130. What torch runs at exit may hide it from Python, which then exits with 1.
    assert process.returncode in (-signal.SIGINT, 1), err
    assert "terminate called" not in err
    assert "tandem: interrupted" in err or "KeyboardInterrupt" in err  # the second without our message


def live_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("tandem")]


def test_what_a_failed_run_had_loaded_is_freed(tmp_path: Path) -> None:
    """After ten runs whose intern cannot be loaded, threads and memory are those after one."""
    mentor = tiny.save(tmp_path / "mentor", hidden_size=1024, intermediate_size=2048)
    (tmp_path / "broken").mkdir()
    before, sizes = live_threads(), []
    roles: dict[str, Any] = {"mentor": str(mentor), "intern": str(tmp_path / "broken"), **COMMON}
    for _ in range(10):
        with pytest.raises(EngineError, match="broken could not be loaded"):
            TandemLM(policy="stage:1", store=str(tmp_path / "store.sqlite"), **roles)
        gc.collect()
        assert live_threads() == before
        sizes.append(psutil.Process().memory_info().rss / 2**20)
    weights = sum(file.stat().st_size for file in mentor.glob("*.safetensors")) / 2**20
    assert weights > 40
    assert sizes[-1] - sizes[1] < 2 * weights, f"MiB after each: {sizes}"


def test_an_engine_that_nobody_uses_any_more_is_freed() -> None:
    engine = HFEngine({"pretrained": str(pair.INTERN), **COMMON})
    thread, model = engine._worker._thread, weakref.ref(engine.lm.model)
    del engine
    gc.collect()
    thread.join(timeout=PATIENCE)
    gc.collect()
    assert not thread.is_alive()
    assert model() is None


def test_a_model_that_nobody_uses_any_more_leaves_no_thread() -> None:
    before = set(threading.enumerate())
    lm = TandemLM(policy="stage:1", **COMMON)
    threads = [thread for thread in threading.enumerate() if thread not in before]
    assert len(threads) >= 3, "two engines and an event loop"
    del lm
    gc.collect()
    for thread in threads:
        thread.join(timeout=PATIENCE)
    assert not any(thread.is_alive() for thread in threads)


def test_a_closed_engine_has_no_weights_and_refuses_calls(tmp_path: Path) -> None:
    engine = HFEngine({"pretrained": str(tiny.save(tmp_path, max_position_embeddings=9000)), **COMMON})
    model = weakref.ref(engine.lm.model)

    async def closed_meanwhile() -> None:
        call = asyncio.ensure_future(engine.generate(Prompt("Mira"), Sampling(8000)))
        while not engine.work.decode_tokens:  # noqa: ASYNC110  the engine's thread counts
            await asyncio.sleep(0.001)
        await asyncio.to_thread(engine.close)
        with pytest.raises(EngineError, match="was closed before it had answered"):
            await call
        with pytest.raises(EngineError, match="was closed; load it again"):
            await engine.generate(Prompt("Mira"), Sampling(4))

    asyncio.run(closed_meanwhile())
    assert model() is None
    engine.close()
