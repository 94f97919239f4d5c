"""The curve of accuracy against cost that the judge would reach at one threshold or another, without further runs.

Fixed-stage runs answered every question at every stage, so a cascade with any thresholds can be simulated from them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from lm_eval_tandem.accounting import TERA
from lm_eval_tandem.digits import mean, without_last_bits
from lm_eval_tandem.judge.probe import count_probe_tokens
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.judge_scores import mentor_finished, scores_at_every_stage, token_ids
from lm_eval_tandem.training.costs import TFLOPS, CostUnit
from lm_eval_tandem.training.dataset import costs_with_probes
from lm_eval_tandem.training.outcomes import Outcomes, simulate

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

POINTS = 25
"""Number of thresholds that are tried besides 0 and 1."""


def sweep(comparison: Comparison, classifier: Sufficiency | None) -> list[tuple[float, float]]:
    """Return the curve for thresholds from 0 to 1, the same at every stage.

    Thresholds are quantiles of the scores, so that the points are spread over the curve.

    Returns
    -------
    list of (float, float)
        Mean cost in TFLOPs per question and accuracy in [0, 1], sorted; empty if the ledgers do not allow it.
    """
    outcomes = outcomes_at_every_stage(comparison, classifier)
    if outcomes is None:
        return []
    quantiles = without_last_bits(np.quantile(outcomes.scores, np.linspace(0, 1, POINTS)))
    points: dict[tuple[float, ...], tuple[float, float]] = {}
    for threshold in np.unique(np.concatenate([[0.0], quantiles, [1.0]])):
        _, grades, cost = simulate(outcomes, [float(threshold)] * outcomes.scores.shape[1])
        point = mean(cost), mean(grades)
        points.setdefault(tuple(without_last_bits(point).tolist()), point)
    return [point for _, point in sorted(points.items())]


def outcomes_at_every_stage(comparison: Comparison, classifier: Sufficiency | None) -> Outcomes | None:
    """Return score, grade and cost of every question at every stage; None if runs or ledgers do not have them.

    Costs follow Eq. 12 and include the tokens of refused probes.
    """
    stages, scored = comparison.all_stages, scores_at_every_stage(comparison, classifier)
    if stages is None or scored is None:
        return None
    runs = list(stages.values())
    sizes = model_sizes(comparison)
    if sizes is None or not all({"tflops", "mentor_tokens"} <= set(run.measures) for run in runs):
        return None
    # where the mentor had ended before a stage the cascade does not judge again: such a stage cannot pass
    ended = np.array([[r["mentor_stages"] < stage for r in run.records] for stage, run in stages.items()]).T
    scores = np.stack([stage.scores for stage in scored], axis=1)
    probe_lengths = np.stack([stage.probe_lengths for stage in scored], axis=1).astype(np.int64) * ~ended
    answer_lengths = np.array([[record["tokens"]["intern_new"] for record in run.records] for run in runs]).T
    records = [run.records for run in runs]
    refused = count_probe_tokens(
        probe_lengths, answer_lengths, token_ids(records, "answer_ids"), token_ids(records, "prompt_end")
    )
    mentor_tokens = np.stack([run.measures["mentor_tokens"] for run in runs], axis=1)
    finished = np.array([[mentor_finished(record) for record in run.records] for run in runs]).T
    cost = np.stack([run.measures["tflops"] for run in runs], axis=1)
    cost += CostUnit(TFLOPS, sizes).read_before(mentor_tokens, finished)
    # if no stage passes, the mentor has written to the end whichever stage the answer is taken from
    mentor_size, intern_size = sizes
    remaining = (2 / TERA) * (mentor_size + intern_size) * (mentor_tokens[:, -1:] - mentor_tokens)
    costs = costs_with_probes(cost, cost + remaining, (2 / TERA) * intern_size, probe_lengths, refused)
    # rounded, because many a threshold is itself a score and has to compare alike on every machine
    grades = without_last_bits(np.stack([run.grades for run in runs], axis=1))
    return Outcomes(np.where(ended, 0.0, without_last_bits(scores)), grades, *costs, finished)


def model_sizes(comparison: Comparison) -> tuple[int, int] | None:
    """Return the numbers of parameters of mentor and intern; None if one is not known."""
    stages = comparison.all_stages or {}
    description = next((run.description for run in stages.values() if run.has_both_models), {})
    mentor, intern = (int((description.get(role) or {}).get("parameters") or 0) for role in ("mentor", "intern"))
    return (mentor, intern) if mentor and intern else None
