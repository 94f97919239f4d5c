"""The policies: who answers, and who decides that."""

from __future__ import annotations

from dataclasses import dataclass

from lm_eval_tandem.errors import ArgumentError

MENTOR = -1
"""The stage of an answer that the mentor wrote itself."""
JUDGED = ("cascade", "llm_cascade", "escalate")
"""The policies that ask a classifier."""


@dataclass(frozen=True)
class Policy:
    """Who answers, and how that is decided.

    cascade: the method. intern, mentor: one model alone. stage:N: fixed effort. budget_forcing:N: the mentor alone, its
    thinking cut at N tokens. llm_cascade: one decision, the intern alone or with the highest effort. escalate: the
    cascade, whose last resort is the mentor's own full answer.
    """

    name: str
    stage: int | None = None
    budget: int | None = None

    @classmethod
    def parse(cls, text: str, stages: int) -> Policy:
        """A policy from its name; `stages` is the number of efforts.

        Raises
        ------
        ArgumentError
            No policy has this name, or it has no such stage.
        """
        name, _, number = str(text).partition(":")
        if name in (*JUDGED, "intern", "mentor") and not number:
            return cls(name)
        if name == "stage" and number.isdigit() and int(number) <= stages:
            return cls(name, stage=int(number))
        if name == "budget_forcing" and number.isdigit() and int(number) > 0:
            return cls(name, budget=int(number))
        raise ArgumentError(
            f"policy={text} is not known; use cascade, intern, mentor, stage:N with N from 0 to {stages}, "
            "budget_forcing:N with N tokens of thinking, llm_cascade, or escalate."
        )

    @property
    def needs_mentor(self) -> bool:
        """Whether the mentor has anything to do."""
        return not (self.name == "intern" or self.stage == 0)

    @property
    def needs_intern(self) -> bool:
        """Whether the intern has anything to do."""
        return not self.mentor_alone

    @property
    def needs_judge(self) -> bool:
        """Whether a classifier decides anything."""
        return self.name in JUDGED

    @property
    def mentor_alone(self) -> bool:
        """Whether every answer is the mentor's own."""
        return self.name in ("mentor", "budget_forcing")

    @property
    def mentor_may_answer(self) -> bool:
        """Whether some answers are the mentor's own."""
        return self.mentor_alone or self.name == "escalate"

    def __str__(self) -> str:
        number = self.budget if self.stage is None else self.stage
        return self.name if number is None else f"{self.name}:{number}"
