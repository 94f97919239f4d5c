"""The harness's requests turned into questions, and answers turned into what the harness carries.

An lm-eval `Instance` comes in with a context and generation arguments and leaves as a `Task` for the cascade. Chat
prompts keep their messages, since each role renders them in its own template; answers keep their cost, so that a task
can show it beside accuracy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine, Sampling
from lm_eval_tandem.errors import ArgumentError, ContextError
from lm_eval_tandem.harness.settings import Settings

GENERATION = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "until", "max_gen_toks")
"""Generation arguments that have a meaning here; with num_beams=1 also that one."""


class ChatPrompt(str):
    """A conversation as the harness carries it: rendered for the answering model, with the messages kept beside it.

    Attributes
    ----------
    messages
        The conversation as (role, content) pairs.
    generation_prompt
        False where the conversation ends with the start of the answer.
    """

    messages: tuple[tuple[str, str], ...]
    generation_prompt: bool

    @classmethod
    def of(cls, rendered: str, history: Sequence[dict[str, str]], generation_prompt: bool) -> ChatPrompt:
        """A rendered conversation together with its messages."""
        prompt = cls(rendered)
        prompt.messages = tuple((turn["role"], turn["content"]) for turn in history)
        prompt.generation_prompt = generation_prompt
        return prompt


class Answer(str):
    """An answer as the harness carries it, with what it cost.

    Attributes
    ----------
    metrics
        Figures by the name of the metric, for tasks that show them (`Record.metrics`).
    """

    metrics: dict[str, float]

    @classmethod
    def of(cls, text: str, metrics: dict[str, float]) -> Answer:
        """An answer together with its figures."""
        answer = cls(text)
        answer.metrics = metrics
        return answer


def tasks_of(requests: Sequence[Instance], default_max_tokens: int, seed: int) -> list[Task]:
    """One task per request, in the same order.

    A request that stands in the list several times (`repeats`) becomes as many tasks, which are sampled apart.

    Parameters
    ----------
    requests
        Of the kind generate_until.
    default_max_tokens
        The longest answer, in tokens, where a request sets no max_gen_toks.
    seed
        Of sampling.

    Raises
    ------
    ArgumentError
        A generation argument is not known.
    """
    seen: Counter[int] = Counter()
    tasks: list[Task] = []
    for request in requests:
        context, generation = request.args
        repeat = seen[id(request)] % (request.repeats or 1)
        seen[id(request)] += 1
        if isinstance(context, ChatPrompt):
            question = Question(str(context), context.messages, context.generation_prompt)
        else:
            question = Question(context)
        doc_id = request.doc_id if request.doc_id is not None else len(tasks)
        sampling = sampling_of(generation, default_max_tokens, seed)
        tasks.append(Task(question, sampling, request.task_name or "", doc_id, repeat))
    return tasks


def sampling_of(generation: dict[str, Any], default_max_tokens: int, seed: int) -> Sampling:
    """How to generate, from the harness's generation arguments, which are read as `--model hf` reads them.

    Raises
    ------
    ArgumentError
        A generation argument is not known.
    """
    given: dict[str, Any] = dict(normalize_gen_kwargs(generation, default_max_tokens))
    until = given.get("until") or []
    unknown = {
        name: value
        for name, value in given.items()
        if name not in GENERATION and not (name == "num_beams" and value == 1)
    }
    if unknown:
        raise ArgumentError(
            f"the generation arguments {', '.join(sorted(unknown))} are not known to tandem; "
            f"use {', '.join(GENERATION)}."
        )
    sampled = bool(given.get("do_sample"))
    return Sampling(
        max_tokens=int(given["max_gen_toks"]),
        stop=tuple(until if isinstance(until, list) else [until]),
        temperature=float(given.get("temperature") or 1.0) if sampled else 0.0,
        top_p=given.get("top_p"),
        top_k=given.get("top_k"),
        min_p=given.get("min_p"),
        repetition_penalty=given.get("repetition_penalty"),
        seed=seed,
    )


def check_fits(task: Task, settings: Settings, engines: Mapping[str, Engine | None]) -> int:
    """The size of a question's prompt in tokens, if all that it may grow to fits into the models' windows.

    Raises
    ------
    ContextError
        The prompt with the longest insights and the longest answer does not fit.
    """
    size = 0
    for engine, text, insights, answer in _largest_calls(task, settings, engines):
        size = len(engine.encode(text))
        if size + insights + answer > engine.window:
            raise ContextError(
                f"{task.task or 'request'} #{task.doc_id} does not fit into the window of {engine.name}, "
                f"{engine.window} tokens: the prompt has {size} tokens, up to {insights} of insights and "
                f"max_gen_toks={answer} for the answer; lower max_gen_toks (--gen_kwargs) or the efforts, or use a "
                "model with a longer window."
            )
    return size


def _largest_calls(
    task: Task, settings: Settings, engines: Mapping[str, Engine | None]
) -> Iterator[tuple[Engine, str, int, int]]:
    """Per kind of call: the engine, the prompt, and the largest numbers of tokens of insights and answer to follow."""
    policy, prompts = settings.policy, settings.prompts
    mentor, intern = engines["mentor"], engines["intern"]
    insights = settings.efforts[-1 if policy.stage is None else policy.stage - 1]
    answer = task.sampling.max_tokens
    if mentor is not None and policy.mentor_may_answer:
        yield mentor, prompts.alone(mentor, task.question), 0, answer
    if mentor is not None and not policy.mentor_alone:
        yield mentor, prompts.mentor(mentor, task.question), insights, 0
    if intern is not None and not policy.needs_mentor:
        yield intern, prompts.alone(intern, task.question), 0, answer
    elif intern is not None:
        yield intern, prompts.intern(intern, task.question, " "), insights, answer
