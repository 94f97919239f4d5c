"""What the paper's policies cost on a GPU, in ten minutes: `make bench-gpu`.

    python benchmarks/gpu.py --minutes 10                                (a machine with a GPU)
    python benchmarks/gpu.py --device cpu --shapes tiny --minutes 1      (the same code on a CPU)

No weights are needed: models have random ones, in the shapes of 32B and 7B parameters and of 1.5B and 0.5B. Measured
are the mentor alone, the cascade, always-high and the intern alone, with 1, 16 and 64 questions in flight, with vLLM
(where it is installed) and transformers; the memory; and how exact the judge's entropies are in bfloat16.

Everything that is measured is in `results/bench/gpu-<name of the GPU>.json` and `.md` at once, so a run that is killed
loses nothing, and the next one measures what is missing. What takes too long runs on fewer tokens than the paper's, by
a factor that the table names, or is left out, which it says.

Nothing is installed. A pair of models and an engine are one process of their own (`gpu_group.py`), so that one that
fails, or ends too late, harms no other.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpu_results import LIBRARIES, PAIRS, Group, Results

ROOT = Path(__file__).resolve().parents[1]
NEEDED = "accelerate datasets dill jinja2 lm_eval numpy psutil sacrebleu safetensors scipy sklearn torch transformers"
"""What the package imports with transformers."""
VERSIONS = ("torch", "transformers", "vllm", "lm_eval", "accelerate", "numpy")
"""Packages whose versions are in the results."""
WORTH = {"large": 4.0, "small": 1.0, "tiny": 1.0}
"""Parts of the time that a group gets, relative to the others that are left."""
LEAST_SECONDS = 20.0
"""With less time than this left, no further process is started; libraries alone take as long to import."""


def main() -> None:
    """Run the command."""
    started = time.time()
    given = parser().parse_args()
    require_packages(given.engines)
    results = Results.of_device(given.output, device_name(given.device))
    groups = [group for group in chosen_groups(given) if results.missing(group)]
    if not groups:
        print(f"{results.file} has everything; remove it to measure again.")
        return
    results.sessions.append(session(given.commit, started))
    results.save()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the process below is ended, too
    deadline = started + 60 * given.minutes
    failed = [group.title for i, group in enumerate(groups) if not measure(group, groups[i:], results, given, deadline)]
    results = Results(results.file, results.device)
    results.sessions[-1]["seconds"] = round(time.time() - started, 1)
    results.save()
    print(f"\n{results.file.with_suffix('.md').read_text(encoding='utf-8')}")
    if failed:
        sys.exit(f"Failed: {'; '.join(failed)}. The table says why; the next run tries again.")


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    installed = ["vllm", "hf"] if find_spec("vllm") else ["hf"]
    parser.add_argument("--minutes", type=float, default=10.0, help="for everything, start and loading included")
    parser.add_argument("--engines", nargs="+", choices=list(LIBRARIES), default=installed, help="in this order")
    parser.add_argument("--shapes", nargs="+", choices=list(PAIRS), default=["large", "small"], help="in this order")
    parser.add_argument("--in_flight", type=int, nargs="+", default=[1, 16, 64], help="numbers of questions, in order")
    parser.add_argument("--factor", type=float, default=1.0, help="largest one on the paper's numbers of tokens")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "bench", help="folder for the results")
    parser.add_argument("--commit", default="", help="what git would say, where the checkout came without its history")
    return parser


def require_packages(engines: list[str]) -> None:
    """End with one sentence where a package is missing; nothing is installed here."""
    needed = [*NEEDED.split(), *(["vllm"] if "vllm" in engines else [])]
    missing = [name for name in needed if find_spec(name) is None]
    if missing:
        sys.exit(
            f"{sys.executable} has no {', '.join(missing)}; install the package there "
            f"(pip install {'.[vllm]' if 'vllm' in missing else '.'}), or name another Python with PYTHON=."
        )


def device_name(device: str) -> str:
    """Return the name of the device; ends with one sentence where there is no GPU."""
    if device == "cpu":
        return "CPU"
    import torch

    if not torch.cuda.is_available():
        sys.exit(
            f"torch {torch.__version__} finds no GPU here; run this on a machine with one, or try the same code "
            "with --device cpu --shapes tiny."
        )
    return str(torch.cuda.get_device_name())


def chosen_groups(given: argparse.Namespace) -> list[Group]:
    """Return all groups in the order of their worth: every engine with the first pair, then with the next."""
    in_flight = tuple(dict.fromkeys(given.in_flight))
    return [Group(engine, pair, in_flight) for pair in given.shapes for engine in given.engines]


def session(commit: str, started: float) -> dict[str, Any]:
    """Return when this run started, on which commit, with which versions, and its command."""
    versions = {"Python": sys.version.split()[0]}
    for name in VERSIONS:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {
        "started": datetime.fromtimestamp(started, UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": commit or git_commit(),
        "command": " ".join(["python benchmarks/gpu.py", *sys.argv[1:]]),
        "versions": versions,
    }


def git_commit() -> str:
    """Return the commit that is checked out, and whether files of it were changed."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--abbrev=12", "--dirty= with changes", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def measure(group: Group, left: list[Group], results: Results, given: argparse.Namespace, deadline: float) -> bool:
    """Measure a group in a process of its own and return whether that ended well.

    Parameters
    ----------
    group
        The first of `left`.
    left
        The groups that are left.
    results
        Their file; the process continues it.
    given
        The command line.
    deadline
        When the process is ended, and with it the whole run.
    """
    results = Results(results.file, results.device)
    results.expect(group)
    now = time.time()
    if deadline - now < LEAST_SECONDS:
        results.explain(group, "no time was left")
        return True
    until = now + (deadline - now) * WORTH[group.pair] / sum(WORTH[other.pair] for other in left)
    arguments = {
        "engine": group.engine,
        "pair": group.pair,
        "factor": given.factor,
        "device": given.device,
        "device_name": results.device,
        "results": results.file,
        "until": until,
        "deadline": deadline,
    }
    command = [sys.executable, str(ROOT / "benchmarks" / "gpu_group.py")]
    command += [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
    command += ["--in_flight", *map(str, group.in_flight)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, start_new_session=True)
    try:
        code = process.wait(timeout=max(0.0, deadline - time.time()))
    except subprocess.TimeoutExpired:
        code = None
    finally:
        end(process)
    results = Results(results.file, results.device)
    results.explain(group, "the time was up" if code is None else f"its process ended with code {code}")
    return code in (0, None)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and those that it has started."""
    with suppress(ProcessLookupError):  # all have ended
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    main()
