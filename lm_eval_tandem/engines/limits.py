"""What engines refuse: prompts that exceed the window, views that they do not support, and logits that are NaN."""

from __future__ import annotations

import numpy as np

from lm_eval_tandem.engines import DEFAULT_VIEW, ScoringView, TokenStats
from lm_eval_tandem.errors import CallError, ContextError, EngineError


def check_window(name: str, window: int, prompt_tokens: int, new_tokens: int) -> None:
    """Refuse a call that exceeds the window of the model `name`; nothing is ever truncated.

    Raises
    ------
    ContextError
        `prompt_tokens` and `new_tokens` are together more than `window`.
    """
    if prompt_tokens + new_tokens > window:
        raise ContextError(
            f"a prompt of {prompt_tokens} tokens and {new_tokens} tokens to generate exceed the window of {name}, "
            f"{window} tokens; lower max_gen_toks (or the efforts of a tandem), or use a model with a longer window."
        )


def require_default_view(view: ScoringView, name: str) -> None:
    """For engines that report token statistics alone: refuse any other view for the model `name`.

    Raises
    ------
    EngineError
        The view requests a hidden state or an adapter.
    """
    if view != DEFAULT_VIEW:
        raise EngineError(
            f"{name} runs in an engine that reports no hidden states and loads no adapters; run the intern with "
            "intern_backend=hf, or use a classifier fitted with other --inputs than hidden or lora."
        )


def is_finite(stats: TokenStats) -> bool:
    """Whether all statistics are numbers. Only a log-probability may be infinite, where the model masks a token."""
    finite = bool(np.isfinite(stats.entropy[1:]).all()) and not bool(np.isnan(stats.logprob[1:]).any())
    return finite and (stats.hidden is None or bool(np.isfinite(stats.hidden).all()))


def undefined_logits(name: str) -> CallError:
    """The error of a call for which the model `name` computed logits that are NaN or infinite."""
    return CallError(
        f"the logits of {name} are NaN or infinite for this prompt; check its weights and dtype= "
        "(float16 overflows in models that were trained in bfloat16), and extreme values of temperature and "
        "repetition_penalty"
    )
