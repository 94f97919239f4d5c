"""Models other than tandem's: what is known of their costs, and the cascade against those that lack some questions."""

from __future__ import annotations

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.reports.intervals import difference, mcnemar, ratio
from lm_eval_tandem.reports.sections.accuracy import mean_with_interval
from lm_eval_tandem.reports.sections.cells import accuracy, p_value
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.joining import Joined, restricted
from lm_eval_tandem.reports.sources.missing import command
from lm_eval_tandem.reports.sources.other_models import OtherModel
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import NOT_KNOWN, Cell, Missing, Number, Part, Table, make_table, percent


def other_models(data: ReportData) -> list[Part]:
    """Return for each comparison with other models what is known of them; nothing if there are none."""
    parts: list[Part] = []
    with_tandem = [comparison for comparison in data.comparisons if len(comparison.others) < len(comparison.runs)]
    for comparison in data.comparisons:
        if comparison.others or comparison.partial:
            parts.append(facts_table(comparison))
        common = [joined for joined in comparison.partial if len(joined.places)]
        if common and comparison.cascade is not None:
            parts.append(common_table(comparison, comparison.cascade, common))
        apart = [comparison.label(joined.run) for joined in comparison.partial if not len(joined.places)]
        if apart:
            parts.append(nothing_in_common(comparison, apart))
        if with_tandem and comparison not in with_tandem:
            parts.append(no_tandem(comparison, with_tandem[0]))
    return parts


def facts_table(comparison: Comparison) -> Table:
    """Return a row for each run of another model: its questions, its size, and what counted and priced its tokens."""
    rows: list[list[Cell]] = []
    counts = [(run, comparison.n_questions) for run in comparison.others]
    for run, common in [*counts, *[(joined.run, len(joined.places)) for joined in comparison.partial]]:
        assert run.model is not None
        rows.append([comparison.label(run), f"{common:,} of {comparison.n_questions:,}", *facts(run.model)])
    return make_table(
        f"other-models-{comparison.name}",
        comparison.title,
        "",
        [
            "run",
            "questions in common",
            "parameters",
            "tokens counted by",
            "$ per million tokens: input, cached, output",
        ],
        rows,
        keep_empty_columns=True,
    )


def facts(model: OtherModel) -> list[Cell]:
    """Return a model's number of parameters, its tokenizer and its prices, as far as they are known."""
    place = model.tokenizer
    counted = NOT_KNOWN if place is None else f"tokenizer {place.parent.name if place.is_file() else place.name}"
    prices = model.prices
    return [
        NOT_KNOWN if model.parameters is None else f"{model.parameters:,}",
        f"nothing: {model.uncounted}" if model.uncounted else counted,
        NOT_KNOWN
        if prices is None
        else ", ".join(digits.significant(price, 6) for price in (prices.input, prices.cached, prices.output)),
    ]


def common_table(comparison: Comparison, cascade: Run, partial: list[Joined]) -> Table:
    """Return the cascade against the runs that lack some questions, on those that each has in common with it."""
    rows: list[list[Cell]] = []
    for joined in partial:
        run, own = joined.run, restricted(cascade, joined.places.tolist())
        only_cascade, only_run = int((own.correct & ~run.correct).sum()), int((run.correct & ~own.correct).sum())
        points = float(digits.subtract(digits.mean(own.grades), digits.mean(run.grades)))
        rows.append(
            [
                comparison.label(run),
                f"{len(run.questions):,}",
                accuracy(run),
                accuracy(own),
                percent(points, difference(own.grades, run.grades), signed=True),
                f"{only_cascade} / {only_run}",
                p_value(mcnemar(own.grades, run.grades)),
                cost(comparison, run),
                cost(comparison, own),
                relative_cost(own, run),
            ]
        )
    label, unit = comparison.label(cascade), comparison.unit.name
    return make_table(
        f"in-common-{comparison.name}",
        f"{comparison.title}: on the questions in common",
        f"These runs lack some of the {comparison.n_questions:,} questions, so they are in no other table. Both answer "
        "the same questions in each row.",
        [
            *("run", "questions", "accuracy %", f"{label}: accuracy %", f"{label}: accuracy difference (points)"),
            *(f"correct only with {label} / only with this run", "McNemar p"),
            *(f"cost ({unit})", f"{label}: cost ({unit})", f"{label}: cost in % of this run's"),
        ],
        rows,
    )


def cost(comparison: Comparison, run: Run) -> Cell:
    """Return the mean cost of a run on its own questions, in the comparison's unit; a dash if it is not known."""
    if "tflops" not in run.measures:
        return NOT_KNOWN
    return comparison.unit.number(*mean_with_interval(run, "tflops", np.ones(len(run.questions), dtype=bool)))


def relative_cost(run: Run, other: Run) -> Number | str:
    """Return the mean cost of a run in percent of another run's; a dash if one of them is not known."""
    if not all("tflops" in one.measures for one in (run, other)):
        return NOT_KNOWN
    a, b = run.measures["tflops"], other.measures["tflops"]
    return percent(digits.mean(a) / digits.mean(b), ratio(a, b))


def nothing_in_common(comparison: Comparison, labels: list[str]) -> Missing:
    """Return that some runs answered none of a comparison's questions."""
    return Missing(
        f"{' and '.join(labels)} answered none of the {comparison.n_questions:,} questions of {comparison.title}, so "
        "there is nothing to compare; run with the same task, --limit and --samples."
    )


def no_tandem(comparison: Comparison, elsewhere: Comparison) -> Missing:
    """Return that tandem was not run on a domain; `elsewhere` are runs of tandem on another one."""
    return Missing(
        f"Tandem has no run on {comparison.domain}, so the other models there are compared with nothing of tandem's.",
        command(elsewhere, "cascade", task=comparison.domain),
    )
