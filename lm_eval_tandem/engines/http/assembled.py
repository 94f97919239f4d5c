"""A whole reply that comes as a stream: its chunks put together, and its text reported while it grows."""

from __future__ import annotations

from typing import Any

from lm_eval_tandem.engines.http.replies import (
    THINK_CLOSE,
    THINK_OPEN,
    first_choice,
    member,
    thought_and_content,
    token_ids_of,
    whole_characters,
)
from lm_eval_tandem.engines.http.text import encode_reply
from lm_eval_tandem.engines.token_reports import TokenReports


class AssembledReply:
    """Puts the chunks of a stream together to the reply that the server would have sent in one piece.

    Parameters
    ----------
    reports
        Gets the text's bytes while it grows.

    Attributes
    ----------
    has_thought
        Whether the server has sent thinking apart from the content.
    ids
        The server's token ids of the text, where it returns them.
    """

    def __init__(self, reports: TokenReports) -> None:
        self.has_thought = False
        self.ids: list[int] = []
        self._reports = reports
        self._thought: list[str] = []
        self._content: list[str] = []
        self._has_content = False
        self._half = ""  # the first half of a character whose second half comes with the next chunk
        self._choice: dict[str, Any] = {}
        self._reply: dict[str, Any] = {}
        self._reported = 0

    def add(self, chunk: Any) -> None:
        """Add a chunk.

        Raises
        ------
        Failure
            It is none.
        """
        choice = first_choice(chunk)
        if chunk.get("usage") is not None:
            self._reply["usage"] = chunk["usage"]
        if choice is None:
            return
        delta = member(choice, "delta", dict) or member(choice, "message", dict) or {"content": choice.get("text")}
        prompt_ids = token_ids_of(chunk, "prompt_token_ids") or token_ids_of(choice, "prompt_token_ids")
        if prompt_ids:
            self._choice["prompt_token_ids"] = list(prompt_ids)
        self.ids += token_ids_of(choice, "token_ids") or ()
        if choice.get("finish_reason"):
            self._choice["finish_reason"] = choice["finish_reason"]
        refusal = member(delta, "refusal", str)
        if refusal:
            self._choice["refusal"] = self._choice.get("refusal", "") + refusal
        thought, content = thought_and_content(delta)
        self._thought.append(thought)
        self._content.append(content)
        self._report(thought, content)

    def _report(self, thought: str, content: str) -> None:
        """Report new text, as it will be in `replies.Reply.text`, up to its last whole character."""
        thought, half = whole_characters(self._half + thought)
        content, self._half = whole_characters(half + content)
        if thought and not self.has_thought:
            thought, self.has_thought = THINK_OPEN + thought, True
        if content and not self._has_content and self.has_thought:
            content = THINK_CLOSE + content
        self._has_content = self._has_content or bool(content)
        data = encode_reply(thought + content)
        self._reports.add(self._reported, data)
        self._reported += len(data)

    @property
    def whole(self) -> dict[str, Any]:
        """The reply as JSON, for `replies.Reply.of`."""
        thought, content = "".join(self._thought), "".join(self._content)
        message = {"reasoning": thought, "content": content, "refusal": self._choice.pop("refusal", None)}
        choice = {**self._choice, "message": message, "token_ids": self.ids}
        return {**self._reply, "choices": [choice]}
