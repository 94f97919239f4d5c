"""What the judge's scores rest on, by permutation on collected training data (paper, Table 11)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_tandem import digits
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.intervals import auc
from lm_eval_tandem.reports.sources.runs import Floats
from lm_eval_tandem.reports.sources.study import shown
from lm_eval_tandem.reports.table import Missing, Number, Part, Section, Table, table

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

REPEATS = 5
SHOWN_FEATURES = 10


def section(collected: Sequence[Path], judge: Sufficiency | None, asked: bool) -> Section:
    """Table 11: what the scores rest on, by permutation on collected training data.

    collected: files to look for data of the judge's pair in. asked: the user named them, so they have to fit.
    """
    part: Part | None = None
    if judge is not None and judge.width is not None:
        part = Missing(f"The classifier {judge.name} sees hidden states, whose entries mean nothing one by one.")
    elif judge is not None:
        part = next((made for file in collected if (made := importance_table(file, judge, asked))), None)
    if part is None:
        there = (("collected data of the pair", collected), ("the classifier's folder", judge))
        lacking = [what for what, found in there if not found] or [there[0][0]]
        part = Missing(
            f"Feature importance needs {' and '.join(lacking)}.",
            "lm-eval-tandem collect --tasks TRAINING_TASK --output COLLECTED\n"
            "lm-eval-tandem report RUNS --collected COLLECTED --classifier CLASSIFIER",
        )
    return Section(
        "importance",
        "What the judge looks at",
        "Paper, Table 11. Permutation importance: one feature's values are exchanged among the questions of a stage, "
        "and the area under the ROC curve falls by so much. The paper lists the split gains of another kind of model.",
        (part,),
    )


def importance_table(collected: Path, judge: Sufficiency, asked: bool) -> Table | None:
    """The features that matter most, by their mean loss of AUC; None for data of another pair that nobody asked for."""
    from lm_eval_tandem.training.collect import read

    data, description = read(collected)
    pair = {role: description[role]["model"] for role in ("mentor", "intern")}
    if pair != {role: judge.pair.get(role) for role in pair}:
        if not asked:
            return None
        raise ArgumentError(
            f"the classifier {judge.name} is of the pair {shown(judge.pair.get('mentor'))} and "
            f"{shown(judge.pair.get('intern'))}, but {collected.name} was collected with {shown(pair['mentor'])} and "
            f"{shown(pair['intern'])}; give what belongs together."
        )
    names = [str(feature) for feature in judge.config["features"]]
    vectors = data.inputs(judge.schema, judge.probe)
    losses, area = permutation_losses(judge.estimator, vectors, np.asarray(data.correct, dtype=np.float64))
    means = [digits.mean(lost) for lost in losses]
    order = np.argsort(-digits.settled(means), kind="stable")[:SHOWN_FEATURES]
    rows = [
        [str(rank), names[i], Number(means[i], (float(losses[i].min()), float(losses[i].max())), 4)]
        for rank, i in enumerate(order, 1)
    ]
    return table(
        "importance",
        f"Classifier {judge.name}",
        f"{len(data.ids)} questions of {', '.join(description['tasks'])} at {data.features.shape[1]} stages; AUC with "
        f"all {len(names)} features {digits.decimals(area, 3)}. Brackets hold the least and the largest of "
        f"{REPEATS} permutations.",
        ["rank", "feature", "loss of AUC"],
        rows,
    )


def permutation_losses(estimator: Any, features: Floats, correct: Floats, seed: int = 0) -> tuple[Floats, float]:
    """How much AUC falls when a feature (Q, T, F) is permuted within each stage: (F, repeats); and the whole AUC."""
    rng = np.random.default_rng(seed)
    truth = correct.ravel()

    def area(values: Floats) -> float:
        scores = estimator.predict_proba(values.reshape(-1, values.shape[2]))[:, 1]
        return auc(truth, np.asarray(scores, dtype=np.float64)) or 0.0

    whole = area(features)
    losses = np.zeros((features.shape[2], REPEATS))
    for feature in range(features.shape[2]):
        for repeat in range(REPEATS):
            mixed = features.copy()
            for stage in range(features.shape[1]):
                mixed[:, stage, feature] = rng.permutation(mixed[:, stage, feature])
            losses[feature, repeat] = whole - area(mixed)
    return losses, whole
