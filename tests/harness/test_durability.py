"""kill -9, a full disk, two runs at once: the results are those of an undisturbed run, and the store opens."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

import lm_eval_tandem
from command_line import (
    ENVIRONMENT,
    PATIENCE,
    command,
    entries,
    forked_at_once,
    options_of,
    results,
    run_forked,
    samples,
)
from interpreters import python
from lm_eval_tandem.store import Store
from tasks.in_process import lm_eval

PACKAGE = Path(lm_eval_tandem.__file__).parents[1]
KILLED = """
    # A small run in a fork of a process that has everything imported; `killed` of them die at a random moment.
    import json, os, random, signal, sys, time
    import torch
    from lm_eval.api.instance import Instance
    from lm_eval_tandem.harness import model
    from lm_eval_tandem.engines.hf import engine
    from lm_eval_tandem.model import TandemLM
    from lm_eval_tandem.judge import artefact
    from lm_eval_tandem.pair.problems import ProblemSampler, question
    from lm_eval_tandem.store import Store

    torch.set_num_threads(1)
    source = ProblemSampler("durability")
    asked = [question(source.draw("train"), "math", "Mira") for _ in range(16)]
    settings = {{"until": [], "max_gen_toks": 90, "do_sample": False}}

    def whole_run(folder):
        requests = [Instance("generate_until", {{}}, (text, settings), 0, ("t", i, 1)) for i, text in enumerate(asked)]
        lm = TandemLM(batch_size=4, device="cpu", store=f"{{folder}}/s.sqlite", ledger=f"{{folder}}/l.jsonl")
        answers = lm.generate_until(requests, disable_tqdm=True)
        records = [json.loads(line) for line in open(f"{{folder}}/l.jsonl").readlines()[1:]]
        looks = [[round(look["score"], 4) for look in r["stages"]] for r in records]
        kept = [[r["doc_id"], r["stage"], r["tokens"], r["tflops"], x] for r, x in zip(records, looks)]
        with open(f"{{folder}}/out", "w") as file:
            json.dump([answers, kept], file)

    def fork(folder):
        pid = os.fork()
        if pid == 0:
            try:
                whole_run(folder)
                os._exit(0)
            finally:
                os._exit(1)
        return pid

    def ended(pid):
        assert os.waitpid(pid, 0)[1] == 0, "a run that was not killed failed"

    def at_work(folder):
        while not os.path.exists(f"{{folder}}/s.sqlite"):
            time.sleep(0.002)
        return time.monotonic()

    os.makedirs("undisturbed")
    pid = fork("undisturbed")
    began = at_work("undisturbed")
    ended(pid)
    seconds, draw, found = time.monotonic() - began, random.Random(7), 0
    expected = json.load(open("undisturbed/out"))
    for turn in range({times}):
        os.makedirs(f"{{turn}}")
        pid = fork(f"{{turn}}")
        at_work(f"{{turn}}")
        time.sleep(draw.uniform(0.2, 1) * seconds)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        store = Store(f"{{turn}}/s.sqlite")
        found += 0 < len(store)
        store.close()
        ended(fork(f"{{turn}}"))
        found_now = json.load(open(f"{{turn}}/out"))
        assert found_now == expected, (turn, found_now, expected)
    print(found)
"""


@pytest.mark.parametrize("times", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_runs_killed_at_random_moments_go_on_to_the_same_results(tmp_path: Path, times: int) -> None:
    found = int(python(KILLED.format(times=times), path=[PACKAGE], cwd=tmp_path, timeout=1800))
    assert found >= times // 10, "hardly a run was killed in the middle of its work"


def test_a_full_disk_costs_the_store_and_not_the_run(tmp_path: Path) -> None:
    """No file may grow past 60 kB: the store fills up, the answers are those of a run without one."""
    line = [*command("tandem_pair_math", store="s.sqlite", policy="stage:3"), "--limit", "60"]
    small = 60_000
    done = subprocess.run(
        [*line, "--output_path", "full"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (small, small)),
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written") == 1, done.stderr
    full = results(tmp_path / "full")
    assert full["config"]["tandem"]["totals"]["unkept_in_store"] > 0
    kept = len(Store(tmp_path / "s.sqlite"))
    assert kept > 0
    run_forked([*line, "--output_path", "again"], tmp_path)
    whole = results(tmp_path / "again")
    found = whole["config"]["tandem"]["totals"]
    assert found["found_in_store"] == kept
    assert found["unkept_in_store"] == 0
    assert whole["results"] == full["results"]


def test_a_killed_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    limit = ["--limit", "60", "--log_samples", "--output_path"]
    lm_eval(*options_of(command("tandem_pair_math", policy="cascade")), *limit, str(tmp_path / "whole"))
    again = [*command("tandem_pair_math", policy="cascade", store="s.sqlite"), *limit, "resumed"]
    killed = forked_at_once(again, tmp_path)
    deadline = time.monotonic() + PATIENCE
    while entries(tmp_path / "s.sqlite") < 90 and killed.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    killed.kill()
    assert killed.poll() == -signal.SIGKILL, "the run was not killed in the middle"
    before = entries(tmp_path / "s.sqlite")
    assert before >= 90
    run_forked(again, tmp_path)
    whole, resumed = results(tmp_path / "whole"), results(tmp_path / "resumed")
    assert resumed["results"] == whole["results"]
    assert [s["resps"] for s in samples(tmp_path / "resumed")] == [s["resps"] for s in samples(tmp_path / "whole")]
    assert resumed["config"]["tandem"]["totals"]["found_in_store"] >= 0.9 * before


def test_ctrl_c_ends_a_run_with_one_sentence_and_keeps_what_is_finished(tmp_path: Path) -> None:
    line = command("tandem_pair_math", store="s.sqlite", ledger="l.jsonl", policy="mentor")
    going = subprocess.Popen(
        line,
        cwd=tmp_path,
        env=ENVIRONMENT,
        stderr=subprocess.PIPE,
        text=True,
        # a shell starts its background jobs with interrupts ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while entries(tmp_path / "s.sqlite") < 60:
        assert going.poll() is None, "the run ended by itself"
        time.sleep(0.02)
    going.send_signal(signal.SIGINT)
    _, said = going.communicate(timeout=PATIENCE)
    assert going.returncode in (-signal.SIGINT, 130), (going.returncode, said)  # a shell reports both as 130
    assert said.splitlines()[-1].startswith("tandem: interrupted; finished calls are in the store"), said
    assert "Traceback" not in said
    assert len(Store(tmp_path / "s.sqlite")) >= 60
    # of the last batches, 16 calls each, some were stored and not yet recorded
    assert len((tmp_path / "l.jsonl").read_text().splitlines()) >= 20


def test_two_runs_on_one_store_at_once(tmp_path: Path) -> None:
    """Both end, with the same answers; together they leave one whole store."""
    line = [*command("tandem_pair_math", store="s.sqlite", policy="stage:2"), "--limit", "40", "--log_samples"]
    running = [forked_at_once([*line, "--output_path", name], tmp_path) for name in "ab"]
    for process in running:
        assert process.wait(PATIENCE) == 0, process.complained()
    one, two = ([sample["resps"] for sample in samples(tmp_path / name)] for name in "ab")
    assert one == two
    assert len(Store(tmp_path / "s.sqlite")) == 40 * 3


def test_a_ledger_that_cannot_be_written_costs_nothing_else(tmp_path: Path) -> None:
    line = command("tandem_pair_math", ledger=os.devnull + "/l.jsonl", policy="stage:1")
    process = forked_at_once([*line, "--limit", "4", "--output_path", "out"], tmp_path)
    assert process.wait(PATIENCE) == 0, process.complained()
    assert "could not be written" in process.complained()
    assert "acc,none" in results(tmp_path / "out")["results"]["tandem_pair_math"]
