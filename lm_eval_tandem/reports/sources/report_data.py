"""`ReportData`: everything that a section of a report may use, read once from the folders that the user named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lm_eval_tandem.reports.sources import classifiers, ledgers, reading
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.grouping import group
from lm_eval_tandem.reports.sources.other_models import GivenCosts
from lm_eval_tandem.reports.sources.repeats import LeftOut
from lm_eval_tandem.reports.sources.runs import Run

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

COLLECTED = "collected.parquet"
"""The file that `lm-eval-tandem collect` writes."""


@dataclass(frozen=True)
class ReportData:
    """What the sections of a report are made from.

    Attributes
    ----------
    folders
        The folders that the user named.
    runs
        Every run below them, with the records of its ledger.
    left_out
        Runs in whose place another one was taken.
    comparisons
        The runs by domain and pair; at least one.
    classifier
        The classifier that the user named, or the cascade's if its files were found; otherwise None.
    collected
        Files of collected training questions: the one that the user named, or all below the folders.
    collected_named
        Whether the user named it, so that a file that does not fit is an error.
    """

    folders: Sequence[Path]
    runs: Sequence[Run]
    left_out: Sequence[LeftOut]
    comparisons: Sequence[Comparison]
    classifier: Sufficiency | None = None
    collected: Sequence[Path] = ()
    collected_named: bool = False


def read(
    folders: Sequence[Path],
    metric: str | None = None,
    by: str | None = None,
    collected: Path | None = None,
    classifier: str | None = None,
    given: GivenCosts | None = None,
) -> ReportData:
    """Read the runs below some folders and what belongs to them; parameters as `report.report`."""
    found = reading.read(folders, metric, by, given)
    runs = ledgers.join(found.runs, folders)
    comparisons = group(runs)
    return ReportData(
        folders=folders,
        runs=runs,
        left_out=found.left_out,
        comparisons=comparisons,
        classifier=classifiers.find(comparisons, folders) if classifier is None else classifiers.load(classifier),
        collected=[collected] if collected else sorted(f for folder in folders for f in folder.rglob(COLLECTED)),
        collected_named=collected is not None,
    )
