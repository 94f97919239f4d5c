"""How well the judge's scores separate sufficient from insufficient stages (paper, Table 9)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import auc, auc_interval
from lm_eval_tandem.reports.sections.cells import stage_label
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.judge_scores import mentor_finished, scores_at_every_stage
from lm_eval_tandem.reports.sources.missing import missing_runs
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Floats
from lm_eval_tandem.reports.table import Cell, Number, Part, Table, make_table, percent

COMMON_THRESHOLD = 0.5
"""Threshold of the columns that are comparable between classifiers, whatever their own thresholds are."""


@dataclass(frozen=True)
class ScoredStage:
    """The judge's scores at one stage, of those Q questions that were judged there.

    Attributes
    ----------
    stage
        Its number; 0 is the question alone.
    scores
        Float64 (Q,), s_t of the paper.
    grades
        Float64 (Q,), grades of the intern's answers at this stage.
    threshold
        tau_t of the cascade's run; None if it is not known.
    """

    stage: int
    scores: Floats
    grades: Floats
    threshold: float | None


def per_stage(data: ReportData) -> list[Part]:
    """Return Table 9 for each comparison whose ledgers have the judge's scores."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        every_stage = stages_of_all_questions(comparison, data)
        judged = every_stage or stages_of_the_cascade(comparison)
        if every_stage:
            caption = "Every question at every stage, from what the ledgers of the fixed stages recorded."
        else:
            caption = "Only questions that reached a stage were judged there, so later stages hold the harder ones."
        if judged:
            parts.append(table(comparison, judged, caption))
        else:
            policies = ["cascade", *[f"stage:{stage}" for stage in range(len(comparison.efforts) + 1)]]
            parts.append(missing_runs(comparison, "The table of the judge's scores by stage", policies, ledger=True))
    return parts


def stages_of_all_questions(comparison: Comparison, data: ReportData) -> list[ScoredStage]:
    """Return every stage with the scores of all questions; empty if the fixed stages' ledgers do not allow it."""
    stages, scored = comparison.all_stages, scores_at_every_stage(comparison, data.classifier)
    if stages is None or scored is None:
        return []
    found = []
    for (stage, run), scores, threshold in zip(stages.items(), scored, thresholds(comparison), strict=True):
        rows = [row for row, record in enumerate(run.records) if not mentor_finished(record)]
        found.append(ScoredStage(stage, scores.scores[rows], run.grades[rows], threshold))
    return found


def stages_of_the_cascade(comparison: Comparison) -> list[ScoredStage]:
    """Return every stage with the scores in the cascade's own ledger; empty without all fixed stages or its scores."""
    stages, cascade = comparison.all_stages, comparison.cascade
    if stages is None or cascade is None or not cascade.records:
        return []
    scored = []
    for (stage, run), threshold in zip(stages.items(), thresholds(comparison), strict=True):
        scores = {
            row: judgement["score"]
            for row, record in enumerate(cascade.records)
            for judgement in record["stages"]
            if judgement["stage"] == stage and judgement["score"] is not None
        }
        rows = np.array(list(scores), dtype=int)
        scored.append(ScoredStage(stage, np.array(list(scores.values())), run.grades[rows], threshold))
    return scored if any(len(stage.scores) for stage in scored) else []


def thresholds(comparison: Comparison) -> list[float | None]:
    """Return the cascade's threshold at each stage; None for each if it recorded none."""
    recorded = comparison.cascade.description.get("thresholds") if comparison.cascade else None
    return list(recorded or [None] * (len(comparison.efforts) + 1))


def table(comparison: Comparison, stages: Sequence[ScoredStage], caption: str) -> Table:
    """Return one row per stage at which questions were judged, and the mean over these stages."""
    judged = [stage for stage in stages if len(stage.scores)]
    rows: list[list[Cell]] = [stage_row(comparison, stage) for stage in judged]
    at_common = [precision_recall_f1(stage, COMMON_THRESHOLD) for stage in judged]
    means = [Number(digits.mean(column), None, 3) for column in zip(*at_common, strict=True)]
    rows.append(["mean of the stages", "", "", *means, "", "", "", ""])
    columns = ["stage", "questions", "correct %", "precision", "recall", "F1", "AUC"]
    columns += ["threshold", "precision at threshold", "recall at threshold"]
    return make_table(f"judge-{comparison.name}", comparison.title, caption, columns, rows)


def stage_row(comparison: Comparison, stage: ScoredStage) -> list[Cell]:
    """Return the row of one stage."""
    row: list[Cell] = [stage_label(comparison, stage.stage), str(len(stage.scores))]
    row.append(percent(digits.mean(is_correct(stage))))
    row += [Number(value, None, 3) for value in precision_recall_f1(stage, COMMON_THRESHOLD)]
    area = auc(stage.grades, stage.scores)
    row.append("" if area is None else Number(area, auc_interval(stage.grades, stage.scores), 3))
    if stage.threshold is None:
        return [*row, "", "", ""]
    precision, recall, _ = precision_recall_f1(stage, stage.threshold)
    some_pass = bool(passes(stage, stage.threshold).any())
    row.append(digits.colon_separated([stage.threshold]))
    return [*row, Number(precision, None, 3) if some_pass else "none passes", Number(recall, None, 3)]


def is_correct(stage: ScoredStage) -> NDArray[np.bool_]:
    """Return which of the intern's answers are correct, which is what makes a stage sufficient."""
    return np.asarray(digits.without_last_bits(stage.grades) >= 0.5, dtype=np.bool_)


def passes(stage: ScoredStage, threshold: float) -> NDArray[np.bool_]:
    """Return which scores are above a threshold."""
    return np.asarray(digits.without_last_bits(stage.scores) > digits.without_last_bits(threshold), dtype=np.bool_)


def precision_recall_f1(stage: ScoredStage, threshold: float) -> tuple[float, float, float]:
    """Return precision, recall and F1 of calling a stage sufficient above a threshold; 0 where they are undefined."""
    correct, passed = is_correct(stage), passes(stage, threshold)
    both = int((correct & passed).sum())
    precision = both / int(passed.sum()) if passed.any() else 0.0
    recall = both / int(correct.sum()) if correct.any() else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0
