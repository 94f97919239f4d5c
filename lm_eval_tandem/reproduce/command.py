"""`lm-eval-tandem reproduce`: what made a results folder, what differs here, and whether it comes out again."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ArgumentError, TandemError

if TYPE_CHECKING:
    from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun

Commands = Any
"""What `ArgumentParser.add_subparsers` returns; its class is private."""
SUFFIX = "-reproduced"
"""What the folder of new results is called after the old one's name."""


def add_reproduce(commands: Commands) -> None:
    """`lm-eval-tandem reproduce`."""
    reproduce = commands.add_parser("reproduce", help="the commands that made a results folder, and what differs here")
    reproduce.add_argument("results", type=Path, help="folder given to lm_eval as --output_path")
    reproduce.add_argument(
        "--run",
        action="store_true",
        dest="again",
        help="run the commands, and compare scores and answers; exit code 1 if any differ or cannot be run",
    )
    reproduce.add_argument(
        "--output", type=Path, default=None, help=f"new folder for --run (default: RESULTS{SUFFIX}, beside RESULTS)"
    )
    reproduce.set_defaults(run=run_reproduce)


def run_reproduce(given: argparse.Namespace) -> None:
    """`lm-eval-tandem reproduce`."""
    from lm_eval_tandem.reports.sources import harness_files, recorded_runs

    if given.output is not None and not given.again:
        raise ArgumentError("--output is the folder of new results; give it with --run.")
    runs = recorded_runs.read(harness_files.find_results(given.results))
    for run in runs:
        print_run(run)
    if given.again:
        whole = given.results.resolve()
        run_all(runs, given.output or whole.with_name(whole.name + SUFFIX))


def print_run(run: RecordedRun) -> None:
    """Print a run: its command, what it depended on, and what of that differs here."""
    from lm_eval_tandem.reproduce import facts, harness_command
    from lm_eval_tandem.reproduce.fact import grouped

    found = facts.of(run)
    print(f"{run.name} on {', '.join(harness_command.requested(run))} ({run.file.name})")
    print(f"  command: {shlex.join(harness_command.printed(run))}")
    for line in grouped(found):
        print(f"  {line}")
    if left_out := harness_command.left_out(run):
        print(f"  left out of the command, as keys and passwords are: {', '.join(left_out)}")
    differences = [fact.difference for fact in found if fact.difference]
    for sentence in differences or ["Nothing that was recorded differs here."]:
        print(f"  here: {sentence}")
    print(flush=True)


def run_all(runs: list[RecordedRun], output: Path) -> None:
    """Run everything again, one folder per run, and compare; a run that cannot be run here does not stop the others.

    Raises
    ------
    TandemError
        Something came out differently, or could not be run.
    """
    from lm_eval_tandem.reproduce import rerun

    rerun.new_folder(output)
    different, failed = 0, []
    for number, run in enumerate(runs, 1):
        try:
            now = rerun.run_again(run, output / f"{number:02}-{run.file.parent.name}")
            sentences, same = rerun.compare(run, now)
        except TandemError as error:
            failed.append(f"{run.file.name}: {error}")
            print(f"{run.name} could not be run; the reason stands at the end.", flush=True)
            continue
        different += not same
        for sentence in sentences:
            print(f"{run.name} on {sentence}", flush=True)
    print(f"new results: {output}")
    if failed:
        print(f"{len(failed):,} of {len(runs):,} runs could not be run here:")
        for line in failed:
            print(f"  {line}")
    said = [f"{different:,} came out differently"] if different else []
    said += [f"{len(failed):,} could not be run"] if failed else []
    if said:
        raise TandemError(f"of {len(runs):,} runs {' and '.join(said)}; the lines above say how and why.")
