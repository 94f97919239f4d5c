"""The options of `lm-eval-tandem fit`: recipes, inputs, kinds of labels, and the probes that it chooses from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS, Probe
from lm_eval_tandem.training.outcomes import Outcomes
from lm_eval_tandem.training.threshold_grid import GRID
from lm_eval_tandem.training.thresholds import centre_thresholds, choose_thresholds

FINE_GRID = (*GRID, 0.96, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999)
"""The paper's grid, with finer steps near 1, where the scores of a confident classifier lie."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is fitted.

    Parameters
    ----------
    inputs
        The inputs (keys of `INPUTS`) that fitting chooses from.
    model
        The kind of classifier, a key of `judge.registry.MODELS`.
    grid
        The values that thresholds may take.
    parameters
        Per kind of classifier, the constructor's parameters that differ from their defaults.
    centred
        Whether thresholds move to the middle of those that decide alike (`centre_thresholds`).
    holds_out
        Whether 30 % of the questions are kept out of the fit, and thresholds are chosen on their scores; otherwise the
        classifier is fitted on all questions, and thresholds are chosen on out-of-fold scores.
    """

    inputs: tuple[str, ...]
    model: str
    grid: tuple[float, ...]
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    centred: bool = True
    holds_out: bool = False

    def inputs_for(self, measured_prompts: bool) -> tuple[str, ...]:
        """The inputs to choose from, where the intern has measured its prompts, and where it has not.

        Where none is left, all are returned, so that fitting says what was not collected.
        """
        without = tuple(name for name in self.inputs if INPUTS[name] == input_schemas.PROBE)
        return self.inputs if measured_prompts or not without else without

    def choose(self, outcomes: Outcomes, objective: str, must_reach: bool = True) -> tuple[float, ...]:
        """The thresholds for an objective; raises ClassifierError if it has to be reached, and none do."""
        thresholds = choose_thresholds(outcomes, objective, self.grid, must_reach=must_reach)
        return centre_thresholds(outcomes, thresholds, self.grid) if self.centred else thresholds


_OWN_MLP = {"dropout": 0.1, "lr": 3e-3, "epochs": 150, "patience": 25, "batch_size": 128, "log_features": True}
_PAPERS_MLP = {"hidden": (64, 32), "dropout": 0.3, "lr": 1e-4, "epochs": 3, "patience": 1}

INPUTS = {"statistics": input_schemas.STATISTICS, "probe": input_schemas.PROBE, "statistics+probe": input_schemas.BOTH}
"""The values of `--inputs` that every collection allows, and their schemas."""
HIDDEN_INPUTS = ("hidden", "lora")
"""The values of `--inputs` that need hidden states: the intern's as it is, or finetuned for this."""
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(("statistics",), "mlp", GRID, {"mlp": _PAPERS_MLP}, centred=False, holds_out=True),
    "default": Recipe(tuple(INPUTS), "logistic", FINE_GRID, {"mlp": _OWN_MLP}),
}
"""The values of `--recipe`."""
LABELS = ("truth", "mentor")
"""The values of `--labels`: the task's grades, or agreement with the mentor's own answer."""
PROBES = tuple(Probe(tokens, limit) for tokens in (32, 128, MAX_PROBE_TOKENS) for limit in (0.7, 1.0, 2.0, np.inf))
"""The probes that fitting chooses from, the cheapest first."""
