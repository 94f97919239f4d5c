"""`lm-eval-tandem collect`: run every stage over a training task, to have data to fit a classifier on.

The harness runs once per stage; all runs share the mentor's text through a store, so a killed collection continues
from there. Labels are the grades that the task itself gives to the intern's answer at each stage. `rows` joins both,
`collected_file` keeps the result on disk, and `fit` learns from it.
"""

from __future__ import annotations

import difflib
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem import _paths, ledger
from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.cascade.policies import POLICIES, Policy, kind_of
from lm_eval_tandem.cascade.prompts import TEMPLATE
from lm_eval_tandem.engines import ScoringView, registry
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.judge.features import SCHEMA
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.training import collected_file
from lm_eval_tandem.training.rows import QuestionId, Row, entries_of_policy, final_answers, rows_of_stage

if TYPE_CHECKING:
    from lm_eval_tandem.harness.model import TandemLM

STORE = "store.sqlite"
MENTOR = "mentor"
"""The policy whose answers `fit --labels mentor` compares with."""
PILOT_QUESTIONS = 16
"""Questions per task that are run first, to estimate what all will cost."""


@dataclass
class HarnessRun:
    """The harness with one model and some tasks, to be run under one policy after the other.

    Parameters
    ----------
    lm
        The model; it records features.
    tasks
        Names of the tasks.
    manager
        The harness's task manager.
    metric
        The grade to learn; None for each task's first metric.
    arguments
        Further arguments of the harness's `simple_evaluate`.
    """

    lm: TandemLM
    tasks: list[str]
    manager: Any
    metric: str | None
    arguments: dict[str, Any]

    def evaluate(self, policy: str, limit: float | None) -> tuple[list[Record], dict[str, Any]]:
        """Run the tasks under a policy; returns its records and the harness's results."""
        from lm_eval import simple_evaluate

        self.lm.use(policy)
        arguments = {**self.arguments, "limit": limit}
        results = simple_evaluate(
            model=self.lm, tasks=self.tasks, task_manager=self.manager, bootstrap_iters=0, **arguments
        )
        assert results is not None
        return self.lm.records, results

    @property
    def stage_policies(self) -> list[str]:
        """The policy of every stage, stage 0 first."""
        return [f"stage:{stage}" for stage in range(len(self.lm.settings.efforts) + 1)]

    def rows(self, limit: float | None, others: Sequence[str]) -> list[Row]:
        """Run these policies, then every stage; returns one row per question and stage."""
        mentor_answers: dict[QuestionId, str] = {}
        entries: dict[QuestionId, list[dict[str, Any]]] = {}
        for policy in others:
            records, results = self.evaluate(policy, limit)
            found = entries_of_policy(policy, records, results["samples"], self._metrics(results))
            for question, entry in found.items():
                entries.setdefault(question, []).append(entry)
            if policy == MENTOR:
                mentor_answers = final_answers(results["samples"])
        rows: list[Row] = []
        for stage, policy in enumerate(self.stage_policies):
            records, results = self.evaluate(policy, limit)
            metrics = self._metrics(results)
            rows += rows_of_stage(
                records, results["samples"], stage, metrics, mentor_answers, entries if stage == 0 else None
            )
        return rows

    def _metrics(self, results: dict[str, Any]) -> dict[str, str]:
        """The metric of each task that counts."""
        return {task: self.metric or config["metric_list"][0]["metric"] for task, config in results["configs"].items()}


def collect(
    arguments: dict[str, Any],
    tasks: Sequence[str],
    output: Path,
    include: Sequence[str],
    *,
    limit: float | None = None,
    metric: str | None = None,
    mentor: bool = True,
    hidden: bool = False,
    prompts: bool = True,
    policies: Sequence[str] = (),
    **evaluation: Any,
) -> Path:
    """Run every stage over the tasks and write what was measured; an estimate of the cost is printed first.

    Parameters
    ----------
    arguments
        As in `--model_args`, without policy, store, ledger and record_…, which are set here.
    tasks
        Names of the training tasks.
    output
        The folder for collected.parquet and the store; a killed run continues from the latter.
    include
        Folders with further task files.
    limit
        Questions per task, or a share of them below 1; None for all.
    metric
        The grade to learn; None for each task's first metric.
    mentor
        Whether to collect the mentor's own answers too: `fit --labels mentor` needs them, and `thresholds` compares
        with them.
    hidden
        Whether to collect the intern's hidden states and the prompts' tokens too, for `fit --inputs hidden` and `lora`.
    prompts
        Whether to collect the intern's statistics of its prompts, which `fit --inputs statistics` needs. Without them,
        or where the intern's engine has none, a classifier reads the first tokens of the answer.
    policies
        Further policies without a judge, such as "budget_forcing:120" or "steps:0.5", for `thresholds` to compare.
    **evaluation
        Further arguments of the harness's `simple_evaluate`, such as apply_chat_template and gen_kwargs.

    Returns
    -------
    Path
        The Parquet file.

    Raises
    ------
    ArgumentError, ClassifierError
        An argument cannot work.
    """
    from lm_eval_tandem.harness.model import TandemLM  # brings torch and transformers

    for name in ("policy", "store", "ledger", "record_features", "record_insights"):
        if name in arguments:
            raise ArgumentError(f"collect sets {name} itself; leave {name}={arguments[name]} out of --model_args.")
    if hidden and not prompts:
        raise ArgumentError("--hidden keeps what the intern's pass over a prompt gives; leave out --no_statistics.")
    if hidden:
        backend = str(arguments.get("intern_backend", arguments.get("backend", "hf")))
        registry.check_view(ScoringView(hidden=True), backend, "collect --hidden")
    check_limit(limit)
    check_policies(policies)
    check_step_end(arguments, policies)
    manager = task_manager(tasks, include)
    check_tasks(tasks, manager)
    check_metric(metric, tasks, manager)
    make_folder(output)
    recorded = {"record_features": "answers", "record_insights": True}
    lm = TandemLM(**arguments, policy="stage:1", store=output / STORE, **recorded)
    if hidden:
        lm.record_hidden()
    intern = lm.engines["intern"]
    assert intern is not None
    if prompts and not intern.cannot_score:
        lm.record_prompts()
    elif prompts:
        print(f"collect: only the answers' first tokens are measured, because {intern.cannot_score}", file=sys.stderr)
    run = HarnessRun(lm, list(tasks), manager, metric, evaluation)
    print_unknown_sizes(lm)
    others = [*([MENTOR] if mentor else []), *policies]
    print_estimate(run, limit, others)
    rows = run.rows(limit, others)
    description = _description(lm, tasks, hidden) | {TEMPLATE: bool(evaluation.get(TEMPLATE))}
    lm.close()
    return collected_file.write(output / collected_file.NAME, rows, description)


def task_manager(tasks: Sequence[str], include: Sequence[str]) -> Any:
    """The harness's task manager; its own tasks are indexed only if needed, because that takes long."""
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = [_paths.task_configs(), *include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    return manager if set(tasks) <= set(manager.all_tasks) else TaskManager(include_path=folders)


def check_tasks(tasks: Sequence[str], manager: Any) -> None:
    """Raise ArgumentError where the harness's task manager knows no task, group or file of one of these names."""
    for name in tasks:
        if not manager.match_tasks([name]) and not Path(name).is_file():
            close = difflib.get_close_matches(name, manager.all_tasks, n=1)
            hint = f"did you mean {close[0]}?" if close else "`lm_eval ls tasks` lists all."
            raise ArgumentError(f"--tasks {name} is no task that is known; {hint} Add own ones with --include_path.")


def check_limit(limit: float | None) -> None:
    """Raise ArgumentError for a limit that selects no questions."""
    if limit is not None and not 0 < limit < math.inf:
        raise ArgumentError(
            f"--limit {limit:g} selects no questions; give their number per task, a share of them below 1, or leave it "
            "out for all."
        )


def check_metric(metric: str | None, tasks: Sequence[str], manager: Any) -> None:
    """Raise ArgumentError where the file of a task lists its metrics and this one is not among them.

    Groups, tags and tasks written in Python are checked when their first questions are graded, and so are all tasks
    where the harness keeps no such index (0.5).
    """
    if metric is None:
        return
    index = getattr(manager, "task_index", {})
    for name in tasks:
        entry = index.get(name)
        listed = (entry.cfg or {}).get("metric_list") if entry is not None else None
        if not isinstance(listed, list):
            continue
        names = [str(one["metric"]) for one in listed if isinstance(one, dict) and "metric" in one]
        if names and metric not in names:
            raise ArgumentError(f"--metric {metric} is none of {name}'s; use one of {', '.join(names)}.")


def check_policies(policies: Sequence[str]) -> None:
    """Raise ArgumentError for a policy that cannot be collected beside the stages."""
    for text in policies:
        kind = kind_of(text)
        if kind is not None and (kind.needs_judge or kind.name in ("stage", "intern", MENTOR)):
            why = "what a classifier is fitted for" if kind.needs_judge else "collected anyway"
            raise ArgumentError(
                f"--policies {text} is {why}; give policies beside the stages that need no classifier, as in "
                "budget_forcing:120,steps:0.5."
            )
        Policy.parse(text, stages=0)


def check_step_end(arguments: Mapping[str, Any], policies: Sequence[str]) -> None:
    """Raise ArgumentError for an end of steps where no collected policy writes step by step."""
    if arguments.get("step_end") is None or any(Policy.parse(text, stages=0).is_stepwise for text in policies):
        return
    stepwise = " or ".join(kind.syntax for kind in POLICIES.values() if kind.is_stepwise)
    raise ArgumentError(f"step_end has no effect without --policies {stepwise}; give such a policy, or leave it out.")


def make_folder(output: Path) -> None:
    """Make the folder of --output; raises ArgumentError where that is not possible."""
    try:
        output.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ArgumentError(f"--output {output} is a file; give the name of a folder.") from None
    except OSError as error:
        raise ArgumentError(f"--output {output} cannot be made ({error.strerror}); give another folder.") from None


def _description(lm: TandemLM, tasks: Sequence[str], hidden: bool) -> dict[str, Any]:
    """What ran, for the file's metadata; with hidden states also how the intern is loaded again to be finetuned."""
    description = {
        **lm.description,
        "tasks": list(tasks),
        "format": collected_file.FORMAT,
        "schema": SCHEMA,
        "policy": "collect",
    }
    if hidden and lm.settings.intern is not None:
        of_machine = ("batch_size", "max_batch_size", "device")
        loaded = {name: value for name, value in lm.settings.intern.arguments.items() if name not in of_machine}
        description["intern"] = {**description["intern"], "arguments": loaded}
    return description


def print_unknown_sizes(lm: TandemLM) -> None:
    """Print which models' sizes are not known, so that `fit` will not have costs in TFLOPs."""
    unsized = [role for role, engine in lm.engines.items() if engine is not None and engine.parameters is None]
    if unsized:
        print(
            f"collect: the number of parameters of {' and '.join(unsized)} is not known, so costs in TFLOPs are not "
            f"either; give {', '.join(f'{role}_parameters=N' for role in unsized)}.",
            file=sys.stderr,
        )


def print_estimate(run: HarnessRun, limit: float | None, others: Sequence[str]) -> None:
    """Print what collecting will cost, from a pilot of the first questions of each task.

    Nothing is printed if the limit is no larger than the pilot.
    """
    if limit is not None and 1 <= limit <= PILOT_QUESTIONS:
        return
    stages = run.stage_policies
    started, piloted, total, tokens = time.perf_counter(), 0, 0, Tokens()
    for policy in [*stages, *others]:
        records, results = run.evaluate(policy, PILOT_QUESTIONS)
        counts = results["n-samples"].values()
        piloted = sum(count["effective"] for count in counts)
        total = sum(int(_limited(count["original"], limit)) for count in counts)
        # The stages share one mentor text, so its tokens count once, at the last of them.
        shares_mentor_text = policy in stages[:-1]
        for record in ledger.unique(records):
            mentor_new = 0 if shares_mentor_text else record.tokens.mentor_new
            tokens += Tokens(mentor_new=mentor_new, intern_new=record.tokens.intern_new)
    factor, seconds = total / max(1, piloted), time.perf_counter() - started
    whole = Tokens(mentor_new=round(factor * tokens.mentor_new), intern_new=round(factor * tokens.intern_new))
    mentor_size, intern_size = (
        None if engine is None else engine.parameters for engine in (run.lm.cascade.mentor, run.lm.cascade.intern)
    )
    flops = ""
    if mentor_size is not None and intern_size is not None:
        flops = f", {tflops(whole, mentor_size, intern_size, 0):.3g} TFLOPs"
    print(
        f"collect: {total:,} questions at {len(stages)} stages{' and under ' * bool(others)}{', '.join(others)}: about "
        f"{whole.mentor_new:,} mentor and {whole.intern_new:,} intern tokens{flops}, "
        f"{factor * seconds / 60:,.1f} minutes or less at the speed of the first {piloted}; results in {STORE} are "
        "not generated again.",
        file=sys.stderr,
        flush=True,
    )


def _limited(questions: int, limit: float | None) -> float:
    """The number of questions that the harness runs under a limit."""
    if limit is None:
        return questions
    return math.ceil(questions * limit) if limit < 1 else min(questions, limit)
