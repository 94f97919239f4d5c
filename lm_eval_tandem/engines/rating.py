"""The contract between ensembles and what rates their candidates: what goes into a scorer, and what comes out.

A `Scorer` rates how well a text answers a question, alone (a whole answer) or after the beginning of an answer (a
segment). Higher is better; values of different scorers cannot be compared. The scorers are
`ensembles.scorers.LogprobScorer`, `hf.reward_model.RewardModel` and `http.scorer.HTTPScorer`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from lm_eval_tandem.engines import Messages
from lm_eval_tandem.errors import ArgumentError

RewardKind = Literal["process", "outcome"]
"""What a reward model rates: each step of an answer, or the answer as a whole."""
REWARD_ARCHITECTURES: Mapping[str, RewardKind] = {
    "ForTokenClassification": "process",
    "ForSequenceClassification": "outcome",
}
"""What the name of a reward model's class in transformers ends with, and what it rates."""


@dataclass(frozen=True)
class Candidate:
    """A text to be rated as an answer, or as the next part of one.

    Attributes
    ----------
    question
        The question as plain text; for a conversation its messages joined as "role: content".
    messages
        The conversation; None for plain text.
    begun
        The answer up to here, which is not rated itself.
    text
        What is rated.
    prompts
        The rendered prompt of each member of the ensemble, by the member's name.
    session
        Name of the question; see `Prompt.session`.
    """

    question: str
    messages: Messages | None
    begun: str
    text: str
    prompts: Mapping[str, str]
    session: str


@dataclass(frozen=True)
class Score:
    """How a candidate is rated.

    Attributes
    ----------
    value
        Higher is better; -inf for a text in which there is nothing to rate.
    tokens
        Tokens that the scorer's model reads for it, those included that a prefix cache may have held already; 0 where
        a server does not report them.
    seconds
        Time of the forward pass or request, divided by the number of candidates in it.
    dollars
        What a server charges for it; None where that is unknown.
    """

    value: float
    tokens: int
    seconds: float
    dollars: float | None = None


class Scorer(Protocol):
    """Rates candidates. `score` is awaited from any number of coroutines of one event loop at once."""

    @property
    def name(self) -> str:
        """Name of the scorer in results."""
        ...

    @property
    def parameters(self) -> int | None:
        """Number of all parameters of its model; None where it is unknown."""
        ...

    @property
    def identity(self) -> Mapping[str, Any]:
        """Everything besides the candidate that can change a score, as JSON values."""
        ...

    async def score(self, candidates: Sequence[Candidate]) -> list[Score]:
        """The scores of the candidates, in their order.

        Raises
        ------
        ContextError
            A candidate exceeds the window of the scorer's model.
        EngineError
            A candidate cannot be rated; `CallError` and `UnreachableError` as in `Engine.generate`.
        """
        ...

    def close(self) -> None:
        """Free what the scorer itself holds: its model, thread or connections."""
        ...


def reward_kind(name: str, architectures: Sequence[str] | None) -> RewardKind:
    """What a reward model rates, by the architectures that its configuration names.

    Raises
    ------
    ArgumentError
        It is no reward model.

    Examples
    --------
    >>> reward_kind("prm", ["LlamaForTokenClassification"])
    'process'
    """
    architecture = (architectures or ["model without an architecture"])[0]
    for ending, kind in REWARD_ARCHITECTURES.items():
        if architecture.endswith(ending):
            return kind
    raise ArgumentError(
        f"{name} is a {architecture} and no reward model; give one whose architecture ends in "
        f"{' or '.join(REWARD_ARCHITECTURES)}, or logprob:NAME for the log-probabilities of a member."
    )
