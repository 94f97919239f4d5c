"""The probe: the intern starts its answer before it is judged, and the judge reads how certain it was.

This goes beyond the paper. `Probe` limits how much is generated, `probe_features` turns it into 13 numbers, and
`count_probe_tokens` counts what probes cost. An accepted probe costs nothing, because the answer continues from its
tokens. A refused one is a draft of the next stage's answer: only the tokens that differ are generated again. Numpy
only.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines.drafts import PROMPT_TAIL
from lm_eval_tandem.errors import ClassifierError

PROBE_FEATURE_NAMES: tuple[str, ...] = (
    "probe_tokens",
    "probe_ended",
    "probe_doubted",
    "probe_first_entropy",
    "probe_mean_entropy",
    "probe_last_entropy",
    "probe_max_entropy",
    "probe_second_entropy",
    "probe_max_position",
    "probe_unsure_tokens",
    "probe_first_logprob",
    "probe_mean_logprob",
    "probe_min_logprob",
)
"""The 13 entries of `probe_features`, in order. Fitted classifiers store these names, so they never change."""

MAX_PROBE_TOKENS = 512
"""Tokens of an answer whose log-probabilities and entropies are collected: no probe is longer."""

HIGH_ENTROPY = 0.5
"""Nats above which a token counts for `probe_unsure_tokens`; a fair coin: 0.69."""

_MIN_LOGPROB = -80.0
"""Log-probabilities below this count as this, so that every feature stays finite."""


@dataclass(frozen=True)
class Probe:
    """How much of its answer the intern generates before it is judged.

    Parameters
    ----------
    tokens
        The largest number of tokens, from 1 to `MAX_PROBE_TOKENS`.
    max_entropy
        In nats, above 0: generation ends with the first token of higher entropy. Infinite for no such limit.

    Raises
    ------
    ClassifierError
        A value is out of range.
    """

    tokens: int
    max_entropy: float = math.inf

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or not 1 <= self.tokens <= MAX_PROBE_TOKENS:
            raise ClassifierError(
                f"A probe's tokens must be a whole number from 1 to {MAX_PROBE_TOKENS}, not {self.tokens!r}."
            )
        if not isinstance(self.max_entropy, (int, float)) or not self.max_entropy > 0:
            raise ClassifierError(f"A probe's max_entropy must be a positive number of nats, not {self.max_entropy!r}.")

    @classmethod
    def from_json(cls, value: Any) -> Probe:
        """The probe that `to_json` described.

        Raises
        ------
        ClassifierError
            The value describes no probe.
        """
        if isinstance(value, dict) and "doubt" in value and "max_entropy" not in value:
            # Version 0.1 called max_entropy "doubt".
            value = {"max_entropy" if name == "doubt" else name: entry for name, entry in value.items()}
        if not isinstance(value, dict) or set(value) != {"tokens", "max_entropy"}:
            raise ClassifierError(f"A probe is described by tokens and max_entropy, not by {value!r}.")
        return cls(value["tokens"], math.inf if value["max_entropy"] is None else value["max_entropy"])

    def to_json(self) -> dict[str, Any]:
        """The probe as a JSON object; an infinite `max_entropy` is null."""
        return asdict(self) | {"max_entropy": self.max_entropy if math.isfinite(self.max_entropy) else None}

    def length(self, entropy: NDArray[np.floating[Any]]) -> int:
        """The number of leading tokens of an answer that the probe generates.

        Parameters
        ----------
        entropy
            Of the answer's tokens, in nats, shape (n,).
        """
        within = np.asarray(entropy)[: self.tokens].tolist()
        return next((n for n, each in enumerate(within, 1) if each > self.max_entropy), len(within))


def probe_features(
    logprob: NDArray[np.floating[Any]], entropy: NDArray[np.floating[Any]], ended: bool, probe: Probe
) -> NDArray[np.float64]:
    """The features of a probe.

    Parameters
    ----------
    logprob, entropy
        Of the answer's first n >= 1 tokens, natural logarithms, shape (n,). Tokens after the probe's end are ignored.
    ended
        Whether the answer is complete with the n-th token.
    probe
        How much of the answer the probe generates.

    Returns
    -------
    NDArray[numpy.float64]
        Shape (13,), all finite, in the order of `PROBE_FEATURE_NAMES`.

    Raises
    ------
    ValueError
        The arrays are empty or differ in shape.
    """
    n = probe.length(entropy)
    if n < 1 or np.shape(logprob) != np.shape(entropy):
        raise ValueError(
            f"A probe needs the log-probability and entropy of at least one token, not arrays of shapes "
            f"{np.shape(logprob)} and {np.shape(entropy)}, so correct the engine's measured generate()."
        )
    # For so few numbers Python's lists take a quarter of numpy's time, which counts as the judge's.
    entropies, logprobs = np.asarray(entropy)[:n].tolist(), np.asarray(logprob)[:n].tolist()
    lowest = max(min(logprobs), _MIN_LOGPROB)
    if lowest == _MIN_LOGPROB:
        logprobs = [max(each, lowest) for each in logprobs]
    descending = sorted(entropies, reverse=True)
    return np.array(
        [
            n,
            ended and n == len(entropy),
            descending[0] > probe.max_entropy,
            entropies[0],
            math.fsum(entropies) / n,
            entropies[-1],
            descending[0],
            descending[1] if n > 1 else 0.0,
            entropies.index(descending[0]),
            len([each for each in entropies if each > HIGH_ENTROPY]),
            logprobs[0],
            math.fsum(logprobs) / n,
            lowest,
        ],
        dtype=np.float64,
    )


Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


class ProbeTokens(NamedTuple):
    """What probes cost, in tokens beside those of the answer given in the end; int (Q, T) each."""

    generated: Ints
    """Tokens generated for the probe of each stage, that is, wasted if the stage is refused."""
    saved_at_once: Ints
    """Tokens of a stage's answer that the draft saves, if the stage is answered from as soon as it is judged."""
    saved_later: Ints
    """Tokens after a stage's probe that the draft saves, if the stage is answered from after later refusals."""


def count_probe_tokens(lengths: Ints, answers: Ints, ids: Tokens | None, ends: Tokens | None) -> ProbeTokens:
    """The tokens that probes cost and save, for every question and stage.

    Parameters
    ----------
    lengths
        int (Q, T): tokens of each stage's probe, 0 where there is none.
    answers
        int (Q, T): tokens of the whole answers.
    ids
        int (Q, T, P): the first P tokens of the answers, -1 after their end; None if the engine accepts no drafts.
    ends
        int (Q, T, 8): the last tokens of the prompts, -1 before their beginning; None as for `ids`.
    """
    saved_in_probe, saved_later = np.zeros_like(lengths), np.zeros_like(lengths)
    if ids is None or ends is None:
        return ProbeTokens(lengths, saved_in_probe, saved_later)
    positions = np.arange(ids.shape[2])
    drafts = np.full((len(lengths), ids.shape[2] + PROMPT_TAIL), -1)
    for stage in range(lengths.shape[1]):
        length = lengths[:, stage]
        in_draft = positions + prompt_overlap(ends[:, stage], drafts)[:, None]
        same = (np.take_along_axis(drafts, in_draft, axis=1) == ids[:, stage]) & (ids[:, stage] >= 0)
        common = np.where(same.all(axis=1), same.shape[1], same.argmin(axis=1))
        saved_in_probe[:, stage] = np.clip(np.minimum(common, length - 1), 0, None)
        rest = np.where(common >= length, np.minimum(common, answers[:, stage] - 1) - length, 0)
        saved_later[:, stage] = np.clip(rest, 0, None)
        probe_ids = np.where(positions < length[:, None], ids[:, stage], -1)
        drafts[:, : len(positions)] = np.where(length[:, None] > 0, probe_ids, drafts[:, : len(positions)])
    return ProbeTokens(lengths - saved_in_probe, saved_in_probe + saved_later, saved_later)


def prompt_overlap(ends: Tokens, drafts: Ints) -> Ints:
    """The number of leading tokens (Q,) of each draft (Q, P) that its prompt's end (Q, 8) repeats.

    `engines.drafts.strip_prompt_overlap` removes the same tokens from one draft.
    """
    overlap = np.zeros(len(ends), dtype=np.int64)
    for n in range(1, PROMPT_TAIL + 1):
        overlap[(ends[:, -n:] == drafts[:, :n]).all(axis=1)] = n
    return overlap
