"""What engines refuse before they compute: prompts that exceed the window, and views that they do not support."""

from __future__ import annotations

from lm_eval_tandem.engines import DEFAULT_VIEW, ScoringView
from lm_eval_tandem.errors import ContextError, EngineError


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
            f"{window} tokens; lower max_gen_toks or the efforts, or use a model with a longer window."
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
