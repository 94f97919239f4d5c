"""What a run recorded of itself, beside what is here: versions, and checksums of models, classifier and data."""

from __future__ import annotations

from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reproduce import data, models, versions
from lm_eval_tandem.reproduce.fact import Fact


def of(run: RecordedRun) -> list[Fact]:
    """Return the facts of a run: versions, models with their adapters, classifier, data."""
    return [*versions.of(run), *models.of(run), *models.classifier(run), *data.of(run)]
