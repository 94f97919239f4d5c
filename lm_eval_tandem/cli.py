"""`lm-eval-tandem`: from two models and a training task to a fitted classifier, and from runs to a report.

Each command is two functions: `add_<command>` declares its options, `run_<command>` calls the code behind it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lm_eval_tandem import __version__
from lm_eval_tandem.errors import INTERRUPTED, INTERRUPTED_CODE, ArgumentError, TandemError
from lm_eval_tandem.reproduce.command import add_reproduce
from lm_eval_tandem.submissions.command import add_submit

DESCRIPTION = "From two models and a training task to a fitted classifier, and from runs to a report."
OBJECTIVE = "accuracy, accuracy@cost<=X (unit: --cost), or cost@accuracy>=always_high-D (0.005 is half a point)"
COST = "unit of costs: tflops, dollars or tokens (default: the first that is known for both models)"
COLLECTED = "folders that collect wrote, all of one pair"

Commands = Any
"""What `ArgumentParser.add_subparsers` returns; its class is private."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a `TandemError` ends it with its sentence and exit code 1, and Ctrl-C with 130."""
    given = parser().parse_args(arguments)
    try:
        given.run(given)
    except TandemError as error:
        print(f"lm-eval-tandem: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print(f"\nlm-eval-tandem: {INTERRUPTED}", file=sys.stderr)
        sys.exit(INTERRUPTED_CODE)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    whole = argparse.ArgumentParser(prog="lm-eval-tandem", description=DESCRIPTION)
    whole.add_argument("--version", action="version", version=__version__)
    commands = whole.add_subparsers(required=True, metavar="COMMAND")
    for add in (
        add_run,
        add_serve,
        add_collect,
        add_fit,
        add_thresholds,
        add_report,
        add_submit,
        add_reproduce,
        add_arguments,
        add_ablation,
    ):
        add(commands)
    return whole


def add_run(commands: Commands) -> None:
    """`lm-eval-tandem run`."""
    run = commands.add_parser("run", help="answer questions of one's own, without a task")
    run.add_argument("config", type=Path, help="YAML file as for lm_eval --config, or of the authors' toolkit")
    run.add_argument("--input", type=Path, required=True, help="JSON Lines: messages, prompt, question, or instruction")
    run.add_argument("--output", type=Path, required=True, help="JSON Lines; beside it a .sqlite file to go on from")
    run.add_argument("--limit", type=int, default=None, help="answer the first so many rows")
    run.set_defaults(run=run_questions)


def run_questions(given: argparse.Namespace) -> None:
    """`lm-eval-tandem run`."""
    from lm_eval_tandem.harness.own_questions import run

    answered, failed = run(given.config, given.input, given.output, given.limit)
    print(f"answered: {answered:,} of {answered + failed:,} in {given.output}")
    if failed:
        raise ArgumentError(f"{failed:,} question(s) failed; each has its reason as `error` in {given.output}.")


def add_serve(commands: Commands) -> None:
    """`lm-eval-tandem serve`."""
    from lm_eval_tandem.server import command

    # no abbreviations: --api-key SECRET would be taken for --api-key-env, and the key repeated in the refusal
    about = "a policy or an ensemble as a server of the OpenAI protocol"
    serve = commands.add_parser("serve", help=about, allow_abbrev=False)
    command.add_options(serve)
    serve.set_defaults(run=command.serve)


def add_collect(commands: Commands) -> None:
    """`lm-eval-tandem collect`."""
    collect = commands.add_parser("collect", help="run every stage over a training task and keep features and grades")
    collect.add_argument("--model_args", default="", help="as for lm_eval --model tandem: mentor=…,intern=…,…")
    collect.add_argument("--tasks", required=True, help="training tasks, with commas between them")
    collect.add_argument("--output", type=Path, required=True, help="folder; a killed run continues from what is there")
    collect.add_argument("--include_path", action="append", default=[], help="folder with more task files")
    collect.add_argument("--batch_size", default=None, help="questions per batch, as for lm_eval")
    collect.add_argument("--device", default=None, help="as for lm_eval")
    collect.add_argument("--limit", type=float, default=None, help="questions per task, or a share below 1")
    collect.add_argument("--metric", default=None, help="the grade to learn (default: the task's first metric)")
    collect.add_argument(
        "--no_mentor",
        action="store_true",
        help="leave out the mentor's own answers, which fit --labels mentor needs and thresholds compares with",
    )
    collect.add_argument(
        "--policies",
        default="",
        metavar="POLICY,POLICY",
        help="also collect these policies, for thresholds to compare, as in budget_forcing:120,handoff:80,steps:0.5",
    )
    collect.add_argument(
        "--no_statistics",
        action="store_true",
        help="leave out the intern's pass over its prompts, which takes long with llama.cpp; fit --inputs probe can do "
        "without",
    )
    collect.add_argument(
        "--hidden",
        action="store_true",
        help="also keep the intern's hidden states and the prompts' tokens, which fit --inputs hidden and lora need",
    )
    collect.add_argument(
        "--reference",
        action="store_true",
        help="measure instead how the models of an ensemble (models=… in --model_args) read the questions, for its "
        "selections zscore and self_assessment",
    )
    collect.add_argument("--gen_kwargs", default=None, help="as for lm_eval")
    collect.add_argument("--system_instruction", default=None, help="as for lm_eval")
    collect.add_argument("--apply_chat_template", action="store_true", help="as for lm_eval")
    collect.add_argument("--confirm_run_unsafe_code", action="store_true", help="as for lm_eval")
    collect.set_defaults(run=run_collect)


def run_collect(given: argparse.Namespace) -> None:
    """`lm-eval-tandem collect`."""
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_tandem.training.collect import collect

    arguments = simple_parse_args_string(given.model_args)
    arguments |= {name: getattr(given, name) for name in ("batch_size", "device") if getattr(given, name) is not None}
    if given.reference:
        run_collect_reference(given, arguments)
        return
    run: dict[str, Any] = {
        name: getattr(given, name)
        for name in (
            "limit",
            "gen_kwargs",
            "system_instruction",
            "apply_chat_template",
            "confirm_run_unsafe_code",
            "metric",
            "hidden",
        )
    }
    run["mentor"] = not given.no_mentor
    run["prompts"] = not given.no_statistics
    run["policies"] = [text.strip() for text in given.policies.split(",") if text.strip()]
    path = collect(arguments, given.tasks.split(","), given.output, given.include_path, **run)
    print(f"collected: {path}")


def run_collect_reference(given: argparse.Namespace, arguments: dict[str, Any]) -> None:
    """`lm-eval-tandem collect --reference`."""
    from lm_eval_tandem.training.reference_questions import collect_from_tasks

    for name in ("metric", "policies", "hidden", "no_mentor", "no_statistics", "gen_kwargs"):
        if getattr(given, name):
            raise ArgumentError(f"--{name} has no effect with --reference, which answers no question; leave it out.")
    names = ("limit", "system_instruction", "apply_chat_template", "confirm_run_unsafe_code")
    run = {name: getattr(given, name) for name in names}
    path = collect_from_tasks(arguments, given.tasks.split(","), given.output, given.include_path, **run)
    print(f"collected: {path}")


def add_fit(commands: Commands) -> None:
    """`lm-eval-tandem fit`."""
    fit = commands.add_parser("fit", help="fit a classifier and choose its thresholds on collected questions")
    fit.add_argument("collected", type=Path, nargs="+", help=COLLECTED)
    fit.add_argument("--output", type=Path, required=True, help="folder of the classifier")
    fit.add_argument("--recipe", default="default", help="default, or paper")
    fit.add_argument(
        "--inputs",
        default=None,
        help="statistics, probe, or statistics+probe; default: the recipe's. Or hidden, the intern's hidden state, "
        "and lora, the same after finetuning the intern (both from collect --hidden)",
    )
    fit.add_argument("--model", default=None, help="mlp, boosting or logistic; by default the recipe's")
    fit.add_argument(
        "--labels",
        default="truth",
        help="truth (the task's grades), or mentor (agreement with its own answers)",
    )
    fit.add_argument("--per", default="all", help="all (one classifier), or task (one each, in folders)")
    fit.add_argument("--objective", default="accuracy", help=OBJECTIVE)
    fit.add_argument("--cost", default=None, help=COST)
    fit.add_argument("--seed", type=int, default=42, help="of folds, splits and networks")
    fit.add_argument("--device", default=None, help="of the intern, for --inputs lora")
    fit.add_argument("--batch_size", type=int, default=8, help="prompts per batch, for --inputs lora")
    fit.set_defaults(run=run_fit)


def run_fit(given: argparse.Namespace) -> None:
    """`lm-eval-tandem fit`."""
    from lm_eval_tandem.training.fit_folder import fit

    names = ("cost", "recipe", "inputs", "model", "labels", "seed", "device", "batch_size")
    how = {name: getattr(given, name) for name in names}
    for folder, report in fit(given.collected, given.output, given.per, given.objective, **how):
        print(json.dumps(report["cascade"] | {name: report[name] for name in ("cost_unit", "thresholds", "probe")}))
        print(f"fitted: {folder}")


def add_thresholds(commands: Commands) -> None:
    """`lm-eval-tandem thresholds`."""
    thresholds = commands.add_parser(
        "thresholds", help="every policy's accuracy and cost from collected questions, and which one to use"
    )
    thresholds.add_argument("collected", type=Path, nargs="+", help=COLLECTED)
    thresholds.add_argument(
        "--classifier",
        type=Path,
        default=None,
        help="folder that fit wrote; without it the policies that need none are compared",
    )
    thresholds.add_argument("--objective", default="accuracy", help=OBJECTIVE)
    thresholds.add_argument("--cost", default=None, help=COST)
    thresholds.add_argument("--labels", default="truth", help="truth, or mentor")
    thresholds.add_argument("--points", type=int, default=15, help="points of the trade-off to print")
    thresholds.add_argument("--output", type=Path, default=None, help="JSON file for the same figures")
    thresholds.set_defaults(run=run_thresholds)


def run_thresholds(given: argparse.Namespace) -> None:
    """`lm-eval-tandem thresholds`."""
    from lm_eval_tandem.training.tradeoff import format_points, thresholds, write_points

    found, advice = thresholds(
        given.collected, given.classifier, given.objective, given.points, given.labels, given.cost
    )
    print(format_points(found))
    print(f"\n{advice}")
    if given.output is not None:
        write_points(found, given.output)


def add_report(commands: Commands) -> None:
    """`lm-eval-tandem report`."""
    report = commands.add_parser("report", help="accuracy beside cost from what lm_eval wrote (with --log_samples)")
    report.add_argument("results", type=Path, nargs="+", help="folders given to lm_eval as --output_path")
    report.add_argument("--title", default="Results", help="heading of the report")
    report.add_argument(
        "--output",
        type=Path,
        default=None,
        help="a folder for all formats, or a file ending in .md, .tex or .html (default: print Markdown)",
    )
    report.add_argument("--metric", default=None, help="the grade to report, NAME or NAME,FILTER (default: the first)")
    report.add_argument("--by", default=None, help="field of the questions that names their subject")
    report.add_argument("--collected", type=Path, default=None, help="what collect wrote, for feature importance")
    report.add_argument("--classifier", default=None, help="name or folder (default: the cascade's, if it is known)")
    report.add_argument("--only", default=None, help="sections by name, with commas between them (default: all)")
    for name, form, what in (
        ("parameters", "NAME=NUMBER", "number of parameters of another model than tandem's; may be repeated"),
        ("tokenizer", "NAME=FOLDER", "folder of its tokenizer, which counts its tokens; may be repeated"),
        ("price", "NAME=INPUT:CACHED:OUTPUT", "its dollars per million tokens; may be repeated"),
    ):
        report.add_argument(f"--{name}", metavar=form, action="append", default=[], help=what)
    report.set_defaults(run=run_report)


def run_report(given: argparse.Namespace) -> None:
    """`lm-eval-tandem report`."""
    from lm_eval_tandem.reports.formats import markdown
    from lm_eval_tandem.reports.report import only, report, write
    from lm_eval_tandem.reports.sources.other_models import GivenCosts

    known = GivenCosts.read(given.parameters, given.tokenizer, given.price)
    made = report(given.results, given.title, given.metric, given.by, given.collected, given.classifier, known)
    if given.only is not None:
        made = only(made, given.only.split(","))
    if given.output is None:
        print(markdown.render(made), end="")
    else:
        print(f"report: {write(made, given.output)[0]}")


def add_arguments(commands: Commands) -> None:
    """`lm-eval-tandem arguments`."""
    arguments = commands.add_parser("arguments", help="the model arguments of lm_eval --model tandem or ensemble")
    arguments.add_argument(
        "table",
        nargs="?",
        default="cascade",
        choices=("cascade", "policies", "ensemble", "selections", "aggregations", "openai", "llamacpp"),
        help="the arguments of --model tandem (default) and its policies, of --model ensemble and its strategies, or "
        "the options of a model behind a server or run by llama.cpp",
    )
    arguments.add_argument("--markdown", action="store_true", help="as the table of the documentation")
    arguments.set_defaults(run=run_arguments)


def run_arguments(given: argparse.Namespace) -> None:
    """`lm-eval-tandem arguments`."""
    from lm_eval_tandem.harness import arguments

    print(arguments.markdown(given.table) if given.markdown else arguments.plain_text(given.table))


def add_ablation(commands: Commands) -> None:
    """`lm-eval-tandem ablation`, which is no command any more."""
    ablation = commands.add_parser("ablation", help="has moved to benchmarks/ablation.py of the repository")
    ablation.add_argument("arguments", nargs=argparse.REMAINDER)
    ablation.set_defaults(run=run_ablation)


def run_ablation(given: argparse.Namespace) -> None:
    """`lm-eval-tandem ablation`: says where the command has gone."""
    raise ArgumentError(
        "the command ablation is a tool of the repository and is not installed with the package; "
        "in a checkout, run python benchmarks/ablation.py with the same arguments."
    )


if __name__ == "__main__":
    main()
