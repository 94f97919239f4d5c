"""Two processes on one CPU (gloo) answer what one answers, each its share."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

import forked
from command_line import ENVIRONMENT, PATIENCE, command, results, run, run_forked, samples

TWO = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


def launched(folder: Path, processes: int, questions: int, **arguments: Any) -> float:
    """Run the bundled pair in so many processes, results in `out`, the ledger in l.jsonl; seconds of its generation."""
    folder.mkdir()
    line = command("tandem_pair_math", ledger="l.jsonl", **arguments)
    line += ["--limit", str(questions), "--output_path", "out", "--log_samples", "--device", "cpu"]
    if processes == 2:
        run([*TWO, "--no-python", *line], folder)
    else:
        run_forked(line, folder)
    return float(results(folder / "out")["config"]["tandem"]["totals"]["wall_seconds"])


def records(folder: Path) -> list[dict[str, Any]]:
    """The ledger without its clock and header."""
    lines = [json.loads(line) for line in (folder / "l.jsonl").read_text().splitlines()[1:]]
    stages = [[{**look, "seconds": None} for look in line["stages"]] for line in lines]
    return [
        {name: value for name, value in line.items() if "seconds" not in name} | {"stages": looks}
        for line, looks in zip(lines, stages, strict=True)
    ]


def test_two_ranks_give_the_results_and_the_ledger_of_one(tmp_path: Path) -> None:
    """An uneven number: the harness then asks one of them twice, and it has to count once."""
    for processes in (1, 2):
        launched(tmp_path / str(processes), processes, 21, policy="stage:1")
    one, two = (results(tmp_path / name / "out") for name in "12")
    assert two["results"]["tandem_pair_math"] == pytest.approx(one["results"]["tandem_pair_math"])
    assert two["n-samples"] == one["n-samples"]
    assert records(tmp_path / "2") == records(tmp_path / "1")
    totals = [found["config"]["tandem"]["totals"] for found in (one, two)]
    assert [found["questions"] for found in totals] == [21, 21]
    assert totals[1]["tflops"] == totals[0]["tflops"]
    answers = [[sample["resps"][0][0] for sample in samples(tmp_path / name)] for name in "12"]
    assert answers[1] == answers[0]


ENDED = """
from pathlib import Path
from lm_eval_tandem import pair
from lm_eval_tandem.harness.distributed import end_process_group
from lm_eval_tandem.model import TandemLM

TandemLM(policy="mentor", mentor=str(pair.MENTOR), mentor_backend="hf")
end_process_group()
print("threads:", *[(task / "comm").read_text().strip() for task in Path("/proc/self/task").iterdir()])
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="only Linux lists a process's threads in a folder")
def test_a_rank_that_has_ended_leaves_no_thread_of_the_group(tmp_path: Path) -> None:
    """A thread of gloo that lives while the interpreter ends may abort its process, which ends the other rank too."""
    printed = run([*TWO, "--no-python", sys.executable, "-c", ENDED], tmp_path)
    assert printed.count("threads:") == 2
    assert "gloo" not in printed


UNSUPERVISED = """
import sys
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval_tandem.model import TandemLM

what, rank = sys.argv[1], int(sys.argv[2])

@register_model("failing")
class Failing(LM):
    tokenizer_name = "none"

    def __init__(self, pretrained):
        super().__init__()
        self.fails = pretrained
        if what == "loading" and rank == 1:
            raise RuntimeError("no space left")

    def generate_until(self, requests, disable_tqdm=False):
        if any(self.fails in request.args[0] for request in requests):
            raise RuntimeError("out of memory")
        return [request.args[0].upper() for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        if any(self.fails in request.args[0] for request in requests):
            raise RuntimeError("out of memory")
        return [(0.0, True) for _ in requests]

    loglikelihood_rolling = loglikelihood

lm = TandemLM(policy="mentor", mentor="q0", mentor_backend="failing")
settings = {"until": [], "max_gen_toks": 999999999 if what == "window" and rank == 1 else 20}
context = f"{'pq'[rank]}0"
asked = Instance("generate_until", {}, (context, settings), 0, ("t", rank, 1))
if what == "likelihood":
    asked = Instance("loglikelihood", {}, (context, "x"), 0, ("t", rank, 1))
    lm.loglikelihood([asked], disable_tqdm=True)
else:
    lm.generate_until([asked], disable_tqdm=True)
"""


@pytest.mark.parametrize(
    ("what", "sentence"),
    [
        ("loading", "no space left"),
        ("question", "1 of 2 questions failed (t #1)"),
        ("window", "does not fit into the window"),
        ("likelihood", "out of memory"),
    ],
)
def test_an_error_of_one_rank_ends_both(tmp_path: Path, what: str, sentence: str) -> None:
    """Nothing supervises the processes, as under srun or mpirun: neither may wait for the other."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {**ENVIRONMENT, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    running = [
        forked.Process(
            ["-c", UNSUPERVISED, what, str(rank)],
            tmp_path,
            {**shared, "MASTER_PORT": str(port), "RANK": str(rank), "LOCAL_RANK": str(rank)},
            Path(tempfile.mkdtemp(dir=tmp_path)),
        )
        for rank in (0, 1)
    ]
    try:
        ended = [process.wait(PATIENCE) for process in running]
    finally:
        for process in running:
            process.kill()
    said = [process.complained() for process in running]
    assert ended == [1, 1], said
    assert all(sentence in text for text in said), said


@pytest.mark.slow
def test_two_ranks_are_faster_than_one(tmp_path: Path) -> None:
    """One thread each, on two cores that nothing else uses; medians of three runs."""
    seconds = {
        processes: sorted(launched(tmp_path / f"{turn}-{processes}", processes, 400) for turn in range(3))[1]
        for processes in (1, 2)
    }
    assert seconds[1] / seconds[2] >= 1.6, seconds
