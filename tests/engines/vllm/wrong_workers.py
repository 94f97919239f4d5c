"""Extensions of vLLM's workers that report wrong entropies, for the test that refuses them."""

from __future__ import annotations

import math
from typing import Any

import torch

from lm_eval_tandem.engines.entropy import LOGPROB_COLUMNS
from lm_eval_tandem.engines.vllm.worker_extension import TandemWorker


class WrongWorker(TandemWorker):
    """Can be told what to report from then on."""

    def tandem_report(self, what: str) -> None:
        """One of entropies in `bits`, those `of the likely` tokens alone, `none`, or the `right` ones."""
        sampler = self.model_runner.sampler
        if "gather_logprobs" in vars(sampler):
            del sampler.gather_logprobs  # the class's own is left
        self.tandem_add_entropies()
        right, unwrapped = sampler.gather_logprobs, type(sampler).gather_logprobs

        def gather(scores: torch.Tensor, columns: int, *more: Any, **named: Any) -> Any:
            if what == "none":
                return unwrapped(scores, columns, *more, **named)
            gathered = right(scores, columns, *more, **named)
            if columns == LOGPROB_COLUMNS:
                entropy = gathered.logprobs[:, LOGPROB_COLUMNS]
                if what == "bits":
                    entropy /= math.log(2)
                if what == "of the likely":
                    entropy[:] = torch.special.entr(scores.topk(3).values.exp()).sum(-1)
            return gathered

        sampler.gather_logprobs = gather
