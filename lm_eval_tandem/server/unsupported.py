"""Fields of requests that the server does not have, and the values with which they may be there all the same.

Clients send fields at values that ask for nothing, such as `tools: []` or `presence_penalty: 0`. Only such values are
accepted, so that no wish is ignored in silence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_tandem.server.errors import refusal

Nothing = dict[str, tuple[Any, ...]]
"""Names of fields that the server does not have, each with the values that ask for nothing, as null always does."""
NOTHING: Nothing = {
    "frequency_penalty": (0,),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "metadata": ({},),
    "min_tokens": (0,),
    "presence_penalty": (0,),
    "priority": (0,),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "service_tier": ("auto", "default"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "stop_token_ids": ([],),
    "store": (False,),
    "use_beam_search": (False,),
}
"""Of both endpoints: OpenAI's fields, and those that vLLM has beside them."""
NOTHING_OF_CHATS = NOTHING | {
    "audio": (),
    "chat_template_kwargs": ({},),
    "echo": (False,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "moderation": (),
    "parallel_tool_calls": (True, False),
    "prediction": (),
    "prompt_cache_options": ({},),
    "reasoning_effort": ("none",),
    "response_format": ({"type": "text"},),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_logprobs": (0,),
    "verbosity": ("medium",),
    "web_search_options": (),
}
NOTHING_OF_COMPLETIONS = NOTHING | {"best_of": (1,), "suffix": ("",)}
NOTHING_OF_STREAM_OPTIONS: Nothing = {"include_obfuscation": (False,)}
NOTHING_OF_MESSAGES: Nothing = {
    "annotations": ([],),
    "audio": (),
    "function_call": (),
    "name": (),
    "refusal": (),
    "tool_calls": ([],),
    "tool_call_id": (),
}


def check_nothing(extra: Mapping[str, Any], nothing: Nothing, place: str = "") -> None:
    """Refuse the first of the fields that the server does not have, unless its value asks for nothing.

    Parameters
    ----------
    extra
        The fields.
    nothing
        Those that are known.
    place
        What stands before a field's name, as in "messages.0.".
    """
    for name, value in extra.items():
        if value is None:
            continue
        field_name = place + name[:80]
        if name not in nothing:
            raise refusal(f"the field {field_name!r} is not known; leave it out.", field_name)
        if value not in nothing[name]:
            with_value = " with this value" if nothing[name] else ""
            raise refusal(f"{field_name} is not supported{with_value}; leave it out.", field_name)
