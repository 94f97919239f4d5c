"""One pair beside another, models of several sizes, dollars, and another domain (paper, Tables 2 to 5)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.reports.sections.accuracy import accuracy, accuracy_of, cost, mean, name
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.sources.study import Study, model_name
from lm_eval_tandem.reports.table import Cell, Missing, Number, Part, Section, Table, table

PRICED = ("input", "cached", "output")
EFFORT_NAMES = {1: ("high",), 2: ("low", "high"), 3: ("low", "medium", "high")}


def section(studies: Sequence[Study]) -> Section:
    """Tables 2 and 3."""
    parts: list[Part] = []
    for domain in dict.fromkeys(study.domain for study in studies):
        here = [study for study in studies if study.domain == domain]
        parts += [compared(domain, here), sizes(domain, here)]
    if len({study.pair for study in studies}) < 2:
        parts.append(
            Missing(
                "The comparison of pairs needs the runs of a second pair on the same questions.",
                studies[0].command("cascade").replace("policy=cascade", "policy=cascade,mentor=OTHER,intern=OTHER"),
            )
        )
    return Section(
        "pairs",
        "Pairs and sizes of models",
        "Paper, Tables 2 and 3: each model alone, each pair under the cascade, and each pair at every fixed effort.",
        tuple(parts),
    )


def compared(domain: str, studies: Sequence[Study]) -> Table:
    """Table 2: single models, then pairs under the cascade."""
    rows: dict[str, list[Cell]] = {}
    for study in studies:
        for run in (study.intern, study.mentor):
            if run is not None:
                role = "mentor" if run is study.mentor else "intern"
                rows.setdefault(title_of(run, role), figures(study, run, title_of(run, role), studies))
    for study in studies:
        if study.cascade is not None:
            rows[f"pair {study.pair}"] = figures(study, study.cascade, study.pair, studies)
    unit = studies[0].unit.name
    return table(
        f"pairs-{domain}",
        f"{domain}: models alone and pairs under the cascade",
        "",
        ["models", "accuracy %", "length (tokens)", f"cost ({unit})"],
        rows.values(),
    )


def figures(study: Study, run: Run, label: str, studies: Sequence[Study]) -> list[Cell]:
    """A row; costs of all studies in the first one's unit."""
    shown = cost(study, run)
    if isinstance(shown, Number):
        factor = studies[0].unit.factor / study.unit.factor
        ends = None if shown.interval is None else (shown.interval[0] * factor, shown.interval[1] * factor)
        shown = Number(shown.value * factor, ends, studies[0].unit.digits)
    return [label, accuracy(run), mean(study, run, "length"), shown]


def title_of(run: Run, role: str) -> str:
    """A single model, with its size."""
    about = run.about[role]
    return f"{model_name(about['model'])} alone ({size_of(about.get('parameters'))})"


def size_of(parameters: int | None) -> str:
    """Parameters in the usual letters."""
    if not parameters:
        return "size not known"
    for unit, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if parameters >= unit:
            return f"{digits.significant(parameters / unit, 3)}{letter}"
    return str(parameters)


def sizes(domain: str, studies: Sequence[Study]) -> Part:
    """Table 3: accuracy and length of every pair at every fixed effort."""
    with_stages = [study for study in studies if len(study.stages) > 1]
    if not with_stages:
        return studies[0].missing(f"Efforts and sizes of models on {domain}", ["stage:1"])
    most = max(len(study.efforts) for study in with_stages)
    names = EFFORT_NAMES.get(most) or tuple(f"stage {stage}" for stage in range(1, most + 1))
    rows: list[list[Cell]] = []
    for study in sorted(with_stages, key=lambda study: study.pair):
        about = next(run.about for run in study.runs if {"mentor", "intern"} <= set(run.about))
        models = [
            f"{model_name(about[r]['model'])} ({size_of(about[r].get('parameters'))})" for r in ("intern", "mentor")
        ]
        if study.intern is not None:
            rows.append([models[0], "alone", accuracy(study.intern), mean(study, study.intern, "length")])
        row: list[Cell] = [*models]
        for stage in range(1, most + 1):
            run = study.stages.get(stage)
            row += ["", ""] if run is None else [accuracy(run), mean(study, run, "length")]
        rows.append(row)
        if study.mentor is not None:
            rows.append([models[1], "alone", accuracy(study.mentor), mean(study, study.mentor, "length")])
    columns = ["model", "mentor", *[f"{n}: {f}" for n in names for f in ("accuracy %", "length")]]
    unique = list({tuple(map(str, row)): row + [""] * (len(columns) - len(row)) for row in rows}.values())
    return table(
        f"sizes-{domain}",
        f"{domain}: every effort, by sizes of models",
        "A model alone stands under the first effort's columns.",
        columns,
        unique,
    )


def dollars(studies: Sequence[Study]) -> Section:
    """Table 4: what 1,000 questions cost at an API's prices."""
    parts: list[Part] = [priced(study) for study in studies if any("dollars" in run.columns for run in study.runs)]
    if not parts:
        prices = ",".join(f"{role}_price_{what}=P" for role in ("mentor", "intern") for what in PRICED)
        parts = [
            Missing(
                "Dollars need runs that know prices (per million tokens), be they those of an API or what local models "
                "would cost at one, and a ledger; none of these runs does.",
                studies[0].command("cascade", ledger=True).replace("policy=cascade", f"policy=cascade,{prices}"),
            )
        ]
    about = "Paper, Table 4. A prefix that an earlier call had read or written is paid for as cached tokens."
    return Section("dollars", "Dollars per 1,000 questions", about, tuple(parts))


def priced(study: Study) -> Table:
    """Accuracy beside dollars per 1,000 questions, by subject and in all."""
    masks = {subject: study.of_subject(subject) for subject in study.subjects}
    masks["all"] = np.ones(study.questions, dtype=bool)
    columns = ["policy"] + [f"{subject}: {figure}" for subject in masks for figure in ("accuracy %", "$ per 1,000")]
    rows: list[list[Cell]] = []
    for run in study.rows:
        if "dollars" not in run.columns:
            continue
        row: list[Cell] = [name(study, run)]
        for subject, mask in masks.items():
            score, paid = run.score[mask], 1000 * run.columns["dollars"][mask]
            low, high = study.interval(run, "dollars")
            interval = (1000 * low, 1000 * high) if subject == "all" else None
            row += [accuracy_of(score), Number(digits.mean(paid), interval, 4)]
        rows.append(row)
    return table(f"dollars-{study.name}", study.title, at_prices(study), columns, rows)


def at_prices(study: Study) -> str:
    """The prices of a study's runs, in a sentence."""
    told: dict[str, None] = {}
    for run in study.runs:
        for role in ("mentor", "intern"):
            prices = run.about.get(role, {}).get("prices")
            if prices:
                told[f"{role} " + ", ".join(f"{digits.significant(prices[what], 6)} ({what})" for what in PRICED)] = (
                    None
                )
    return f"Dollars per million tokens: {'; '.join(told)}." if told else ""


def transfer(studies: Sequence[Study]) -> Section:
    """Table 5: domains on which the classifier was not fitted."""
    parts: list[Part] = []
    for study in studies:
        cascade = study.cascade
        if cascade is None:
            parts.append(study.missing("Transfer to another domain", ["cascade"]))
        elif not fitted_on(cascade):
            parts.append(untold(study))
        elif foreign(study, cascade):
            parts.append(transferred(study, cascade))
    if not parts:
        tasks = ", ".join(sorted({task for study in studies if study.cascade for task in fitted_on(study.cascade)}))
        other = studies[0].command("cascade").replace(f"--tasks {studies[0].domain}", "--tasks OTHER_TASK")
        parts = [
            Missing(f"Transfer needs a cascade on a domain that its classifier ({tasks}) was not fitted on.", other)
        ]
    return Section(
        "transfer",
        "Transfer to another domain",
        "Paper, Table 5: the classifier judges questions of a domain that it was not fitted on.",
        tuple(parts),
    )


def untold(study: Study) -> Missing:
    """For a cascade of a version that did not say what its classifier was fitted on."""
    return Missing(
        f"The cascade on {study.title} does not say on which tasks its classifier was fitted; run it again.",
        study.command("cascade"),
    )


def transferred(study: Study, cascade: Run) -> Table:
    """Single models, fixed efforts, and the cascade."""
    shown = [study.intern, study.mentor, *[run for stage, run in study.stages.items() if stage]]
    shown += [run for run in study.cascades if foreign(study, run)]
    rows: list[list[Cell]] = []
    for run in shown:
        if run is None:
            continue
        right = int(run.right.sum())
        rows.append([name(study, run), accuracy(run), f"{right} / {len(run.score)}", cost(study, run)])
    return table(
        f"transfer-{study.name}",
        study.title,
        f"The classifier was fitted on {', '.join(fitted_on(cascade))}.",
        ["policy", "accuracy %", "right / questions", f"cost ({study.unit.name})"],
        rows,
    )


def foreign(study: Study, run: Run) -> bool:
    """Whether a cascade's classifier saw nothing of the study's domain."""
    return bool(fitted_on(run)) and study.domain not in fitted_domains(run)


def fitted_on(run: Run) -> list[str]:
    """The tasks that a run's classifier was fitted on, where the run says so."""
    return [str(task) for task in (run.about.get("judge") or {}).get("tasks") or ()]


def fitted_domains(run: Run) -> set[str]:
    """Those tasks as the domains that they train for."""
    return {task.removesuffix("_train") for task in fitted_on(run)}
