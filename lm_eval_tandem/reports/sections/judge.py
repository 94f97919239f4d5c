"""How well the judge judges: its inputs, its scores stage by stage, what they rest on (paper, Tables 8 to 11)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import Z, auc, difference, mcnemar, ratio
from lm_eval_tandem.reports.sections.accuracy import accuracy, accuracy_of, cost, name, p_value
from lm_eval_tandem.reports.sources import scores
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.sources.study import Study, model_name, remoteness
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Section, Table, percent, table

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

CUT = 0.5
"""The score from which on a stage counts as judged sufficient, where no threshold is meant."""


@dataclass(frozen=True)
class Looks:
    """What the judge said at one stage: of Q questions, those that came there.

    rows: their places among the study's questions. score: s_t. right: whether the intern's answer there is right.
    threshold: tau_t, where the run says it.
    """

    stage: int
    rows: np.ndarray
    score: Floats
    right: Floats
    threshold: float | None


def inputs(studies: Sequence[Study]) -> Section:
    """Table 8: cascades that differ in their classifier."""
    parts: list[Part] = []
    for study in studies:
        if len(study.cascades) > 1:
            parts.append(classifiers(study))
    if not parts:
        command = studies[0].command("cascade").replace("policy=cascade", "policy=cascade,classifier=OTHER")
        parts = [
            Missing(
                "The comparison of classifiers (statistics, hidden states, LoRA; other recipes) needs cascades with "
                "several of them: fit each on the same collected data, and run it.",
                f"lm-eval-tandem fit COLLECTED --inputs hidden --output OTHER\n{command}",
            )
        ]
    return Section(
        "inputs",
        "Classifiers and their inputs",
        "Paper, Table 8: the cascade with one classifier or another, on the same questions.",
        tuple(parts),
    )


def classifiers(study: Study) -> Table:
    """The models alone, then a row per classifier, compared with the main one."""
    main = study.cascade
    assert main is not None
    rows: list[list[Cell]] = []
    for run in [study.intern, study.mentor, *study.cascades]:
        if run is None:
            continue
        of_judge = run.about.get("judge") or {}
        told = [
            str(run.about.get("recipe") or ""),
            *[str(of_judge.get(key) or "") for key in ("schema", "model", "labels")],
        ]
        row: list[Cell] = [name(study, run), *told]
        masks = [study.of_subject(subject) for subject in study.subjects]
        row += [accuracy_of(run.score[m]) for m in masks]
        row += [accuracy(run), cost(study, run)]
        if run is not main and all("tflops" in one.columns for one in (run, main)) and run.policy == "cascade":
            gain, cheaper = study.difference(main, run), study.ratio(main, run)
            row += [percent(*gain, signed=True), percent(*cheaper)]
        else:
            row += ["", ""]
        closed = study.closed(run) if run.policy == "cascade" else None
        rows.append([*row, "" if closed is None else percent(*closed)])
    label = study.label(main)
    return table(
        f"inputs-{study.name}",
        study.title,
        "Differences and ratios are paired over the questions.",
        [
            "classifier",
            "recipe",
            "inputs",
            "model",
            "labels",
            *study.subjects,
            "accuracy %",
            f"cost ({study.unit.name})",
            f"{label}: points above it",
            f"{label}: cost in % of it",
            "gap to the oracle closed %",
        ],
        rows,
    )


def stages(studies: Sequence[Study], judge: Sufficiency | None) -> Section:
    """Table 9: precision, recall, F1 and AUC of the scores at each stage."""
    parts: list[Part] = []
    for study in studies:
        looks, how = looks_of(study, judge)
        if looks:
            parts.append(stage_table(study, looks, how))
        else:
            policies = ["cascade", *[f"stage:{stage}" for stage in range(len(study.efforts) + 1)]]
            parts.append(study.missing("Per-stage scores of the judge", policies, ledger=True))
    return Section(
        "judge",
        "The judge, stage by stage",
        "Paper, Table 9. A stage is truly sufficient if the intern's answer there is right. Precision, recall and F1 "
        f"count a score above {CUT} as sufficient; those at the threshold use the run's own.",
        tuple(parts),
    )


def looks_of(study: Study, judge: Sufficiency | None) -> tuple[list[Looks], str]:
    """The judge's scores by stage, and a sentence on which questions they cover.

    Scores of every question at every stage come from the ledgers of the fixed stages (packed with their scores, or with
    features, if the classifier is at hand); otherwise the cascade's own ledger has those of the questions that came to
    a stage.
    """
    stages, cascade = study.all_stages, study.cascade
    if stages is None:
        return [], ""
    thresholds = list((cascade.about.get("thresholds") if cascade else None) or [None] * len(stages))
    every = everywhere(study, judge)
    if every is not None:
        rows = np.arange(study.questions)
        looks = [
            Looks(stage, rows, told, run.score, thresholds[stage])
            for (stage, run), (told, _) in zip(stages.items(), every, strict=True)
        ]
        return looks, "Every question at every stage, from what the ledgers of the fixed stages recorded."
    if cascade is None or not cascade.records:
        return [], ""
    visited = []
    for stage, run in stages.items():
        found = [
            (row, look["score"])
            for row, record in enumerate(cascade.records)
            for look in record["stages"]
            if look["stage"] == stage and look["score"] is not None
        ]
        rows = np.array([row for row, _ in found], dtype=int)
        visited.append(Looks(stage, rows, np.array([s for _, s in found]), run.score[rows], thresholds[stage]))
    return visited, "Only questions that came to a stage were judged there, so later stages see the harder ones."


def everywhere(study: Study, judge: Sufficiency | None) -> list[tuple[Floats, Floats]] | None:
    """Scores and lengths of probes of every question, stage by stage; None where they are not known."""
    stages, cascade = study.all_stages, study.cascade
    if stages is None:
        return None
    checksum = str(((cascade.about.get("judge") if cascade else None) or {}).get("sha256"))
    found = []
    for run in stages.values():
        told = scores.recorded(run.records, checksum)
        if told is None and judge is not None and of_pair(study, judge):
            told = scores.judged(run.records, judge)
        if told is None:
            return None
        found.append(told)
    return found


def of_pair(study: Study, judge: Sufficiency) -> bool:
    """Whether a classifier was fitted for a study's pair, by the names of its models."""
    about = next((run.about for run in study.runs if {"mentor", "intern"} <= set(run.about)), None)
    return about is not None and all(
        model_name(judge.pair[role]) == model_name(about[role]["model"]) for role in ("mentor", "intern")
    )


def stage_table(study: Study, looks: Sequence[Looks], how: str) -> Table:
    """One row per stage, and the mean over stages."""
    rows: list[list[Cell]] = []
    values: list[tuple[float, ...]] = []
    for look in looks:
        if not len(look.rows):
            continue
        truth, score = digits.settled(look.right) >= 0.5, digits.settled(look.score)
        at_half = decisions(truth, score > CUT)
        area = auc(look.right, look.score)
        row: list[Cell] = [stage_label(study, look.stage), str(len(truth)), percent(digits.mean(truth))]
        row += [Number(at_half[i], None, 3) for i in range(3)]
        row.append("" if area is None else Number(area, auc_interval(look.right, look.score), 3))
        if look.threshold is not None:
            passes = score > digits.settled(look.threshold)
            there = decisions(truth, passes)
            row += [
                digits.listed([look.threshold]),
                Number(there[0], None, 3) if passes.any() else "none passes",
                Number(there[1], None, 3),
            ]
        else:
            row += ["", "", ""]
        rows.append(row)
        values.append(at_half)
    average = [digits.mean(column) for column in zip(*values, strict=True)]
    rows.append(["mean of the stages", "", "", *[Number(value, None, 3) for value in average], "", "", "", ""])
    columns = ["stage", "questions", "right %", "precision", "recall", "F1", "AUC"]
    columns += ["threshold", "precision at it", "recall at it"]
    return table(f"judge-{study.name}", study.title, how, columns, rows)


def stage_label(study: Study, stage: int) -> str:
    """A stage by its mentor tokens."""
    return "0: question alone" if stage == 0 else f"{stage}: ≤ {study.efforts[stage - 1]} mentor tokens"


def decisions(truth: np.ndarray, passed: np.ndarray) -> tuple[float, float, float]:
    """Precision, recall and F1; 0 where nothing passed or nothing is true."""
    both = int((truth & passed).sum())
    precision = both / int(passed.sum()) if passed.any() else 0.0
    recall = both / int(truth.sum()) if truth.any() else 0.0
    return precision, recall, 2 * precision * recall / (precision + recall) if both else 0.0


def auc_interval(truth: Floats, scores: Floats) -> tuple[float, float]:
    """By DeLong's variance, cut to [0, 1]."""
    positive, scores = digits.settled(truth) >= 0.5, digits.settled(scores)
    above = np.array([np.mean((s > scores[~positive]) + 0.5 * (s == scores[~positive])) for s in scores[positive]])
    below = np.array([np.mean((scores[positive] > s) + 0.5 * (scores[positive] == s)) for s in scores[~positive]])
    spread = sum(float(part.var(ddof=1)) / len(part) if len(part) > 1 else 0.0 for part in (above, below))
    middle, half = digits.mean(above), Z * float(np.sqrt(spread))
    return max(0.0, float(digits.apart(middle, half))), min(1.0, middle + half)


def unified(studies: Sequence[Study]) -> Section:
    """Table 10: one classifier for all subjects, or one per subject."""
    parts: list[Part] = []
    for study in studies:
        own = [run for run in study.cascades if own_classifier(study, run)]
        shared = [run for run in study.cascades if len((run.about.get("judge") or {}).get("tasks") or ()) > 1]
        if own and shared:
            each = min(own, key=lambda run: ((run.about.get("judge") or {}).get("per") != "task", *remoteness(run)))
            parts.append(unified_table(study, min(shared, key=remoteness), each))
    if not parts:
        command = studies[0].command("cascade").replace("policy=cascade", "policy=cascade,classifier=PER_SUBJECT")
        parts = [
            Missing(
                "One classifier or one per subject: this needs a cascade with a classifier of each kind.",
                f"lm-eval-tandem fit COLLECTED --per task --output PER_SUBJECT\n{command}",
            )
        ]
    return Section("unified", "One classifier, or one per subject", "Paper, Table 10.", tuple(parts))


def own_classifier(study: Study, run: Run) -> bool:
    """Whether a cascade judged each subject by a classifier that was fitted on that subject alone."""
    judge = run.about.get("judge") or {}
    return judge.get("per") == "task" or [t.removesuffix("_train") for t in judge.get("tasks") or ()] == [study.domain]


def unified_table(study: Study, whole: Run, per_subject: Run) -> Table:
    """Accuracy by subject under both, the paired gap, and the paired ratio of costs."""
    rows: list[list[Cell]] = []
    groups = [(subject, study.of_subject(subject)) for subject in study.subjects]
    for subject, mask in [*groups, ("all", np.ones(study.questions, dtype=bool))]:
        a, b = per_subject.score[mask], whole.score[mask]
        p = mcnemar(a, b)
        gap = percent(float(digits.apart(digits.mean(b), digits.mean(a))), difference(b, a), signed=True)
        shares: list[Cell] = [accuracy_of(s) for s in (a, b)]
        costs: Cell = ""
        if all("tflops" in run.columns for run in (whole, per_subject)):
            c, d = (run.columns["tflops"][mask] for run in (whole, per_subject))
            costs = percent(digits.mean(c) / digits.mean(d), ratio(c, d))
        rows.append([subject, *shares, gap, "" if p is None else p_value(p), costs])
    columns = ["subject", "per subject, accuracy %", "unified, accuracy %", "unified above it (points)", "McNemar p"]
    columns.append("unified: cost in % of it")
    caption = f"Unified: {study.label(whole)}. Per subject: {study.label(per_subject)}."
    return table(f"unified-{study.name}", study.title, caption, columns, rows)
