"""Accounting, ledger and store: the algebra of costs, and files that survive crashes and damage."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lm_eval_tandem import ledger, ledger_file
from lm_eval_tandem.accounting import Tokens, bill, tflops
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.http.registered import RegisteredEngine
from lm_eval_tandem.errors import StoreError
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.store import Store, key_of

counts = st.integers(0, 10**6)
tokens = st.builds(Tokens, counts, counts, counts, counts, counts)


@given(tokens, tokens, counts, counts)
def test_costs_add_up(a: Tokens, b: Tokens, large: int, small: int) -> None:
    for cost in (tflops, bill):
        assert cost(a + b, large, small) == pytest.approx(cost(a, large, small) + cost(b, large, small))


@given(tokens, counts, counts)
def test_the_bill_has_every_generated_token_of_each_role(spent: Tokens, large: int, small: int) -> None:
    generated = 2e-12 * (large * spent.mentor_new + small * spent.intern_new)
    assert bill(spent, large, small) >= generated * (1 - 1e-12)


def test_the_papers_own_figures_follow_from_equation_12() -> None:
    """Table 1: 7B alone 38.25 TFLOPs at 2,732 tokens, 32B alone 168.35 at 2,630."""
    assert tflops(Tokens(intern_new=2732), 32 * 10**9, 7 * 10**9) == pytest.approx(38.25, abs=0.01)
    assert tflops(Tokens(mentor_new=2630), 32 * 10**9, 0) == pytest.approx(168.35, abs=0.05)
    # low, medium and high effort: 100, 500 and 1,000 mentor tokens of 2,735, 2,853 and 2,930
    for high, length, cost in ((100, 2735, 44.76), (500, 2853, 71.96), (1000, 2930, 104.62)):
        spent = Tokens(mentor_new=high, intern_new=length - high)
        assert tflops(spent, 32 * 10**9, 7 * 10**9) == pytest.approx(cost, rel=0.02)


def record(doc_id: int, **changes: object) -> Record:
    values = {
        "task": "t",
        "doc_id": doc_id,
        "repeat": 0,
        "policy": "cascade",
        "stage": 1,
        "reason": "sufficient",
        "finish_reason": "stop",
        "mentor_finish_reason": None,
        "mentor_stages": 1,
        "tokens": Tokens(10, 20, 5, 0, 30),
        "tflops": 0.5,
        "bill": 1.0,
        "judge_seconds": 0.1,
        "generate_seconds": 1.0,
    }
    return Record(**{**values, **changes})  # type: ignore[arg-type]


def test_a_ledger_holds_each_question_once_in_order(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "ledger.jsonl"
    ledger_file.write(path, [record(2), record(1)], {"run": "r"})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert lines[0] == {"format": ledger_file.FORMAT, "run": "r"}
    assert [line["doc_id"] for line in lines[1:]] == [1, 2]
    assert [file.name for file in path.parent.iterdir()] == ["ledger.jsonl"], "something unfinished was left"


def test_totals_count_a_padded_question_once() -> None:
    found = ledger.totals([record(1), record(1), record(2, stage=0, finish_reason="length", tflops=1.5)])
    assert found["questions"] == 2
    assert found["tflops"] == 1.0
    assert found["length"] == 30
    assert found["stage_share"] == {"0": 0.5, "1": 0.5}
    assert found["truncated"] == 0.5
    assert ledger.totals([]) == {"questions": 0}


def test_a_store_returns_what_was_put(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "store.sqlite")
    key = key_of({"text": "x", "seed": 1})
    assert store.get(key) is None
    store.put(key, {"text": "ü", "ids": [1, 2]})
    again = Store(tmp_path / "a" / "store.sqlite")
    assert again.get(key) == {"text": "ü", "ids": [1, 2]}
    assert len(again) == 1


def test_keys_differ_with_everything_in_them() -> None:
    assert key_of({"a": 1, "b": 2}) == key_of({"b": 2, "a": 1})
    assert len({key_of({"a": value}) for value in (1, "1", None, [1], 1.5)}) == 5


def test_a_corrupted_entry_is_refused_and_can_be_replaced(tmp_path: Path) -> None:
    store = Store(tmp_path / "store.sqlite")
    store.put("k", {"text": "right"})
    with sqlite3.connect(tmp_path / "store.sqlite") as db:
        db.execute("UPDATE finished SET value = replace(value, 'right', 'wrong')")
    assert store.get("k") is None
    assert store.corrupted_rows == 1
    store.put("k", {"text": "right"})
    assert store.get("k") == {"text": "right"}


def test_a_store_that_breaks_while_it_is_open_is_one_sentence(tmp_path: Path) -> None:
    """Reading ends the run, since everything would be computed again; a value that cannot be kept is counted."""
    store = Store(tmp_path / "store.sqlite")
    store.put("k", {"text": "right"})
    with sqlite3.connect(tmp_path / "store.sqlite") as db:
        db.execute("DROP TABLE finished")
    with pytest.raises(StoreError, match=r"store=.* cannot be read any more \(no such table: finished\)"):
        store.get("k")
    store.put("k", {"text": "right"})
    assert store.failed_writes == 1


def test_a_store_that_another_process_locks_holds_up_no_other_question(tmp_path: Path) -> None:
    """The lock is given up by a coroutine that runs in the same event loop as the call that waits for it."""
    store = Store(tmp_path / "store.sqlite")
    engine = CachedEngine(RegisteredEngine("dummy", "x", {}), store)
    other = sqlite3.connect(tmp_path / "store.sqlite", isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    async def both() -> None:
        call = asyncio.ensure_future(engine.generate(Prompt("x"), Sampling(3)))
        await asyncio.wait([call], timeout=0.5)
        other.execute("COMMIT")
        await call

    loop = EventLoopThread()
    loop.run(both())
    loop.close()
    assert (len(store), store.failed_writes) == (1, 0)
    assert "cannot be the intern of a judge" in engine.cannot_score, "the store hides what its engine cannot do"
    engine.close()


@pytest.mark.parametrize("kind", ["text", "foreign", "version", "folder", "torn"])
def test_what_is_no_store_is_refused_in_one_sentence(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "store.sqlite"
    if kind == "text":
        path.write_text("this is no database, but a text of some length\n" * 100)
    elif kind == "foreign":
        with sqlite3.connect(path) as db:
            db.execute("CREATE TABLE mine (x)")
    elif kind == "folder":
        path.mkdir()
    else:
        store = Store(path)
        for i in range(300):
            store.put(str(i), {"text": "x" * 300})
        store.close()
        if kind == "version":
            with sqlite3.connect(path) as db:
                db.execute("PRAGMA user_version = 99")
        else:
            data = path.read_bytes()
            path.write_bytes(data[: len(data) // 3] + b"\x00" * (len(data) // 3) + data[2 * len(data) // 3 :])
    with pytest.raises(StoreError, match=r"name a new file"):
        Store(path)


def test_a_store_survives_kill_9_and_two_writers(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    program = (
        "import sys\nfrom lm_eval_tandem.store import Store\ns = Store(sys.argv[1])\ni = 0\n"
        "while True:\n    s.put(f'{sys.argv[2]}{i}', {'text': 'x' * 2000}); i += 1\n    print(i, flush=True)\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", program, str(path), name], stdout=subprocess.PIPE, text=True)
        for name in "ab"
    ]
    finished = []
    for writer in writers:
        assert writer.stdout is not None
        for _ in range(50):
            last = int(writer.stdout.readline())
        finished.append(last)
    time.sleep(0.05)
    for writer in writers:
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    store = Store(path)
    for name, last in zip("ab", finished, strict=True):
        assert all(store.get(f"{name}{i}") == {"text": "x" * 2000} for i in range(last))


RACE = """
import multiprocessing, sys
from lm_eval_tandem.store import Store

def opened(barrier, path, name):
    barrier.wait()
    Store(path).put(name, {"a": 1})

fork = multiprocessing.get_context("fork")
for turn in range(25):
    barrier, path = fork.Barrier(2), f"{sys.argv[1]}/{turn}.sqlite"
    both = [fork.Process(target=opened, args=(barrier, path, name)) for name in "ab"]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0] and len(Store(path)) == 2, turn
"""


def test_processes_that_open_a_new_store_at_the_same_moment_both_get_it(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
