"""A run of the harness as its results file records it: what it was of, how it was called, how it asked each task.

Reports, submissions and `reproduce` all read a results file through this class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources import harness_files, other_models
from lm_eval_tandem.reports.sources.other_models import OtherModel
from lm_eval_tandem.reports.sources.question_settings import settings_of
from lm_eval_tandem.reports.sources.runs import identity


@dataclass(frozen=True, eq=False)
class RecordedRun:
    """One results file of the harness, with the samples beside it.

    Attributes
    ----------
    file
        The results file.
    results
        Its content.
    """

    file: Path
    results: Mapping[str, Any]

    @property
    def config(self) -> Mapping[str, Any]:
        """How the harness was called, and what it recorded about the model."""
        config: Mapping[str, Any] = self.results["config"]
        return config

    @cached_property
    def description(self) -> Mapping[str, Any]:
        """What a tandem or an ensemble recorded about itself, without `totals`; empty for any other model."""
        return {name: value for name, value in (self.config.get("tandem") or {}).items() if name != "totals"}

    @property
    def totals(self) -> Mapping[str, Any]:
        """What a tandem or an ensemble recorded about its work; empty for any other model."""
        return (self.config.get("tandem") or {}).get("totals") or {}

    @cached_property
    def arguments(self) -> Mapping[str, Any]:
        """The model arguments as given, secrets left out."""
        return harness_files.model_arguments(self.config.get("model_args"))

    @cached_property
    def model(self) -> OtherModel | None:
        """The model, if it is not a tandem or an ensemble; otherwise None."""
        return None if self.description else other_models.read(self.results, self.file.parent.name, self.arguments)

    @property
    def name(self) -> str:
        """What tables and messages call the run."""
        return str(self.description.get("run", self.file.parent.name)) if self.model is None else self.model.label

    @cached_property
    def system(self) -> str:
        """A string that is the same for two runs of the same models with the same settings (`runs.Run.system`)."""
        if self.model is not None:
            return self.model.key
        return identity({**self.description, "thinking": str(self.arguments.get("thinking", "auto"))})

    @property
    def task_names(self) -> list[str]:
        """The tasks that were graded, those of groups one by one."""
        return list(self.results["configs"])

    def settings(self, task: str, metric: str | None = None) -> dict[str, str]:
        """How the run asked the questions of a task (`question_settings`); with a metric, the grade too."""
        return settings_of(self.results, task, self.results["configs"][task], self.arguments, metric)

    def samples(self, task: str) -> list[dict[str, Any]] | None:
        """The samples of a task, one per question and filter; None where the run kept none."""
        try:
            file = harness_files.find_samples(self.file, task)
        except ArgumentError:
            return None
        return harness_files.load_samples(file)


def read(files: Iterable[Path]) -> list[RecordedRun]:
    """Return the runs of some results files, the oldest first: their names end in a time stamp.

    Raises
    ------
    ArgumentError
        A file is not readable as results.
    """
    unique = {file.resolve(): file for file in files}  # folders on the command line may lie in each other
    return [
        RecordedRun(file, harness_files.load_results(file))
        for file in sorted(unique.values(), key=lambda file: (file.name, file))
    ]
