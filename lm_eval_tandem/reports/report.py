"""A report of any set of runs: the paper's tables and figures that the runs can fill, written in every format.

`SECTIONS` is the table of contents. To add a section:

1. Write a function in a module of `sections/` that takes the `ReportData` and returns a list of parts: tables from
   `table.make_table`, figures, and a `Missing` for what the runs lack. A section without parts is left out.
2. Add a `SectionSpec` with its name, title, introduction and function to `SECTIONS`, where it belongs in the report.

Every format, `--only`, and the files of tables and figures then have it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.formats import html, latex, markdown, spreadsheet, svg
from lm_eval_tandem.reports.sections import (
    accuracy,
    cascade_vs_others,
    classifiers,
    dollars,
    entropy,
    guidance,
    importance,
    judge,
    latency,
    other_models,
    pairs,
    routing,
    same_questions,
    trade_off,
    transfer,
)
from lm_eval_tandem.reports.sections.environment import environment
from lm_eval_tandem.reports.sections.headlines import headlines
from lm_eval_tandem.reports.sources import report_data
from lm_eval_tandem.reports.sources.files import describe
from lm_eval_tandem.reports.sources.other_models import GivenCosts
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.table import Part, Report, Section


@dataclass(frozen=True)
class SectionSpec:
    """An entry of a report's table of contents.

    Attributes
    ----------
    name
        Unique name, for `--only` and for links.
    title
        Heading.
    intro
        A paragraph below it: what is shown and where the paper has it.
    parts
        Makes the section's tables and figures.
    """

    name: str
    title: str
    intro: str
    parts: Callable[[ReportData], Sequence[Part]]

    def section(self, data: ReportData) -> Section:
        """Return the section with its parts."""
        return Section(self.name, self.title, self.intro, tuple(self.parts(data)))


SECTIONS: tuple[SectionSpec, ...] = (
    SectionSpec(
        "same-questions",
        "Not the same questions?",
        "These runs were not asked in the same way as the run that they are set beside, so a difference in accuracy "
        "may come from what the table names and not from the models. Models of different makers have chat templates "
        "of their own; that is no mistake.",
        same_questions.same_questions,
    ),
    SectionSpec(
        "trade-off",
        "The trade-off: accuracy against cost",
        "Up and to the left is better. Bars are 95 % intervals; the dashed line joins the fixed stages. The solid line "
        "shows what the cascade's judge would reach with the same threshold at every stage, for thresholds from 0 to "
        "1. It is drawn if the ledgers of the fixed stages allow it. No threshold was chosen on these questions.",
        trade_off.trade_off,
    ),
    SectionSpec(
        "policies",
        "Accuracy, length and cost by policy",
        "Paper, Tables 1 and 7. Cost is Eq. 12 per question; length is the number of tokens that mentor and intern "
        "generated together. Brackets hold 95 % intervals: Wilson's for accuracy, and by bootstrap over questions for "
        "everything else, paired where two policies are compared.",
        accuracy.by_policy,
    ),
    SectionSpec(
        "compared",
        "The cascade against every other policy",
        "Paper, Table 6. Both policies answer the same questions, so every comparison is paired. Intervals of "
        "differences and ratios are by bootstrap over questions (10,000 resamples); where a difference in accuracy is "
        "the same at every question, by the exact binomial bound on the share of questions that may differ. For "
        "accuracy, McNemar's exact test (two-sided p) uses the questions that only one of the two answers correctly.",
        cascade_vs_others.paired,
    ),
    SectionSpec(
        "other-models",
        "Other models beside tandem's",
        "What is known of their costs. The harness records no tokens: they are counted in the text of each answer by "
        "the tokenizer that --tokenizer names, and one for its end. Eq. 12 of a single model is twice its parameters "
        "times the tokens that it generated; the harness's hf records the parameters, and --parameters gives them for "
        "others. Dollars are at the prices that --price gives, with no prompt token taken to be cached.",
        other_models.other_models,
    ),
    SectionSpec(
        "guidance",
        "Accuracy and tokens by length of guidance",
        "Paper, Figure 5: the fixed stages, from no guidance to the highest effort. The mentor may end before its "
        "budget is used up.",
        guidance.guidance,
    ),
    SectionSpec(
        "pairs",
        "Pairs and sizes of models",
        "Paper, Tables 2 and 3: each model alone, each pair under the cascade, and each pair at every fixed effort.",
        pairs.pairs,
    ),
    SectionSpec(
        "dollars",
        "Dollars per 1,000 questions",
        "Paper, Table 4. A prompt prefix that an earlier call has read or generated is charged at the price of cached "
        "tokens.",
        dollars.dollars,
    ),
    SectionSpec(
        "transfer",
        "Transfer to another domain",
        "Paper, Table 5: the classifier judges questions of a domain that it was not fitted on.",
        transfer.transfer,
    ),
    SectionSpec(
        "stages",
        "Stages at which questions were answered",
        "Paper, Table 12, in percent of the questions. Brackets hold Wilson's 95 % intervals.",
        routing.stage_shares,
    ),
    SectionSpec(
        "failures",
        "Failure cases of the judge",
        "Paper, Table 14. The fixed-stage runs on the same questions show what the intern would have answered at each "
        "stage. A wrong answer is a premature stop if a later stage is correct, a late stop if only an earlier one is, "
        "and unsolvable if none is. A correct answer came later than needed if an earlier stage is correct too.",
        routing.failures,
    ),
    SectionSpec(
        "judge",
        "The judge, stage by stage",
        "Paper, Table 9. A stage is sufficient if the intern's answer there is correct. Precision, recall and F1 count "
        f"a score above {judge.COMMON_THRESHOLD} as sufficient; the columns at the threshold use that of the run.",
        judge.per_stage,
    ),
    SectionSpec(
        "inputs",
        "Classifiers and their inputs",
        "Paper, Table 8: the cascade with one classifier or another, on the same questions.",
        classifiers.by_inputs,
    ),
    SectionSpec(
        "unified",
        "One classifier, or one per subject",
        "Paper, Table 10.",
        classifiers.unified,
    ),
    SectionSpec(
        "importance",
        "Features that the judge relies on",
        "Paper, Table 11. Permutation importance: the values of one feature are permuted among the questions of a "
        "stage, and the loss in area under the ROC curve is measured. The paper lists split gains instead, which exist "
        "for other kinds of models.",
        importance.importance,
    ),
    SectionSpec(
        "entropy",
        "Entropy by sufficiency and stage",
        "Paper, Figure 3: the mean entropy of the intern's next-token distribution over question and insights, "
        "separately for questions that it then answers correctly (the insights were sufficient) and for the others. "
        "Densities are Gaussian kernel estimates (Silverman's bandwidth), each scaled to the same height. AUC is the "
        "chance that a wrong answer has the higher entropy.",
        entropy.entropy,
    ),
    SectionSpec("latency", "Wall-clock time per question", "Paper, Table 13.", latency.latency),
)
"""The sections of a report, in order."""

FORMATS: dict[str, Callable[[Report], str]] = {".md": markdown.render, ".tex": latex.render, ".html": html.render}
"""Writers of a whole report in one file, by the ending of its name."""


def report(
    folders: Sequence[Path],
    title: str = "Results",
    metric: str | None = None,
    by: str | None = None,
    collected: Path | None = None,
    classifier: str | None = None,
    given: GivenCosts | None = None,
) -> Report:
    """Make the report of all runs below some folders.

    Parameters
    ----------
    folders
        Folders that lm_eval got as --output_path.
    title
        Heading of the report.
    metric
        The metric to report as accuracy, NAME or NAME,FILTER; None for each task's first.
    by
        The document field that names a question's subject; None for `subject` or `type`, where documents have one.
    collected
        File or folder that `lm-eval-tandem collect` wrote; None for every collected.parquet below the folders.
    classifier
        Folder of a classifier, or name of one that ships; None for the cascade's, if its files are found unchanged.
    given
        What is known of models other than tandem's: parameters, tokenizers, prices.

    Raises
    ------
    ArgumentError
        The folders cannot be read, or hold runs that cannot be compared.
    ClassifierError
        The classifier or the collected questions cannot be read.

    Examples
    --------
    >>> made = report([Path("runs")])  # doctest: +SKIP
    >>> write(made, Path("report"))  # doctest: +SKIP
    """
    data = report_data.read(folders, metric, by, collected, classifier, given)
    sections = [spec.section(data) for spec in SECTIONS]
    shown = tuple(section for section in sections if section.parts)  # a warning without a reason is left out
    return Report(title, tuple(headlines(data)), shown, tuple(environment(data)))


def only(full: Report, names: Sequence[str]) -> Report:
    """Return the report with some of its sections; those that have nothing to say about these runs are left out.

    Raises
    ------
    ArgumentError
        There is no section of such a name.
    """
    known = [spec.name for spec in SECTIONS]
    for name in names:
        if name not in known:
            raise ArgumentError(f"--only {name}: there is no such section; the sections are {', '.join(known)}.")
    return replace(full, sections=tuple(section for section in full.sections if section.name in names))


def write(made: Report, output: Path) -> list[Path]:
    """Write a report and return its files, the main one first.

    Parameters
    ----------
    made
        The report.
    output
        A file ending in .md, .tex or .html; or a folder that gets README.md, report.html, tables.tex, one CSV file per
        table in tables/ and one SVG file per figure in figures/.

    Raises
    ------
    ArgumentError
        The file has another ending, or cannot be written.
    """
    if output.suffix in FORMATS:
        return write_files({output: FORMATS[output.suffix](made)})
    if output.suffix and not output.is_dir():
        raise ArgumentError(
            f"--output {output}: a report is written to a folder, or to a file ending in {', '.join(FORMATS)}."
        )
    texts = {
        output / "README.md": markdown.render(made, figures="figures"),
        output / "report.html": html.render(made),
        output / "tables.tex": latex.render(made),
    }
    texts |= {output / "tables" / f"{table.name}.csv": spreadsheet.render(table) for table in made.tables}
    texts |= {output / "figures" / f"{figure.name}.svg": svg.standalone(figure.svg) for figure in made.figures}
    return write_files(texts)


def write_files(texts: dict[Path, str]) -> list[Path]:
    """Write texts to files, make their folders, and return the files."""
    for file, text in texts.items():
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ArgumentError(
                f"--output: {file} cannot be written ({describe(error)}); give another folder."
            ) from None
    return list(texts)
