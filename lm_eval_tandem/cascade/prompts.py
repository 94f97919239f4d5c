"""The prompts of both roles (paper, sections 2.2 and 2.3).

The intern's prompt for stage t + 1 starts with the one for stage t, up to the end of the insight: question, insights,
closing words. So engines with a prefix cache read every token once. The words themselves are a `Wording`, which can
come from a file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from lm_eval_tandem.engines import Engine, Messages
from lm_eval_tandem.errors import ArgumentError

SETTING = ("efforts", "insights", "guidance", "prompts")
"""Entries of a run's description that decide what an intern reads: those of a classifier's training questions are to be
those of the runs that it judges."""
TEMPLATE = "apply_chat_template"
"""Entry of a classifier and of what it was fitted on: whether the questions were asked in chat templates."""
Insights = Literal["cutoff", "staged"]
Guidance = Literal["guided", "continuation", "thought", "handoff"]
HANDOFF: Guidance = "handoff"
THOUGHT: Guidance = "thought"
THINK, END_OF_THINK = "<think>", "</think>"
FENCE = "```"
"""Begins and ends a code block, at the beginning of a line."""


@dataclass(frozen=True)
class Question:
    """A question of the harness: plain text, or a conversation that each role renders with its own chat template.

    Parameters
    ----------
    text
        The plain prompt; for a conversation, the harness's rendering of it, which no role reads.
    messages
        The conversation; None for plain text.
    generation_prompt
        False if the conversation ends with the first words of the answer, which the model then continues.
    """

    text: str
    messages: Messages | None = None
    generation_prompt: bool = True


@dataclass(frozen=True)
class Wording:
    """The words around question and insights.

    Parameters
    ----------
    request
        After the question, for the mentor: asks for insights.
    open, close
        Before and after the insights, for the intern.
    deepen
        Asks the mentor for the next, deeper pass (`insights=staged`); empty if the models cannot do that.
    force
        Ends the mentor's thinking and asks for its answer (`policy=budget_forcing:N`).
    whole_lines
        Whether the intern reads an insight that was cut off up to its last whole line; otherwise to its last token.
    """

    request: str
    open: str
    close: str
    deepen: str = ""
    force: str = "\n\nThat is enough thinking. The final answer:\n"
    whole_lines: bool = False

    @classmethod
    def read(cls, path: Path) -> Wording:
        """Read a wording from a JSON file.

        Parameters
        ----------
        path
            A file with an object of texts, `request`, `open`, `close`, and optionally `deepen`, `force` and
            `whole_lines` (true or false).

        Raises
        ------
        ArgumentError
            The file cannot be read, or holds anything else.
        """
        allowed = [field.name for field in fields(cls)]
        try:
            given = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ArgumentError(
                f"prompts={path} cannot be read ({error}); give a JSON file with {', '.join(allowed)}, or prompts=gpra."
            ) from error
        if not isinstance(given, dict) or not {"request", "open", "close"} <= set(given) <= set(allowed):
            raise ArgumentError(
                f"prompts={path} has to be a JSON object of texts named {', '.join(allowed)} "
                "(deepen, force and whole_lines, which is true or false, may be left out)."
            )
        whole_lines = given.pop("whole_lines", False)
        if not isinstance(whole_lines, bool):
            raise ArgumentError(f"whole_lines of prompts={path} has to be true or false, not {whole_lines!r}.")
        return cls(**{name: str(text) for name, text in given.items()}, whole_lines=whole_lines)

    @property
    def checksum(self) -> str:
        """Eight hexadecimal digits that tell wordings of one name apart."""
        return hashlib.sha256(json.dumps(asdict(self)).encode()).hexdigest()[:8]


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
"""The paper's schema of insights, Goal, Planning, Retrieval and Action (section 2.2 and appendix D), in this project's
own words."""
OUTLINE = Wording(
    request=(
        "\n\nDo not answer this yet. Write a short outline of the answer: what its parts are, in their order, and what "
        "each has to settle. Leave the working out."
    ),
    open="Here is an outline of the answer:\n",
    close="\n\nFollowing it step by step:\n",
)
"""The words of `policy=outline:N`. The mentor plans, and the intern, which reads the plan as the beginning of its own
thought, works it out."""
RATE = (
    "\n\nThat was the beginning of an answer. Rate its last step: does it bring a right answer closer? "
    "Reply with one digit, from 0 (it is wrong) to 9 (it is right).\nRating: "
)
"""Asks the mentor to rate a step (`policy=verify:N`)."""
WORDINGS = {"gpra": GPRA}
"""The wordings that have a name in `prompts=…`, besides the bundled pair's own."""


@dataclass(frozen=True)
class Prompts:
    """Writes the prompts of both roles.

    Parameters
    ----------
    wording
        The words around question and insights.
    insights
        "cutoff": one text, cut at the efforts; "staged": one deeper pass per stage.
    guidance
        "guided": the insights stand in the intern's prompt; "continuation": the intern continues the mentor's text;
        "thought": they stand at the beginning of the intern's thought, which it goes on with;
        "handoff": the mentor begins the answer itself, without a request for insights, and the intern goes on with it.
    name
        The wording's name in results; for one from a file its name with a checksum.
    """

    wording: Wording = GPRA
    insights: Insights = "cutoff"
    guidance: Guidance = "guided"
    name: str = "gpra"

    @property
    def hands_off(self) -> bool:
        """Whether what the mentor writes is the answer's own beginning."""
        return self.guidance == HANDOFF

    def alone(self, engine: Engine, question: Question) -> str:
        """The question without insights: for a model that answers alone, and for the intern at stage 0."""
        return prompt_of(engine, question)

    def mentor(self, engine: Engine, question: Question, passes: tuple[str, ...] = ()) -> str:
        """The mentor's prompt; `passes` are the earlier texts that a pass of `insights=staged` deepens."""
        if self.hands_off:
            return self.alone(engine, question)
        if question.messages is None:
            text = question.text + self.wording.request
            return text + "".join(insight + self.wording.deepen for insight in passes)
        messages = append_to_last_user_turn(question.messages, self.wording.request)
        for insight in passes:
            messages = (*messages, ("assistant", insight), ("user", self.wording.deepen.strip()))
        return engine.render(messages)

    def rating(self, engine: Engine, question: Question, answer: str) -> str:
        """The prompt that asks a model to rate the last step of an answer that is not complete."""
        if question.messages is None:
            return question.text + answer + RATE
        asked, begun = question.messages, answer
        if not question.generation_prompt:  # the conversation ends with the first words of the answer
            asked, begun = asked[:-1], asked[-1][1] + answer
        return engine.render((*asked, ("assistant", begun), ("user", RATE.strip())))

    def end_of_thinking(self, written: str) -> str:
        """The text that makes the mentor answer: closes an open code block and an open thought, then asks.

        In a code block that stays open, the code of the answer would not be found.
        """
        code = f"\n{FENCE}" if in_code_block(written) else ""
        return code + (f"\n{END_OF_THINK}" if thinks(written) else "") + self.wording.force

    @property
    def longest_end_of_thinking(self) -> str:
        """The same after a text in which both are open."""
        return self.end_of_thinking(f"{THINK}\n{FENCE}\n")

    def as_read(self, insights: str, cut_off: bool) -> str:
        """The insights as the intern reads them: where the wording says so, without a last line that was cut off.

        A text that holds no whole line is read as it is.
        """
        whole = insights[: insights.rfind("\n") + 1]
        return whole if self.wording.whole_lines and cut_off and whole.strip() else insights

    def intern(self, engine: Engine, question: Question, insights: str) -> str:
        """The intern's prompt x_t under the insights so far; without insights, the question alone."""
        if not insights:
            return self.alone(engine, question)
        block = self.wording.open + insights + self.wording.close
        if self.guidance == THOUGHT:
            begun = self.alone(engine, question)
            return begun + ("" if thinks(begun) else f"{THINK}\n") + block
        if self.guidance != "guided":
            return self.alone(engine, question) + insights
        if question.messages is None:
            return question.text + block
        messages = append_to_last_user_turn(question.messages, block.rstrip("\n"), keep_answer=True)
        return engine.render(messages, question.generation_prompt)


def prompt_of(engine: Engine, question: Question) -> str:
    """The question alone, as a model answers it: a conversation in its own chat template."""
    if question.messages is None:
        return question.text
    return engine.render(question.messages, question.generation_prompt)


def append_to_last_user_turn(messages: Messages, addition: str, keep_answer: bool = False) -> Messages:
    """Add a text to the last user turn of a conversation.

    Parameters
    ----------
    messages
        The conversation; without a user turn, the text becomes one.
    addition
        The text.
    keep_answer
        Whether to keep the turns after it, which are a started answer of the intern; the mentor must not see them.
    """
    last = max((i for i, (role, _) in enumerate(messages) if role == "user"), default=None)
    if last is None:
        return (*messages, ("user", addition.strip()))
    role, content = messages[last]
    rest = messages[last + 1 :] if keep_answer else ()
    return (*messages[:last], (role, content + addition), *rest)


def thinks(text: str) -> bool:
    """Whether a text ends within a thought."""
    return text.rfind(THINK) > text.rfind(END_OF_THINK)


def in_code_block(text: str) -> bool:
    """Whether a text ends within a code block."""
    return sum(line.lstrip().startswith(FENCE) for line in text.splitlines()) % 2 == 1


def strip_think_tags(text: str) -> str:
    """A thinking mentor's text without its think tags, which would open a think block in the intern's prompt."""
    return text.replace(THINK, "").replace(END_OF_THINK, "")
