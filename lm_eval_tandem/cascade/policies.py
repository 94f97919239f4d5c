"""The policies: which models answer a question, and what decides how much the mentor writes.

`POLICIES` has one row per policy: how it is written in `--model_args policy=…`, what it does, and which models it
needs. To add a policy, add a row; only a policy that decides in a new way needs code in `cascade.algorithm` as well.
The documentation (`described`) and the error message of `Policy.parse` are made from the same rows.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from lm_eval_tandem.cascade.prompts import HANDOFF, OUTLINE, THOUGHT, Prompts
from lm_eval_tandem.errors import ArgumentError

MENTOR_STAGE = -1
"""The stage that a record has when the mentor itself wrote the answer."""


@dataclass(frozen=True)
class Argument:
    """The number N of a policy that is written `name:N`.

    Parameters
    ----------
    field
        The field of `Policy` that holds the number: "stage" (an effort stage), "budget" (tokens of a mentor that
        answers alone), "tokens" (of a mentor that helps once), "entropy" (in nats) or "rating" (a digit).
    minimum
        The smallest number allowed. The largest stage is the number of efforts; tokens have no upper limit.
    """

    field: Literal["stage", "budget", "tokens", "entropy", "rating"]
    minimum: int

    def allowed(self, stages: int) -> str:
        """The allowed numbers in words, for a cascade of `stages` efforts."""
        return {
            "stage": f"N from {self.minimum} to {stages}",
            "budget": "N tokens of thinking",
            "tokens": "N tokens of the mentor",
            "entropy": "N nats",
            "rating": f"N from {self.minimum} to 9",
        }[self.field]

    def demanded(self, stages: int) -> str:
        """What N has to be, as the end of a sentence, for a cascade of `stages` efforts."""
        return {
            "stage": f"a whole number from {self.minimum} to {stages}, the number of efforts",
            "entropy": "a number of 0 or more, as in 0.5",
            "rating": f"a whole number from {self.minimum} to 9",
        }.get(self.field, f"a whole number of {self.minimum} or more")

    def read(self, text: str, stages: int) -> float | None:
        """The number, an int but for nats; None if it is not allowed."""
        if self.field == "entropy":
            return float(text) if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) else None
        if not text.isdecimal() or int(text) < self.minimum:
            return None
        largest = {"stage": stages, "rating": 9}.get(self.field, math.inf)
        return int(text) if int(text) <= largest else None


@dataclass(frozen=True)
class PolicyKind:
    """One row of the table of policies.

    Parameters
    ----------
    name
        The name in `policy=…`.
    description
        What the policy does, in one line.
    needs
        The roles that it needs: "mentor", "intern" and "judge" (a sufficiency classifier). A policy that needs the
        judge runs the cascade; one with a stage number answers after that stage.
    argument
        The number after the colon; None for a policy without one.
    mentor_answers
        Whether the mentor itself writes the graded answer: "never", "last" (when no stage passed) or "always".
    decides_once
        Whether only the question alone is judged, and the highest effort follows if it does not pass.
    prompts
        The fields of `Prompts` that the policy sets, whatever the run's settings are; its number is then the only
        effort.
    """

    name: str
    description: str
    needs: tuple[str, ...]
    argument: Argument | None = None
    mentor_answers: Literal["never", "last", "always"] = "never"
    decides_once: bool = False
    prompts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def syntax(self) -> str:
        """How the policy is written, with N for its number."""
        return self.name if self.argument is None else f"{self.name}:N"

    @property
    def needs_judge(self) -> bool:
        """Whether a sufficiency classifier decides anything."""
        return "judge" in self.needs

    @property
    def has_stages(self) -> bool:
        """Whether answers depend on the run's efforts and on what its insights are like (`prompts.SETTING`)."""
        return self.needs_judge or (self.argument is not None and self.argument.field == "stage")

    @property
    def is_stepwise(self) -> bool:
        """Whether both models write the answer, and who writes is decided step by step."""
        return self.argument is not None and self.argument.field in ("entropy", "rating")


POLICIES: dict[str, PolicyKind] = {
    kind.name: kind
    for kind in (
        PolicyKind(
            "cascade",
            "The method: each stage is judged, the intern answers at the first that passes, else at the best.",
            needs=("mentor", "intern", "judge"),
        ),
        PolicyKind("intern", "The intern alone.", needs=("intern",)),
        PolicyKind("mentor", "The mentor alone.", needs=("mentor",), mentor_answers="always"),
        PolicyKind(
            "stage",
            "Fixed effort: the intern always answers after stage N (0: without the mentor).",
            needs=("mentor", "intern"),
            argument=Argument("stage", minimum=0),
        ),
        PolicyKind(
            "handoff",
            "The mentor writes the first N tokens of the answer, and the intern goes on with it.",
            needs=("mentor", "intern"),
            argument=Argument("tokens", minimum=1),
            prompts={"guidance": HANDOFF, "insights": "cutoff"},
        ),
        PolicyKind(
            "outline",
            "The mentor writes an outline of at most N tokens, with which the intern's thought begins.",
            needs=("mentor", "intern"),
            argument=Argument("tokens", minimum=1),
            prompts={"guidance": THOUGHT, "insights": "cutoff", "wording": OUTLINE, "name": "outline"},
        ),
        PolicyKind(
            "steps",
            "The intern writes step by step; the mentor takes the steps whose first token has over N nats of entropy.",
            needs=("mentor", "intern"),
            argument=Argument("entropy", minimum=0),
        ),
        PolicyKind(
            "verify",
            "The intern writes step by step; the mentor rates each, 0 to 9, and writes anew what it rates below N.",
            needs=("mentor", "intern"),
            argument=Argument("rating", minimum=0),
        ),
        PolicyKind(
            "budget_forcing",
            "The mentor alone, its thinking cut after N tokens.",
            needs=("mentor",),
            argument=Argument("budget", minimum=1),
            mentor_answers="always",
        ),
        PolicyKind(
            "llm_cascade",
            "One decision: the intern alone, or with the highest effort.",
            needs=("mentor", "intern", "judge"),
            decides_once=True,
        ),
        PolicyKind(
            "escalate",
            "The cascade, but when no stage passes the mentor answers the question itself.",
            needs=("mentor", "intern", "judge"),
            mentor_answers="last",
        ),
    )
}
"""Every policy by its name, in the order of the documentation."""


def kind_of(policy: str) -> PolicyKind | None:
    """The row of a policy as it is written in `--model_args`, whatever its number is; None for an unknown name."""
    return POLICIES.get(policy.partition(":")[0])


def described() -> list[tuple[str, str]]:
    """The syntax and the description of every policy, for documentation.

    Examples
    --------
    >>> described()[0][0], described()[3][0]
    ('cascade', 'stage:N')
    """
    return [(kind.syntax, kind.description) for kind in POLICIES.values()]


@dataclass(frozen=True)
class Policy:
    """The policy of a run: a row of `POLICIES` and its number.

    Parameters
    ----------
    name
        A key of `POLICIES`.
    stage
        For `stage:N`: the stage that the intern answers after, 0 for the question alone.
    budget
        For `budget_forcing:N`: the mentor tokens after which its thinking is cut.
    tokens
        For `handoff:N` and `outline:N`: how many the mentor writes at most.
    entropy
        For `steps:N`: in nats, above which the mentor writes a step.
    rating
        For `verify:N`: below which it does.
    """

    name: str
    stage: int | None = None
    budget: int | None = None
    tokens: int | None = None
    entropy: float | None = None
    rating: int | None = None

    @classmethod
    def parse(cls, text: str, stages: int) -> Policy:
        """Read a policy as it is written in `--model_args`.

        Parameters
        ----------
        text
            The name, with a number where the policy takes one: "cascade", "stage:2".
        stages
            The number of efforts, which is the largest number of `stage:N`.

        Raises
        ------
        ArgumentError
            No policy has this name, or its number is missing or not allowed.

        Examples
        --------
        >>> Policy.parse("stage:2", stages=3)
        Policy(name='stage', stage=2, budget=None, tokens=None, entropy=None, rating=None)
        """
        name, _, number = str(text).partition(":")
        kind = POLICIES.get(name)
        if kind is not None and kind.argument is None and not number:
            return cls(name)
        if kind is not None and kind.argument is not None:
            value: Any = kind.argument.read(number, stages)
            if value is not None:
                return cls(name, **{kind.argument.field: value})
            raise ArgumentError(
                f"policy={text} cannot work: N of {kind.syntax} has to be {kind.argument.demanded(stages)}."
            )
        if kind is not None:
            raise ArgumentError(f"policy={text} cannot work: {name} takes no number; write policy={name}.")
        *first, last = (
            other.syntax if other.argument is None else f"{other.syntax} with {other.argument.allowed(stages)}"
            for other in POLICIES.values()
        )
        raise ArgumentError(f"policy={text} is not known; use {', '.join(first)}, or {last}.")

    @property
    def kind(self) -> PolicyKind:
        """The row of `POLICIES`."""
        return POLICIES[self.name]

    @property
    def fixed_stage(self) -> int | None:
        """The stage that every question is answered from; None where something decides."""
        return self.stage if self.tokens is None else 1

    def efforts(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """The mentor tokens in total after each stage, of those that the run's settings give."""
        return given if self.tokens is None else (self.tokens,)

    def prompts(self, given: Prompts) -> Prompts:
        """How each role's prompt is written, of what the run's settings give."""
        return replace(given, **self.kind.prompts)

    @property
    def needs_mentor(self) -> bool:
        """Whether the mentor writes anything; at stage 0 it does not."""
        return "mentor" in self.kind.needs and self.stage != 0

    @property
    def is_stepwise(self) -> bool:
        """See `PolicyKind.is_stepwise`."""
        return self.kind.is_stepwise

    @property
    def needs_intern(self) -> bool:
        """Whether the intern writes anything."""
        return "intern" in self.kind.needs

    @property
    def needs_judge(self) -> bool:
        """See `PolicyKind.needs_judge`."""
        return self.kind.needs_judge

    @property
    def mentor_alone(self) -> bool:
        """Whether the mentor writes every answer."""
        return self.kind.mentor_answers == "always"

    @property
    def mentor_may_answer(self) -> bool:
        """Whether the mentor writes some or all of the answers."""
        return self.kind.mentor_answers != "never"

    def __str__(self) -> str:
        if self.kind.argument is None:
            return self.name
        number = getattr(self, self.kind.argument.field)
        return f"{self.name}:{number:g}" if isinstance(number, float) else f"{self.name}:{number}"
