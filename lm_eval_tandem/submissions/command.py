"""`lm-eval-tandem submit`: one subcommand per format, made from `FORMATS`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol, cast

from lm_eval_tandem.submissions import FORMATS

Commands = Any
"""What `ArgumentParser.add_subparsers` returns; its class is private."""


class Format(Protocol):
    """What the module of a format offers."""

    HELP: str
    """One line for the command's help."""

    def add_options(self, parser: argparse.ArgumentParser) -> None:
        """Declare the options of this format besides RESULTS and --output."""

    def export(self, given: argparse.Namespace) -> Sequence[str]:
        """Write the files into the folder `given.output` and return the lines to print."""


def add_submit(commands: Commands) -> None:
    """`lm-eval-tandem submit`."""
    submit = commands.add_parser("submit", help="write results as a leaderboard takes them; nothing is uploaded")
    formats = submit.add_subparsers(required=True, metavar="FORMAT")
    for name in FORMATS:
        module = cast("Format", import_module(f"lm_eval_tandem.submissions.{name}"))
        parser = formats.add_parser(name, help=module.HELP, description=module.HELP)
        parser.add_argument(
            "results",
            type=Path,
            nargs="+",
            help="folders given to lm_eval as --output_path (with --log_samples), and folders with the runs' ledgers",
        )
        parser.add_argument("--output", type=Path, required=True, help="folder for the files")
        module.add_options(parser)
        parser.set_defaults(run=run_submit, export=module.export)


def run_submit(given: argparse.Namespace) -> None:
    """`lm-eval-tandem submit`."""
    for line in given.export(given):
        print(line)
