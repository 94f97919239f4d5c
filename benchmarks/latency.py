"""Time per question of the mentor alone, the intern alone, always-high and the cascade (paper, Table 13).

    python benchmarks/latency.py --engine hf --mentor 32e6 --intern 7e6

Models have the requested sizes and random weights, so nothing is downloaded and no answer means anything. Numbers of
tokens, and at which stage questions stop, are forced to the paper's averages; engines, judging and growing prompts are
real (see `work.py`).

Prints a Markdown table. With `--output FOLDER` writes latency-<engine>.md and .json there; the report shows the JSON
file. Several numbers in `--questions` or `--in_flight` make a sweep, written as sweep-<what varies>-<engine>, which the
report does not show. `make bench` runs what results/bench holds; models of the paper's sizes run on a GPU by `gpu.py`.
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
from random_models import save_model, shape_of
from work import Bench, Run

from lm_eval_tandem.engines import Engine, Role, registry

HEADINGS = (
    "| policy | questions | s per question (wall) | latency mean s | median s | tokens/s | judge % | recomputed % | "
    "times as fast as the mentor |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="hf", help="hf or vllm")
    parser.add_argument("--mentor", type=float, default=32e6, help="approximate number of parameters")
    parser.add_argument("--intern", type=float, default=7e6, help="approximate number of parameters")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", default="10", help="one number, or several with commas")
    parser.add_argument("--in_flight", default="1", help="questions that run at the same time; one number, or several")
    parser.add_argument("--scale", type=float, default=1.0, help="factor on the paper's numbers of tokens")
    parser.add_argument("--policies", default="mentor,intern,stage:3,cascade")
    parser.add_argument("--apart", action="store_true", help="also run each engine alone with its part of the cascade")
    parser.add_argument("--mentor_args", default="", help="engine arguments, as name=value,…")
    parser.add_argument("--intern_args", default="", help="engine arguments, as name=value,…")
    parser.add_argument("--output", type=Path, help="folder for the table and the JSON file")
    return parser


def main() -> None:
    """Run the command."""
    given = parser().parse_args()
    with tempfile.TemporaryDirectory() as folder:
        engines = [load_engine(role, Path(folder) / role, given) for role in ("mentor", "intern")]
        measure(Bench(*engines), given)
        for engine in engines:
            engine.close()


def load_engine(role: str, folder: Path, given: argparse.Namespace) -> Engine:
    """Save a model with random weights for a role, and return it in a loaded engine."""
    from lm_eval.utils import simple_parse_args_string

    seed = ("mentor", "intern").index(role)
    save_model(folder, shape_of(getattr(given, role), given.vocabulary), seed)
    arguments: dict[str, Any] = {"dtype": given.dtype, "batch_size": max(numbers(given.in_flight))}
    arguments |= simple_parse_args_string(getattr(given, f"{role}_args"))
    return registry.load(Role(str(folder), given.engine, arguments, folder.name))


def numbers(text: str) -> list[int]:
    """Return the numbers in a text such as "1,4,16"."""
    return [int(number) for number in text.split(",")]


def measure(bench: Bench, given: argparse.Namespace) -> None:
    """Run every policy at every point, print the table line by line, and write the files."""
    mentor, intern = bench.mentor.parameters, bench.intern.parameters
    assert mentor is not None
    assert intern is not None
    pair = f"{mentor / 1e6:,.1f}M + {intern / 1e6:,.1f}M parameters"
    scaled = f", times {given.scale}" if given.scale != 1 else ""
    command = " ".join(["python benchmarks/latency.py", *sys.argv[1:]])
    lines = [
        f"# Latency: {given.engine}, {pair} ({mentor / intern:.2f}:1)",
        "",
        f"Random weights, {given.dtype}; the paper's token counts and stage shares{scaled}. "
        f"{hardware(given.engine)}. `{command}`",
    ]
    print("\n".join(lines), flush=True)
    points: list[dict[str, Any]] = []
    for count, concurrency in product(numbers(given.questions), numbers(given.in_flight)):
        labels = {"task": f"token counts of MATH{scaled}", "pair": f"random weights, {pair}"}
        point, its_lines = measure_point(bench, given, count, concurrency)
        points.append(labels | point)
        lines += its_lines
    lines += ["", f"Peak memory: {peak_memory()}."]
    print(lines[-1])
    if given.output is not None:
        write(given, lines, points)


def measure_point(
    bench: Bench, given: argparse.Namespace, count: int, concurrency: int
) -> tuple[dict[str, Any], list[str]]:
    """Run every policy on one number of questions and of questions in flight; return its JSON and Markdown lines."""
    lines = ["", f"## {count} questions, {concurrency} in flight", "", HEADINGS]
    print("\n".join(lines), flush=True)
    bench.policy("cascade", min(2, count), concurrency, 0.02)  # warm-up
    runs: list[Run] = []
    for policy in given.policies.split(","):
        runs.append(bench.policy(policy, count, concurrency, given.scale))
        lines.append(row(runs[-1], next((run for run in runs if run.policy == "mentor"), None)))
        print(lines[-1], flush=True)
    point = to_json(runs, given.engine, concurrency)
    if given.apart:
        mentor_alone, intern_alone = bench.engines_alone(count, concurrency, given.scale)
        together = next(run.wall for run in runs if run.policy == "cascade")
        lines += ["", compare_with_engines_alone(together, mentor_alone, intern_alone)]
        print(lines[-1], flush=True)
        point |= {"mentor_part_alone": round(mentor_alone, 3), "intern_part_alone": round(intern_alone, 3)}
    return point, lines


def row(run: Run, mentor: Run | None) -> str:
    """Return one line of the table; `mentor`: the run of the mentor alone, if there was one before."""
    mean, median = statistics.fmean(run.seconds), statistics.median(run.seconds)
    times_as_fast = f"{mentor.wall / run.wall:.2f}" if mentor is not None else ""
    return (
        f"| {run.policy} | {len(run.seconds)} | {run.wall / len(run.seconds):.2f} | {mean:.2f} | {median:.2f} | "
        f"{run.tokens / run.wall:.0f} | {100 * run.judge_share:.1f} | {100 * run.recomputed:.2f} | {times_as_fast} |"
    )


def to_json(runs: list[Run], engine: str, concurrency: int) -> dict[str, Any]:
    """Return what the report reads, in the format of `lm_eval_tandem/reports/sections/latency.py`."""
    return {
        "format": "tandem-latency/1",
        "engine": engine,
        "hardware": hardware(engine),
        "concurrency": concurrency,
        "runs": [run.to_json() for run in runs],
    }


def compare_with_engines_alone(together: float, mentor: float, intern: float) -> str:
    """Return a paragraph on the cascade's throughput beside that of its two parts, all in seconds."""
    alone, slower = mentor + intern, max(mentor, intern)
    return (
        f"The cascade took {together:.1f} s. Each engine run alone with the same work, one after the other, took "
        f"{mentor:.1f} + {intern:.1f} s: the cascade reaches {100 * alone / together:.0f} % of that throughput. "
        f"If neither had to wait for the other or to share the machine with it, the slower one would still need "
        f"{slower:.1f} s: {100 * slower / together:.0f} %."
    )


def hardware(engine: str) -> str:
    """Return device and library versions in words."""
    if torch.cuda.is_available():
        device = torch.cuda.get_device_name()
    else:
        threads = torch.get_num_threads()
        device = f"{os.cpu_count()} CPU cores ({platform.machine()}), threads per engine: {threads}"
    library = "transformers" if engine == "hf" else engine
    return f"{device}; {library} {version(library)}, torch {torch.__version__}"


def peak_memory() -> str:
    """Return the largest resident size of this process and of its children, or the most that the GPU held."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU"
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{own:.2f} GiB resident" + (f", {child:.2f} GiB in the largest child" if child else "")


def write(given: argparse.Namespace, lines: list[str], points: list[dict[str, Any]]) -> None:
    """Write the table and the JSON file; the module's docstring says under which names."""
    given.output.mkdir(parents=True, exist_ok=True)
    varied = [name for name in ("questions", "in_flight") if "," in getattr(given, name)]
    name = "-".join(["sweep" if varied else "latency", *varied, given.engine])
    (given.output / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = json.dumps(points if varied else points[0], indent=1)
    (given.output / f"{name}.json").write_text(content + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
