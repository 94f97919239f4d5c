"""The judge's whole trade-off on the questions of a study: cascades that never ran, from fixed stages that did."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lm_eval_tandem.accounting import TERA
from lm_eval_tandem.digits import mean, settled
from lm_eval_tandem.judge.probe import refusals
from lm_eval_tandem.reports.sections.judge import everywhere
from lm_eval_tandem.reports.sources.scores import tokens
from lm_eval_tandem.reports.sources.study import Study
from lm_eval_tandem.training.dataset import probing_costs
from lm_eval_tandem.training.thresholds import Outcomes, simulate

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

POINTS = 25


def sweep(study: Study, judge: Sufficiency | None) -> list[tuple[float, float]]:
    """Mean cost (TFLOPs) and accuracy for thresholds from 0 to 1, the same at every stage; empty if not known.

    The thresholds are quantiles of the scores, so that the points spread over the curve.
    """
    outcomes = outcomes_of(study, judge)
    if outcomes is None:
        return []
    limits = settled(np.quantile(outcomes.scores, np.linspace(0, 1, POINTS)))
    found: dict[tuple[float, ...], tuple[float, float]] = {}
    for limit in np.unique(np.concatenate([[0.0], limits, [1.0]])):
        _, right, cost = simulate(outcomes, [float(limit)] * outcomes.scores.shape[1])
        point = mean(cost), mean(right)
        found.setdefault(tuple(settled(point).tolist()), point)
    return [point for _, point in sorted(found.items())]


def outcomes_of(study: Study, judge: Sufficiency | None) -> Outcomes | None:
    """What would happen at each stage, from the fixed-stage runs; a refused probe costs its tokens (Eq. 12)."""
    stages, told = study.all_stages, everywhere(study, judge)
    if (
        stages is None
        or told is None
        or not all({"tflops", "mentor_tokens"} <= set(r.columns) for r in stages.values())
    ):
        return None
    both = next((run.about for run in stages.values() if {"mentor", "intern"} <= set(run.about)), {})
    mentor_size, intern_size = (int((both.get(role) or {}).get("parameters") or 0) for role in ("mentor", "intern"))
    if not mentor_size or not intern_size:
        return None
    scores = np.stack([one for one, _ in told], axis=1)
    ended = np.array([[r["mentor_stages"] < stage for r in run.records] for stage, run in stages.items()]).T
    probes = np.stack([length for _, length in told], axis=1).astype(np.int64) * ~ended
    written = np.array([[r["tokens"]["intern_new"] for r in run.records] for run in stages.values()]).T
    records = [run.records for run in stages.values()]
    refused = refusals(probes, written, tokens(records, "answer_ids"), tokens(records, "prompt_end"))
    cost = np.stack([run.columns["tflops"] for run in stages.values()], axis=1)
    mentor = np.stack([run.columns["mentor_tokens"] for run in stages.values()], axis=1)
    rest = (2 / TERA) * (mentor_size + intern_size) * (mentor[:, -1:] - mentor)
    costs = probing_costs(cost, cost + rest, (2 / TERA) * intern_size, probes, refused)
    # many a limit is itself a score, which must not pass it on one machine and fail it on another
    scores = np.where(ended, 0.0, settled(scores))
    return Outcomes(scores, settled(np.stack([run.score for run in stages.values()], axis=1)), *costs)
