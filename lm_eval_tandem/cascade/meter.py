"""What one model reads for one question, counted so that a prefix which it has in its cache is not counted again."""

from __future__ import annotations

from dataclasses import dataclass, field

from lm_eval_tandem.accounting import Prices
from lm_eval_tandem.engines import Completion
from lm_eval_tandem.engines.drafts import accepted_draft_tokens, common_prefix_length


@dataclass
class Meter:
    """Counts the tokens and the dollars of one model's calls for one question.

    Parameters
    ----------
    prices
        Dollars per million tokens, for calls whose price the engine does not report; None where they are not known.

    Attributes
    ----------
    cached
        The tokens that a prefix cache holds for the question.
    paid
        The same of the calls that are paid for: a prompt that is only measured is no part of the price.
    found
        How many prompt tokens of all calls were in the prefix cache, and so were not read.
    """

    prices: Prices | None = None
    cached: list[int] = field(default_factory=list)
    paid: list[int] = field(default_factory=list)
    found: int = 0

    def read(self, ids: list[int], completion: Completion | None = None) -> int:
        """Count a call, whose prompt is `ids`: the number of its tokens that are not in the prefix cache.

        From now on they are, and so is what the call generated, if anything.
        """
        known = common_prefix_length(self.cached, ids)
        self.cached = ids if completion is None else ids + list(completion.token_ids)
        if completion is not None and completion.counted is not None:
            self.found += completion.cached_tokens
            return completion.prompt_tokens - completion.cached_tokens  # as the server billed it
        self.found += known
        return len(ids) - known

    def dollars(
        self, ids: list[int], completion: Completion | None = None, draft: tuple[int, ...] = ()
    ) -> float | None:
        """What a call cost, as reported or at the prices, tokens of earlier paid calls being cached input."""
        cached = common_prefix_length(self.paid, ids)
        self.paid = ids if completion is None else ids + list(completion.token_ids)
        if self.prices is None or completion is None:
            return None if self.prices is None else self.prices.dollars(len(ids), cached, 0)
        if completion.dollars is not None:
            return completion.dollars
        if completion.counted is not None:
            return self.prices.dollars(completion.prompt_tokens, completion.cached_tokens, completion.counted)
        written = completion.new_tokens - accepted_draft_tokens(draft, completion.token_ids)
        return self.prices.dollars(len(ids) + len(draft), cached, written)
