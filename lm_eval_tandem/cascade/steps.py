"""Answers that both models write, step by step: who writes a step is decided anew at each (`steps:N`, `verify:N`).

A step ends with a blank line, or with another text (`step_end=`). Both models go on with one text, which each reads in
its own tokens after its own prompt.

- `steps:N` (the idea of GlimpRouter, arXiv 2601.05110): the intern writes the first token of a step; where its entropy
  is above N nats, that token is dropped and the mentor writes the step.
- `verify:N` (the idea of SpecReason, arXiv 2504.07891): the intern writes the step, the mentor reads it and rates it
  with one digit, 0 to 9; below N, or without a digit, the step is dropped and the mentor writes it anew.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from lm_eval_tandem.cascade.growing_answer import GrowingAnswer
from lm_eval_tandem.cascade.prompts import Prompts
from lm_eval_tandem.cascade.question_run import QuestionRun
from lm_eval_tandem.engines import Completion, Engine, Prompt
from lm_eval_tandem.errors import EngineError

STEP_END = "\n\n"
"""What ends a step where nothing else is given: a blank line."""
RATING_TOKENS = 4
"""Tokens of the mentor's rating: the digit, and what may stand before it."""


@dataclass
class SteppedAnswer:
    """One answer, written by both models.

    Parameters
    ----------
    mentor, intern
        Their engines.
    prompts
        How each role's prompt is written.
    run
        The question, where every call is counted.
    max_entropy
        For `steps:N`, in nats; None for `verify:N`.
    min_rating
        For `verify:N`; None for `steps:N`.
    step_end
        What ends a step, wherever it begins or ends within a token.

    Attributes
    ----------
    growing
        What both have written so far, dropped steps excluded; the score of a segment is the entropy or rating by which
        its writer was chosen.
    """

    mentor: Engine
    intern: Engine
    prompts: Prompts
    run: QuestionRun
    max_entropy: float | None = None
    min_rating: int | None = None
    step_end: str = STEP_END
    growing: GrowingAnswer = field(init=False)

    def __post_init__(self) -> None:
        self.growing = GrowingAnswer(self.run.task.sampling, self.step_end)

    async def write(self) -> str:
        """Write the whole answer, and return it, cut before the first stop string.

        Raises
        ------
        EngineError
            The intern's engine does not report entropies, which `steps:N` needs.
        """
        self.run.live.begin("", 1)
        while not self.growing.finish_reason:
            if self.max_entropy is not None:
                await self._write_by_entropy(self.max_entropy)
            else:
                await self._write_by_rating(self.min_rating or 0)
        return self.growing.graded

    async def _write_by_entropy(self, limit: float) -> None:
        first = await self._generate("intern", tokens=1, measured=True)
        if first.entropy is None:
            raise EngineError(
                f"{self.intern.name} does not report the entropies of the tokens that it generates, which policy=steps "
                "needs; use another backend for the intern, or policy=verify:N."
            )
        # A server may leave out the end token; an answer that ends for certain is not doubted.
        entropy = float(first.entropy[0]) if len(first.entropy) else 0.0
        if entropy > limit:
            self._take("mentor", await self._generate("mentor", sure=True), (), entropy)
        elif first.finish_reason == "stop" or self.growing.left == first.new_tokens:
            self._take("intern", first, (), entropy)
        else:
            rest = await self._generate("intern", continued=first, sure=True)
            self._take("intern", rest, first.token_ids, entropy, first.new_tokens)

    async def _write_by_rating(self, limit: int) -> None:
        step = await self._generate("intern")
        rating = await self._rate(self.growing.text + self.intern.decode(step.token_ids))
        if rating is not None and rating >= limit:
            self._take("intern", step, (), rating)
        else:
            self._take("mentor", await self._generate("mentor", sure=True), (), rating)

    async def _rate(self, text: str) -> float | None:
        """The mentor's digit for the last step of a text; None where it writes none."""
        run, sampling = self.run, replace(self.run.task.sampling_for("mentor", self._number), max_tokens=RATING_TOKENS)
        prompt = Prompt(self.prompts.rating(self.mentor, run.task.question, text), session=run.task.session)
        completion = await self.mentor.generate(prompt, replace(sampling, stop=()))
        run.count_generation(self.mentor, "mentor", prompt.text, (), completion)
        digit = re.search("[0-9]", self.mentor.decode(completion.token_ids))
        return None if digit is None else float(digit[0])

    async def _generate(
        self,
        role: str,
        tokens: int | None = None,
        measured: bool = False,
        continued: Completion | None = None,
        sure: bool = False,
    ) -> Completion:
        """One role goes on with the text up to the end of a step, or for a number of tokens.

        What is sure to be in the answer is shown while it is written.
        """
        run, engine = self.run, self.mentor if role == "mentor" else self.intern
        begun = () if continued is None else continued.token_ids
        left = self.growing.left - (0 if continued is None else continued.new_tokens)
        sampling = run.task.sampling_for(role, self._number)
        sampling = replace(
            sampling,
            max_tokens=left if tokens is None else tokens,
            seed=sampling.seed + len(begun) if sampling.temperature else sampling.seed,
            stop=(*run.task.sampling.stop, self.step_end),
            return_token_stats=measured,
        )
        text = self.prompts.alone(engine, run.task.question) + self.growing.text
        on_tokens = run.live.part(engine, self.growing.text, begun) if sure else None
        completion = await engine.generate(Prompt(text, begun, run.task.session, on_tokens=on_tokens), sampling)
        run.count_generation(engine, role, text, begun, completion)
        if role == "intern":
            run.read = self.growing.tokens_of("mentor")
        return completion

    def _take(
        self, writer: str, last: Completion, begun: tuple[int, ...], score: float | None, begun_tokens: int = 0
    ) -> None:
        """Add a step, whose last call and first tokens are given, to the answer."""
        engine = self.mentor if writer == "mentor" else self.intern
        tokens = last.new_tokens + begun_tokens
        self.growing.take(writer, engine, begun + last.token_ids, tokens, last.finish_reason, score)
        self.run.live.show_parts(self.growing.text)

    @property
    def _number(self) -> int:
        """The number of the step that is written, by which sampled steps differ."""
        return len(self.growing.segments)
