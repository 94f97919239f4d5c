"""Aggregation by token: all models decode one text in step, and their next-token distributions are combined.

The combining is `engines.hf.joint`'s, which answers like any other engine; here its answer is divided among the models.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import cycle
from typing import Protocol

from lm_eval_tandem.accounting import Spent
from lm_eval_tandem.cascade.prompts import prompt_of
from lm_eval_tandem.engines import Completion, Engine, Prompt
from lm_eval_tandem.ensembles.run import EnsembleRun
from lm_eval_tandem.errors import EngineError
from lm_eval_tandem.ledger import Segment


class Joint(Protocol):
    """What the engine of several models says about each of them."""

    @property
    def separator(self) -> str:
        """What stands between the models' prompts where they differ, and so in no question."""
        ...

    def member_prompts(self, text: str) -> list[list[int]]:
        """Each model's token ids of a prompt."""
        ...

    def member_ids(self, token_ids: tuple[int, ...]) -> list[list[int]]:
        """What each model read of generated tokens, in its own."""
        ...


@dataclass(frozen=True)
class Tokens:
    """An answer of which all models choose each token together.

    Parameters
    ----------
    engine
        The engine of all models, with the store around it where there is one.
    joint
        The same without the store.
    """

    engine: Engine
    joint: Joint

    async def write(self, run: EnsembleRun) -> tuple[str, str]:
        """The graded answer, and the reason for it.

        Raises
        ------
        EngineError
            The question contains the character that stands between the prompts of several models.
        """
        if self.joint.separator in run.task.question.text:
            raise EngineError(
                f"the question contains the character U+{ord(self.joint.separator):04X}, which stands between the "
                "prompts of models that decode in step; remove it."
            )
        text = prompt_of(self.engine, run.task.question)
        names = [member.name for member in run.selected]
        sampling = run.task.sampling_for("+".join(names), 0)
        run.live.begin("", 0)
        prompt = Prompt(text, session=run.task.session, on_tokens=run.live.by(self.engine))
        completion = await self.engine.generate(prompt, sampling)
        run.generate_seconds += completion.seconds
        run.growing.text, run.growing.finish_reason = completion.text, completion.finish_reason
        run.growing.segments = self._segments(completion, names)
        self._count(run, text, completion)
        return completion.text, "token by token"

    def _runs(self, completion: Completion) -> list[tuple[bool, tuple[int, ...]]]:
        """The runs of tokens: whether the first model chose them alone, and the tokens."""
        found, start = [], 0
        for alone, length in zip(cycle((True, False)), completion.turns, strict=False):
            if length:
                found.append((alone, completion.token_ids[start : start + length]))
            start += length
        return found

    def _segments(self, completion: Completion, names: list[str]) -> list[Segment]:
        """Who chose which tokens."""
        segments, before = [], 0
        ids: tuple[int, ...] = ()
        for alone, part in self._runs(completion):
            ids += part
            length = len(self.engine.decode(ids))
            segments.append(Segment(names[0] if alone else "+".join(names), len(part), length - before))
            before = length
        return segments

    def _count(self, run: EnsembleRun, text: str, completion: Completion) -> None:
        """Count what each model read and generated.

        The models that wait while the first one chooses alone read what it chose before they take part again.
        """
        runs = self._runs(completion)
        together = [i for i, (alone, _) in enumerate(runs) if not alone]
        parts = [self.joint.member_ids(part) for _, part in runs]
        prompts = self.joint.member_prompts(text)
        for place, member in enumerate(run.selected):
            new = read = 0
            for i, (alone, _) in enumerate(runs):
                tokens = len(parts[i][place])
                if place == 0 or not alone:
                    new += tokens
                elif together and i < together[-1]:
                    read += tokens
            prompt = len(prompts[place]) if place == 0 or together else 0
            prices = member.prices
            dollars = None if prices is None else prices.dollars(prompt + read, 0, new)
            run.count(member, Spent(new=new, read=read, prefill=prompt + read, dollars=dollars))
