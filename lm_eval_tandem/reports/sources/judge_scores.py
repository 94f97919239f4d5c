"""The judge's score of every question at every fixed stage, from what the ledgers of the fixed-stage runs recorded.

A cascade judges a question only until a stage passes. Fixed-stage runs with `record_features=True` answer every
question at their stage and record what a classifier needs, so its score there can be computed afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.probe import probe_features
from lm_eval_tandem.ledger import MENTOR_FINISHED
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.labels import model_name
from lm_eval_tandem.reports.sources.runs import Floats

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

Record = Mapping[str, Any]
"""One record of a ledger, as `lm_eval_tandem.ledger.Record` is written to JSON."""


@dataclass(frozen=True)
class StageScores:
    """What a classifier makes of Q questions at one fixed stage.

    Attributes
    ----------
    scores
        Float64 (Q,), the estimated probability that the intern's answer is correct; 0 where it had none to give.
    probe_lengths
        Float64 (Q,), tokens of the answer that the classifier's probe takes; 0 without a probe.
    """

    scores: Floats
    probe_lengths: Floats


def scores_at_every_stage(comparison: Comparison, classifier: Sufficiency | None) -> list[StageScores] | None:
    """Return the scores of every question at every fixed stage, stage 0 first.

    Parameters
    ----------
    comparison
        Scores are those of its cascade's classifier where ledgers recorded them.
    classifier
        The classifier to compute scores with where they were not recorded; None if it is not at hand.

    Returns
    -------
    list of StageScores or None
        None if a fixed stage was not run, or its ledger holds neither scores nor what the classifier needs.
    """
    stages, cascade = comparison.all_stages, comparison.cascade
    if stages is None:
        return None
    checksum = str((cascade.classifier_facts if cascade else {}).get("sha256"))
    every_stage = []
    for run in stages.values():
        scores = recorded_scores(run.records, checksum)
        if scores is None and classifier is not None and is_for_pair(classifier, comparison):
            scores = computed_scores(run.records, classifier)
        if scores is None:
            return None
        every_stage.append(scores)
    return every_stage


def recorded_scores(records: Sequence[Record], checksum: str) -> StageScores | None:
    """Return the scores that a fixed stage's ledger holds; None unless all are of the classifier with this checksum.

    `benchmarks/packing.py` stores scores in ledgers, in place of the longer measurements that they are computed from.
    """
    judgements = [judgement_of(record) for record in records]
    if not judgements or not all(judgement and judgement["score"] is not None for judgement in judgements):
        return None
    if any(judgement.get("judged_by", checksum) != checksum for judgement in judgements):
        return None
    scores, lengths = ([float(judgement[name]) for judgement in judgements] for name in ("score", "probe_tokens"))
    return StageScores(np.array(scores), np.array(lengths))


def computed_scores(records: Sequence[Record], classifier: Sufficiency) -> StageScores | None:
    """Return the scores that a classifier gives to a fixed stage's records; None if one of them lacks its inputs.

    Where the mentor has finished the answer itself there is nothing to judge: score and length are 0.
    """
    scores, lengths = np.zeros(len(records)), np.zeros(len(records))
    judged = [row for row, record in enumerate(records) if not mentor_finished(record)]
    vectors = [vector for row in judged if (vector := input_vector(records[row], classifier)) is not None]
    if not records or len(vectors) < len(judged):
        return None
    if vectors:
        scores[judged] = classifier.estimator.predict_proba(np.array(vectors))[:, 1]
    if classifier.probe is not None:
        lengths[judged] = [probe_length(judgement_of(records[row]), classifier) for row in judged]
    return StageScores(scores, lengths)


def input_vector(record: Record, classifier: Sufficiency) -> Floats | None:
    """Return the classifier's input, float64 (F,), at the stage of a record; None if it was not recorded."""
    judgement = judgement_of(record)
    features = judgement.get("features")
    if not features or classifier.width is not None:  # ledgers hold no hidden states
        return None
    if len(features) == 1 and classifier.schema != input_schemas.PROBE:  # the prompt was not measured
        return None
    if classifier.probe is None:
        return np.array(features)
    logprob, entropy = judgement.get("answer_logprob"), judgement.get("answer_entropy")
    if not logprob or not entropy:
        return None
    ended = len(entropy) >= record["tokens"]["intern_new"]
    probed = probe_features(np.array(logprob), np.array(entropy), ended, classifier.probe)
    return input_schemas.vectors(classifier.schema, np.array(features), probed)


def probe_length(judgement: Record, classifier: Sufficiency) -> float:
    """Return the number of tokens of a recorded answer that the classifier's probe takes."""
    assert classifier.probe is not None
    return float(classifier.probe.length(np.array(judgement["answer_entropy"])))


def token_ids(stages: Sequence[Sequence[Record]], name: str) -> NDArray[np.int32] | None:
    """Return `answer_ids` or `prompt_end` of every question at every stage.

    Parameters
    ----------
    stages
        The Q records of each of T fixed stages.
    name
        Which of the two.

    Returns
    -------
    ndarray or None
        Int32 (Q, T, P), filled up with -1; None if one of the records has no such ids, though it has an answer of the
        intern's.
    """
    ids = [[judgement_of(record).get(name) or [] for record in records] for records in stages]
    finished = [[mentor_finished(record) for record in records] for records in stages]
    if not (np.array([[bool(sequence) for sequence in stage] for stage in ids]) | finished).all():
        return None
    longest = max(len(sequence) for stage in ids for sequence in stage)
    filled = np.full((len(ids[0]), len(ids), longest), -1, dtype=np.int32)
    for t, stage in enumerate(ids):
        for q, sequence in enumerate(stage):
            filled[q, t, : len(sequence)] = sequence
    return filled


def mentor_finished(record: Record) -> bool:
    """Whether nothing was left to the intern of an answer that the mentor had begun: there is nothing to judge."""
    return bool(record["reason"] == MENTOR_FINISHED)


def judgement_of(record: Record) -> dict[str, Any]:
    """Return the only judgement in a fixed-stage record; empty if nothing was recorded."""
    return dict(record["stages"][-1]) if record["stages"] else {}


def is_for_pair(classifier: Sufficiency, comparison: Comparison) -> bool:
    """Whether a classifier was fitted for the pair of a comparison, by the names of its models."""
    description = next((run.description for run in comparison.runs if run.has_both_models), None)
    return description is not None and all(
        model_name(classifier.pair[role]) == model_name(description[role]["model"]) for role in ("mentor", "intern")
    )
