"""Collected questions as arrays, and what every cascade over them would cost. Numpy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.probe import PROBE_FEATURE_NAMES, Probe, ProbeTokens, count_probe_tokens, probe_features
from lm_eval_tandem.training.outcomes import Outcomes

Floats = NDArray[np.float64]
_ARRAYS = (
    *("features", "correct", "cost", "fallback_cost", "judged", "logprob", "entropy", "answer_tokens"),
    *("finished", "read_before", "begun_cost"),
    *("agrees", "parts", "answer_ids", "prompt_ends"),
    *("hidden", "prompts"),
)
_PADDING = {"logprob": np.nan, "entropy": np.nan, "answer_ids": -1}
"""Arrays of an answer's first tokens, and the value after the answer's end."""


@dataclass(frozen=True)
class Collected:
    """What was collected for Q questions at T stages, stage 0 (the question alone) included.

    Parameters
    ----------
    ids
        One per question, no two alike.
    features
        float (Q, T, 18), as `judge.features.features` returns them; (Q, T, 1), the stage alone, where the prompts were
        not measured.
    correct
        (Q, T): the grade in [0, 1] of the intern's answer under the insight of each stage; 0.5 and more is label 1.
    cost
        (Q, T): what a question costs when the cascade stops at a stage, everything up to there but probes.
    fallback_cost
        (Q, T): what it costs when no stage passed and a stage is answered from, in the same unit.
    judged
        bool (Q, T): False where the mentor had already ended, so that the cascade does not judge again. Such a stage
        can neither pass nor be the best of all. None for True everywhere.
    finished
        bool (Q, T): where the mentor had finished the answer itself (`guidance=handoff`), so that nothing is judged and
        the cascade ends; None for nowhere.
    logprob, entropy
        float32 (Q, T, P), natural logarithms, of the first P tokens of the intern's answers, NaN after their end; None
        if they were not collected.
    answer_tokens
        int (Q, T): tokens of the whole answers.
    token_cost
        What one token of the intern costs, in the unit of `cost`.
    agrees
        (Q, T): as `correct`, but against the mentor's own full answer, NaN where that states no final value; None if
        it was not collected.
    tasks
        The task of each question; None if all are of the same.
    parts
        float (Q, T, 36), as `judge.features.segment_statistics` returns them; None if they were not collected.
    answer_ids
        int32 (Q, T, P): the first P tokens of the intern's answers, -1 after their end; None if they were not
        collected, because the engine accepts no drafts.
    prompt_ends
        int32 (Q, T, 8): the last tokens of the prompts, -1 before their beginning; None as for `answer_ids`.
    hidden
        float32 (Q, T, D): the intern's hidden states at the prompts' last tokens; None if they were not collected.
    prompts
        (Q, T) of integer arrays: the prompts' tokens; None if they were not collected.
    cost_unit
        The unit of all costs: TFLOPs, dollars or tokens.
    others
        Grade and cost (Q,) of the policies that were collected beside the stages, by name: "mentor", "steps:0.5", ….
    read_before
        (Q, T): what a cascade has paid before for what the intern read, where the mentor then finished; None for
        nothing.
    begun_cost
        What of the insights' cost (Q,) is also part of the mentor's own answer, which it has begun with them; None for
        nothing.
    """

    ids: list[str]
    features: Floats
    correct: Floats | NDArray[np.bool_]
    cost: Floats
    fallback_cost: Floats
    judged: NDArray[np.bool_] | None = None
    finished: NDArray[np.bool_] | None = None
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
    cost_unit: str = "TFLOPs"
    others: Mapping[str, tuple[Floats, Floats]] = field(default_factory=dict)
    read_before: Floats | None = None
    begun_cost: Floats | None = None

    def subset(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Collected:
        """Some of the questions, by a mask (Q,) or by their indices."""
        indices = np.arange(len(self.ids))[rows]
        arrays: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name)[rows] for name in _ARRAYS
        }
        tasks = None if self.tasks is None else [self.tasks[row] for row in indices]
        others = {name: (grades[rows], costs[rows]) for name, (grades, costs) in self.others.items()}
        return replace(self, ids=[self.ids[row] for row in indices], tasks=tasks, others=others, **arrays)

    def probe_all(self, probe: Probe) -> tuple[Floats, Floats]:
        """Apply a probe to every collected answer.

        Returns
        -------
        tuple[NDArray[numpy.float64], NDArray[numpy.float64]]
            The probe's features (Q, T, 13), and the number of tokens that it generates (Q, T).

        Raises
        ------
        ClassifierError
            The entropies of the answers were not collected.
        """
        if self.entropy is None or self.logprob is None or self.answer_tokens is None:
            raise ClassifierError(
                "These questions were collected without the entropies of the intern's answers, which a probe needs; "
                "collect again, or fit with --inputs statistics."
            )
        probed, to_fit = np.zeros((*self.entropy.shape[:2], len(PROBE_FEATURE_NAMES))), self.to_fit
        for q, t in np.ndindex(*probed.shape[:2]):
            if not to_fit[q, t]:  # there is no answer of the intern
                continue
            known = int(np.count_nonzero(~np.isnan(self.entropy[q, t])))
            ended = bool(known >= self.answer_tokens[q, t])
            probed[q, t] = probe_features(self.logprob[q, t, :known], self.entropy[q, t, :known], ended, probe)
        return probed, probed[:, :, 0]

    def probe_lengths(self, probe: Probe | None) -> NDArray[np.int64]:
        """The number of tokens (Q, T) that a probe generates at each stage: 0 where it is not judged, or for None."""
        if probe is None:
            return np.zeros(np.shape(self.correct), dtype=np.int64)
        lengths = self.probe_all(probe)[1].astype(np.int64)
        return lengths if self.judged is None else lengths * self.judged

    @property
    def to_fit(self) -> NDArray[np.bool_]:
        """Where (Q, T) there is something to judge, namely all that the mentor has not finished itself."""
        return np.ones(np.shape(self.correct), dtype=bool) if self.finished is None else ~self.finished

    @property
    def measures_prompts(self) -> bool:
        """Whether the intern's statistics of its prompts were collected."""
        return self.features.shape[2] > 1

    def inputs(self, schema: str = input_schemas.STATISTICS, probe: Probe | None = None) -> Floats:
        """The input vectors of a judge.

        Parameters
        ----------
        schema
            A known schema (`judge.input_schemas`).
        probe
            The probe of a schema with one.

        Returns
        -------
        NDArray[numpy.float64]
            Shape (Q, T, F).

        Raises
        ------
        ClassifierError
            What the schema needs was not collected, or has another width.
        """
        width = input_schemas.width(schema)
        if width is not None:
            states = self.hidden_states()
            if states.shape[2] != width:
                raise ClassifierError(
                    f"These questions were collected with hidden states of {states.shape[2]} numbers, not of {width} "
                    f"as the schema {schema} has; they are of another intern."
                )
            return states.astype(np.float64)
        if schema != input_schemas.PROBE and not self.measures_prompts:
            raise ClassifierError(
                "These questions were collected without the intern's statistics of its prompts; collect again without "
                "--no_statistics (what the store holds is not generated again), or fit with --inputs probe."
            )
        return input_schemas.vectors(schema, self.features, None if probe is None else self.probe_all(probe)[0])

    def hidden_states(self) -> NDArray[np.float32]:
        """`hidden`; raises ClassifierError if it was not collected."""
        if self.hidden is None:
            raise ClassifierError(
                "These questions were collected without the intern's hidden states; collect again with --hidden (what "
                "the store holds is not generated again), or fit with --inputs statistics."
            )
        return self.hidden

    def prompt_tokens(self) -> NDArray[np.object_]:
        """`prompts`; raises ClassifierError if they were not collected."""
        if self.prompts is None:
            raise ClassifierError(
                "These questions were collected without the prompts' tokens, from which the intern is finetuned; "
                "collect again with --hidden (what the store holds is not generated again)."
            )
        return self.prompts

    def outcomes(self, scores: Floats, probe: Probe | None, correct: Floats | None = None) -> Outcomes:
        """What happens to the questions under some scores.

        Parameters
        ----------
        scores
            s_t of every question and stage, (Q, T).
        probe
            The probe that the scores rest on, whose tokens are added to the costs; None for none.
        correct
            Grades (Q, T) in the place of the data's own.
        """
        return self.outcomes_with_probes(scores, self.probe_lengths(probe), correct)

    def outcomes_with_probes(
        self, scores: Floats, lengths: NDArray[np.int64], correct: Floats | None = None
    ) -> Outcomes:
        """As `outcomes`, where the number of tokens of each stage's probe, int (Q, T), is known."""
        judged = np.ones(np.shape(scores), dtype=bool) if self.judged is None else self.judged
        grades = np.asarray(self.correct if correct is None else correct, dtype=np.float64)
        cost, fallback_cost = self.costs(lengths * judged)
        cost = cost if self.read_before is None else cost + self.read_before
        # A stage that is not judged gets the score 0: it never passes, and of equal scores the earlier stage answers.
        return Outcomes(np.where(judged, scores, 0.0), grades, cost, fallback_cost, self.finished)

    def costs(self, lengths: NDArray[np.int64]) -> tuple[Floats, Floats]:
        """`cost` and `fallback_cost` (Q, T) plus what probes of `lengths` tokens, int (Q, T), cost."""
        if not lengths.any():
            return self.cost, self.fallback_cost
        assert self.answer_tokens is not None
        tokens = count_probe_tokens(lengths, self.answer_tokens, self.answer_ids, self.prompt_ends)
        return costs_with_probes(self.cost, self.fallback_cost, self.token_cost, lengths, tokens)


def costs_with_probes(
    cost: Floats,
    fallback_cost: Floats,
    token_cost: float,
    lengths: NDArray[np.int64],
    tokens: ProbeTokens,
) -> tuple[Floats, Floats]:
    """Add the cost of probes; an accepted probe costs nothing, since its tokens are part of the answer.

    Parameters
    ----------
    cost, fallback_cost
        (Q, T): what stopping at a stage costs, and what answering from it costs after all were refused, without probes.
    token_cost
        What one token of the intern costs, in the same unit.
    lengths
        int (Q, T): tokens of each stage's probe.
    tokens
        What `count_probe_tokens` returned for them.

    Returns
    -------
    tuple[NDArray[numpy.float64], NDArray[numpy.float64]]
        Both costs with probes, (Q, T) each.
    """
    generated_before = np.cumsum(tokens.generated, axis=1) - tokens.generated
    all_generated = tokens.generated.sum(axis=1, keepdims=True)
    return (
        cost + token_cost * (generated_before - tokens.saved_at_once),
        fallback_cost + token_cost * (all_generated - lengths - tokens.saved_later),
    )


def concatenate(collections: Sequence[Collected]) -> Collected:
    """Several collections, all of the same stages, as one; what any of them lacks is None."""
    first = collections[0]
    if len(collections) == 1:
        return first

    def joined(name: str) -> NDArray[np.float64] | None:
        arrays = [getattr(data, name) for data in collections]
        if any(array is None for array in arrays):
            return None
        if name == "features":  # of the stage alone, which is last, where some prompts were not measured
            arrays = [array[:, :, -min(array.shape[2] for array in arrays) :] for array in arrays]
        if name in _PADDING:
            longest, padding = max(array.shape[2] for array in arrays), _PADDING[name]
            arrays = [np.pad(a, ((0, 0), (0, 0), (0, longest - a.shape[2])), constant_values=padding) for a in arrays]
        return np.concatenate(arrays)

    arrays: dict[str, Any] = {name: joined(name) for name in _ARRAYS}
    tasks = [task for data in collections for task in (data.tasks or [""] * len(data.ids))]
    others = {
        name: (
            np.concatenate([data.others[name][0] for data in collections]),
            np.concatenate([data.others[name][1] for data in collections]),
        )
        for name in first.others
        if all(name in data.others for data in collections)
    }
    return replace(first, ids=[name for data in collections for name in data.ids], tasks=tasks, others=others, **arrays)
