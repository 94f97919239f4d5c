"""The model `replay`, which answers each prompt with a given reply, and lm-eval's command line with this model.

`python replay.py run --model replay --model_args gold=FILE …`: FILE is JSON, `{question: reply or list of replies}`. Of
several replies, the k-th answers the k-th repeat. With `opened=True` the chat template ends with an open `<think>`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


class Replay(LM):
    """A model that answers each prompt with the reply of the longest question that the prompt contains."""

    def __init__(self, gold: str, opened: bool = False, **_: Any) -> None:
        super().__init__()
        self.replies = json.loads(Path(gold).read_text(encoding="utf-8"))
        self.opened = opened

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return the replies to the prompts."""
        requested: Counter[str] = Counter()
        found = []
        for request in requests:
            prompt = request.args[0]
            question = max((question for question in self.replies if question in prompt), key=len)
            replies = self.replies[question]
            replies = [replies] if isinstance(replies, str) else replies
            found.append(replies[requested[question] % len(replies)])
            requested[question] += 1
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Raise NotImplementedError; no task here needs it."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Raise NotImplementedError; no task here needs it."""
        raise NotImplementedError

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Return the messages between tags, and with `opened` the start of a thought."""
        turns = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in chat_history)
        return turns + "<|assistant|>" + ("<think>\n" if self.opened else "")

    @property
    def tokenizer_name(self) -> str:
        """Name in the harness's request cache."""
        return "replay"


if __name__ == "__main__":
    import lm_eval.models  # noqa: F401  its own models must be registered before this one
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model("replay")(Replay)
    cli_evaluate()
