"""What a comparison lacks for a table or figure, in a sentence, with the commands that would make the missing runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.labels import slug, without_paths
from lm_eval_tandem.reports.sources.other_models import OtherModel
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Missing

NOT_REPEATED = ("policy", "ledger", "classifier", "thresholds", "record_features", "record_insights")
"""Model arguments that the command for another run does not take over."""


def missing_runs(comparison: Comparison, what: str, policies: Iterable[str], ledger: bool = False) -> Missing:
    """Return the sentence that `what` needs the runs that are not there, with a command for each.

    Parameters
    ----------
    comparison
        The runs that are there.
    what
        Subject of the sentence, in the singular: "The trade-off".
    policies
        Policies that `what` needs; `stage:N` stands for any stage.
    ledger
        Whether the runs need a ledger that records features.
    """
    needed = list(policies)
    lacking = [policy for policy in needed if not has_run(comparison, policy, ledger)]
    how = "ledger=FILE and record_features=True" if ledger else "ledger=FILE"
    if not lacking:
        reason = (
            f"{what} needs figures that the runs of {comparison.title} have not recorded; repeat each with {how} "
            "(and for costs with `parameters` of a model behind a server)."
        )
        return Missing(reason, "\n".join(command(comparison, policy, ledger=True) for policy in needed))
    return Missing(
        f"{what} needs the runs {', '.join(lacking)} of {comparison.title}"
        + (f", each with {how}." if ledger else "."),
        "\n".join(command(comparison, policy, ledger) for policy in lacking),
    )


def has_run(comparison: Comparison, policy: str, ledger: bool = False) -> bool:
    """Whether there is a run of a policy (`stage:N` matches any stage), with its ledger if that is needed."""
    wanted = "intern" if policy == "stage:0" else policy
    name, _, number = wanted.partition(":")
    runs = [
        run
        for run in comparison.runs
        if run.policy == wanted or (number == "N" and run.policy.partition(":")[0] == name)
    ]
    return any(run.records or not ledger for run in runs)


def command(
    comparison: Comparison,
    policy: str,
    ledger: bool = False,
    changes: Mapping[str, Any] | None = None,
    task: str | None = None,
) -> str:
    """Return the lm_eval command that runs a policy with the arguments of the comparison's other runs.

    Parameters
    ----------
    comparison
        The runs that are there.
    policy
        The policy to run.
    ledger
        Whether its ledger has to record features. Every run gets a ledger: a report has the whole bill from nowhere
        else, and of a task that is not the package's all costs.
    changes
        Model arguments of the run that those of the other runs do not have, or have other values of.
    task
        The task to run; None for the comparison's.
    """
    like, changed, task = run_like(comparison), changes or {}, task or comparison.domain
    models = like.arguments if like.model is None else {"mentor": "MENTOR", "intern": "INTERN"}
    kept = {name: value for name, value in models.items() if name not in (*NOT_REPEATED, *changed)}
    arguments = {"policy": policy, **changed, **kept}
    name = slug(f"{task}-{comparison.pair}-{policy}{'-other' * bool(changed)}")
    arguments["ledger"] = f"RUNS/ledger-{name}.jsonl"
    if ledger:
        arguments["record_features"] = True
    words = ["lm_eval --model tandem", f"--model_args {typed(arguments)}", f"--tasks {task}", *like.flags]
    words.append(f"--include_path {'task_configs' if task.startswith('tandem_') else 'FOLDER'}")
    return " ".join([*words, "--log_samples", "--output_path RUNS"])


def run_like(comparison: Comparison) -> Run:
    """Return the run whose model arguments and flags another run takes over."""
    return next((run for run in comparison.runs if run.policy), comparison.runs[0])


def typed(arguments: Mapping[str, Any]) -> str:
    """Return model arguments as they are typed: name=value with commas, or JSON in quotes where a value needs it."""
    texts = {name: without_paths(value) for name, value in arguments.items()}
    if any(isinstance(value, dict) or "," in texts[name] for name, value in arguments.items()):
        whole = {name: value if isinstance(value, dict) else texts[name] for name, value in arguments.items()}
        return f"'{json.dumps(whole)}'"
    return ",".join(f"{name}={text}" for name, text in texts.items())


def unknown_costs(comparison: Comparison, measure: str, where: str) -> list[Missing]:
    """Return which other models are not in a figure or table, since their cost is not known, and what would tell it.

    Parameters
    ----------
    comparison
        The runs that are there.
    measure
        The cost: `tflops` or `dollars`.
    where
        What they are not in, with its article: "the figure".
    """
    gaps: dict[tuple[str, str], list[str]] = {}
    for run in comparison.others:
        if measure not in run.measures and run.model is not None:
            gaps.setdefault(gap_of(run.model, measure), []).append(comparison.label(run))
    return [
        Missing(f"{' and '.join(labels)}: not in {where}, because {reason}.", options)
        for (reason, options), labels in gaps.items()
    ]


def gap_of(model: OtherModel, measure: str) -> tuple[str, str]:
    """Return why a cost of another model is not known, as the end of a sentence, and the command that would tell it."""
    if model.uncounted:
        return f"the tokens are not known: {model.uncounted}", ""
    needed: dict[str, tuple[str, object]] = {"--tokenizer": ("FOLDER", model.tokenizer)}
    if measure == "tflops":
        needed["--parameters"] = ("NUMBER", model.parameters)
    else:
        needed["--price"] = ("INPUT:CACHED:OUTPUT", model.prices)
    options = [f"{option} {model.short_name}={form}" for option, (form, known) in needed.items() if known is None]
    if not options:
        return "the samples hold no prompts to be counted", ""
    return "the cost is not known; give what the harness does not record", (
        f"lm-eval-tandem report RUNS {' '.join(options)}"
    )
