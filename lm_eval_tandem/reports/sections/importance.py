"""Which features the judge relies on, by permutation on collected training questions (paper, Table 11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.intervals import auc
from lm_eval_tandem.reports.sources.labels import without_paths
from lm_eval_tandem.reports.sources.report_data import ReportData
from lm_eval_tandem.reports.sources.runs import Floats
from lm_eval_tandem.reports.table import Missing, Number, Part, Table, make_table

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

REPEATS = 5
"""Permutations of each feature."""
MAX_ROWS = 10
"""Features that the table lists, the most important first."""


def importance(data: ReportData) -> list[Part]:
    """Return the table for the report's classifier, or why there is none."""
    return [importance_part(data.classifier, data.collected, data.collected_named)]


def importance_part(classifier: Sufficiency | None, collected: Sequence[Path], must_fit: bool) -> Part:
    """Return the table of a classifier, or why there is none.

    Parameters
    ----------
    classifier
        The classifier, or None if it is not at hand.
    collected
        Files of collected training questions; the first one of the classifier's pair is used.
    must_fit
        Whether a file of another pair is an error.
    """
    if classifier is not None and classifier.width is not None:
        return Missing(
            f"The classifier {classifier.name} reads hidden states, whose entries have no meaning one by one."
        )
    if classifier is not None:
        tables = (table(file, classifier, must_fit) for file in collected)
        fitting = next((made for made in tables if made is not None), None)
        if fitting is not None:
            return fitting
    lacking = [] if collected else ["collected questions of the pair"]
    lacking += [] if classifier is not None else ["the classifier's folder"]
    return Missing(
        f"Feature importance needs {' and '.join(lacking or ['collected questions of the pair'])}.",
        "lm-eval-tandem collect --tasks TRAINING_TASK --output COLLECTED\n"
        "lm-eval-tandem report RUNS --collected COLLECTED --classifier CLASSIFIER",
    )


def table(collected: Path, classifier: Sufficiency, must_fit: bool) -> Table | None:
    """Return the features with the largest mean loss in AUC; None for questions of another pair, unless `must_fit`.

    Raises
    ------
    ArgumentError
        The questions were collected with another pair, and `must_fit`.
    """
    from lm_eval_tandem.training.collected_file import read

    data, description = read(collected)
    pair = {role: description[role]["model"] for role in ("mentor", "intern")}
    if pair != {role: classifier.pair.get(role) for role in pair}:
        if not must_fit:
            return None
        raise ArgumentError(
            f"the classifier {classifier.name} was fitted for the pair "
            f"{without_paths(classifier.pair.get('mentor'))} and {without_paths(classifier.pair.get('intern'))}, but "
            f"{collected.name} was collected with {without_paths(pair['mentor'])} and "
            f"{without_paths(pair['intern'])}; give a classifier and questions of the same pair."
        )
    names = [str(feature) for feature in classifier.config["features"]]
    vectors = data.inputs(classifier.schema, classifier.probe)
    losses, area = permutation_losses(classifier.estimator, vectors, np.asarray(data.correct, dtype=np.float64))
    means = [digits.mean(feature) for feature in losses]
    order = np.argsort(-digits.without_last_bits(means), kind="stable")[:MAX_ROWS]
    rows = [
        [str(rank), names[i], Number(means[i], (float(losses[i].min()), float(losses[i].max())), 4)]
        for rank, i in enumerate(order, 1)
    ]
    return make_table(
        "importance",
        f"Classifier {classifier.name}",
        f"{len(data.ids)} questions of {', '.join(description['tasks'])} at {data.features.shape[1]} stages. AUC with "
        f"all {len(names)} features: {digits.decimals(area, 3)}. Brackets hold the smallest and the largest loss of "
        f"{REPEATS} permutations.",
        ["rank", "feature", "loss in AUC"],
        rows,
    )


def permutation_losses(estimator: Any, features: Floats, correct: Floats, seed: int = 0) -> tuple[Floats, float]:
    """Return by how much AUC falls when the values of one feature are permuted among the questions of each stage.

    Parameters
    ----------
    estimator
        A fitted scikit-learn classifier.
    features
        Float64 (Q, T, F), its inputs.
    correct
        (Q, T), grades of the answers.
    seed
        Seed of the permutations.

    Returns
    -------
    losses
        Float64 (F, `REPEATS`).
    area
        AUC with all features as they are.
    """
    rng = np.random.default_rng(seed)
    grades = correct.ravel()

    def area_of(inputs: Floats) -> float:
        scores = estimator.predict_proba(inputs.reshape(-1, inputs.shape[2]))[:, 1]
        return auc(grades, np.asarray(scores, dtype=np.float64)) or 0.0

    area = area_of(features)
    losses = np.zeros((features.shape[2], REPEATS))
    for feature in range(features.shape[2]):
        for repeat in range(REPEATS):
            permuted = features.copy()
            for stage in range(features.shape[1]):
                permuted[:, stage, feature] = rng.permutation(permuted[:, stage, feature])
            losses[feature, repeat] = area - area_of(permuted)
    return losses, area
