"""Accuracy, length and cost: by policy and subject, policies compared in pairs (paper, Tables 1, 6 and 7)."""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import mcnemar, resampled_means, span, wilson
from lm_eval_tandem.reports.sources.runs import Floats, Run
from lm_eval_tandem.reports.sources.study import ORACLE, Study
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Section, Table, percent, table

BASELINES = ("budget_forcing:N", "llm_cascade", "escalate")
NUMBERS = "Brackets hold 95 % intervals"


def section(studies: Sequence[Study]) -> Section:
    """What each policy reaches, in all and by subject."""
    parts: list[Part] = []
    for study in studies:
        parts.append(overall(study))
        if study.subjects:
            parts.append(by_subject(study))
    return Section(
        "policies",
        "Accuracy, length and cost by policy",
        "Paper, Tables 1 and 7. Cost is Eq. 12 per question, length the tokens that mentor and intern generated "
        f"together. {NUMBERS} (accuracy: Wilson; everything else: bootstrap over questions, paired where two policies "
        "are compared).",
        tuple(parts),
    )


def overall(study: Study) -> Table:
    """One row per policy, and the oracle."""
    unit, mentor, high = study.unit, study.mentor, study.high
    columns = [
        "policy",
        "accuracy %",
        "length (tokens)",
        "mentor tokens",
        f"cost ({unit.name})",
        "cost / mentor %",
        "cost / always-high %",
        "gap to the oracle closed %",
        "truncated %",
    ]
    rows: list[list[Cell]] = []
    for run in study.rows:
        row: list[Cell] = [name(study, run), accuracy(run)]
        row += [mean(study, run, "length"), mean(study, run, "mentor_tokens"), cost(study, run)]
        row += [cost_ratio(study, run, mentor), cost_ratio(study, run, high), closed(study, run)]
        row.append(percent(digits.mean(run.columns["truncated"])) if "truncated" in run.columns else "")
        rows.append(row)
    return table(
        f"policies-{study.name}",
        study.title,
        f"Every policy on the same {study.questions:,} questions. always-high is the highest fixed stage; the oracle "
        "takes, question by question, the cheapest fixed stage that is right, and the intern alone where none is: "
        "it is what a judge without error would reach. The gap is the cost between always-high and the oracle.",
        columns,
        rows,
    )


def by_subject(study: Study) -> Table:
    """Three rows per policy, a column per subject, as the paper's Table 1."""
    unit, subjects = study.unit, study.subjects
    rows: list[list[Cell]] = []
    for run in study.rows:
        masks = [study.of_subject(subject) for subject in subjects]
        row: list[Cell] = [name(study, run), "accuracy %"]
        row += [accuracy_of(run.score[m]) for m in masks]
        rows.append([*row, accuracy(run)])
        for figure, title in (("length", "length"), ("tflops", f"cost, {unit.name}")):
            if figure in run.columns:
                shown: list[Cell] = [name(study, run), title]
                for mask in masks:
                    values = run.columns[figure][mask]
                    interval = span(resampled_means(values[:, None])[:, 0])
                    average = digits.mean(values)
                    shown.append(unit.number(average, interval) if figure == "tflops" else Number(average, interval))
                rows.append([*shown, cost(study, run) if figure == "tflops" else mean(study, run, figure)])
    counts = ", ".join(f"{subject} ({int(study.of_subject(subject).sum())})" for subject in subjects)
    return table(
        f"subjects-{study.name}",
        f"{study.title}, by subject",
        f"Questions: {counts}.",
        ["policy", "figure", *subjects, "all"],
        rows,
        folded=True,
    )


def compared(studies: Sequence[Study]) -> Section:
    """The cascade against every other policy, question by question (paper, Table 6, with the tests it lacks)."""
    parts: list[Part] = []
    for study in studies:
        if study.cascade is None:
            parts.append(study.missing("Comparing the cascade with other policies", ["cascade"]))
            continue
        parts.append(against(study, study.cascade))
        lacking = [policy for policy in BASELINES if not study.has(policy, False)]
        if lacking:
            parts.append(study.missing("The comparison with the paper's efficiency baselines", lacking))
    return Section(
        "compared",
        "The cascade against every other policy",
        "Paper, Table 6. Both policies answer the same questions, so every comparison is paired: intervals of "
        "differences and ratios by bootstrap over questions (10,000 resamples), and for accuracy McNemar's exact test "
        "(two-sided p) on the questions that only one of the two gets right.",
        tuple(parts),
    )


def against(study: Study, cascade: Run) -> Table:
    """One row per other run."""
    rows: list[list[Cell]] = []
    for run in study.rows:
        if run is cascade:
            continue
        p = mcnemar(cascade.score, run.score)
        only = [int((one.right & ~other.right).sum()) for one, other in ((cascade, run), (run, cascade))]
        value, interval = study.difference(cascade, run)
        row: list[Cell] = [name(study, run), accuracy(run), cost(study, run)]
        row += [percent(value, interval, signed=True), f"{only[0]} / {only[1]}", "" if p is None else p_value(p)]
        rows.append([*row, cost_ratio(study, cascade, run)])
    label = study.label(cascade)
    return table(
        f"compared-{study.name}",
        study.title,
        f"{label} reaches {accuracy(cascade)} % at {cost(study, cascade)} {study.unit.name} a question.",
        [
            "policy",
            "accuracy %",
            f"cost ({study.unit.name})",
            f"{label}: accuracy above it (points)",
            f"right only in {label} / only in it",
            "McNemar p",
            f"{label}: cost in % of it",
        ],
        rows,
    )


def name(study: Study, run: Run) -> str:
    """How a row is called."""
    return ORACLE if run.policy == ORACLE else study.label(run)


def accuracy(run: Run) -> Number:
    """With Wilson's interval."""
    return accuracy_of(run.score)


def accuracy_of(score: Floats) -> Number:
    """The same of some questions' grades."""
    return percent(digits.mean(score), wilson(digits.total(score), len(score)))


def mean(study: Study, run: Run, figure: str) -> Cell:
    """Of a figure, with its interval; "" where the run does not have it."""
    if figure not in run.columns:
        return ""
    return Number(digits.mean(run.columns[figure]), study.interval(run, figure))


def cost(study: Study, run: Run) -> Cell:
    """TFLOPs a question in the study's unit."""
    if "tflops" not in run.columns:
        return ""
    return study.unit.number(digits.mean(run.columns["tflops"]), study.interval(run, "tflops"))


def cost_ratio(study: Study, run: Run, other: Run | None) -> Cell:
    """Cost in percent of another run's."""
    if other is None or other is run or not all("tflops" in one.columns for one in (run, other)):
        return ""
    value, interval = study.ratio(run, other)
    return percent(value, interval)


def closed(study: Study, run: Run) -> Cell:
    """How much of the cost between always-high and the oracle a judging policy saves."""
    found = study.closed(run) if run.policy in ("cascade", "llm_cascade", "escalate") else None
    return "" if found is None else percent(*found)


def p_value(p: float) -> str:
    """A p as it is usually written."""
    return "< 0.001" if digits.typed(p) < 0.001 else digits.decimals(p, 3)


def needs_cascade(study: Study, what: str, ledger: bool = False) -> Missing:
    """For tables that read a cascade's run."""
    return study.missing(what, ["cascade"], ledger)
