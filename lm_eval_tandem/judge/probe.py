"""The probe: the judge also sees how sure the intern is while it begins its answer. Beyond the paper. Numpy only.

An accepted probe costs nothing, because the answer goes on from its tokens. A refused one is a draft of the next: only
what differs is written again, so it costs little more than its last tokens (`refusals`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.engines.drafts import PROMPT_TAIL
from lm_eval_tandem.errors import ClassifierError

PROBE_NAMES: tuple[str, ...] = (
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
"""What `statistics` returns, in order."""

MAX_PROBE_TOKENS = 512
"""Tokens of an answer whose log-probabilities and entropies are collected: no probe is longer."""

UNSURE = 0.5
"""Nats of entropy from which on a token counts as unsure; a coin's toss has 0.69."""


@dataclass(frozen=True)
class Probe:
    """How far the intern begins its answer before it is judged.

    tokens: the largest number of tokens to generate. max_entropy: in nats; generation ends with the first token that
        has a higher entropy (infinite: never).
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
    def read(cls, given: dict[str, Any]) -> Probe:
        """A probe from the JSON that `to_json` makes; raises ClassifierError for anything else."""
        if isinstance(given, dict) and "doubt" in given and "max_entropy" not in given:
            given = {"max_entropy" if name == "doubt" else name: value for name, value in given.items()}  # version 0.1
        if not isinstance(given, dict) or set(given) != {"tokens", "max_entropy"}:
            raise ClassifierError(f"A probe is described by tokens and max_entropy, not by {given!r}.")
        return cls(given["tokens"], math.inf if given["max_entropy"] is None else given["max_entropy"])

    def to_json(self) -> dict[str, Any]:
        """As JSON, where infinity is null."""
        return asdict(self) | {"max_entropy": self.max_entropy if math.isfinite(self.max_entropy) else None}

    def length(self, entropy: NDArray[np.floating[Any]]) -> int:
        """How many tokens of an answer with these entropies (nats, float (n,)) the probe sees."""
        shown = np.asarray(entropy)[: self.tokens].tolist()
        return next((n for n, each in enumerate(shown, 1) if each > self.max_entropy), len(shown))


def statistics(
    logprob: NDArray[np.floating[Any]], entropy: NDArray[np.floating[Any]], ended: bool, probe: Probe
) -> NDArray[np.float64]:
    """What a probe says, float64 (13,), all finite, in the order of `PROBE_NAMES`.

    logprob, entropy: natural logarithms, float (n,), n >= 1, of the answer's first tokens; those that the probe does
        not see are left out here. ended: whether the answer is finished with the n-th.
    """
    n = probe.length(entropy)
    if n < 1 or np.shape(logprob) != np.shape(entropy):
        raise ValueError(
            f"A probe needs the log-probability and entropy of at least one token, not arrays of shapes "
            f"{np.shape(logprob)} and {np.shape(entropy)}, so mend the engine's measured generate()."
        )
    # Few numbers, and the judge's time counts: Python's own lists take a quarter of numpy's time here.
    seen, said = np.asarray(entropy)[:n].tolist(), np.asarray(logprob)[:n].tolist()
    lowest = max(min(said), -80.0)
    if lowest == -80.0:
        said = [max(each, lowest) for each in said]
    falling = sorted(seen, reverse=True)
    return np.array(
        [
            n,
            ended and n == len(entropy),
            falling[0] > probe.max_entropy,
            seen[0],
            math.fsum(seen) / n,
            seen[-1],
            falling[0],
            falling[1] if n > 1 else 0.0,
            seen.index(falling[0]),
            len([each for each in seen if each > UNSURE]),
            said[0],
            math.fsum(said) / n,
            lowest,
        ],
        dtype=np.float64,
    )


Ints = NDArray[np.int64]
Tokens = NDArray[np.int32]


def refusals(lengths: Ints, answers: Ints, ids: Tokens | None, ends: Tokens | None) -> tuple[Ints, Ints, Ints]:
    """What probes cost, in tokens that are generated beside those of the answer given in the end; (Q, T) each.

    lengths: int (Q, T), tokens of each stage's probe, 0 where none is made. answers: int (Q, T), tokens of the whole
    answers. ids: int (Q, T, P), their first tokens, -1 after their end; ends: int (Q, T, 8), the last tokens of their
    prompts, -1 before their beginning. None where an engine reads no drafts.

    Returns the tokens that a refusal at each stage writes; how many tokens of its answer a stage need not write, if it
    is answered from at once; and the same of what follows its probe, if it is answered from after later refusals.
    """
    spared_begun, spared_rest = np.zeros_like(lengths), np.zeros_like(lengths)
    if ids is None or ends is None:
        return lengths, spared_begun, spared_rest
    places = np.arange(ids.shape[2])
    drafts = np.full((len(lengths), ids.shape[2] + PROMPT_TAIL), -1)
    for stage in range(lengths.shape[1]):
        length = lengths[:, stage]
        strip_prompt_overlap = places + repeated(ends[:, stage], drafts)[:, None]
        same = (np.take_along_axis(drafts, strip_prompt_overlap, axis=1) == ids[:, stage]) & (ids[:, stage] >= 0)
        common = np.where(same.all(axis=1), same.shape[1], same.argmin(axis=1))
        spared_begun[:, stage] = np.clip(np.minimum(common, length - 1), 0, None)
        rest = np.where(common >= length, np.minimum(common, answers[:, stage] - 1) - length, 0)
        spared_rest[:, stage] = np.clip(rest, 0, None)
        begun = np.where(places < length[:, None], ids[:, stage], -1)
        drafts[:, : len(places)] = np.where(length[:, None] > 0, begun, drafts[:, : len(places)])
    return lengths - spared_begun, spared_begun + spared_rest, spared_rest


def repeated(ends: Tokens, drafts: Ints) -> Ints:
    """How many leading tokens of each draft (Q, P) repeat the end of its prompt (Q, 8).

    See `engines.drafts.strip_prompt_overlap`.
    """
    found = np.zeros(len(ends), dtype=np.int64)
    for n in range(1, PROMPT_TAIL + 1):
        found[(ends[:, -n:] == drafts[:, :n]).all(axis=1)] = n
    return found
