"""The unit in which collected questions are compared: TFLOPs, dollars or tokens.

A size or a price that is not known never enters a cost. TFLOPs (Eq. 12) need the number of parameters of both models,
dollars the prices of both; tokens, the paper's inference length, are always known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm_eval_tandem.accounting import MILLION, Tokens, tflops
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.training.thresholds import parse_objective

TFLOPS, DOLLARS, TOKENS = "TFLOPs", "dollars", "tokens"
UNITS = {"tflops": TFLOPS, "dollars": DOLLARS, "tokens": TOKENS}
"""Units of cost, by the value of `--cost`; without one, the first that is known for both models."""
ROLES = ("mentor", "intern")
_AGAIN = "(what the store holds is not generated again)"

Descriptions = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CostUnit:
    """A unit of cost, and what it takes to compute costs in it.

    Parameters
    ----------
    name
        One of the values of `UNITS`.
    sizes
        Numbers of parameters of mentor and intern, for TFLOPs.
    prices
        Of a generated token of mentor and of intern in dollars, for dollars.
    """

    name: str
    sizes: tuple[int, int] = (0, 0)
    prices: tuple[float, float] = (0.0, 0.0)

    def costs(self, mentor: Any, intern: Any, dollars: Any, finished: Any = False) -> tuple[Any, Any, float]:
        """What questions cost at every stage.

        Parameters
        ----------
        mentor, intern
            (Q, T): the tokens that each of them generated.
        dollars
            (Q, T): what it cost to answer from each stage, prompts included; not read unless the unit is dollars.
        finished
            bool (Q, T): where the mentor had finished the answer itself, so that the intern read none of it.

        Returns
        -------
        tuple
            `cost`, `fallback_cost` and `token_cost` of `dataset.Collected`. If no stage passes, the mentor has written
            to the end whichever stage the answer is taken from; in dollars these tokens count at the output price.
        """
        if self.name == DOLLARS:
            rest = mentor[:, -1:] - mentor
            return dollars, dollars + self.prices[0] * rest, self.prices[1]
        cost = np.where(finished, self.generated_by_mentor(mentor), self._of(mentor, intern))
        return cost, self._of(mentor[:, -1:], intern), float(self._of(0, 1))

    def generated_by_mentor(self, tokens: Any) -> Any:
        """What it costs the mentor to generate tokens that no intern reads, its prompt not counted."""
        if self.name == DOLLARS:
            return self.prices[0] * tokens
        return tflops(Tokens(mentor_new=tokens), *self.sizes, read=0) if self.name == TFLOPS else tokens

    def read_before(self, mentor: Any, finished: Any) -> Any:
        """What a cascade (Q, T) has paid for reading up to the stage before, where the mentor then finished."""
        if self.name != TFLOPS:
            return np.zeros_like(mentor)
        before = np.concatenate([np.zeros_like(mentor[:, :1]), mentor[:, :-1]], axis=1)
        return np.where(finished, self._of(0, before), 0.0)

    def of_policy(self, entry: Mapping[str, Any]) -> float | None:
        """What an answer of another policy cost, an entry of `rows.Row.alone`; None where that was not known."""
        intern = entry.get("intern_tokens") or 0  # earlier versions collected policies of the mentor alone
        if self.name == DOLLARS:
            dollars: float | None = entry["dollars"]
            return dollars
        if self.name == TFLOPS and intern:
            cost: float | None = entry["tflops"]
            return cost
        return float(self.generated_by_mentor(entry["tokens"])) + intern

    def _of(self, mentor: Any, intern: Any) -> Any:
        if self.name == TFLOPS:
            return tflops(Tokens(mentor_new=mentor, intern_new=intern), *self.sizes)
        return mentor + intern


def choose_unit(descriptions: Descriptions, has_dollars: bool, unit: str | None, objective: str) -> CostUnit:
    """The unit in which the costs of some collections are known.

    Parameters
    ----------
    descriptions
        Of the collections, all of one pair; what one of them does not know another may.
    has_dollars
        Whether all of them recorded what each answer cost.
    unit
        A key of `UNITS`; None for the first that is known.
    objective
        What thresholds are chosen for. One that limits or minimises costs is not taken in tokens, and one that limits
        them not in dollars, unless `unit` says so.

    Raises
    ------
    ClassifierError
        Costs are not known in the unit, or the objective needs one that is; or two collections contradict each other.
    """
    if unit is not None and unit not in UNITS:
        raise ClassifierError(f"--cost {unit} is not known; give one of {', '.join(UNITS)}.")
    sizes = {role: _only(descriptions, role, "parameters") for role in ROLES}
    unsized = [role for role in ROLES if not (sizes[role] or 0) > 0]
    if not unsized and unit in (None, "tflops"):
        return CostUnit(TFLOPS, sizes=(sizes["mentor"], sizes["intern"]))
    unpriced = [role for role in ROLES if not any(description[role].get("prices") for description in descriptions)]
    kind = parse_objective(objective).kind
    if unit in (None, "dollars") and not unpriced and has_dollars:
        if unit is None and kind == "accuracy@cost":
            raise ClassifierError(
                f"The limit of {objective!r} would be in TFLOPs, which are not known, because {_sizes_lack(unsized)}; "
                "give --cost dollars if it is in dollars, or --cost tokens."
            )
        prices = (_only(descriptions, role, "prices")["output"] / MILLION for role in ROLES)
        return CostUnit(DOLLARS, prices=(next(prices), next(prices)))
    if unit == "dollars":
        roles = " and ".join(f"{role}_price_input, {role}_price_output" for role in unpriced or ROLES)
        raise ClassifierError(
            f"Costs in dollars are not known, because the questions were collected without {roles}; "
            f"collect again with them {_AGAIN}, or give --cost tokens."
        )
    if unit == "tflops" or (unit is None and kind != "accuracy"):
        needed_by = "--cost tflops" if unit else f"the objective {objective!r}"
        raise ClassifierError(
            f"Costs in TFLOPs, which {needed_by} needs, are not known, because {_sizes_lack(unsized)}; collect again "
            f"with {' and '.join(f'{role}_parameters=N' for role in unsized)} {_AGAIN}, or give --cost tokens."
        )
    return CostUnit(TOKENS)


def _sizes_lack(unsized: Sequence[str]) -> str:
    whose = " and ".join(f"the {role}'s" for role in unsized)
    return f"{whose} number of parameters was not known when the questions were collected"


def _only(descriptions: Descriptions, role: str, entry: str) -> Any:
    """An entry of a role's description, which all that have it have to agree on; None if none has it."""
    known = [description[role][entry] for description in descriptions if description[role].get(entry) is not None]
    different = next((value for value in known if value != known[0]), None)
    if different is not None:
        raise ClassifierError(
            f"The collections of one {role} give its {entry} as {known[0]} and as {different}; "
            "fit on collections that agree."
        )
    return known[0] if known else None
