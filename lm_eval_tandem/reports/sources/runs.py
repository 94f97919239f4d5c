"""`Run`: one policy, or another model, on one domain, question by question. `reading` makes runs from files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.cascade.prompts import SETTING
from lm_eval_tandem.digits import nearest_decimal, without_last_bits
from lm_eval_tandem.reports.sources.other_models import OtherModel

Floats = NDArray[np.float64]
QuestionId = tuple[str, int]
"""Task and document id."""

MEASURES = ("length", "mentor_tokens", "tflops", "bill", "seconds", "stage", "truncated", "dollars")
"""Numbers that a run may have per question besides its grade: read from samples, or derived from ledger records."""
PAIR_SETTINGS = (*SETTING, "thinking")
"""Settings that make two runs of the same models runs of two different pairs."""

IDENTIFYING = (
    *("run", "policy", "seed", "classifier", "recipe", "thresholds", "scorer", "reference", "options"),
    *("loglikelihood", *PAIR_SETTINGS),
)
"""Settings in which two runs of the same models are runs of two systems."""


@dataclass(frozen=True, eq=False)
class Run:
    """One run on one domain: a task, or all tasks of one of the harness's groups.

    Attributes
    ----------
    name
        For example tandem-pair-cascade; what a report calls it if the model is not a tandem.
    policy
        For example cascade or stage:2; "" for a model that is not a tandem.
    domain
        Name of the task or group.
    description
        What the tandem recorded about itself (`config.tandem` in the results file); empty for other models.
    arguments
        Model arguments as given.
    flags
        Further flags of the lm_eval command, as typed.
    commit
        The commit that the harness recorded.
    metric
        Name of the metric that `grades` holds.
    questions
        Task and document id of each of the Q questions, sorted.
    subjects
        Subject of each question; "" where there is none.
    grades
        Float64 (Q,), the metric per question, in [0, 1].
    measures
        Float64 (Q,) under names of `MEASURES`; those that are not known for every question are absent.
    records
        Ledger records, one per question; empty if the run has no ledger.
    model
        The model, if it is not a tandem; otherwise None.
    settings
        For each task how its questions were asked (`question_settings`).
    documents, prompts
        Checksums of each question's document and prompt; "" where they are not known.
    variant
        What tells the run apart from those of the same system that were asked in another way (`variants`); "" where
        there is none.
    """

    name: str
    policy: str
    domain: str
    description: Mapping[str, Any]
    arguments: Mapping[str, Any]
    flags: tuple[str, ...]
    commit: str
    metric: str
    questions: tuple[QuestionId, ...]
    subjects: tuple[str, ...]
    grades: Floats
    measures: Mapping[str, Floats]
    records: tuple[Mapping[str, Any], ...] = ()
    model: OtherModel | None = None
    settings: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    documents: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ()
    variant: str = ""

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Which questions count as answered correctly: those graded 0.5 or higher."""
        return np.asarray(without_last_bits(self.grades) >= 0.5, dtype=np.bool_)

    @cached_property
    def system(self) -> str:
        """A string that is the same for two runs of the same models with the same settings, however they were asked."""
        return self.model.key if self.model else identity(self.description)

    @cached_property
    def identity(self) -> str:
        """A string that is the same for two runs of the same models with the same settings, asked in the same way."""
        return f"{self.system} {self.variant}" if self.variant else self.system

    @property
    def classifier_facts(self) -> Mapping[str, Any]:
        """What the run recorded about its classifier: schema, model, labels, tasks, sha256; empty if nothing."""
        return self.description.get("judge") or {}

    @property
    def wall_seconds(self) -> float | None:
        """Wall-clock seconds of the whole run, on all its tasks, per question.

        None where they are not known, and where a store had some of the calls, which then took no time.
        """
        totals = self.description.get("totals") or {}
        seconds, questions = totals.get("wall_seconds"), totals.get("questions") or 0
        if seconds is None or totals.get("found_in_store") or questions < len(self.questions):
            return None
        return float(seconds) / int(questions)

    @property
    def is_ensemble(self) -> bool:
        """Whether the models took no roles, but were combined as an ensemble."""
        return bool(self.description.get("models"))

    @property
    def has_both_models(self) -> bool:
        """Whether mentor and intern took part; False for a model that ran alone."""
        return {"mentor", "intern"} <= set(self.description)


def identity(description: Mapping[str, Any]) -> str:
    """Return a string that is the same for two runs of the same models, settings, policy and classifier."""
    models = {
        name: [facts.get(key) for key in ("model", "parameters")] for name, facts in models_of(description).items()
    }
    settings = {name: as_given(description.get(name)) for name in IDENTIFYING}
    return json.dumps([models, settings, (description.get("judge") or {}).get("sha256")], sort_keys=True)


def as_given(setting: Any) -> Any:
    """Return a setting with its numbers as decimals that a person would have given."""
    if isinstance(setting, float):
        return nearest_decimal(setting)
    if isinstance(setting, Mapping):
        return {name: as_given(value) for name, value in setting.items()}
    return [as_given(value) for value in setting] if isinstance(setting, (list, tuple)) else setting


def models_of(description: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return what a run recorded about each of its models, by role, or by name in an ensemble; the mentor first."""
    roles = {role: description[role] for role in ("mentor", "intern") if role in description}
    return {**roles, **(description.get("models") or {})}
