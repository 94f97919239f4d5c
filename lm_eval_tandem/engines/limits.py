"""What engines refuse: prompts that exceed the window, views that they do not support, and logits that are NaN."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from lm_eval_tandem.engines import DEFAULT_VIEW, ScoringView, TokenStats
from lm_eval_tandem.errors import CallError, ContextError, ViewError


def check_window(name: str, window: int, prompt_tokens: int, new_tokens: int) -> None:
    """Refuse a call that exceeds the window of the model `name`; nothing is ever truncated.

    Raises
    ------
    ContextError
        `prompt_tokens` and `new_tokens` are together more than `window`.
    """
    left = window - prompt_tokens
    if new_tokens <= left:
        return
    exceeds = f"and {new_tokens} tokens to generate exceed" if new_tokens else "exceeds"
    if left < 1:
        cause, advice = "which the prompt alone fills", "shorten it (in a tandem, also by lower efforts)"
    else:
        cause = f"of which the prompt leaves {left}"
        advice = "lower max_gen_toks (or the efforts of a tandem)"
    raise ContextError(
        f"a prompt of {prompt_tokens} tokens {exceeds} the window of {name}, {window} tokens, {cause}; {advice}, or "
        "use a model with a longer window."
    )


def require_default_view(view: ScoringView, name: str) -> None:
    """For engines that report token statistics alone: refuse any other view for the model `name`.

    Raises
    ------
    ViewError
        The view requests a hidden state, an adapter or the likeliest tokens.
    """
    if replace(view, since=0) != DEFAULT_VIEW:
        raise ViewError(
            f"{name} runs in an engine that reports no hidden states and loads no adapters; run the intern with "
            "intern_backend=hf, or use a classifier fitted with other --inputs than hidden or lora."
        )


def is_finite(stats: TokenStats, since: int = 1) -> bool:
    """Whether the statistics of all tokens from `since` on are numbers.

    Only a log-probability may be infinite, where the model masks a token.
    """
    finite = bool(np.isfinite(stats.entropy[since:]).all()) and not bool(np.isnan(stats.logprob[since:]).any())
    return finite and (stats.hidden is None or bool(np.isfinite(stats.hidden).all()))


def undefined_logits(name: str) -> CallError:
    """The error of a call for which the model `name` computed logits that are NaN or infinite."""
    return CallError(
        f"the logits of {name} are NaN or infinite for this prompt; check its weights and dtype= "
        "(float16 overflows in models that were trained in bfloat16), and extreme values of temperature and "
        "repetition_penalty"
    )
