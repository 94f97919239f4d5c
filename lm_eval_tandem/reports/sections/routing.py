"""At which stage the judging policies stopped, and whether they should have (paper, Tables 12 and 14)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.reports.sections.cells import JUDGING_POLICIES
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.missing import missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Part, Table, make_table, percent

STAGE_NAMES = {-1: "mentor alone", 0: "intern alone"}
"""Names of the stages at which only one model answers, as ledgers number them."""


def stage_shares(data: ReportData) -> list[Part]:
    """Return for each comparison Table 12, and the same by subject if there are several subjects."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        runs = [run for run in comparison.runs if run.policy in JUDGING_POLICIES and "stage" in run.measures]
        if not runs:
            parts.append(missing_runs(comparison, "The table of stage shares", ["cascade"]))
            continue
        stages = sorted(
            {int(stage) for run in runs for stage in stages_of(run)} | set(range(len(comparison.efforts) + 1))
        )
        parts.append(shares_table(comparison, runs, stages))
        if comparison.subjects:
            parts.append(shares_by_subject(comparison, runs, stages))
    return parts


def shares_table(comparison: Comparison, runs: Sequence[Run], stages: Sequence[int]) -> Table:
    """Return one row per judging policy, one column per stage."""
    everything = np.ones(comparison.n_questions, dtype=bool)
    rows: list[list[Cell]] = [[comparison.label(run), *shares(run, everything, stages)] for run in runs]
    columns = ["policy", *[stage_name(comparison, stage) for stage in stages]]
    return make_table(f"stages-{comparison.name}", comparison.title, "", columns, rows, keep_empty_columns=True)


def shares_by_subject(comparison: Comparison, runs: Sequence[Run], stages: Sequence[int]) -> Table:
    """Return one row per judging policy and subject; of several cascades only the main one."""
    rows: list[list[Cell]] = []
    for run in runs:
        if run.policy == "cascade" and run is not comparison.cascade:
            continue
        for subject in comparison.subjects:
            mask = comparison.subject_mask(subject)
            rows.append([comparison.label(run), subject, str(int(mask.sum())), *shares(run, mask, stages)])
    return make_table(
        f"stages-subjects-{comparison.name}",
        f"{comparison.title}, by subject",
        "",
        ["policy", "subject", "questions", *[stage_name(comparison, stage) for stage in stages]],
        rows,
        keep_empty_columns=True,
        collapsed=True,
    )


def shares(run: Run, mask: NDArray[np.bool_], stages: Sequence[int]) -> list[Cell]:
    """Return which share of some questions was answered at each stage."""
    taken = stages_of(run)[mask]
    counts = [int((taken == stage).sum()) for stage in stages]
    return [percent(count / len(taken), wilson(count, len(taken))) for count in counts]


def stages_of(run: Run) -> NDArray[np.int64]:
    """Return the stage at which each question was answered, int (Q,)."""
    return digits.without_last_bits(run.measures["stage"]).astype(np.int64)


def stage_name(comparison: Comparison, stage: int) -> str:
    """Return a stage with the number of mentor tokens that it allows."""
    return STAGE_NAMES.get(stage) or f"stage {stage} (≤ {comparison.efforts[stage - 1]} mentor tokens)"


def failures(data: ReportData) -> list[Part]:
    """Return Table 14 for each comparison in which every fixed stage was run."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        cascade = comparison.cascade
        if comparison.all_stages is None or cascade is None or "stage" not in cascade.measures:
            stages = [f"stage:{stage}" for stage in range(1, len(comparison.efforts) + 1)]
            parts.append(missing_runs(comparison, "The table of failure cases", ["cascade", "intern", *stages]))
        else:
            parts.append(failure_table(comparison))
    return parts


def failure_table(comparison: Comparison) -> Table:
    """Return counts and shares of each outcome, for the cascade and for the one with the paper's classifier."""
    runs = dict.fromkeys(run for run in (comparison.cascade, comparison.paper_cascade) if run is not None)
    outcomes = {comparison.label(run): outcome_counts(comparison, run) for run in runs}
    n = comparison.n_questions
    rows: list[list[Cell]] = []
    for outcome in dict.fromkeys(outcome for counts in outcomes.values() for outcome in counts):
        row: list[Cell] = [outcome]
        for counts in outcomes.values():
            count = counts.get(outcome, 0)
            row += [str(count), percent(count / n, wilson(count, n))]
        rows.append(row)
    columns = ["outcome", *[f"{label}: {what}" for label in outcomes for what in ("questions", "%")]]
    oracle = comparison.oracle
    reached = "" if oracle is None else f" The oracle reaches {percent(digits.mean(oracle.grades))} %."
    return make_table(f"failures-{comparison.name}", comparison.title, f"Of {n} questions.{reached}", columns, rows)


def outcome_counts(comparison: Comparison, run: Run) -> dict[str, int]:
    """Return how many questions of a cascade ended in which way; the indented outcomes are parts of "correct"."""
    stages = comparison.all_stages
    assert stages is not None
    stage_correct = np.stack([fixed.correct for fixed in stages.values()], axis=1)
    taken = stages_of(run)[:, None]
    stage = np.arange(stage_correct.shape[1])
    earlier = (stage_correct & (stage < taken)).any(axis=1)
    later = (stage_correct & (stage > taken)).any(axis=1)
    solvable = stage_correct.any(axis=1)
    correct = run.correct
    counts = {
        "correct": int(correct.sum()),
        "  … at the first correct stage": int((correct & ~earlier).sum()),
        "  … later than needed": int((correct & earlier).sum()),
        "premature stop": int((~correct & later).sum()),
        "late stop": int((~correct & ~later & earlier).sum()),
        "unsolvable at every stage": int((~correct & ~solvable).sum()),
    }
    # the same stage is correct in one run and wrong in another only where generation is not repeatable
    contradictions = int((~correct & solvable & ~later & ~earlier).sum())
    return counts | ({"wrong, although the fixed stage is correct": contradictions} if contradictions else {})
