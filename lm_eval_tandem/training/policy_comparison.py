"""Every policy from one collection, without running a model again, and which of them is worth using."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.judge.probe import count_probe_tokens
from lm_eval_tandem.training.bootstrap import difference_interval, mean_interval, resampled_means
from lm_eval_tandem.training.cross_fitting import cross_fitted_thresholds, folds
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.thresholds import Objective

Floats = NDArray[np.float64]

SEED = 42
"""Of the folds that thresholds are chosen in; those of `fit`."""
INTERN, MENTOR, CASCADE = "intern", "mentor", "cascade"
_TIE = 1e-9
"""Relative difference up to which two means count as equal."""


@dataclass(frozen=True)
class PolicyOutcome:
    """What a policy reaches on each of Q questions.

    Parameters
    ----------
    name
        The policy as it is written in `policy=…`.
    correct, cost
        Grade in [0, 1] and cost, float64 (Q,) each.
    """

    name: str
    correct: Floats
    cost: Floats

    @property
    def accuracy(self) -> float:
        """The mean grade."""
        return float(self.correct.mean())

    @property
    def mean_cost(self) -> float:
        """The mean cost."""
        return float(self.cost.mean())


def fixed_policies(data: Collected, grades: Floats) -> list[PolicyOutcome]:
    """The policies without a judge: intern, every stage, and what was collected beside them.

    Parameters
    ----------
    data
        The questions.
    grades
        (Q, T): of the intern's answers.
    """
    stages = range(grades.shape[1])
    return [
        *(PolicyOutcome(f"stage:{t}" if t else INTERN, grades[:, t], data.cost[:, t]) for t in stages),
        *(PolicyOutcome(name, correct, cost) for name, (correct, cost) in data.others.items()),
    ]


def judged_outcomes(data: Collected, outcomes: Outcomes, lengths: NDArray[np.int64]) -> dict[str, Outcomes]:
    """The policies with a judge, each as a cascade of its own: for each what happens at its stages.

    `llm_cascade` judges the question alone and else answers from the highest stage; `escalate` ends with the mentor. So
    each has a stage more that nobody judges (`Outcomes.with_last_resort`), and thresholds of its own.

    Parameters
    ----------
    data
        The questions.
    outcomes
        Theirs under the cascade, the scores out of sample.
    lengths
        Tokens of the judge's probes, int (Q, T) (`Collected.probe_lengths`).

    Returns
    -------
    dict[str, Outcomes]
        cascade, llm_cascade, and escalate where the mentor's own answers were collected.
    """
    only_first = lengths.copy()
    only_first[:, 1:] = 0
    first_cost, _ = data.costs(only_first)
    finished = None if outcomes.finished is None else outcomes.finished[:, :1]
    first = Outcomes(outcomes.scores[:, :1], outcomes.correct[:, :1], first_cost[:, :1], first_cost[:, :1], finished)
    found = {
        CASCADE: outcomes,
        "llm_cascade": first.with_last_resort(outcomes.correct[:, -1], first_cost[:, -1], highest=-1),
    }
    if MENTOR in data.others:
        own_correct, own_cost = data.others[MENTOR]
        refused_cost = _cost_without_an_answer(data, lengths) + own_cost
        if data.begun_cost is not None:
            refused_cost = refused_cost - data.begun_cost
        found["escalate"] = outcomes.with_last_resort(own_correct, refused_cost, highest=-2)
    return found


def own_thresholds(
    of_policies: Mapping[str, Outcomes], choose: Callable[..., Sequence[float]], cascade: tuple[float, ...]
) -> dict[str, tuple[float, ...]]:
    """The thresholds of the policies beside the cascade, one per stage; what they do not judge has the cascade's.

    Parameters
    ----------
    of_policies
        What `judged_outcomes` returned.
    choose
        Chooses thresholds for some objective; what lacks least of it will do.
    cascade
        The cascade's thresholds for it.
    """
    found = {}
    for name, outcomes in of_policies.items():
        if name != CASCADE:
            judged = tuple(choose(outcomes, must_reach=False))[:-1]
            found[name] = judged + cascade[len(judged) :]
    return found


def judged_policies(of_policies: Mapping[str, Outcomes], choose: Callable[..., Sequence[float]]) -> list[PolicyOutcome]:
    """The policies with a judge, under thresholds that were chosen for each fifth of the questions on the other four.

    Parameters
    ----------
    of_policies
        What `judged_outcomes` returned.
    choose
        Chooses thresholds for some objective (`Recipe.choose`).

    Raises
    ------
    ClassifierError
        No thresholds of the cascade reach the objective on some of the folds.
    """
    policies, fold = [], folds(of_policies[CASCADE], SEED)
    for name, outcomes in of_policies.items():
        limits = cross_fitted_thresholds(outcomes, partial(choose, must_reach=name == CASCADE), fold)
        policies.append(PolicyOutcome(name, *simulate(outcomes, limits)[1:]))
    return policies


def _cost_without_an_answer(data: Collected, lengths: NDArray[np.int64]) -> Floats:
    """What a question (Q,) costs up to the refusal of its last stage: all insights and all probes, and no answer."""
    assert data.answer_tokens is not None
    insights = data.fallback_cost[:, 0] - data.token_cost * data.answer_tokens[:, 0]
    probes = count_probe_tokens(lengths, data.answer_tokens, data.answer_ids, data.prompt_ends).generated
    return np.asarray(insights + data.token_cost * probes.sum(axis=1), dtype=np.float64)


def best_policy(policies: Sequence[PolicyOutcome], objective: Objective) -> PolicyOutcome:
    """The policy that serves an objective best; of those that serve it alike the cheapest.

    Where none reaches what the objective asks for, it is the one that lacks least.
    """
    by_name = {policy.name: policy for policy in policies}
    highest = [name for name in by_name if name.startswith("stage:")]
    always_high = by_name[highest[-1] if highest else INTERN].accuracy

    def order(policy: PolicyOutcome) -> tuple[float, float, float]:
        accuracy, cost = round(policy.accuracy, 9), policy.mean_cost * (1 - _TIE)
        if objective.kind == "cost@accuracy":
            lack = max(0.0, round(always_high - objective.number - accuracy, 9))
            return lack, cost, -accuracy
        over = max(0.0, cost - objective.number) if objective.kind == "accuracy@cost" else 0.0
        return over, -accuracy, cost

    return min(policies, key=order)


def advice(policies: Sequence[PolicyOutcome], objective: Objective, unit: str) -> str:
    """Which policy is worth using on questions like these, in words, with 95 % bootstrap intervals over questions."""
    best = best_policy(policies, objective)
    columns = np.stack([policy.correct for policy in policies], axis=1)
    resampled = dict(zip((policy.name for policy in policies), resampled_means(columns).T, strict=True))

    def difference(one: PolicyOutcome, other: PolicyOutcome) -> tuple[float, float, float]:
        """By how much one is more accurate than the other, and the ends of the interval; in points."""
        low, high = difference_interval(one.correct, other.correct, resampled[one.name] - resampled[other.name])
        return 100 * (one.accuracy - other.accuracy), 100 * low, 100 * high

    low, high = (100 * end for end in mean_interval(best.correct, resampled[best.name], 0.0, 1.0))
    parts = [
        f"Use policy={best.name}: {100 * best.accuracy:.1f} % [{low:.1f}, {high:.1f}] of these "
        f"{len(best.correct):,} questions right at {best.mean_cost:.4g} {unit} a question"
    ]
    parts += [
        f"against the {other.name} alone {_points(difference(best, other))} at "
        f"{best.mean_cost / other.mean_cost:.2f} of its cost"
        for other in policies
        if other.name in (INTERN, MENTOR) and other is not best
    ]
    sentence = "; ".join(parts) + "."
    cheaper = [p for p in policies if p.mean_cost < best.mean_cost * (1 - _TIE) and difference(p, best)[2] >= 0]
    if cheaper:
        other = min(cheaper, key=lambda policy: policy.mean_cost)
        sentence += (
            f" policy={other.name}, at {other.mean_cost / best.mean_cost:.2f} of that cost, is not shown to be worse: "
            f"{_points(difference(other, best))}."
        )
    return sentence


def _points(difference: tuple[float, float, float]) -> str:
    mean, low, high = (f"{round(value, 1) + 0.0:+.1f}" for value in difference)  # no minus before a zero
    return f"{mean} points [{low}, {high}]"
