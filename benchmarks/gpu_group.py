"""Measures one engine with one pair of models, in a process of its own that `gpu.py` starts and, if need be, ends.

Whatever happens here is in the results file before the next part begins: its measurements, or why it is missing.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import resource
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from gpu_results import PAIRS, POLICIES, Group, Results

SHARE = 0.6
"""Of the time that a group has left, the largest share for one number of questions in flight, unless it is the last."""
LEAST_FACTOR = 0.05
"""Smallest factor on the paper's numbers of tokens that is still worth a measurement."""
MARGIN = 1.15
"""By how much a run may take longer than the pace of a few tokens predicts: its texts are longer."""
PACE_TOKENS = (4, 20)
"""A call of the first length is subtracted from one of the second, to leave out the reading of the prompt."""
GIB = 2**30


def main() -> None:
    """Measure what is missing of the group."""
    given = parser().parse_args()
    threading.Thread(target=end_with_parent, daemon=True).start()
    group = Group(given.engine, given.pair, tuple(given.in_flight))
    results = Results(given.results, given.device_name)
    warnings = Warnings()
    logging.getLogger("lm_eval_tandem").addHandler(warnings)
    try:
        from gpu_models import lacking_memory

        if lack := lacking_memory(group, given.device):
            results.explain(group, lack)
            return
        with tempfile.TemporaryDirectory() as folder:
            measurement = Measurement(group, results, given, Path(folder), warnings)
            measurement.entropies()
            for in_flight in group.in_flight:
                measurement.policies(in_flight, SHARE if in_flight != group.in_flight[-1] else 1.0)
    except Exception as error:  # of any library: the other groups go on, and the table says why this one has not
        results.explain(group, one_line(error))
        raise


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", required=True)
    parser.add_argument("--pair", required=True)
    parser.add_argument("--in_flight", type=int, nargs="+", required=True)
    parser.add_argument("--factor", type=float, required=True, help="largest factor on the paper's numbers of tokens")
    parser.add_argument("--device", required=True, help="cuda or cpu")
    parser.add_argument("--device_name", required=True)
    parser.add_argument("--results", type=Path, required=True, help="the JSON file")
    parser.add_argument("--until", type=float, required=True, help="when the group should end, as time.time has it")
    parser.add_argument("--deadline", type=float, required=True, help="when the whole run ends")
    return parser


def end_with_parent() -> None:
    """End this process as soon as its parent has ended, for whatever reason."""
    os.read(sys.stdin.fileno(), 1)  # there is nothing to read but the end
    os._exit(1)


class Warnings(logging.Handler):
    """Collects the package's warnings, such as that of a batch that did not fit into the memory."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one warning."""
        self.texts.append(record.getMessage())

    def take(self) -> list[str]:
        """Return the warnings since the last call."""
        texts, self.texts = self.texts, []
        return texts


class Measurement:
    """The loaded models of a group and what is measured on them.

    Parameters
    ----------
    group, results
        What to measure, and where it goes.
    given
        The command line.
    folder
        Where to save the models' configurations.
    warnings
        Those of the package.
    """

    def __init__(
        self, group: Group, results: Results, given: argparse.Namespace, folder: Path, warnings: Warnings
    ) -> None:
        from gpu_models import arguments, load
        from work import Bench

        self.group, self.results, self.warnings = group, results, warnings
        self.until, self.deadline, self.largest_factor = given.until, given.deadline, given.factor
        self.on_gpu = given.device == "cuda"
        self.slowness = 1.0
        """How much longer runs have taken than was predicted."""
        engines, seconds, gib = [], [], []
        for name, its_arguments in zip(PAIRS[group.pair], arguments(group, given.device), strict=True):
            started, before = time.perf_counter(), self.used()
            engines.append(load(group.engine, folder, name, its_arguments))
            seconds.append(round(time.perf_counter() - started, 2))
            gib += [round(self.used() - before, 3)] if self.on_gpu else []
        self.bench = Bench(*engines)
        parameters = [engine.parameters for engine in engines]
        results.add(group.part("load"), {"seconds": seconds, "gib": gib, "parameters": parameters})
        print(f"{group.title}: loaded in {sum(seconds):.0f} s", flush=True)

    def used(self) -> float:
        """Return how much of the GPU's memory is taken, in GiB."""
        if not self.on_gpu:
            return 0.0
        from gpu_models import memory

        free, total = memory("cuda")
        return (total - free) / GIB

    def entropies(self) -> None:
        """Measure how exact the intern's entropies are."""
        from gpu_entropies import exactness

        name = self.group.part("entropies")
        if name not in self.results.parts:
            self.results.add(name, exactness(self.group.engine, self.bench.intern))

    def policies(self, in_flight: int, share: float) -> None:
        """Run every policy that is missing, all on as many of the paper's tokens as the time allows.

        Parameters
        ----------
        in_flight
            Number of questions, all at the same time.
        share
            Share of the group's time left that the runs may take.
        """
        names = dict(zip(self.group.runs(in_flight), POLICIES, strict=True))
        todo = {name: policy for name, policy in names.items() if name not in self.results.parts}
        if not todo:
            return
        self.bench.policy("cascade", in_flight, in_flight, 0.02)  # warm-up
        paces = [self.pace(engine, in_flight) for engine in (self.bench.mentor, self.bench.intern)]
        whole = {policy: self.predicted(policy, in_flight, paces) for policy in todo.values()}
        factors = [self.results.parts[name]["factor"] for name in names if name in self.results.parts]
        allowed = share * (self.until - time.time()) / max(sum(whole.values()), 1e-9)
        factor = factors[0] if factors else min(self.largest_factor, int(100 * allowed) / 100)
        if factor < LEAST_FACTOR:
            needed = LEAST_FACTOR * sum(whole.values())
            self.results.skip(list(todo), f"{LEAST_FACTOR:g} of the tokens need {needed:.0f} s, more than was left")
            return
        for name, policy in todo.items():
            self.run(name, policy, in_flight, factor, whole[policy] * factor)

    def run(self, name: str, policy: str, in_flight: int, factor: float, predicted: float) -> None:
        """Run one policy, unless it would not end in time; an error of a run is the reason why it is missing."""
        left = self.deadline - time.time()
        if predicted * self.slowness > left:
            self.results.skip([name], f"about {predicted * self.slowness:.0f} s needed, {max(left, 0):.0f} s left")
            return
        self.reset_peak()
        try:
            run = self.bench.policy(policy, in_flight, in_flight, factor)
        except Exception as error:  # of any library; the next policy may work
            self.results.skip([name], one_line(error))
            print(f"{name}: {one_line(error)}", file=sys.stderr, flush=True)
            return
        self.slowness = max(1.0, run.wall * MARGIN / predicted)
        measured = {"in_flight": in_flight, "factor": factor, **run.to_json(), **self.peak()}
        self.results.add(name, measured | {"warnings": self.warnings.take()})
        print(f"{name}, tokens × {factor:g}: {run.wall / in_flight:.2f} s per question", flush=True)

    def pace(self, engine: Any, in_flight: int) -> float:
        """Return the seconds in which an engine generates one token of each of so many texts."""
        from gpu_entropies import words

        from lm_eval_tandem.engines import Prompt, Sampling

        async def seconds(tokens: int) -> float:
            prompts = [Prompt(words(f"{tokens} {i}", 150)) for i in range(in_flight)]
            started = time.perf_counter()
            await asyncio.gather(*(engine.generate(prompt, Sampling(tokens)) for prompt in prompts))
            return time.perf_counter() - started

        few, many = (asyncio.run(seconds(tokens)) for tokens in PACE_TOKENS)
        return max(many - few, many / 10) / (PACE_TOKENS[1] - PACE_TOKENS[0])

    def predicted(self, policy: str, in_flight: int, paces: list[float]) -> float:
        """Return how many seconds a policy takes at the paper's numbers of tokens, at these paces of the two models."""
        from work import ANSWER_TOKENS, EFFORTS, stopping_stages

        mentor = {"mentor": ANSWER_TOKENS["mentor"], "stage:3": EFFORTS[-1], "intern": 0}
        stages = (0, *EFFORTS)
        mentor["cascade"] = max(stages[stage] for stage in stopping_stages(in_flight))
        intern = 0 if policy == "mentor" else ANSWER_TOKENS[policy]
        return MARGIN * (paces[0] * mentor[policy] + paces[1] * intern)

    def reset_peak(self) -> None:
        """Forget the most memory that was taken so far."""
        if self.on_gpu:
            import torch

            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> dict[str, Any]:
        """Return the most memory that was taken since: `gib`, the figure of the table, and the device's as a whole."""
        if not self.on_gpu:
            return {"gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)}
        import torch

        used = round(self.used(), 3)
        own = round(torch.cuda.max_memory_allocated() / GIB, 3)  # vLLM's processes are others
        return {"gib": own if self.group.engine == "hf" else used, "device_gib": used}


def one_line(error: BaseException) -> str:
    """Return the first 300 characters of an error, in one line."""
    return (" ".join(str(error).split()) or type(error).__name__)[:300].rstrip(".")


if __name__ == "__main__":
    main()
