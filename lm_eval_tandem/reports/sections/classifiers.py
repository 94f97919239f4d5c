"""Cascades with several classifiers: by their inputs (paper, Table 8), and one or one per subject (Table 10)."""

from __future__ import annotations

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import difference, mcnemar, ratio
from lm_eval_tandem.reports.sections.cells import accuracy, accuracy_of, cost, p_value
from lm_eval_tandem.reports.sections.transfer import training_tasks
from lm_eval_tandem.reports.sources.comparison import Comparison, distance_from_default
from lm_eval_tandem.reports.sources.missing import command
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Missing, Part, Table, make_table, percent


def by_inputs(data: ReportData) -> list[Part]:
    """Return Table 8 for each comparison with several cascades, or what it takes to get one."""
    parts: list[Part] = [inputs_table(comparison) for comparison in data.comparisons if len(comparison.cascades) > 1]
    if parts:
        return parts
    cascade = command(data.comparisons[0], "cascade", changes={"classifier": "OTHER"})
    return [
        Missing(
            "The comparison of classifiers (statistics, hidden states, LoRA; other recipes) needs cascades with "
            "several of them: fit each on the same collected data and run it.",
            f"lm-eval-tandem fit COLLECTED --inputs hidden --output OTHER\n{cascade}",
        )
    ]


def inputs_table(comparison: Comparison) -> Table:
    """Return the models alone, then a row per classifier, each compared with the main one."""
    main = comparison.cascade
    assert main is not None
    runs = [run for run in (comparison.intern, comparison.mentor, *comparison.cascades) if run is not None]
    label = comparison.label(main)
    return make_table(
        f"inputs-{comparison.name}",
        comparison.title,
        f"Differences are the accuracy of {label} minus that of the classifier in the row; they and the ratios of "
        "costs are paired over the questions.",
        [
            *("classifier", "recipe", "inputs", "model", "labels"),
            *comparison.subjects,
            "accuracy %",
            f"cost ({comparison.unit.name})",
            f"{label}: accuracy difference (points)",
            f"{label}: cost in % of this classifier's",
            "gap to the oracle closed %",
        ],
        [inputs_row(comparison, run, main) for run in runs],
    )


def inputs_row(comparison: Comparison, run: Run, main: Run) -> list[Cell]:
    """Return the row of a run; what compares cascades is empty for models alone, and for the main one itself."""
    row: list[Cell] = [comparison.label(run), str(run.description.get("recipe") or "")]
    row += [str(run.classifier_facts.get(key) or "") for key in ("schema", "model", "labels")]
    row += [accuracy_of(run.grades[comparison.subject_mask(subject)]) for subject in comparison.subjects]
    row += [accuracy(run), cost(comparison, run)]
    is_cascade = run.policy == "cascade"
    if is_cascade and run is not main and all("tflops" in one.measures for one in (run, main)):
        row.append(percent(*comparison.difference(main, run), signed=True))
        row.append(percent(*comparison.ratio(main, run)))
    else:
        row += ["", ""]
    gap = comparison.gap_closed(run) if is_cascade else None
    return [*row, "" if gap is None else percent(*gap)]


def unified(data: ReportData) -> list[Part]:
    """Return Table 10 for each comparison with cascades of both kinds, or what it takes to get one."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        per_subject = [run for run in comparison.cascades if is_per_subject(comparison, run)]
        shared = [run for run in comparison.cascades if len(training_tasks(run)) > 1]
        if per_subject and shared:
            # one run with a classifier per task is preferred over one whose classifier was fitted on this domain
            best = min(
                per_subject, key=lambda run: (run.classifier_facts.get("per") != "task", *distance_from_default(run))
            )
            parts.append(unified_table(comparison, min(shared, key=distance_from_default), best))
    if parts:
        return parts
    cascade = command(data.comparisons[0], "cascade", changes={"classifier": "PER_SUBJECT"})
    return [
        Missing(
            "The comparison of one classifier with one per subject needs a cascade with a classifier of each kind.",
            f"lm-eval-tandem fit COLLECTED --per task --output PER_SUBJECT\n{cascade}",
        )
    ]


def is_per_subject(comparison: Comparison, run: Run) -> bool:
    """Whether a cascade judged each subject with a classifier that was fitted on that subject alone."""
    own_domain = [task.removesuffix("_train") for task in training_tasks(run)] == [comparison.domain]
    return run.classifier_facts.get("per") == "task" or own_domain


def unified_table(comparison: Comparison, shared: Run, per_subject: Run) -> Table:
    """Return accuracy by subject under both, their paired difference, and the paired ratio of costs."""
    masks = {subject: comparison.subject_mask(subject) for subject in comparison.subjects}
    masks["all"] = np.ones(comparison.n_questions, dtype=bool)
    rows: list[list[Cell]] = []
    for subject, mask in masks.items():
        own, common = per_subject.grades[mask], shared.grades[mask]
        gap = float(digits.subtract(digits.mean(common), digits.mean(own)))
        relative_cost: Cell = ""
        if all("tflops" in run.measures for run in (shared, per_subject)):
            a, b = (run.measures["tflops"][mask] for run in (shared, per_subject))
            relative_cost = percent(digits.mean(a) / digits.mean(b), ratio(a, b))
        rows.append(
            [
                subject,
                accuracy_of(own),
                accuracy_of(common),
                percent(gap, difference(common, own), signed=True),
                p_value(mcnemar(own, common)),
                relative_cost,
            ]
        )
    return make_table(
        f"unified-{comparison.name}",
        comparison.title,
        f"Unified: {comparison.label(shared)}. Per subject: {comparison.label(per_subject)}.",
        [
            "subject",
            "per subject, accuracy %",
            "unified, accuracy %",
            "unified minus per subject (points)",
            "McNemar p",
            "unified: cost in % of per subject",
        ],
        rows,
    )
