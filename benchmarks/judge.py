"""What judging costs in all: the cascade as it runs, against the same cascade told beforehand where to stop.

Both give the same answers from the same stages. The second asks no judge: it measures no token, begins no answer that
is refused, and reads no draft. What the first takes beyond it is all that judging takes, however one names its parts.
The two take turns; ratios are of neighbours, and the median is said.

    python benchmarks/judge.py --questions 300 --batch_sizes 1,4,16,64
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


@dataclass(frozen=True)
class Told:
    """A judge that knows the stage and looks at nothing."""

    stage: int
    passes: bool
    probe: None = None
    reads_prompt: bool = False

    @property
    def thresholds(self) -> tuple[float, ...]:
        """That which the stage's score passes, or, where the stage was the best of all, none does."""
        return (0.5 if self.passes else 1.0,) * 16

    def look(self, features: NDArray[np.float64], begun: None) -> NDArray[np.float64]:
        """The stage."""
        return features

    def score(self, features: NDArray[np.float64]) -> float:
        """1 at the stage that is known, 0 at all others."""
        return float(features[-1] == self.stage)


class Routed:
    """In the place of a `Cascade`: each question with a judge that was told its stage."""

    def __init__(self, cascade: Cascade, records: list[Record]) -> None:
        self.cascade = cascade
        self.stages = {record.key: (record.stage, record.reason == "sufficient") for record in records}

    async def answer(self, task: Task) -> tuple[str, Record]:
        """See `Cascade.answer`."""
        told = Told(*self.stages[task.task, task.doc_id, task.repeat])
        return await replace(self.cascade, judge=told).answer(task)


@dataclass(frozen=True)
class Run:
    """Seconds that both engines and the judge worked, wall seconds, and every answer."""

    busy: float
    wall: float
    answers: dict[tuple[str, int], str]


def run(lm: TandemLM, manager: Any, tasks: list[str], questions: int) -> Run:
    """The tasks once."""
    from lm_eval import simple_evaluate

    before, lm.records, lm._seconds = busy(lm), [], 0.0
    found = simple_evaluate(model=lm, tasks=tasks, task_manager=manager, limit=questions, bootstrap_iters=0)
    assert found is not None
    answers = {(t, s["doc_id"]): s["resps"][0][0] for t, samples in found["samples"].items() for s in samples}
    return Run(busy(lm) - before, lm._seconds, answers)


def busy(lm: TandemLM) -> float:
    """Seconds that the engines and the judge have worked so far."""
    work = [engine.work for engine in (lm._mentor, lm._intern) if engine is not None]
    return sum(one.generate_seconds + one.judge_seconds for one in work)


def main() -> None:
    """Command line."""
    from lm_eval.tasks import TaskManager

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_args", default="", help="as for lm_eval --model tandem; default: the bundled pair")
    parser.add_argument("--tasks", default="tandem_pair_math")
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--batch_sizes", default="1,4,16,64")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="Markdown file for the same table")
    given = parser.parse_args()

    from lm_eval.utils import simple_parse_args_string

    torch.set_num_threads(given.threads)
    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    lines = [
        "# What judging costs in all",
        "",
        f"`python benchmarks/judge.py {' '.join(sys.argv[1:])}`: {given.questions} questions of {given.tasks}, "
        f"{given.repeats} pairs of runs a batch size, medians; torch {torch.__version__}, {given.threads} thread(s) "
        f"on a CPU with {torch.backends.cpu.get_cpu_capability()}.",
        "",
        "| batch size | measures, classifier % | all that judging adds: engines' seconds % [least, most] | "
        "wall seconds % | refused tokens % of the intern's |",
        "|---:|---:|---:|---:|---:|",
    ]
    print("\n".join(lines), flush=True)
    for size in given.batch_sizes.split(","):
        lm = TandemLM(**simple_parse_args_string(given.model_args), batch_size=size)
        cascade, tasks = lm.cascade, given.tasks.split(",")
        run(lm, manager, tasks, min(given.questions, 2 * int(size)))  # warms everything up
        own, added, wall = [], [], []
        for _ in range(given.repeats):
            lm.cascade = cascade
            before = lm._intern.work.judge_seconds
            live = run(lm, manager, tasks, given.questions)
            own.append(
                (lm._intern.work.judge_seconds - before) / (live.busy - (lm._intern.work.judge_seconds - before))
            )
            tokens = lm.totals()
            lm.cascade = Routed(cascade, lm.records)
            told = run(lm, manager, tasks, given.questions)
            assert told.answers == live.answers, "told where to stop, the cascade gave other answers"
            added.append(live.busy / told.busy - 1)
            wall.append(live.wall / told.wall - 1)
        refused = tokens["refused_tokens"] * tokens["questions"] / tokens["tokens"]["intern_new"]
        shares = [statistics.median(own), statistics.median(added), min(added), max(added), statistics.median(wall)]
        lines.append(
            "| {} | {:.1f} | {:.1f} [{:.1f}, {:.1f}] | {:.1f} | {:.1f} |".format(
                size, *(100 * share for share in (*shares, refused))
            )
        )
        print(lines[-1], flush=True)
        lm.close()
    if given.output is not None:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
