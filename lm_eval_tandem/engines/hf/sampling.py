"""Which token comes next: greedy or sampled, with the model's own generation defaults where a value is not set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from lm_eval_tandem.engines import Sampling
from lm_eval_tandem.engines.hf.token_stats import likeliest_tokens


class TokenSampler:
    """Chooses the tokens of one row.

    Every row has its own random numbers, so that the other rows of its batch change nothing.

    Parameters
    ----------
    sampling
        Of the row's call.
    defaults
        The model's own, for values that `sampling` leaves open.
    device
        Of the logits.
    """

    def __init__(self, sampling: Sampling, defaults: GenerationConfig, device: torch.device) -> None:
        def setting(name: str) -> Any:
            value = getattr(sampling, name)
            return getattr(defaults, name, None) if value is None else value

        self.processors = LogitsProcessorList()
        self.generator: torch.Generator | None = None
        if (penalty := setting("repetition_penalty")) not in (None, 1.0):
            self.processors.append(RepetitionPenaltyLogitsProcessor(float(penalty)))
        if sampling.temperature > 0:
            self.generator = torch.Generator(device=device).manual_seed(sampling.seed)
            self.processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if (top_k := setting("top_k")) and int(top_k) > 0:
                self.processors.append(TopKLogitsWarper(int(top_k)))
            if (top_p := setting("top_p")) is not None and top_p < 1.0:
                self.processors.append(TopPLogitsWarper(float(top_p)))
            if min_p := setting("min_p"):
                self.processors.append(MinPLogitsWarper(float(min_p)))

    @property
    def takes_argmax(self) -> bool:
        """Whether the next token is simply the most likely one, which is found for a whole batch at once."""
        return not self.processors

    def choose(self, ids: list[int], logits: torch.Tensor) -> tuple[int, bool]:
        """The next token after `ids` (prompt and new tokens), from its logits (V,), and whether it means anything.

        It does not where the values of the row's sampling leave no probabilities, as a temperature of 1e-300 does: an
        error here would be that of all rows of the batch.
        """
        previous = torch.tensor([ids], device=logits.device)
        scores: Any = self.processors(previous, logits.float().unsqueeze(0))
        if self.generator is None:
            return int(scores.argmax()), True
        probabilities = scores.softmax(-1)[0]
        if not bool(probabilities.isfinite().all()):
            return int(scores.argmax()), False
        return int(torch.multinomial(probabilities, 1, generator=self.generator)), True


def choose_tokens(
    samplers: Sequence[TokenSampler], ids: Sequence[list[int]], logits: torch.Tensor
) -> tuple[list[int], list[bool]]:
    """The next token of each row of logits (N, V), and whether the row's scores are numbers; if not, it means nothing.

    `ids` are the tokens before it, for rows that do not take argmax.
    """
    tokens, finite = likeliest_tokens(logits)
    for row, sampler in enumerate(samplers):
        if finite[row] and not sampler.takes_argmax:
            tokens[row], finite[row] = sampler.choose(ids[row], logits[row])
    return tokens, finite
