"""What each role is shown. The intern's prompt only ever grows: question, then insights, then the closing cue."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from lm_eval_tandem.engines import Engine, Messages
from lm_eval_tandem.errors import ArgumentError

Insights = Literal["cutoff", "staged"]
Guidance = Literal["guided", "continuation"]


@dataclass(frozen=True)
class Question:
    """What the harness asks: plain text, or a conversation that each role renders in its own template.

    text: the plain prompt; for a conversation how the harness saw it (never shown to a role).
    messages: the conversation, or None for plain text.
    generation_prompt: False where the conversation ends with the beginning of the answer.
    """

    text: str
    messages: Messages | None = None
    generation_prompt: bool = True


@dataclass(frozen=True)
class Wording:
    """The words around question and insights.

    request: after the question, for the mentor: asks for insights.
    open, close: before and after the insights, for the intern.
    deepen: asks the mentor for the next, deeper pass (`insights=staged`); empty where the models know none.
    force: ends the mentor's thinking and asks for its answer (`policy=budget_forcing:N`).
    """

    request: str
    open: str
    close: str
    deepen: str = ""
    force: str = "\n\nThat is enough thinking. The final answer:\n"

    @classmethod
    def read(cls, path: Path) -> Wording:
        """The wording in a JSON file: an object with `request`, `open`, `close` and optionally `deepen` and `force`.

        Raises
        ------
        ArgumentError
            The file is not there, or not such an object.
        """
        allowed = [field.name for field in fields(cls)]
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"prompts={path} cannot be read ({error}); give a JSON file with {', '.join(allowed)}, or prompts=gpra."
            ) from error
        if not isinstance(found, dict) or not {"request", "open", "close"} <= set(found) <= set(allowed):
            raise ArgumentError(
                f"prompts={path} has to be a JSON object of texts named {', '.join(allowed)} "
                "(deepen and force may be left out)."
            )
        return cls(**{name: str(text) for name, text in found.items()})


GPRA = Wording(
    request=(
        "\n\nDo not solve this completely. You are the mentor of a junior colleague who will answer it alone. "
        "Write compact thinking insights for them, in exactly these four parts:\n"
        "[Goal] what has to be found, the constraints, and the form that the answer must have.\n"
        "[Planning] the strategy: how to break the problem up, which path to take, which edge cases to mind.\n"
        "[Retrieval] the facts, formulas and definitions that are needed.\n"
        "[Action] the concrete steps with their intermediate results.\n"
        "Keep every part short and use the notation of the problem."
    ),
    open="\n\nA mentor left these insights for you. They may break off; use what helps.\n[Thinking Insights]\n",
    close="\n[End of Insights]\n\nNow solve the problem yourself and answer in the form that was asked for.\n",
    deepen=(
        "\n\nGo deeper: write the four parts [Goal], [Planning], [Retrieval], [Action] once more, "
        "adding only what was missing before."
    ),
)
"""The Goal, Planning, Retrieval, Action schema of the paper (2.2 and Appendix D), in words of our own."""


@dataclass(frozen=True)
class Prompts:
    """Renders for an engine what its role is shown (paper, 2.2 and 2.3)."""

    wording: Wording = GPRA
    insights: Insights = "cutoff"
    guidance: Guidance = "guided"

    def alone(self, engine: Engine, question: Question) -> str:
        """The question as it is: a model on its own, or the intern at stage 0."""
        if question.messages is None:
            return question.text
        return engine.render(question.messages, question.generation_prompt)

    def mentor(self, engine: Engine, question: Question, passes: tuple[str, ...] = ()) -> str:
        """The mentor's prompt; `passes` are the earlier texts that `insights=staged` deepens."""
        if question.messages is None:
            text = question.text + self.wording.request
            return text + "".join(insight + self.wording.deepen for insight in passes)
        messages = asked(question.messages, self.wording.request)
        for insight in passes:
            messages = (*messages, ("assistant", insight), ("user", self.wording.deepen.strip()))
        return engine.render(messages)

    def forced(self, written: str) -> str:
        """What closes the mentor's thinking: its think block, where one is open, and the cue for the answer."""
        thinks = written.rfind("<think>") > written.rfind("</think>")
        return ("\n</think>" if thinks else "") + self.wording.force

    def intern(self, engine: Engine, question: Question, insights: str) -> str:
        """The intern's prompt at a stage; with no insights the question alone."""
        if not insights:
            return self.alone(engine, question)
        if self.guidance == "continuation":
            return self.alone(engine, question) + insights
        block = self.wording.open + insights + self.wording.close
        if question.messages is None:
            return question.text + block
        messages = asked(question.messages, block.rstrip("\n"), keep_answer=True)
        return engine.render(messages, question.generation_prompt)


def asked(messages: Messages, addition: str, keep_answer: bool = False) -> Messages:
    """The conversation with a text added to its last user turn; a begun answer is the intern's, so only kept for it."""
    last = max((i for i, (role, _) in enumerate(messages) if role == "user"), default=None)
    if last is None:
        return (*messages, ("user", addition.strip()))
    role, content = messages[last]
    rest = messages[last + 1 :] if keep_answer else ()
    return (*messages[:last], (role, content + addition), *rest)


def without_think_marks(text: str) -> str:
    """A thinking mentor's text for another reader: what it thought, not the marks around it."""
    return text.replace("<think>", "").replace("</think>", "")
