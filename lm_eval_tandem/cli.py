"""`lm-eval-tandem`: from two models and a training task to a fitted classifier."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_tandem import __version__
from lm_eval_tandem.errors import ArgumentError, TandemError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a `TandemError` ends it with its sentence and exit code 1."""
    parser = parsers()
    given = parser.parse_args(arguments)
    try:
        given.run(given)
    except TandemError as error:
        print(f"lm-eval-tandem: error: {error}", file=sys.stderr)
        sys.exit(1)


def parsers() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(prog="lm-eval-tandem", description=__doc__)
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    collect = commands.add_parser("collect", help="run every stage over a training task and keep features and grades")
    collect.add_argument("--model_args", default="", help="as for lm_eval --model tandem: mentor=…,intern=…,…")
    collect.add_argument("--tasks", required=True, help="training tasks, with commas between them")
    collect.add_argument("--output", type=Path, required=True, help="folder; a killed run goes on from what is there")
    collect.add_argument("--include_path", action="append", default=[], help="folder with more task files")
    collect.add_argument("--batch_size", default=None)
    collect.add_argument("--device", default=None)
    collect.add_argument("--limit", type=float, default=None, help="questions per task, or a share below 1")
    collect.add_argument("--metric", default=None, help="the grade to learn (default: the task's first metric)")
    collect.add_argument("--gen_kwargs", default=None)
    collect.add_argument("--system_instruction", default=None)
    collect.add_argument("--apply_chat_template", action="store_true")
    collect.add_argument("--confirm_run_unsafe_code", action="store_true")
    collect.set_defaults(run=run_collect)

    fit = commands.add_parser("fit", help="fit a classifier and choose its thresholds on what was collected")
    fit.add_argument("collected", type=Path, help="the folder that collect wrote")
    fit.add_argument("--output", type=Path, required=True, help="folder of the classifier")
    fit.add_argument("--recipe", default="default", help="default, or paper")
    fit.add_argument(
        "--objective",
        default="accuracy",
        help="accuracy, accuracy@cost<=X (TFLOPs), or cost@accuracy>=always_high-D (0.005 is half a point)",
    )
    fit.add_argument("--seed", type=int, default=42)
    fit.set_defaults(run=run_fit)

    report = commands.add_parser("report", help="accuracy beside cost from what lm_eval wrote (with --log_samples)")
    report.add_argument("results", type=Path, nargs="+", help="folders given to lm_eval as --output_path")
    report.add_argument("--title", default="Results")
    report.add_argument("--output", type=Path, default=None, help="Markdown file (default: print)")
    report.set_defaults(run=run_report)
    return parser


def run_collect(given: argparse.Namespace) -> None:
    """`lm-eval-tandem collect`."""
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_tandem.collect import collect

    arguments = simple_parse_args_string(given.model_args)
    arguments |= {name: getattr(given, name) for name in ("batch_size", "device") if getattr(given, name) is not None}
    run: dict[str, Any] = {
        name: getattr(given, name)
        for name in (
            "limit",
            "gen_kwargs",
            "system_instruction",
            "apply_chat_template",
            "confirm_run_unsafe_code",
            "metric",
        )
    }
    path = collect(arguments, given.tasks.split(","), given.output, given.include_path, **run)
    print(f"collected: {path}")


def run_fit(given: argparse.Namespace) -> None:
    """`lm-eval-tandem fit`."""
    from lm_eval_tandem.collect import read
    from lm_eval_tandem.sufficiency import card, classifier
    from lm_eval_tandem.sufficiency.fit import fit_sufficiency

    if given.output.exists() and not given.output.is_dir():
        raise ArgumentError(f"--output {given.output} is a file; name a folder for the classifier.")
    data, description = read(given.collected)
    estimator, thresholds, report = fit_sufficiency(data, given.recipe, given.objective, given.seed)
    fitted_on = {
        "tasks": description["tasks"],
        "questions": report["questions"],
        "efforts": description["efforts"],
        "insights": description["insights"],
        "guidance": description["guidance"],
        "objective": given.objective,
        "report": report,
    }
    classifier.save(
        given.output,
        estimator,
        thresholds,
        pair={role: description[role]["model"] for role in ("mentor", "intern")},
        fitted_on=fitted_on,
        recipe=given.recipe,
        card=card.write(given.output.name, description, report),
    )
    print(json.dumps(report["cascade"] | {"thresholds": report["thresholds"]}))
    print(f"fitted: {given.output}")


def run_report(given: argparse.Namespace) -> None:
    """`lm-eval-tandem report`."""
    from lm_eval_tandem.reports import table

    text = table.markdown(given.results, given.title)
    if given.output is None:
        print(text, end="")
    else:
        given.output.write_text(text, encoding="utf-8")
        print(f"report: {given.output}")


if __name__ == "__main__":
    main()
