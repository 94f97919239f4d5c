"""Which token comes next: greedy or sampled, one random stream a row, the model's own generation defaults kept."""

from __future__ import annotations

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
from lm_eval_tandem.engines.hf.kv_cache import best_of


class TokenSampler:
    """Chooses the tokens of one row. Two rows never share randomness, so a batch's make-up changes nothing."""

    def __init__(self, sampling: Sampling, defaults: GenerationConfig, device: torch.device) -> None:
        def setting(name: str) -> Any:
            asked = getattr(sampling, name)
            return getattr(defaults, name, None) if asked is None else asked

        self.processors = LogitsProcessorList()
        self.generator: torch.Generator | None = None
        if (penalty := setting("repetition_penalty")) not in (None, 1.0):
            self.processors.append(RepetitionPenaltyLogitsProcessor(float(penalty)))
        if sampling.temperature > 0:
            self.generator = torch.Generator(device=device).manual_seed(sampling.seed)
            self.processors.append(TemperatureLogitsWarper(float(sampling.temperature)))
            if top_k := setting("top_k"):
                self.processors.append(TopKLogitsWarper(int(top_k)))
            if (top_p := setting("top_p")) is not None and top_p < 1.0:
                self.processors.append(TopPLogitsWarper(float(top_p)))
            if min_p := setting("min_p"):
                self.processors.append(MinPLogitsWarper(float(min_p)))

    @property
    def plain(self) -> bool:
        """Greedy with nothing to change: the batch's argmax will do."""
        return not self.processors

    def choose(self, ids: list[int], logits: torch.Tensor) -> int:
        """The next token after `ids`, from its logits [V]."""
        seen = torch.tensor([ids], device=logits.device)
        scores: Any = self.processors(seen, logits.float().unsqueeze(0))
        if self.generator is None:
            return int(scores.argmax())
        return int(torch.multinomial(scores.softmax(-1)[0], 1, generator=self.generator))


def choose(choosers: list[TokenSampler], ids: list[list[int]], logits: torch.Tensor) -> list[int]:
    """One token for each row of logits [B, V]."""
    best: list[int] = best_of(logits)
    return [
        best[row] if chooser.plain else chooser.choose(ids[row], logits[row]) for row, chooser in enumerate(choosers)
    ]
