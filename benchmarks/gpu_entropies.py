"""How exact the intern's entropies are: those of an engine beside the same in float64, for `gpu_group.py`."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_eval_tandem.engines import Engine, Prompt

PROMPT_WORDS = 1000
"""Length of the text that a model of transformers reads."""
TEXTS = 4
"""Number of texts of three tokens that vLLM reads: for the reference it makes an object of every log-probability."""
ROWS_AT_ONCE = 64
"""Rows of logits that are in float64 at the same time: 78 MB at 152k tokens."""


def exactness(engine: str, intern: Engine) -> dict[str, Any]:
    """Return how much the entropies of an intern differ from the reference, in nats."""
    compare = of_transformers if engine == "hf" else of_vllm
    found, expected, reference = compare(intern)
    errors = np.abs(found - expected)
    return {
        "tokens": len(found),
        "least": round(float(expected.min()), 3),
        "largest": round(float(expected.max()), 3),
        "max_error": float(f"{errors.max():.2g}"),
        "mean_error": float(f"{errors.mean():.2g}"),
        "reference": reference,
    }


def of_transformers(intern: Engine) -> tuple[NDArray[Any], NDArray[Any], str]:
    """Return the engine's entropies, those of the logits that the model computed for it, and words for these."""
    logits: list[torch.Tensor] = []
    head = intern.lm.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, inputs, output: logits.append(output[0]))
    try:
        stats = asyncio.run(intern.score(Prompt(words("entropies", PROMPT_WORDS))))
    finally:
        hook.remove()
    expected = []
    for rows in torch.cat(logits)[:-1].split(ROWS_AT_ONCE):
        logprobs = rows.double().log_softmax(-1)
        expected.append(-(logprobs.exp() * logprobs).sum(-1).cpu())
    dtype = str(logits[0].dtype).removeprefix("torch.")
    return stats.entropy[1:], torch.cat(expected).numpy(), f"those of the same {dtype} logits in float64"


def of_vllm(intern: Engine) -> tuple[NDArray[Any], NDArray[Any], str]:
    """Return the same of vLLM, whose log-probabilities of the whole vocabulary stand for its logits."""
    from lm_eval_tandem.engines.vllm.entropy_check import reference, reported

    def send(ids: list[int], params: Any) -> Any:
        async_llm = intern.lm.model
        return async_llm.wait(async_llm.complete({"prompt_token_ids": ids}, params))

    texts = [intern.encode(words(f"entropies {i}", 3)) for i in range(TEXTS)]
    found, expected = (np.concatenate([compute(send, ids) for ids in texts]) for compute in (reported, reference))
    return found, expected, "those of its own float32 log-probabilities of all tokens in float64"


def words(seed: str, count: int) -> str:
    """Return a text of so many random words."""
    chosen = random.Random(seed)
    return " ".join(f"w{chosen.randrange(10, 1000)}" for _ in range(count))
