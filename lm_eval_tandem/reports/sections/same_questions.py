"""A warning where runs were not asked in the same way: prompts, few-shot examples, chat templates, versions, sampling.

Tandem's own policies are asked alike by nature: what the mentor writes for the intern is no part of a question's
prompt. Mentor and intern each have the chat template of their own model, which is no difference either.
"""

from __future__ import annotations

from collections.abc import Sequence

from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.joining import Joined
from lm_eval_tandem.reports.sources.question_settings import (
    CHAT_TEMPLATE,
    NO_TEMPLATE,
    SAMPLING_SEED,
    SERVERS_TEMPLATE,
    SHOT_SEED,
    SHOTS_AS_TURNS,
)
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Run
from lm_eval_tandem.reports.table import Cell, Part, Table, make_table

Row = tuple[str, str, str]
"""What differs, its value in a run, and its value in the run that it is set beside."""


def same_questions(data: ReportData) -> list[Part]:
    """Return a table for each comparison in which some run was asked in another way; nothing where none was."""
    parts: list[Part] = []
    for comparison in data.comparisons:
        found = differences(comparison)
        if found:
            parts.append(table(comparison, found))
    return parts


def table(comparison: Comparison, found: Sequence[tuple[Run, Row]]) -> Table:
    """Return the table with a row for each difference."""
    beside = comparison.label(comparison.reference)
    rows: list[list[Cell]] = [[comparison.label(run), *row] for run, row in found]
    return make_table(
        f"same-questions-{comparison.name}",
        comparison.title,
        "",
        ["run", "what differs", "in this run", f"in {beside}"],
        rows,
        keep_empty_columns=True,
        of_words=True,
    )


def differences(comparison: Comparison) -> list[tuple[Run, Row]]:
    """Return what differs in each run from the comparison's reference, in the order of the runs."""
    reference = comparison.reference
    tandems = [run for run in comparison.runs if run.model is None] or [reference]
    every = [Joined(run, comparison.all_places, comparison.n_questions) for run in comparison.runs]
    found = []
    for joined in [*every, *comparison.partial]:
        run = joined.run
        if run is not reference:
            rows = [*questions_row(joined, comparison), *settings_rows(run, reference)]
            rows += [
                *template_row(run, reference, tandems),
                *prompts_row(joined, [reference] if run.model is None else tandems),
            ]
            found += [(run, row) for row in rows]
    return found


def questions_row(joined: Joined, comparison: Comparison) -> list[Row]:
    """Return how many of the questions a run has in common with the others, if it lacks some."""
    if len(joined.places) == comparison.n_questions:
        return []
    common = len(joined.places)
    counts = [f"{common:,} of its {answered:,}" for answered in (joined.answered, comparison.n_questions)]
    rows = [("questions in common", counts[0], counts[1])]
    if joined.exchanged:
        rows.append(("documents", f"others under {joined.exchanged:,} of the same numbers", ""))
    return rows


def settings_rows(run: Run, reference: Run) -> list[Row]:
    """Return the settings, all but the chat template, in which two runs differ on some task."""
    tasks: dict[Row, list[str]] = {}
    common = [task for task in reference.settings if task in run.settings]
    for task in common:
        own, theirs = run.settings[task], reference.settings[task]
        for name in dict.fromkeys([*own, *theirs]):
            matters = (
                name in own and name in theirs
                if name in (SHOT_SEED, SHOTS_AS_TURNS, SAMPLING_SEED)
                else name != CHAT_TEMPLATE
            )
            row = (name, own.get(name, "none"), theirs.get(name, "none"))
            if matters and row[1] != row[2]:
                tasks.setdefault(row, []).append(task)
    return [
        row if len(found) == len(common) else (f"{row[0]} (in {', '.join(found)})", *row[1:])
        for row, found in tasks.items()
    ]


def template_row(run: Run, reference: Run, tandems: Sequence[Run]) -> list[Row]:
    """Return the chat template of a run if it is not one of tandem's; of tandem's runs, if only one has any."""
    own, beside = template_of(run), template_of(reference)
    if run.model is None:
        differs = (own == NO_TEMPLATE) != (beside == NO_TEMPLATE)
    else:
        differs = own not in {template_of(tandem) for tandem in tandems}
    return [(CHAT_TEMPLATE, described(own), described(beside))] if differs else []


def template_of(run: Run) -> str:
    """Return the chat template of a run, which is the same for all its tasks."""
    return next((settings[CHAT_TEMPLATE] for settings in run.settings.values()), NO_TEMPLATE)


def described(template: str) -> str:
    """Return a chat template as a report shows it."""
    return template if template in (NO_TEMPLATE, SERVERS_TEMPLATE) else f"applied ({template})"


def prompts_row(joined: Joined, beside: Sequence[Run]) -> list[Row]:
    """Return on how many questions the prompt has another text than in other runs with the same chat template.

    With another template every prompt has another text, which says nothing beyond the template.
    """
    run = joined.run
    alike = [other for other in beside if template_of(other) == template_of(run)]
    known = differing = 0
    for place, own in zip(joined.places, run.prompts, strict=True):
        theirs = {other.prompts[place] for other in alike} - {""}
        if own and theirs:
            known += 1
            differing += own not in theirs
    return [("prompts", f"another text in {differing:,} of {known:,}", "")] if differing else []
