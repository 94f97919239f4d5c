"""The harness's requests turned into questions, and answers turned into what the harness carries.

An lm-eval `Instance` comes in with a context and generation arguments and leaves as a `Task` for the cascade. Chat
prompts keep their messages, since each role renders them in its own template; answers keep their cost, so that a task
can show it beside accuracy.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine, Sampling
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.settings import Settings
from lm_eval_tandem.harness.windows import largest_calls, refusal

GENERATION = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "until", "max_gen_toks")
"""Generation arguments that have a meaning here; with num_beams=1 also that one."""


OTHER_TOKENS = 2
"""How many of the intern's tokens a mentor's token may become, where room is left for it."""


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

    A request that stands in the list several times (`repeats`) becomes as many tasks, which are sampled apart, and so
    do several requests of one document. Beyond its repeats, a request in the list is a copy, with which the harness
    fills up the share of a process: it is answered like the original and has a session of its own.

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
    tasks: list[Task] = []
    seen: Counter[int] = Counter()
    """How often each request stands in the list so far."""
    of_document: dict[tuple[str, int], list[int]] = {}
    """The different requests of each document so far: a task may ask several of one document."""
    copies: Counter[tuple[str, int, int]] = Counter()
    for request in requests:
        context, generation = request.args
        doc_id = request.doc_id if request.doc_id is not None else len(tasks)
        document, repeats = (request.task_name or "", doc_id), request.repeats or 1
        others = of_document.setdefault(document, [])
        if id(request) not in others:
            others.append(id(request))
        repeat = others.index(id(request)) * repeats + seen[id(request)] % repeats
        seen[id(request)] += 1
        sampling = sampling_of(generation, default_max_tokens, seed)
        key = (*document, repeat)
        tasks.append(Task(question_of(context), sampling, *key, copies[key]))
        copies[key] += 1
    return tasks


def question_of(context: str) -> Question:
    """The question of a context: a conversation with its messages (`ChatPrompt`), or plain text."""
    if isinstance(context, ChatPrompt):
        return Question(str(context), context.messages, context.generation_prompt)
    return Question(context)


def sampling_of(generation: Mapping[str, Any], default_max_tokens: int, seed: int) -> Sampling:
    """How to generate, from the harness's generation arguments, which are read as `--model hf` reads them.

    A temperature of 0 is greedy, with do_sample=True as well; sampling without a temperature has 1, as in transformers.
    None counts as not given.

    Raises
    ------
    ArgumentError
        A generation argument is not known, or has a value without a meaning.
    """
    given: dict[str, Any] = {name: value for name, value in generation.items() if value is not None}
    given = dict(normalize_gen_kwargs(given, default_max_tokens))
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
    temperature = float(given.get("temperature", 1.0)) if given["do_sample"] else 0.0
    max_tokens, stop = int(given["max_gen_toks"]), tuple(map(str, given["until"]))
    if not 0 <= temperature < math.inf:
        raise ArgumentError(f"temperature={temperature:g} has to be 0 (greedy) or more.")
    if max_tokens < 1:
        raise ArgumentError(f"max_gen_toks={max_tokens} has to be 1 or more.")
    if "" in stop:
        raise ArgumentError("until holds an empty text, which would end every answer at once; leave it out.")
    return Sampling(
        max_tokens=max_tokens,
        stop=stop,
        temperature=temperature,
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

    Notes
    -----
    Insights are counted in the mentor's tokens, which is exact where the intern has the same tokenizer. Where it has
    another one, this is an estimate, and the calls themselves check again: a question whose insights turn out to be
    longer fails alone.
    """
    size = 0
    for call in largest_calls(task, settings, engines):
        size = len(call.engine.encode(call.text))
        if size + call.new_tokens > call.engine.window:
            raise refusal(call, size, task, settings, engines, longest_answer(task, settings, engines))
    return size


def longest_answer(task: Task, settings: Settings, engines: Mapping[str, Engine | None]) -> int:
    """The largest `max_tokens` with which `check_fits` accepts the question; below 1 where none is small enough.

    Where the models have other tokens, room is left for insights that are longer in the intern's (`OTHER_TOKENS`).

    Parameters
    ----------
    task
        The question; its own `max_tokens` does not matter.
    settings, engines
        As for `check_fits`.
    """
    longest = max(engine.window for engine in engines.values() if engine is not None)
    widest = replace(task, sampling=replace(task.sampling, max_tokens=longest))
    reserve = 1 if _count_alike(task.question.text, engines) else OTHER_TOKENS
    hands_off = settings.policy.prompts(settings.prompts).hands_off
    for call in largest_calls(widest, settings, engines):
        room = call.engine.window - len(call.engine.encode(call.text))
        if hands_off and call.mentor_tokens:  # of the answer itself
            in_tokens = 1 if call.engine is engines["mentor"] else reserve
            by_mentor = min(call.mentor_tokens, room // in_tokens)
            rest = room - by_mentor * in_tokens
            is_mentors_part = call.engine is engines["mentor"] and by_mentor == call.mentor_tokens
            longest = longest if is_mentors_part else min(longest, by_mentor + rest)
        elif call.answer_tokens:  # the calls without an answer have the same size for every one
            longest = min(longest, room - call.mentor_tokens * reserve - call.rating_tokens)
    return longest


def _count_alike(text: str, engines: Mapping[str, Engine | None]) -> bool:
    """Whether all models read a text as the same tokens."""
    return len({tuple(engine.encode(text)) for engine in engines.values() if engine is not None}) <= 1
