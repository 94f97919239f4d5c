"""Accuracy beside cost, policy by policy, compared question by question with the mentor alone and with always-high."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports import runs
from lm_eval_tandem.reports.intervals import difference, ratio, wilson
from lm_eval_tandem.reports.runs import Run

ORDER = ("intern", "stage:1", "stage:2", "stage:3", "mentor", "cascade")


def markdown(folders: Sequence[Path], title: str = "Results") -> str:
    """The table of all runs below the folders, one per task, with what they ran on."""
    found = runs.read(folders)
    parts = [f"# {title}", ""]
    for task in sorted({run.task for run in found}):
        parts += [f"## {task}", "", *table([run for run in found if run.task == task]), ""]
    return "\n".join([*parts, *circumstances(found)]) + "\n"


def table(found: Sequence[Run]) -> list[str]:
    """The rows of one task. Differences and ratios are paired over questions; brackets hold 95 % intervals."""
    if len({run.doc_ids for run in found}) > 1:
        raise ArgumentError(
            f"the runs on {found[0].task} answered different questions, so they cannot be compared; "
            "run each with the same --limit and --samples."
        )
    ordered = sorted(found, key=lambda run: (ORDER.index(run.policy) if run.policy in ORDER else len(ORDER), run.name))
    mentor = next((run for run in found if run.policy == "mentor"), None)
    fixed = [run for run in ordered if run.policy.startswith("stage:")]
    high = fixed[-1] if fixed else None
    lines = [
        "| run | n | accuracy % | tokens L_L + L_S | mentor tokens | TFLOPs (Eq. 12) | cost / mentor % "
        "| cost / always-high % | accuracy - mentor | accuracy - always-high | truncated % |",
        "|---" * 11 + "|",
    ]
    for run in ordered:
        n = len(run.score)
        low, up = wilson(float(run.score.sum()), n)
        cells = [run.name, str(n), f"{100 * run.score.mean():.1f} [{100 * low:.1f}, {100 * up:.1f}]"]
        if "tflops" in run.columns:
            columns = run.columns
            cells += [f"{columns['length'].mean():.1f}", f"{columns['mentor_tokens'].mean():.1f}"]
            cells += [f"{columns['tflops'].mean():.3g}", cost_ratio(run, mentor), cost_ratio(run, high)]
            cells += [gain(run, mentor), gain(run, high), f"{100 * columns['truncated'].mean():.1f}"]
        else:
            cells += [""] * 5 + [gain(run, mentor), gain(run, high), ""]
        lines.append("| " + " | ".join(cells) + " |")
    shares = [stage_shares(run) for run in ordered if run.policy == "cascade" and "stage" in run.columns]
    return lines + ([""] + shares if shares else [])


def cost_ratio(run: Run, other: Run | None) -> str:
    """Cost in percent of another run's, with its interval."""
    if other is None or other is run:
        return ""
    mine, theirs = run.columns["tflops"], other.columns["tflops"]
    low, high = ratio(mine, theirs)
    return f"{100 * mine.mean() / theirs.mean():.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def gain(run: Run, other: Run | None) -> str:
    """Points of accuracy above another run, with the interval of the paired difference."""
    if other is None or other is run:
        return ""
    low, high = difference(run.score, other.score)
    return f"{100 * (run.score - other.score).mean():+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"


def stage_shares(run: Run) -> str:
    """Where the cascade answered from."""
    stages = run.columns["stage"].astype(int)
    shares = ", ".join(f"stage {stage}: {100 * (stages == stage).mean():.1f} %" for stage in sorted(set(stages)))
    return f"{run.name} answered from {shares}."


def circumstances(found: Sequence[Run]) -> list[str]:
    """What the runs ran on."""
    lines = [
        "Brackets hold 95 % intervals (accuracy: Wilson; differences and ratios: paired bootstrap over questions).",
        "",
    ]
    said = set()
    for run in found:
        tandem = run.config.get("tandem")
        if not tandem:
            continue
        for role in ("mentor", "intern"):
            if role in tandem:
                about = tandem[role]
                said.add(
                    f"- {role}: {about['model']}, {about['parameters']:,} parameters, {about['engine']} "
                    f"(torch {about['torch']}, transformers {about['transformers']}), "
                    f"{about['dtype'].removeprefix('torch.')}, {about['device']}"
                )
        if "classifier" in tandem:
            thresholds = ":".join(f"{value:g}" for value in tandem["thresholds"])
            said.add(f"- classifier: {tandem['classifier']}, recipe {tandem['recipe']}, thresholds {thresholds}")
        said.add(f"- commit {run.commit}")
        said.add(f"- efforts {':'.join(map(str, tandem['efforts']))} mentor tokens; lm-eval-tandem {tandem['version']}")
    return lines + sorted(said)
