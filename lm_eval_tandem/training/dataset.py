"""What collecting found, and what every cascade over it would cost. Numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.probe import Probe, refusals, statistics
from lm_eval_tandem.training.thresholds import Outcomes

Floats = NDArray[np.float64]
_ARRAYS = (
    *("features", "correct", "cost", "fallback_cost", "judged", "logprob", "entropy", "answer_tokens"),
    *("agrees", "parts", "answer_ids", "prompt_ends"),
    *("hidden", "prompts"),
)
_UNTIL_END = {"logprob": np.nan, "entropy": np.nan, "answer_ids": -1}
"""Arrays of an answer's first tokens, and what stands there after its end."""


@dataclass(frozen=True)
class Collected:
    """What collecting found for Q questions at T stages, stage 0 (the question alone) included.

    ids: one per question, no two alike.
    features: float (Q, T, 18), as `features(stats, stage)` returns them.
    correct: (Q, T), the grade of the intern's answer under the insight of each stage, in [0, 1]; from 0.5 on it counts
        as label 1.
    cost: (Q, T), what the question costs when the cascade stops at a stage, everything up to there but probes.
    fallback_cost: (Q, T), what it costs when no stage passed and a stage is answered from, in the same unit.
    judged: bool (Q, T), False where the cascade would not look again because the mentor had already ended; None for
        everywhere. Such a stage can neither pass nor be the best of all.
    logprob, entropy: float32 (Q, T, P), natural logarithms of the first P tokens of the intern's answers, NaN after
        their end; None where they were not collected.
    answer_tokens: int (Q, T), tokens of the whole answers.
    token_cost: what one token of the intern costs, in the unit of `cost`.
    agrees: (Q, T), as `correct`, but against the mentor's own full answer; None where that was not collected.
    tasks: the task of each question; None for one and the same.
    parts: float (Q, T, 36), as `features.parts` returns them; None if not collected.
    answer_ids: int32 (Q, T, P), the first P tokens of the intern's answers, -1 after their end; None where they were
        not collected, as with engines that read no drafts.
    prompt_ends: int32 (Q, T, 8), the last tokens of the prompts, -1 before their beginning; None as `answer_ids`.
    hidden: float32 (Q, T, D), the intern's hidden state at the prompts' last tokens; None if not collected.
    prompts: (Q, T) of integer arrays, the prompts' tokens; None if not collected.
    """

    ids: list[str]
    features: Floats
    correct: Floats | NDArray[np.bool_]
    cost: Floats
    fallback_cost: Floats
    judged: NDArray[np.bool_] | None = None
    logprob: NDArray[np.float32] | None = None
    entropy: NDArray[np.float32] | None = None
    answer_tokens: NDArray[np.int64] | None = None
    token_cost: float = 0.0
    agrees: Floats | None = None
    tasks: list[str] | None = None
    parts: Floats | None = None
    answer_ids: NDArray[np.int32] | None = None
    prompt_ends: NDArray[np.int32] | None = None
    hidden: NDArray[np.float32] | None = None
    prompts: NDArray[np.object_] | None = None

    def part(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Collected:
        """Some of the questions."""
        names = np.arange(len(self.ids))[rows]
        kept: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in _ARRAYS
        }
        tasks = None if self.tasks is None else [self.tasks[row] for row in names]
        return replace(self, ids=[self.ids[row] for row in names], tasks=tasks, **kept)

    def probed(self, probe: Probe) -> tuple[Floats, Floats]:
        """What a probe says of every answer, float64 (Q, T, 13), and how many tokens it takes, (Q, T).

        Raises ClassifierError where the answers' entropies were not collected.
        """
        if self.entropy is None or self.logprob is None or self.answer_tokens is None:
            raise ClassifierError(
                "These questions were collected without the entropies of the intern's answers, which a probe needs; "
                "collect again, or fit with --inputs statistics."
            )
        said = np.zeros((*self.entropy.shape[:2], 13))
        for q, t in np.ndindex(*said.shape[:2]):
            known = int(np.count_nonzero(~np.isnan(self.entropy[q, t])))
            ended = bool(known >= self.answer_tokens[q, t])
            said[q, t] = statistics(self.logprob[q, t, :known], self.entropy[q, t, :known], ended, probe)
        return said, said[:, :, 0]

    def inputs(self, schema: str = input_schemas.STATISTICS, probe: Probe | None = None) -> Floats:
        """The vectors that a judge is shown under a schema, float64 (Q, T, F); for hidden states, `hidden` as it is.

        Raises ClassifierError where what that needs was not collected, or is of another width.
        """
        wanted = input_schemas.width(schema)
        if wanted is not None:
            found = self.hidden_states()
            if found.shape[2] != wanted:
                raise ClassifierError(
                    f"These questions were collected with hidden states of {found.shape[2]} numbers, not of {wanted} "
                    f"as the schema {schema} has; they are of another intern."
                )
            return found.astype(np.float64)
        return input_schemas.vectors(schema, self.features, None if probe is None else self.probed(probe)[0])

    def hidden_states(self) -> NDArray[np.float32]:
        """`hidden`; raises ClassifierError where it was not collected."""
        if self.hidden is None:
            raise ClassifierError(
                "These questions were collected without the intern's hidden states; collect again with --hidden (what "
                "the store holds is not generated again), or fit with --inputs statistics."
            )
        return self.hidden

    def tokens(self) -> NDArray[np.object_]:
        """`prompts`; raises ClassifierError where they were not collected."""
        if self.prompts is None:
            raise ClassifierError(
                "These questions were collected without the prompts' tokens, from which the intern is finetuned; "
                "collect again with --hidden (what the store holds is not generated again)."
            )
        return self.prompts

    def outcomes(self, scores: Floats, probe: Probe | None, correct: Floats | None = None) -> Outcomes:
        """What happens under scores (Q, T); probes cost what `probe.refusals` says, an accepted one nothing.

        correct: other grades than the data's own, (Q, T).
        """
        judged = np.ones(np.shape(scores), dtype=bool) if self.judged is None else self.judged
        lengths = np.zeros(np.shape(scores), dtype=np.int64)
        if probe is not None:
            lengths = self.probed(probe)[1].astype(np.int64) * judged
        grades = np.asarray(self.correct if correct is None else correct, dtype=np.float64)
        costs = self.costs(lengths)
        return Outcomes(np.where(judged, scores, 0.0), grades, *costs)

    def costs(self, lengths: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """`cost` and `fallback_cost`, (Q, T) each, with probes of so many tokens, int (Q, T), before."""
        if not lengths.any():
            return self.cost, self.fallback_cost
        assert self.answer_tokens is not None
        refused = refusals(lengths, self.answer_tokens, self.answer_ids, self.prompt_ends)
        return probing_costs(self.cost, self.fallback_cost, self.token_cost, lengths, refused)


def probing_costs(
    cost: Floats,
    fallback_cost: Floats,
    token_cost: float,
    lengths: NDArray[np.int64],
    refused: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]],
) -> tuple[Floats, Floats]:
    """What stopping at a stage costs, and what answering from it costs after all were refused, (Q, T) each.

    cost, fallback_cost: the same without probes. token_cost: of one token of the intern. lengths, refused: tokens of
    the probes and what `probe.refusals` says of them.
    """
    wasted, accepted_draft_tokens, spared_later = refused
    before = np.cumsum(wasted, axis=1) - wasted
    everything = wasted.sum(axis=1, keepdims=True)
    return (
        cost + token_cost * (before - accepted_draft_tokens),
        fallback_cost + token_cost * (everything - lengths - spared_later),
    )


def together(found: Sequence[Collected]) -> Collected:
    """Several collections as one; all of the same stages."""
    first = found[0]
    if len(found) == 1:
        return first

    def joined(name: str) -> NDArray[np.float64] | None:
        arrays = [getattr(one, name) for one in found]
        if any(array is None for array in arrays):
            return None
        if name in _UNTIL_END:
            longest, after = max(array.shape[2] for array in arrays), _UNTIL_END[name]
            arrays = [np.pad(a, ((0, 0), (0, 0), (0, longest - a.shape[2])), constant_values=after) for a in arrays]
        return np.concatenate(arrays)

    arrays: dict[str, Any] = {name: joined(name) for name in _ARRAYS}
    tasks = [task for one in found for task in (one.tasks or [""] * len(one.ids))]
    return replace(first, ids=[name for one in found for name in one.ids], tasks=tasks, **arrays)
