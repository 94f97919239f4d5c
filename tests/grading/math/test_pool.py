"""The pool under calls that hang, crash and eat memory, from threads, forks and dying parents."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lm_eval_tandem.grading import GradingError
from lm_eval_tandem.grading.math.pool import CallFailed, Pool, cores

PACKAGE = Path(__file__).resolve().parents[3]
WAYS = ("hang", "spin", "exit", "abort", "segfault", "memory", "raise")


@pytest.fixture
def pool() -> Iterator[Pool]:
    made = Pool(size=2)
    yield made
    made.close()


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie has not been waited for: that counts as still there)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def wait_until_gone(pids: list[int], seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not all(map(gone, pids)):
        time.sleep(0.05)
    return all(map(gone, pids))


def wait_until_ended(pid: int) -> None:
    """Return once a child of this process has ended, and leave it to be waited for."""
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def wait_until_busy(pool: Pool) -> None:
    """Return once a call has taken the worker that an earlier call left idle."""
    while pool._idle:
        time.sleep(0.01)


def script(code: str) -> subprocess.Popen[str]:
    """A program of its own, not even guarded by `if __name__ == "__main__"`."""
    head = f"import sys; sys.path.insert(0, {str(PACKAGE)!r})\n"
    return subprocess.Popen([sys.executable, "-c", head + textwrap.dedent(code)], stdout=subprocess.PIPE, text=True)


def test_values_come_back_and_a_worker_is_used_again(pool: Pool) -> None:
    assert pool.pids == []
    assert pool.call("operator:add", 1, 2, limit=30) == 3
    first = pool.pids
    assert pool.call("operator:add", "\ud800 é", "\n", limit=30) == "\ud800 é\n"
    assert pool.pids == first
    assert len(first) == 1


@pytest.mark.parametrize("way", WAYS)
def test_a_call_that_misbehaves_is_lost_alone(pool: Pool, way: str) -> None:
    pool.call("grading.math.misbehaving:verify", "1", "1", limit=60)
    (before,) = pool.pids
    start = time.monotonic()  # one that hangs does so for 1000 s
    with pytest.raises(CallFailed, match=r"no reply|ended with code|MemoryError|RecursionError"):
        pool.call("grading.math.misbehaving:misbehave", way, limit=1.0)
    assert time.monotonic() - start < 120
    assert gone(before)
    assert pool.call("operator:add", 1, 2, limit=30) == 3


def test_what_a_call_prints_and_reads_does_not_reach_the_pipes(pool: Pool) -> None:
    assert pool.call("os:system", "echo forged; cat", limit=30) == 0
    assert pool.call("builtins:print", '{"value": 1}', limit=30) is None
    assert pool.call("operator:add", 1, 2, limit=30) == 3


def test_a_child_of_a_call_dies_with_it(pool: Pool) -> None:
    with pytest.raises(CallFailed, match=r"no reply within 0\.5 s"):
        pool.call("os:system", "sleep 987.25", limit=0.5)
    listed = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=False).stdout
    assert "sleep 987.25" not in listed.splitlines()


def test_many_threads_share_few_workers_and_get_their_own_replies(pool: Pool) -> None:
    def one(i: int) -> tuple[int, object]:
        if i % 40 == 7:
            with pytest.raises(CallFailed):
                pool.call("grading.math.misbehaving:misbehave", ["exit", "segfault", "raise"][i % 3], limit=30)
            return i, i + 1
        return i, pool.call("operator:add", i, 1, limit=30)

    with ThreadPoolExecutor(16) as threads:
        found = list(threads.map(one, range(400)))
    assert all(value == i + 1 for i, value in found)
    assert len(pool.pids) <= pool.size <= cores()


def test_a_worker_that_died_while_idle_costs_no_call(pool: Pool) -> None:
    pool.call("operator:add", 1, 2, limit=30)
    (worker,) = pool.pids
    os.kill(worker, signal.SIGKILL)
    wait_until_ended(worker)
    assert pool.call("operator:add", 1, 2, limit=30) == 3


def test_a_closed_pool_refuses_and_leaves_nothing(pool: Pool) -> None:
    pool.call("operator:add", 1, 2, limit=30)
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(pool.call, "time:sleep", 5000, limit=5000)
        wait_until_busy(pool)
        time.sleep(0.2)  # until the call has been sent
        pids = pool.pids
        pool.close()
        with pytest.raises(CallFailed):
            waiting.result(timeout=600)
    assert all(map(gone, pids))
    assert pool.pids == []
    with pytest.raises(GradingError, match="closed"):
        pool.call("operator:add", 1, 2, limit=30)


def test_a_call_whose_pipes_are_closed_meanwhile_fails_as_other_calls_do(pool: Pool) -> None:
    pool.call("operator:add", 1, 2, limit=30)
    (worker,) = pool._all
    pool.close()
    with pytest.raises(CallFailed, match="closed"):
        worker.request({"target": "operator:add", "arguments": [1, 2], "limit": 30}, 30)


def test_a_call_that_waits_has_more_wall_clock_than_cpu_time(pool: Pool) -> None:
    assert pool.call("time:sleep", 1.5, limit=1.0, wall_limit=60) is None
    with pytest.raises(CallFailed, match="ended with code"):
        pool.call("grading.math.misbehaving:misbehave", "spin", limit=1.0, wall_limit=60)


def test_a_pool_whose_workers_cannot_start_says_so() -> None:
    with pytest.raises(GradingError, match=r"could not be started: ModuleNotFoundError.*no_such_module"):
        Pool(prepare="no_such_module:prepare").call("operator:add", 1, 2, limit=30)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_has_workers_of_its_own() -> None:
    program = script(
        """
        import os, threading, time
        from lm_eval_tandem.grading.math.pool import Pool
        pool = Pool(size=2)
        threading.Thread(target=lambda: pool.call("time:sleep", 1, limit=30)).start()
        pool.call("operator:add", 1, 2, limit=30)
        ours = pool.pids
        child = os.fork()
        if child == 0:
            found = pool.call("operator:add", 3, 4, limit=30)
            fresh = not set(pool.pids) & set(ours)
            pool.close()
            os._exit(0 if (found, fresh) == (7, True) else 1)
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), pool.call("operator:add", 1, 2, limit=30), pool.pids == ours)
        """
    )
    out, _ = program.communicate(timeout=600)
    assert out.split() == ["0", "3", "True"]


def test_nothing_is_left_when_the_interpreter_exits() -> None:
    program = script(
        """
        import threading, time
        from lm_eval_tandem.grading.math.pool import Pool
        pool = Pool(size=2)
        pool.call("operator:add", 1, 2, limit=30)
        threading.Thread(target=lambda: pool.call("time:sleep", 5000, limit=5000), daemon=True).start()
        while pool._idle:
            time.sleep(0.01)
        print(*pool.pids)
        """
    )
    out, _ = program.communicate(timeout=600)
    pids = [int(pid) for pid in out.split()]
    assert program.returncode == 0
    assert pids
    assert all(map(gone, pids))


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX limits")
@pytest.mark.parametrize(
    "call",
    [
        "'operator:add', 1, 2",
        "'time:sleep', 5000",
        pytest.param("'grading.math.misbehaving:misbehave', 'spin'", marks=pytest.mark.slow),
        pytest.param("'operator:pow', 7, 10**9", marks=pytest.mark.slow),
    ],
)
def test_workers_end_when_their_parent_is_killed(call: str) -> None:
    program = script(
        f"""
        import threading, time
        sys.path.insert(0, {str(PACKAGE / "tests")!r})
        from lm_eval_tandem.grading.math.pool import Pool
        pool = Pool(size=1)
        pool.call("operator:add", 1, 2, limit=30)
        threading.Thread(target=lambda: pool.call({call}, limit=2), daemon=True).start()
        while pool._idle:
            time.sleep(0.01)
        print(*pool.pids, flush=True)
        time.sleep(60)
        """
    )
    assert program.stdout is not None
    pids = [int(pid) for pid in program.stdout.readline().split()]
    program.kill()
    program.communicate()
    assert pids
    assert wait_until_gone(pids, 600)
