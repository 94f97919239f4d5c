"""How the harness's requests come in and answers go out: conversations, generation arguments, figures beside text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.utils import normalize_gen_kwargs

from lm_eval_tandem.cascade.prompts import Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Sampling
from lm_eval_tandem.errors import ArgumentError

GENERATION = ("do_sample", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "until", "max_gen_toks")


class ChatPrompt(str):
    """A conversation as the harness carries it: rendered for the answering model, the messages kept beside it."""

    messages: tuple[tuple[str, str], ...]
    generation_prompt: bool

    @classmethod
    def of(cls, rendered: str, history: Sequence[dict[str, str]], generation_prompt: bool) -> ChatPrompt:
        """The prompt with its messages."""
        prompt = cls(rendered)
        prompt.messages = tuple((turn["role"], turn["content"]) for turn in history)
        prompt.generation_prompt = generation_prompt
        return prompt


class Answer(str):
    """An answer as the harness carries it, with what it cost (`metrics`) for tasks that show it."""

    metrics: dict[str, float]

    @classmethod
    def of(cls, text: str, metrics: dict[str, float]) -> Answer:
        """The answer with its figures."""
        answer = cls(text)
        answer.metrics = metrics
        return answer


def tasks_of(requests: Sequence[Instance], default_max_tokens: int, seed: int) -> list[Task]:
    """What the cascade is asked for each request. A request that comes several times is sampled as often.

    Raises
    ------
    ArgumentError
        A generation argument that the cascade has no meaning for.
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
    """The harness's generation arguments as `--model hf` reads them.

    Raises
    ------
    ArgumentError
        An argument that this engine has no meaning for.
    """
    given = normalize_gen_kwargs(generation, default_max_tokens)
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
