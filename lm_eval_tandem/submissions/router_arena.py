"""RouterArena (https://github.com/RouteWorks/RouterArena): configuration, predictions, robustness file, and the score.

The files lie as in the board's repository, which takes them by a pull request. A row of predictions names one model:
the one whose answer is returned, as in the cascades that the board has, or with `--prediction dearest` the dearest one
that was called. `cost` is what all calls cost, as the ledger has it. The board's evaluator computes costs anew, from
all tokens of a row at the price of the model that the row names; what it will get is in score.json as well.

`router_arena_models` has names and prices, `router_arena_rows` the rows, `router_arena_score` the formulas.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ArgumentError

if TYPE_CHECKING:
    from lm_eval_tandem.submissions.router_arena_models import PricedModel
    from lm_eval_tandem.submissions.sources import SubmittedRun
    from lm_eval_tandem.submissions.task_results import TaskResults

HELP = "files for a pull request to RouterArena, and its score"
ROBUSTNESS = "_robustness"
"""Ending of the name of the task with rephrased prompts."""
SPLITS = {809: "sub_10", 8400: "full"}
"""RouterArena's splits by their number of prompts."""
SETTINGS = ("policy", "efforts", "insights", "guidance", "selection", "aggregation", "thresholds", "recipe", "version")
"""Entries of a run's description that the configuration repeats."""

Rows = list[dict[str, Any]]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Declare the options of this format."""
    parser.add_argument("--router", metavar="NAME", help="what the board calls the router (default: the run's name)")
    parser.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="ROLE=NAME",
        help="a model's name in the board's universal_model_names.py, as in mentor=gpt-4o-mini",
    )
    parser.add_argument(
        "--prices",
        type=Path,
        metavar="FILE",
        help="copy of the board's model_cost/model_cost.json; a run with other prices is refused",
    )
    parser.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="the board's file of prompts (dataset/router_data.json or router_data_10.json); other prompts are refused",
    )
    parser.add_argument(
        "--prediction",
        choices=("answering", "dearest"),
        default="answering",
        help="the model that a row names: whose answer is returned (default), or the dearest that was called",
    )


def export(given: argparse.Namespace) -> list[str]:
    """Write the files, and return the lines to print.

    Raises
    ------
    ArgumentError
        The results hold no run, or several, on prompts of RouterArena, or a run that the board would refuse.
    """
    from lm_eval_tandem.submissions import router_arena_models, router_arena_rows, sources
    from lm_eval_tandem.submissions.redaction import Redaction

    found = [(run, task) for run in sources.read(given.results) for task in run.tasks if is_arena(task)]
    submitted, task = only([pair for pair in found if not pair[1].name.endswith(ROBUSTNESS)], "prompts")
    models = router_arena_models.read(submitted, given.name, given.prices)
    refuse_fitting(submitted)
    redaction = Redaction()
    public = {} if given.prompts is None else router_arena_rows.read_prompts(given.prompts)
    rows = router_arena_rows.rows_of(task, models, given.prediction, public, redaction)
    rephrased: Rows = []
    others = [pair for pair in found if pair[1].name.endswith(ROBUSTNESS)]
    if others:
        again, other = only(others, "rephrased prompts")
        refuse_other_router(submitted, again)
        rephrased = router_arena_rows.rows_of(other, models, given.prediction, {}, redaction)
    router = given.router or re.sub(r"[^\w.-]+", "-", submitted.name, flags=re.ASCII)
    if not re.fullmatch(r"[\w.-]+", router, re.ASCII):
        raise ArgumentError(
            f"--router {router} becomes a file name of the board; use letters, digits, '.', '-' and '_'."
        )
    figures = figures_of(router, rows, rephrased, models, given.prices)
    files: dict[str, Any] = {
        f"router_inference/config/{router}.json": configuration(router, submitted, models),
        f"router_inference/predictions/{router}.json": rows,
        **({f"router_inference/predictions/{router}-robustness.json": rephrased} if rephrased else {}),
        "registration.json": registration(models),
        "score.json": figures,
    }
    for name, content in files.items():
        write(given.output / name, content)
    changed = redaction.replaced
    return [
        *(str(given.output / name) for name in files),
        *summary(figures, len(rows)),
        *submitted.notes,
        *doubts(figures, models, len(rows), bool(rephrased), changed),
        *steps(router, models if given.prices else {}, len(rows)),
    ]


def is_arena(task: TaskResults) -> bool:
    """Whether a task asks prompts of RouterArena."""
    samples = next(iter(task.samples.values()), ())
    return bool(samples) and "global index" in (samples[0].get("doc") or {})


def only(found: Sequence[tuple[SubmittedRun, TaskResults]], what: str) -> tuple[SubmittedRun, TaskResults]:
    """The single run on a kind of prompts."""
    if len(found) == 1:
        return found[0]
    if not found:
        raise ArgumentError(
            f"the results hold no run on {what} of RouterArena; run tandem_router_arena, or tandem_router_arena_full."
        )
    names = "; ".join(sorted({", ".join([f"{run.name} on {task.name}", *task.told_apart]) for run, task in found}))
    raise ArgumentError(
        f"the results hold {len(found)} runs on {what} of RouterArena ({names}); name one run's folder."
    )


def refuse_fitting(submitted: SubmittedRun) -> None:
    """Refuse a classifier that was fitted on RouterArena's prompts, which the board forbids."""
    tasks = (submitted.description.get("judge") or {}).get("tasks") or []
    own = [task for task in tasks if "router_arena" in task]
    if own:
        raise ArgumentError(
            f"the classifier of {submitted.name} was fitted on {own[0]}; RouterArena refuses routers that were fitted "
            "or tuned on its data."
        )


def refuse_other_router(submitted: SubmittedRun, again: SubmittedRun) -> None:
    """Refuse a run on rephrased prompts that is of other models or settings than the run on the prompts."""
    from lm_eval_tandem.reports.sources.runs import identity

    if identity(submitted.description) != identity(again.description):
        raise ArgumentError(
            f"the runs {submitted.name} on the prompts and {again.name} on the rephrased ones have other models or "
            "settings; RouterArena compares one router with itself."
        )


def configuration(router: str, submitted: SubmittedRun, models: Mapping[str, PricedModel]) -> dict[str, Any]:
    """The router's configuration file; the board's own programs read its name and its models."""
    from lm_eval_tandem.submissions.redaction import shorts

    facts = {name: submitted.description.get(name) for name in SETTINGS}
    roles = {role: model.name for role, model in models.items()}
    return {
        "pipeline_params": {
            "router_name": router,
            "models": [model.name for model in models.values()],
            "roles": roles,
            "settings": shorts(facts),
            "made_with": "lm-eval-tandem",
        }
    }


def registration(models: Mapping[str, PricedModel]) -> dict[str, Any]:
    """Entries for the board's lists of names and prices, for models that its price list does not have.

    Without a price list to compare with they are those of all models.
    """
    new = [model for model in models.values() if not model.listed]
    return {
        "universal_model_names.py": [model.name for model in new],
        "model_cost/model_cost.json": {model.name: model.entry for model in new},
    }


def figures_of(
    router: str, rows: Rows, rephrased: Rows, models: Mapping[str, PricedModel], price_list: Path | None
) -> dict[str, Any]:
    """The content of score.json."""
    from lm_eval_tandem.digits import total
    from lm_eval_tandem.submissions import router_arena_score as formulas

    prices = {model.name: model.prices for model in models.values()}
    accuracy, cost = formulas.accuracy(rows), formulas.dollars_per_1000(rows)
    recomputed = 1000 * total([formulas.recomputed(row, prices) for row in rows]) / len(rows)
    return {
        "router": router,
        "prompts": len(rows),
        "accuracy": accuracy,
        "dollars": total([row["cost"] for row in rows]),
        "dollars_per_1000": cost,
        "score": None if accuracy is None else formulas.score(accuracy, cost),
        "robustness": formulas.robustness(rows, rephrased),
        "recomputed_by_the_evaluator": {
            "dollars_per_1000": recomputed,
            "score": None if accuracy is None else formulas.score(accuracy, recomputed),
        },
        "price_list": None if price_list is None else price_list.name,
        "prices": {model.name: model.entry for model in models.values()},
    }


def summary(figures: Mapping[str, Any], rows: int) -> list[str]:
    """The figures as lines."""
    told = f"{rows:,} prompts, {figures['dollars_per_1000']:.4g} dollars per 1,000"
    if figures["accuracy"] is None:
        told += "; accuracy and score are the board's to find out, since the local copy has no answers"
    else:
        told += f", accuracy {figures['accuracy']:.4f} by the local grader, score {figures['score']:.4f}"
    if figures["robustness"] is not None:
        told += f", robustness {figures['robustness']:.4f}"
    return [told]


def doubts(
    figures: Mapping[str, Any], models: Mapping[str, PricedModel], rows: int, has_robustness: bool, redacted: int
) -> list[str]:
    """What may keep the board from taking the files, or make it count otherwise."""
    again, cost = figures["recomputed_by_the_evaluator"]["dollars_per_1000"], figures["dollars_per_1000"]
    found = [
        f"The board's evaluator prices all tokens of a row as those of the model that it names: {again:.4g} dollars "
        f"per 1,000 from these files, where the calls cost {cost:.4g}."
    ]
    if again < cost * (1 - 1e-9):
        found.append(
            "That is less than every call on the bill, which the board asks for: say so in the pull request and point "
            "to the costs in the rows, or export with --prediction dearest."
        )
    if rows not in SPLITS:
        found.append(f"The board takes {' or '.join(f'{n:,}' for n in SPLITS)} prompts; these are {rows:,}.")
    if not has_robustness:
        found.append(
            "There is no run on rephrased prompts (tandem_router_arena_robustness), and the board wants a file of one."
        )
    cached = [model.role for model in models.values() if model.cached != model.input]
    if cached:
        found.append(
            f"The run has a price of its own for cached prompt tokens of {' and '.join(cached)}, which the board's "
            "list does not have."
        )
    if figures["price_list"] is None:
        names = " and ".join(model.name for model in models.values())
        found.append(
            f"Names and prices of {names} were not compared with the board's list: give --prices FILE, a copy of its "
            "model_cost/model_cost.json. registration.json has an entry for each model, needed only for those that "
            "the list lacks."
        )
    if redacted:
        found.append(
            f"{redacted:,} texts held what looks like a key, or a path or name of this machine, and were redacted; a "
            "redacted prompt fails the board's check, so give --prompts FILE if the prompts are the board's own."
        )
    return found


def steps(router: str, compared: Mapping[str, PricedModel], rows: int) -> list[str]:
    """How to hand the files in; `compared` are the models whose prices were compared with the board's list."""
    new = [model.name for model in compared.values() if not model.listed]
    split = SPLITS.get(rows, "full")
    check = f"uv run python router_inference/check_config_prediction_files.py {router}"
    listed = [
        "copy the folder router_inference into a clone of github.com/RouteWorks/RouterArena",
        *(
            [
                f"add {' and '.join(new)} to universal_model_names.py and model_cost/model_cost.json there, as in "
                "registration.json, and name the providers' price pages in the pull request"
            ]
            if new
            else []
        ),
        f"check there: {check} {split} --check-generated-result, and {check} robustness",
        "open a pull request and comment /evaluate on it; the board forbids training or tuning on its data",
    ]
    return [f"{number}. {step}" for number, step in enumerate(listed, 1)]


def write(file: Path, content: Any) -> None:
    """Write JSON as the board's files have it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise ArgumentError(f"{file} cannot be written ({error.strerror}); give another --output.") from None
