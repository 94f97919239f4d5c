"""Where the cascade stopped, and whether it should have (paper, Tables 12 and 14)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import wilson
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.sources.study import Study
from lm_eval_tandem.reports.table import Cell, Part, Section, Table, percent, table

JUDGED = ("cascade", "escalate", "llm_cascade")
STAGE_NAMES = {-1: "mentor itself", 0: "intern alone"}


def shares(studies: Sequence[Study]) -> Section:
    """Table 12: the stages that questions were answered from."""
    parts: list[Part] = []
    for study in studies:
        found = [run for run in study.runs if run.policy in JUDGED and "stage" in run.columns]
        parts += share_tables(study, found) if found else [study.missing("Stage shares", ["cascade"])]
    return Section(
        "stages",
        "Stages that questions were answered from",
        "Paper, Table 12, in percent of the questions; brackets hold Wilson's 95 % intervals.",
        tuple(parts),
    )


def share_tables(study: Study, runs: Sequence[Run]) -> list[Part]:
    """One row per judged policy; and one per policy and subject."""
    stages = sorted(
        {int(stage) for run in runs for stage in digits.settled(run.columns["stage"])}
        | set(range(len(study.efforts) + 1))
    )
    names = [stage_name(study, stage) for stage in stages]
    everything = np.ones(study.questions, dtype=bool)
    rows: list[list[Cell]] = [[study.label(run), *shares_of(run, everything, stages)] for run in runs]
    tables: list[Part] = [table(f"stages-{study.name}", study.title, "", ["policy", *names], rows, fill=False)]
    if study.subjects:
        told: list[list[Cell]] = []
        for run in (run for run in runs if run.policy != "cascade" or run is study.cascade):
            for subject in study.subjects:
                mask = study.of_subject(subject)
                told.append([study.label(run), subject, str(int(mask.sum())), *shares_of(run, mask, stages)])
        columns = ["policy", "subject", "questions", *names]
        title = f"{study.title}, by subject"
        tables.append(table(f"stages-subjects-{study.name}", title, "", columns, told, fill=False, folded=True))
    return tables


def shares_of(run: Run, mask: NDArray[np.bool_], stages: Sequence[int]) -> list[Cell]:
    """The share of some questions that was answered from each stage."""
    taken = digits.settled(run.columns["stage"][mask]).astype(int)
    counts = [int((taken == stage).sum()) for stage in stages]
    return [percent(count / len(taken), wilson(count, len(taken))) for count in counts]


def stage_name(study: Study, stage: int) -> str:
    """A stage with its mentor tokens."""
    return STAGE_NAMES.get(stage) or f"stage {stage} (≤ {study.efforts[stage - 1]} mentor tokens)"


def failures(studies: Sequence[Study]) -> Section:
    """Table 14: right, premature, late, unsolvable."""
    parts: list[Part] = []
    for study in studies:
        needed = ["intern", *[f"stage:{stage}" for stage in range(1, len(study.efforts) + 1)]]
        if study.all_stages is None or study.cascade is None or "stage" not in study.cascade.columns:
            parts.append(study.missing("The failure cases", ["cascade", *needed]))
        else:
            parts.append(failure_table(study))
    return Section(
        "failures",
        "Failure cases of the judge",
        "Paper, Table 14. What the intern would have answered at each stage is known from the fixed-stage runs on the "
        "same questions. A wrong answer is premature if a later stage is right, late if only an earlier one is, and "
        "unsolvable if none is. Of the right answers, those count as later than needed "
        "that an earlier stage gets right too.",
        tuple(parts),
    )


def failure_table(study: Study) -> Table:
    """One column for the cascade, and one for that with the paper's classifier."""
    runs = dict.fromkeys(run for run in (study.cascade, study.paper_s) if run is not None)
    outcomes = {study.label(run): routed(study, run) for run in runs}
    n = study.questions
    rows: list[list[Cell]] = []
    for title in dict.fromkeys(title for counted in outcomes.values() for title in counted):
        row: list[Cell] = [title]
        for counts in outcomes.values():
            count = counts.get(title, 0)
            row += [str(count), percent(count / n, wilson(count, n))]
        rows.append(row)
    columns = ["outcome", *[f"{label}: {figure}" for label in outcomes for figure in ("questions", "%")]]
    oracle = "" if study.oracle is None else f" The oracle reaches {percent(digits.mean(study.oracle.score))} %."
    return table(f"failures-{study.name}", study.title, f"Of {n} questions.{oracle}", columns, rows)


def routed(study: Study, run: Run) -> dict[str, int]:
    """How many questions of a cascade went which way."""
    stages = study.all_stages
    assert stages is not None
    right = np.stack([fixed.right for fixed in stages.values()], axis=1)
    taken = digits.settled(run.columns["stage"]).astype(int)
    index = np.arange(right.shape[1])
    earlier = (right & (index < taken[:, None])).any(axis=1)
    later = (right & (index > taken[:, None])).any(axis=1)
    good = run.right
    outcomes = {
        "right": int(good.sum()),
        "  … at the first stage that is": int((good & ~earlier).sum()),
        "  … later than needed": int((good & earlier).sum()),
        "premature stop": int((~good & later).sum()),
        "late stop": int((~good & ~later & earlier).sum()),
        "unsolvable at every stage": int((~good & ~right.any(axis=1)).sum()),
    }
    # the same stage right in one run and wrong in the other: only where generation is not repeatable
    unlike = int((~good & right.any(axis=1) & ~later & ~earlier).sum())
    return outcomes | ({"wrong, though the fixed stage is right": unlike} if unlike else {})
