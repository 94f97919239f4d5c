"""How long a question takes: the mentor alone, the intern alone, always-high and the cascade, side by side (Table 13).

The models have the sizes that are asked for and random weights, so nothing is downloaded and no answer means anything;
the numbers of tokens, and the share of questions that stop at each stage, are forced to the paper's averages. What is
measured is real: engines, judge passes with a classifier, prompts that grow. One run compares everything:

    python benchmarks/latency.py --engine hf --mentor 32e6 --intern 7e6
    python benchmarks/latency.py --engine vllm --preset paper          (32B and 7B shapes, bfloat16, one large GPU)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import sys
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

import torch
from work import PAPER, Bench, Run, build, shape

from lm_eval_tandem.engines import Engine, Role, registry


def row(run: Run, mentor: Run | None) -> str:
    """One line of the table."""
    mean, median = statistics.fmean(run.seconds), statistics.median(run.seconds)
    faster = f"{mentor.wall / run.wall:.2f}" if mentor is not None else ""
    return (
        f"| {run.policy} | {len(run.seconds)} | {run.wall / len(run.seconds):.2f} | {mean:.2f} | {median:.2f} | "
        f"{run.tokens / run.wall:.0f} | {100 * run.judge_share:.1f} | {100 * run.recomputed:.2f} | {faster} |"
    )


HEAD = (
    "| policy | questions | s per question (wall) | latency mean s | median s | tokens/s | judge % | read again % | "
    "times as fast as the mentor |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def peak_memory() -> str:
    """The largest resident size of this process and of a child, or what the GPU held at most."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU"
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{own:.2f} GiB resident" + (f", {child:.2f} GiB in the largest child" if child else "")


def hardware(engine: str) -> str:
    """What it ran on, and the versions, in words."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        device = f"{os.cpu_count()} CPU cores ({platform.machine()}), threads per engine: {threads}"
    library = "transformers" if engine == "hf" else engine
    return f"{device}; {library} {version(library)}, torch {torch.__version__}"


def numbers(text: str) -> list[int]:
    """1,4,16"""
    return [int(number) for number in text.split(",")]


def engine_of(name: str, folder: Path, arguments: dict[str, Any]) -> Engine:
    """A loaded engine."""
    return registry.load(Role(str(folder), name, arguments, folder.name))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="hf", help="hf or vllm")
    parser.add_argument("--mentor", type=float, default=32e6, help="parameters, about")
    parser.add_argument("--intern", type=float, default=7e6, help="parameters, about")
    parser.add_argument("--preset", choices=["paper"], help="the paper's 32B and 7B shapes instead")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", default="10", help="one number, or several with commas")
    parser.add_argument("--in_flight", default="1", help="one number, or several with commas")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the paper's tokens, for quick looks")
    parser.add_argument("--policies", default="mentor,intern,stage:3,cascade")
    parser.add_argument("--apart", action="store_true", help="also drive each engine alone with the cascade's work")
    parser.add_argument("--mentor_args", default="", help="engine arguments, as name=value,…")
    parser.add_argument("--intern_args", default="")
    parser.add_argument("--output", type=Path, help="folder for the table and the file of figures")
    given = parser.parse_args()

    from lm_eval.utils import simple_parse_args_string

    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for seed, role in enumerate(("mentor", "intern")):
            sizes = PAPER[role] if given.preset else shape(getattr(given, role), given.vocabulary)
            dummy = given.preset is not None and given.engine == "vllm"
            arguments: dict[str, Any] = {"dtype": given.dtype, "batch_size": max(numbers(given.in_flight))}
            arguments |= {"load_format": "dummy"} if dummy else {}
            arguments |= simple_parse_args_string(getattr(given, f"{role}_args"))
            built = build(Path(folder) / role, sizes, given.vocabulary, seed, weights=not dummy)
            engines.append(engine_of(given.engine, built, arguments))
        measure(Bench(*engines), given)
        for engine in engines:
            engine.close()


def measure(bench: Bench, given: argparse.Namespace) -> None:
    """Everything that was asked for; the table as it grows, and the files."""
    mentor, intern = bench.mentor.parameters, bench.intern.parameters
    assert mentor is not None
    assert intern is not None
    pair = f"{mentor / 1e6:,.1f}M + {intern / 1e6:,.1f}M parameters"
    scaled = f", times {given.scale}" if given.scale != 1 else ""
    text = [
        f"# Latency: {given.engine}, {pair} ({mentor / intern:.2f}:1)",
        "",
        f"Random weights, {given.dtype}; the paper's token counts and stage shares{scaled}. "
        f"{hardware(given.engine)}. `{command()}`",
    ]
    print("\n".join(text), flush=True)
    found: list[dict[str, Any]] = []
    for count, places in product(numbers(given.questions), numbers(given.in_flight)):
        lines = ["", f"## {count} questions, {places} in flight", "", HEAD]
        print("\n".join(lines), flush=True)
        bench.policy("cascade", min(2, count), places, 0.02)  # warms everything up
        runs: list[Run] = []
        for policy in given.policies.split(","):
            runs.append(bench.policy(policy, count, places, given.scale))
            lines.append(row(runs[-1], next((run for run in runs if run.policy == "mentor"), None)))
            print(lines[-1], flush=True)
        found.append({"task": f"token counts of MATH{scaled}", "pair": f"random weights, {pair}"})
        found[-1] |= figures(runs, given, places)
        if given.apart:
            alone = bench.apart(count, places, given.scale)
            together = next(run.wall for run in runs if run.policy == "cascade")
            lines += ["", compared(together, *alone)]
            print(lines[-1], flush=True)
            found[-1] |= {"mentor_part_alone": round(alone[0], 3), "intern_part_alone": round(alone[1], 3)}
        text += lines
    text += ["", f"Peak memory: {peak_memory()}."]
    print(text[-1])
    if given.output is not None:
        write(given, text, found)


def compared(together: float, mentor: float, intern: float) -> str:
    """The cascade's throughput beside that of its two halves."""
    alone, slower = mentor + intern, max(mentor, intern)
    return (
        f"The cascade took {together:.1f} s. Each engine driven alone with the same work, one after the other, took "
        f"{mentor:.1f} + {intern:.1f} s: the cascade reaches {100 * alone / together:.0f} % of that throughput. "
        f"If neither had to wait for the other or to share the machine with it, the slower one would still need "
        f"{slower:.1f} s: {100 * slower / together:.0f} %."
    )


def command() -> str:
    """The command line that is running, for the head of the table."""
    return " ".join(["python benchmarks/latency.py", *sys.argv[1:]])


def figures(runs: list[Run], given: argparse.Namespace, places: int) -> dict[str, Any]:
    """What `lm-eval-tandem report` reads of one number of questions in flight (its `reports/sections/latency.py`)."""
    return {
        "format": "tandem-latency/1",
        "engine": given.engine,
        "hardware": hardware(given.engine),
        "concurrency": places,
        "runs": [
            {
                "policy": run.policy,
                "seconds": [round(value, 3) for value in run.seconds],
                "wall": round(run.wall, 3),
                "tokens_per_second": round(run.tokens / run.wall, 1),
                "judge_share": round(run.judge_share, 5),
                "recomputed": round(run.recomputed, 5),
            }
            for run in runs
        ],
    }


def write(given: argparse.Namespace, text: list[str], found: list[dict[str, Any]]) -> None:
    """The table and its figures: latency-<engine>, which the report shows; sweep-<over>-<engine> of several points."""
    given.output.mkdir(parents=True, exist_ok=True)
    over = [name for name in ("questions", "in_flight") if "," in getattr(given, name)]
    name = "-".join(["sweep" if over else "latency", *over, given.engine])
    (given.output / f"{name}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    told = json.dumps(found if over else found[0], indent=1)
    (given.output / f"{name}.json").write_text(told + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
