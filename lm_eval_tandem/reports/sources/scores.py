"""What the judge would say of every question at every fixed stage, from what the ledgers of those runs recorded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.probe import statistics
from lm_eval_tandem.reports.sources.runs import Floats

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

Record = Mapping[str, Any]


def recorded(records: Sequence[Record], checksum: str) -> tuple[Floats, Floats] | None:
    """Scores and lengths of probes, (Q,) each, that `packing` left in a ledger for the classifier of this checksum."""
    looks = [last_look(record) for record in records]
    if not looks or not all(look and look["score"] is not None for look in looks):
        return None
    if any(look.get("judged_by", checksum) != checksum for look in looks):
        return None
    told, lengths = ([float(look[name]) for look in looks] for name in ("score", "probe_tokens"))
    return np.array(told), np.array(lengths)


def judged(records: Sequence[Record], judge: Sufficiency) -> tuple[Floats, Floats] | None:
    """Scores and lengths of probes, (Q,) each; None where the ledger lacks what this classifier is shown."""
    found = [vector(record, judge) for record in records]
    if not found or any(one is None for one in found):
        return None
    scores = judge.estimator.predict_proba(np.array([one for one in found if one is not None]))[:, 1]
    lengths = [0.0 if judge.probe is None else probed(last_look(record), judge) for record in records]
    return np.asarray(scores, dtype=np.float64), np.array(lengths)


def vector(record: Record, judge: Sufficiency) -> Floats | None:
    """What the judge is shown of a fixed stage; None where it was not recorded."""
    look = last_look(record)
    features = look.get("features")
    if not features or judge.width is not None:
        return None
    if judge.probe is None:
        return np.array(features)
    logprob, entropy = look.get("answer_logprob"), look.get("answer_entropy")
    if not logprob or not entropy:
        return None
    ended = len(entropy) >= record["tokens"]["intern_new"]
    said = statistics(np.array(logprob), np.array(entropy), ended, judge.probe)
    return input_schemas.vectors(judge.schema, np.array(features), said)


def probed(look: Record, judge: Sufficiency) -> float:
    """How many tokens of the answer the probe would have taken."""
    assert judge.probe is not None
    return float(judge.probe.length(np.array(look["answer_entropy"])))


def tokens(stages: Sequence[Sequence[Record]], name: str) -> NDArray[np.int32] | None:
    """`answer_ids` or `prompt_end` of each stage's looks, int32 (Q, T, P), -1 after; None if not all are kept."""
    told: list[list[list[int]]] = [[last_look(r).get(name) or [] for r in records] for records in stages]
    if not all(ids for records in told for ids in records):
        return None
    longest = max(len(ids) for records in told for ids in records)
    found = np.full((len(told[0]), len(told), longest), -1, dtype=np.int32)
    for stage, records in enumerate(told):
        for row, ids in enumerate(records):
            found[row, stage, : len(ids)] = ids
    return found


def last_look(record: Record) -> dict[str, Any]:
    """The only look of a fixed stage; empty where nothing was recorded."""
    return dict(record["stages"][-1]) if record["stages"] else {}
