"""A logits processor of vLLM that changes nothing and takes its time: a toy model then writes as slowly as a large one.

Tests of what a client's refusal or cancellation saves need it. A toy model writes hundreds of tokens a second, so where
the processor has other work for a moment, an answer is at its end before its client has read the beginning.
"""

from __future__ import annotations

import os
import time
from typing import Any

import torch
from vllm.v1.sample.logits_processor import LogitsProcessor

from engines.vllm.vllm_server import SWITCH

SECONDS = 0.05
"""How much longer every token takes while the file named by `SWITCH` exists."""


class Pace(LogitsProcessor):
    """As `--logits-processors engines.vllm.paced:Pace`."""

    def __init__(self, *_: Any) -> None:
        self.switch = os.environ[SWITCH]

    def is_argmax_invariant(self) -> bool:
        return True

    def update_state(self, batch_update: Any) -> None:
        """Called before each forward pass."""
        if os.path.exists(self.switch):
            time.sleep(SECONDS)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        return logits
