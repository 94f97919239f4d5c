"""Tokens to TFLOPs: Eq. 12 of the paper, and beside it the whole bill.

Eq. 12 counts generated tokens only. The bill counts every token that passed through a model: prompts read, judge
passes, generated tokens, work that was thrown away. Where prices are known, dollars stand beside both. All count
what the question needed, whether or not a store had the result already, so that a resumed run reports the figures of an
undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Any

from lm_eval_tandem.errors import ArgumentError

TERA = 1e12
MILLION = 1e6


@dataclass
class Tokens:
    """What one question made the two models do.

    mentor_new, intern_new: tokens generated (L_L and L_S of Eq. 12).
    mentor_prefill, intern_prefill: prompt tokens computed for generation, without those found in a prefix cache.
    judge_prefill: prompt tokens computed to judge, without those found in a prefix cache.
    mentor_unused: tokens that a mentor's server had written past the cut before it heard of it. No part of L_L.
    """

    mentor_new: int = 0
    intern_new: int = 0
    mentor_prefill: int = 0
    intern_prefill: int = 0
    judge_prefill: int = 0
    mentor_unused: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def as_tuple(self) -> tuple[int, ...]:
        """All counts in the order of the fields."""
        return astuple(self)

    @property
    def length(self) -> int:
        """Inference length of the paper: L_L + L_S tokens."""
        return self.mentor_new + self.intern_new


def tflops(tokens: Tokens, mentor_parameters: int, intern_parameters: int, read: int | None = None) -> float:
    """Eq. 12: 2/10^12 (|theta_L| L_L + |theta_S| (L_L + L_S)), in TFLOPs.

    The intern reads what the mentor writes for it, hence |theta_S| L_L. `read` says how many of the mentor's tokens
    those were where not all: none where the mentor answers alone (the paper's "single model" rows).
    """
    read = tokens.mentor_new if read is None else read
    return 2 / TERA * (mentor_parameters * tokens.mentor_new + intern_parameters * (read + tokens.intern_new))


def bill(tokens: Tokens, mentor_parameters: int, intern_parameters: int) -> float:
    """TFLOPs of every token computed: 2 |theta| a token for prompts, judge passes and generation of both roles."""
    mentor = tokens.mentor_new + tokens.mentor_unused + tokens.mentor_prefill
    intern = tokens.intern_new + tokens.intern_prefill + tokens.judge_prefill
    return 2 / TERA * (mentor_parameters * mentor + intern_parameters * intern)


PRICES = ("price_input", "price_cached", "price_output")
"""The arguments that name them, for one role with `mentor_` or `intern_` before."""


@dataclass(frozen=True)
class Prices:
    """Dollars per million tokens: of prompts, of prompt tokens that a server had cached, of generated ones."""

    input: float
    cached: float
    output: float

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Prices | None:
        """The prices among some arguments, by the names of `PRICES`; cached tokens cost as much as others unless said.

        None where no price is given.

        Raises
        ------
        ArgumentError
            One is no number of dollars, or the one of prompts or that of generated tokens is missing.
        """
        prices = {name: dollars_of(name, given[name]) for name in PRICES if given.get(name) is not None}
        if not prices:
            return None
        if not {"price_input", "price_output"} <= set(prices):
            raise ArgumentError(
                "price_input and price_output (dollars per million tokens) belong together; give both or neither."
            )
        first, last = prices["price_input"], prices["price_output"]
        return cls(first, prices.get("price_cached", first), last)

    def dollars(self, prompt: int, cached: int, new: int) -> float:
        """What a call costs; `cached` of the `prompt` tokens are charged as cached, hidden reasoning counts as new."""
        return ((prompt - cached) * self.input + cached * self.cached + new * self.output) / MILLION


def dollars_of(name: str, value: Any) -> float:
    """A price, a finite number from 0 on."""
    try:
        price = float(value)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 <= price < math.inf:
        raise ArgumentError(f"{name}={value} has to be a number of dollars per million tokens, 0 or more.")
    return price


def sum_known(*amounts: float | None) -> float | None:
    """The sum of those that are known; None where none is."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None
