"""The cost of a question: TFLOPs by Eq. 12 of the paper, TFLOPs of every token (the bill), and dollars.

Eq. 12 counts generated tokens only. The bill counts every token that passed through a model: prompts, judge passes,
generated tokens, discarded work. All three count what the question needs, even if a store had the result already, so
that a resumed run reports the figures of an undisturbed one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from lm_eval_tandem.errors import ArgumentError

TERA = 1e12
MILLION = 1e6


@dataclass
class Tokens:
    """The tokens that one question, or several, took.

    Parameters
    ----------
    mentor_new, intern_new
        Generated tokens: L_L and L_S of Eq. 12.
    mentor_prefill, intern_prefill
        Prompt tokens read for generation, without those in a prefix cache.
    judge_prefill
        Prompt tokens read to judge, without those in a prefix cache.
    mentor_unused
        Tokens that the mentor's server generated past the cut before it was stopped; no part of L_L.
    intern_unused
        Tokens that the intern's server generated of refused answers after what was judged; no part of L_S.
    """

    mentor_new: int = 0
    intern_new: int = 0
    mentor_prefill: int = 0
    intern_prefill: int = 0
    judge_prefill: int = 0
    mentor_unused: int = 0
    intern_unused: int = 0

    def __add__(self, other: Tokens) -> Tokens:
        return Tokens(*(a + b for a, b in zip(self.as_tuple(), other.as_tuple(), strict=True)))

    def as_tuple(self) -> tuple[int, ...]:
        """All counts in the order of the fields."""
        return astuple(self)

    @property
    def length(self) -> int:
        """The paper's inference length in tokens: L_L + L_S."""
        return self.mentor_new + self.intern_new


@dataclass
class Spent:
    """What one model of an ensemble did for one question, or for several.

    Parameters
    ----------
    new
        Tokens that it generated, in the answer or not. Models that choose a token together have all generated it.
    read
        Answer tokens of other models that it read, to go on with them.
    prefill
        Prompt tokens that it read to generate, without those in a prefix cache.
    judged
        Prompt tokens that it read to select a model or to score a text, likewise.
    tflops
        Its part of the cost by Eq. 12: 2 |theta| (new + read) / 10^12; None if |theta| is not known.
    bill
        TFLOPs of all its tokens; None as for `tflops`.
    dollars
        What its calls cost; None where prices are not known.
    """

    new: int = 0
    read: int = 0
    prefill: int = 0
    judged: int = 0
    tflops: float | None = 0.0
    bill: float | None = 0.0
    dollars: float | None = None

    def __add__(self, other: Spent) -> Spent:
        return Spent(
            self.new + other.new,
            self.read + other.read,
            self.prefill + other.prefill,
            self.judged + other.judged,
            sum_all(self.tflops, other.tflops),
            sum_all(self.bill, other.bill),
            sum_known(self.dollars, other.dollars),
        )

    def priced(self, parameters: int | None) -> Spent:
        """The same with its TFLOPs, for a model of so many parameters."""
        if parameters is None:
            return replace(self, tflops=None, bill=None)
        each = 2 / TERA * parameters
        return replace(
            self,
            tflops=each * (self.new + self.read),
            bill=each * (self.new + self.prefill + self.judged),
        )


def tflops(tokens: Tokens, mentor_parameters: int, intern_parameters: int, read: int | None = None) -> float:
    """The paper's cost, Eq. 12: 2/10^12 (|theta_L| L_L + |theta_S| (L_L + L_S)).

    Parameters
    ----------
    tokens
        Of one question or several.
    mentor_parameters, intern_parameters
        |theta_L| and |theta_S|, all parameters counted.
    read
        How many of the mentor's tokens the intern read, which is the L_L that |theta_S| is multiplied with. None for
        all; 0 where the mentor answers alone (the paper's rows of single models).

    Returns
    -------
    float
        In TFLOPs.

    Examples
    --------
    The paper's intern alone on MATH (Table 1):

    >>> round(tflops(Tokens(intern_new=2732), 32 * 10**9, 7 * 10**9), 2)
    38.25
    """
    read = tokens.mentor_new if read is None else read
    return 2 / TERA * (mentor_parameters * tokens.mentor_new + intern_parameters * (read + tokens.intern_new))


def bill(tokens: Tokens, mentor_parameters: int, intern_parameters: int) -> float:
    """The cost of every token in TFLOPs: 2 |theta| per token for prompts, judge passes and generation of both roles."""
    mentor = tokens.mentor_new + tokens.mentor_unused + tokens.mentor_prefill
    intern = tokens.intern_new + tokens.intern_unused + tokens.intern_prefill + tokens.judge_prefill
    return 2 / TERA * (mentor_parameters * mentor + intern_parameters * intern)


PRICES = ("price_input", "price_cached", "price_output")
"""The model arguments with prices; `mentor_` or `intern_` before them names one role."""


@dataclass(frozen=True)
class Prices:
    """Prices of one role's tokens, in dollars per million.

    Parameters
    ----------
    input
        Of prompt tokens.
    cached
        Of prompt tokens that a server had cached.
    output
        Of generated tokens.
    """

    input: float
    cached: float
    output: float

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Prices | None:
        """The prices among a role's arguments.

        Parameters
        ----------
        given
            Arguments by name; those in `PRICES` count. Without price_cached, cached tokens cost as much as others.

        Returns
        -------
        Prices or None
            None if no price is given.

        Raises
        ------
        ArgumentError
            A price is no number of dollars, or price_input or price_output is missing beside another.
        """
        prices = {name: parse_price(name, given[name]) for name in PRICES if given.get(name) is not None}
        if not prices:
            return None
        if not {"price_input", "price_output"} <= set(prices):
            raise ArgumentError(
                "price_input and price_output (dollars per million tokens) belong together; give both or neither."
            )
        first, last = prices["price_input"], prices["price_output"]
        return cls(first, prices.get("price_cached", first), last)

    def dollars(self, prompt: int, cached: int, new: int) -> float:
        """The price of a call in dollars.

        Parameters
        ----------
        prompt, cached
            Prompt tokens, and how many of them are charged as cached.
        new
            Generated tokens, hidden reasoning included.
        """
        return ((prompt - cached) * self.input + cached * self.cached + new * self.output) / MILLION


def parse_price(name: str, value: Any) -> float:
    """Read a price: a finite number of at least 0."""
    try:
        price = float(value)
    except (TypeError, ValueError):
        price = math.nan
    if not 0 <= price < math.inf:
        raise ArgumentError(f"{name}={value} has to be a number of dollars per million tokens, 0 or more.")
    return price


def sum_known(*amounts: float | None) -> float | None:
    """The sum of the known amounts; None if none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def sum_all(*amounts: float | None) -> float | None:
    """The sum of amounts; None if one of them is not known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if len(known) == len(amounts) else None
