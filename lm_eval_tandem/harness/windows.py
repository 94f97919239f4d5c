"""What a question can grow to in the models' windows, and what is said of one that does not fit.

`requests.check_fits` asks before anything runs, so that a question fails in a sentence that names the numbers and what
would help, and not in the middle of its answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import Prompts
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.steps import RATING_TOKENS
from lm_eval_tandem.engines import Engine
from lm_eval_tandem.errors import ContextError
from lm_eval_tandem.harness.settings import Settings


@dataclass(frozen=True)
class LargestCall:
    """The largest call of one kind that a question can lead to.

    Attributes
    ----------
    engine
        Of the model that is called.
    text
        The prompt.
    mentor_tokens
        The largest number of tokens of the mentor that follow the prompt: insights, or the beginning of the answer.
    answer_tokens
        The largest number of tokens of the answer that follow those.
    rating_tokens
        Those of a rating, which follow the answer.
    """

    engine: Engine
    text: str
    mentor_tokens: int = 0
    answer_tokens: int = 0
    rating_tokens: int = 0

    @property
    def new_tokens(self) -> int:
        """The largest number of tokens that follow the prompt."""
        return self.mentor_tokens + self.answer_tokens + self.rating_tokens


def largest_calls(task: Task, settings: Settings, engines: Mapping[str, Engine | None]) -> Iterator[LargestCall]:
    """The largest call of each kind that a question can lead to.

    Parameters
    ----------
    task
        The question.
    settings
        Of the run.
    engines
        Of mentor and intern; one that the policy does not need may be None.
    """
    policy = settings.policy
    prompts, efforts = policy.prompts(settings.prompts), policy.efforts(settings.efforts)
    mentor = engines["mentor"] if policy.needs_mentor else None
    intern = engines["intern"] if policy.needs_intern else None
    answer = task.sampling.max_tokens
    if policy.is_stepwise:
        assert mentor is not None
        assert intern is not None
        if policy.rating is not None:
            rated = prompts.rating(mentor, task.question, "")
            yield LargestCall(mentor, rated, answer_tokens=answer, rating_tokens=RATING_TOKENS)
        else:
            yield LargestCall(mentor, prompts.alone(mentor, task.question), answer_tokens=answer)
        yield LargestCall(intern, prompts.alone(intern, task.question), answer_tokens=answer)
        return
    insights = efforts[-1 if policy.stage is None else policy.stage - 1]
    if prompts.hands_off:  # both write parts of one answer
        insights = min(insights, answer)
    if mentor is not None and policy.mentor_may_answer:
        text = prompts.alone(mentor, task.question) + _text_of_forcing(policy, prompts, answer)
        yield LargestCall(mentor, text, answer_tokens=answer)
    if mentor is not None and not policy.mentor_alone:
        passes = (" ",) * ((policy.stage or len(efforts)) - 1) if prompts.insights == "staged" else ()
        yield LargestCall(mentor, prompts.mentor(mentor, task.question, passes), insights)
    if intern is not None and not policy.needs_mentor:
        yield LargestCall(intern, prompts.alone(intern, task.question), answer_tokens=answer)
    elif intern is not None:
        rest = answer - insights if prompts.hands_off else answer
        yield LargestCall(intern, prompts.intern(intern, task.question, " "), insights, rest)


def _text_of_forcing(policy: Policy, prompts: Prompts, answer: int) -> str:
    """What `budget_forcing` may add to the mentor's own text; "" where the answer ends within the budget anyway."""
    return prompts.longest_end_of_thinking if policy.budget is not None and policy.budget < answer else ""


def refusal(
    call: LargestCall,
    size: int,
    task: Task,
    settings: Settings,
    engines: Mapping[str, Engine | None],
    longest_answer: int,
) -> ContextError:
    """The error of a question of which a call does not fit.

    Parameters
    ----------
    call, size
        The call, and the size of its prompt in tokens.
    task, settings, engines
        As for `largest_calls`.
    longest_answer
        The largest number of tokens of an answer that would fit; below 1 where none would.
    """
    policy, window = settings.policy, call.engine.window
    if size >= window:
        return prompt_too_long(task.called, call.engine.name, window, size)
    is_answer = policy.prompts(settings.prompts).hands_off
    budget = f"policy={policy}" if policy.tokens is not None else "efforts"
    needed, advice = [], []
    is_mentors_part = bool(call.mentor_tokens) and (not is_answer or call.engine is engines["mentor"])
    if is_mentors_part:
        kind = "of the answer that the mentor writes" if is_answer else "of insights"
        needed.append(f"up to {call.mentor_tokens} {kind} ({budget})")
    if call.answer_tokens or (is_answer and not is_mentors_part):
        needed.append(f"max_gen_toks={task.sampling.max_tokens} for the answer")
    if call.rating_tokens:
        needed.append(f"{call.rating_tokens} for its rating")
    if longest_answer > 0 and (call.answer_tokens or is_answer):
        advice.append(f"lower max_gen_toks (--gen_kwargs) to at most {longest_answer}")
    room = room_of_mentor(task, settings, engines) if is_mentors_part else 0
    if room > 0:
        advice.append(f"lower {'the number of ' if policy.tokens is not None else ''}{budget} to at most {room}")
    return too_little_room(task.called, call.engine.name, window, size, needed, advice or ["shorten the prompt"])


def room_of_mentor(task: Task, settings: Settings, engines: Mapping[str, Engine | None]) -> int:
    """The largest number of the mentor's tokens with which everything fits; 0 or less where none is small enough."""
    is_answer = settings.policy.prompts(settings.prompts).hands_off
    return min(
        call.engine.window - len(call.engine.encode(call.text)) - call.answer_tokens
        for call in largest_calls(task, settings, engines)
        if call.mentor_tokens and (not is_answer or call.engine is engines["mentor"])
    )


def prompt_too_long(called: str, name: str, window: int, size: int) -> ContextError:
    """The error of a question whose prompt alone fills a window.

    Parameters
    ----------
    called
        How the message calls the question (`Task.called`).
    name, window
        The model, and its window in tokens.
    size
        The size of the prompt in tokens.
    """
    return ContextError(
        f"{called} does not fit into the window of {name}, {window} tokens: its prompt has {size} tokens, which leave "
        "none for an answer; shorten the prompt, or use a model with a longer window."
    )


def too_little_room(
    called: str, name: str, window: int, size: int, needed: Sequence[str], advice: Sequence[str]
) -> ContextError:
    """The error of a question whose prompt fits, but not with all that may follow.

    Parameters
    ----------
    called, name, window, size
        As for `prompt_too_long`.
    needed
        What may follow, with its number of tokens each.
    advice
        What would help, beside a longer window.

    Examples
    --------
    >>> print(too_little_room("line 2", "small", 512, 90, ["max_gen_toks=500 for the answer"], ["lower max_gen_toks"]))
    line 2 does not fit into the window of small, 512 tokens: its prompt has 90 tokens, which leave 422, and \
what may follow is max_gen_toks=500 for the answer; lower max_gen_toks, or use a model with a longer window.
    """
    return ContextError(
        f"{called} does not fit into the window of {name}, {window} tokens: its prompt has {size} tokens, which leave "
        f"{window - size}, and what may follow is {' and '.join(needed)}; {', or '.join(advice)}, or use a model with "
        "a longer window."
    )
