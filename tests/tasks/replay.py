"""lm-eval's command line with one more model, `replay`, whose replies are the gold answers looked up by the prompt.

`python replay.py run --model replay --model_args gold=FILE …`: FILE is JSON, `{question: reply or list of replies}`;
of several replies the k-th answers the k-th repeat. With `opened=True` the chat template ends in an open `<think>`.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM


class Replay(LM):
    """Answers what it has been told to answer."""

    def __init__(self, gold: str, opened: bool = False, **_: Any) -> None:
        super().__init__()
        self.replies = json.loads(Path(gold).read_text(encoding="utf-8"))
        self.opened = opened

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The reply whose question stands in the prompt."""
        asked: Counter[str] = Counter()
        found = []
        for request in requests:
            prompt = request.args[0]
            question = max((question for question in self.replies if question in prompt), key=len)
            replies = self.replies[question]
            replies = [replies] if isinstance(replies, str) else replies
            found.append(replies[asked[question] % len(replies)])
            asked[question] += 1
        return found

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Not asked for."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Not asked for."""
        raise NotImplementedError

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Turns between tags, and the opening of a thought."""
        turns = "".join(f"<|{turn['role']}|>{turn['content']}<|end|>" for turn in chat_history)
        return turns + "<|assistant|>" + ("<think>\n" if self.opened else "")

    @property
    def tokenizer_name(self) -> str:
        """For the harness's request cache."""
        return "replay"


if __name__ == "__main__":
    import lm_eval.models  # noqa: F401  its own models must be registered before this one
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model

    register_model("replay")(Replay)
    cli_evaluate()
