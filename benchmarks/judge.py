"""The total overhead of judging: the cascade, compared with the same cascade that knows beforehand where to stop.

    python benchmarks/judge.py --questions 300 --batch_sizes 1,4,16,64

Both runs give the same answers from the same stages (the script fails if they do not). The second consults no judge: it
measures no token, starts no answer that is refused, and checks no draft. What the first takes longer is therefore all
that judging costs, measured or not. Runs alternate, each is compared with its neighbour, and medians over the repeats
are reported.

Prints a Markdown table with a row per batch size, which `--output FILE` also writes; results/bench/judge.md is one.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_eval_tandem import _paths
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.ledger import Record

HEADINGS = (
    "| batch size | measuring and classifying % | all that judging adds: engine seconds % [min, max] | "
    "wall-clock seconds % | refused tokens, % of the intern's |",
    "|---:|---:|---:|---:|---:|",
)


@dataclass(frozen=True)
class KnownStage:
    """A judge that knows where to stop and therefore needs no input.

    Attributes
    ----------
    stage
        The stage at which the question was answered.
    passes
        Whether this stage had passed its threshold; False if none had and it was the one with the highest score.
    """

    stage: int
    passes: bool
    probe: None = None
    reads_prompt: bool = False

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds that the known stage passes, or that no stage passes."""
        return (0.5 if self.passes else 1.0,) * 16

    def inputs(self, features: NDArray[np.float64], answer: None) -> NDArray[np.float64]:
        """Return the judge's input: the stage."""
        return features

    def score(self, features: NDArray[np.float64]) -> float:
        """Return 1 at the known stage, 0 at all others."""
        return float(features[-1] == self.stage)


class CascadeWithKnownStages:
    """Answers each question as a `Cascade` does, stopping where the records of an earlier run say.

    Parameters
    ----------
    cascade
        The cascade that made the records.
    records
        The ledger records of the same questions.
    """

    def __init__(self, cascade: Cascade, records: list[Record]) -> None:
        self.cascade = cascade
        self.stages = {record.key: (record.stage, record.reason == "sufficient") for record in records}

    async def answer(self, task: Task) -> tuple[str, Record]:
        """Answer one question; see `Cascade.answer`."""
        judge = KnownStage(*self.stages[task.task, task.doc_id, task.repeat])
        return await replace(self.cascade, judge=judge).answer(task)


@dataclass(frozen=True)
class Run:
    """One run over the tasks.

    Attributes
    ----------
    busy
        Seconds in which the engines and the judge worked.
    judging
        Of these, seconds in which the intern's engine measured tokens for the judge.
    wall
        Wall-clock seconds.
    answers
        Text by task and document id.
    """

    busy: float
    judging: float
    wall: float
    answers: dict[tuple[str, int], str]


@dataclass(frozen=True)
class Overhead:
    """What judging added in one pair of neighbouring runs, as shares of the run without a judge; see `HEADINGS`."""

    measured: float
    busy: float
    wall: float


def run_tasks(lm: TandemLM, manager: Any, tasks: list[str], questions: int) -> Run:
    """Run the tasks once with the harness."""
    from lm_eval import simple_evaluate

    busy, judging = busy_seconds(lm), lm._intern.work.judge_seconds
    lm.records, lm._seconds = [], 0.0
    results = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, limit=questions, bootstrap_iters=0)
    assert results is not None
    answers = {(t, s["doc_id"]): s["resps"][0][0] for t, samples in results["samples"].items() for s in samples}
    return Run(busy_seconds(lm) - busy, lm._intern.work.judge_seconds - judging, lm._seconds, answers)


def busy_seconds(lm: TandemLM) -> float:
    """Return the seconds in which the engines and the judge have worked so far."""
    work = [engine.work for engine in (lm._mentor, lm._intern) if engine is not None]
    return sum(one.generate_seconds + one.judge_seconds for one in work)


def measure(lm: TandemLM, manager: Any, tasks: list[str], questions: int, repeats: int) -> tuple[list[Overhead], float]:
    """Alternate runs with and without the judge.

    Returns
    -------
    overheads
        One per repeat.
    refused
        Tokens of refused answers, as a share of all tokens that the intern generated.
    """
    cascade = lm.cascade
    overheads = []
    refused = 0.0
    for _ in range(repeats):
        lm.cascade = cascade
        judged = run_tasks(lm, manager, tasks, questions)
        totals = lm.totals()
        refused = totals["refused_tokens"] * totals["questions"] / totals["tokens"]["intern_new"]
        lm.cascade = CascadeWithKnownStages(cascade, lm.records)
        known = run_tasks(lm, manager, tasks, questions)
        assert known.answers == judged.answers, "with known stages the cascade gave other answers"
        measured = judged.judging / (judged.busy - judged.judging)
        overheads.append(Overhead(measured, judged.busy / known.busy - 1, judged.wall / known.wall - 1))
    return overheads, refused


def row(batch_size: str, overheads: list[Overhead], refused: float) -> str:
    """Return one line of the table."""
    busy = [overhead.busy for overhead in overheads]
    shares = [
        statistics.median(overhead.measured for overhead in overheads),
        *(statistics.median(busy), min(busy), max(busy)),
        statistics.median(overhead.wall for overhead in overheads),
        refused,
    ]
    return "| {} | {:.1f} | {:.1f} [{:.1f}, {:.1f}] | {:.1f} | {:.1f} |".format(
        batch_size, *(100 * share for share in shares)
    )


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_args", default="", help="as for lm_eval --model tandem; default: the bundled pair")
    parser.add_argument("--tasks", default="tandem_pair_math")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch_sizes", default="1,4,16,64")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of runs per batch size")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file for the same table")
    return parser


def main() -> None:
    """Run the command."""
    from lm_eval.tasks import TaskManager
    from lm_eval.utils import simple_parse_args_string

    given = parser().parse_args()
    torch.set_num_threads(given.threads)
    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    lines = [
        "# The total overhead of judging",
        "",
        f"`python benchmarks/judge.py {' '.join(sys.argv[1:])}`: {given.questions} questions of {given.tasks}, medians "
        f"of {given.repeats} pairs of runs per batch size; torch {torch.__version__}, {given.threads} thread(s) on a "
        f"CPU with {torch.backends.cpu.get_cpu_capability()}.",
        "",
        *HEADINGS,
    ]
    print("\n".join(lines), flush=True)
    tasks = given.tasks.split(",")
    for size in given.batch_sizes.split(","):
        lm = TandemLM(**simple_parse_args_string(given.model_args), batch_size=size)
        run_tasks(lm, manager, tasks, min(given.questions, 2 * int(size)))  # warm-up
        lines.append(row(size, *measure(lm, manager, tasks, given.questions, given.repeats)))
        print(lines[-1], flush=True)
        lm.close()
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
