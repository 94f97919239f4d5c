"""What a comparison lacks for a table or figure, in a sentence, with the commands that would make the missing runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.labels import without_paths
from lm_eval_tandem.reports.table import Missing

NOT_REPEATED = ("policy", "ledger", "classifier", "thresholds", "record_features")
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


def command(comparison: Comparison, policy: str, ledger: bool = False) -> str:
    """Return the lm_eval command that runs a policy with the arguments of the comparison's other runs."""
    like = next((run for run in comparison.runs if run.policy), comparison.runs[0])
    arguments = {"policy": policy} | {n: value for n, value in like.arguments.items() if n not in NOT_REPEATED}
    if ledger:
        arguments |= {"ledger": f"RUNS/ledger-{policy.replace(':', '-')}.jsonl", "record_features": True}
    words = ["lm_eval --model tandem", f"--model_args {typed(arguments)}", f"--tasks {comparison.domain}", *like.flags]
    words += ["--include_path task_configs"] if comparison.domain.startswith("tandem_") else []
    return " ".join([*words, "--log_samples", "--output_path RUNS"])


def typed(arguments: Mapping[str, Any]) -> str:
    """Return model arguments as they are typed: name=value with commas, or JSON in quotes where a value needs it."""
    texts = {name: without_paths(value) for name, value in arguments.items()}
    if any(isinstance(value, dict) or "," in texts[name] for name, value in arguments.items()):
        whole = {name: value if isinstance(value, dict) else texts[name] for name, value in arguments.items()}
        return f"'{json.dumps(whole)}'"
    return ",".join(f"{name}={text}" for name, text in texts.items())
