"""How a run asked its questions: all that can make two runs on the same documents different, as text to be compared."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_tandem.digits import nearest_decimal
from lm_eval_tandem.errors import one_line
from lm_eval_tandem.reports.sources.harness_files import checksum

FEW_SHOT = "few-shot examples"
CHAT_TEMPLATE = "chat template"
"""Names of settings that are looked at more closely than for being the same."""
SHOT_SEED = "seed of the few-shot examples"
SHOTS_AS_TURNS = "few-shot examples as turns"
"""Names of settings that matter, and are known, only where there are few-shot examples."""
ASKED = "questions asked"
"""The name of a setting that only runs of one system have which were asked different questions of a task."""
GRADE = "grade"
"""The name of the setting that says how answers were graded, not how they were asked for."""
SAMPLING_SEED = "seed of sampling"
"""The name of a setting that other models than tandem's have where they sample: a tandem has a seed of its own."""
NO_TEMPLATE = "not applied"
SERVERS_TEMPLATE = "the server's own"
"""Values of `CHAT_TEMPLATE`; any other names the template by its checksum."""
TOKEN_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""What the harness calls the longest answer, the first one counting most."""
GREEDY = "greedy"
"""The value of the setting `sampling` where every token is the most probable one."""
SAMPLING = ("do_sample", "temperature")
SAMPLING_DETAILS = ("top_p", "top_k", "min_p", "seed")
"""Generation arguments without a meaning where nothing is sampled."""
LONGEST = 60
"""Characters of a text that are shown."""


def settings_of(
    results: Mapping[str, Any],
    task: str,
    task_config: Mapping[str, Any],
    arguments: Mapping[str, Any],
    metric: str | None = None,
) -> dict[str, str]:
    """Return how a run asked the questions of a task: each setting with its value, as text.

    Parameters
    ----------
    results
        The content of the results file.
    task, task_config
        Name of the task, and its entry in `configs` of the results file.
    arguments
        The run's model arguments.
    metric
        Name of the metric that grades the answers; None leaves it out.
    """
    shots = (results.get("n-shot") or {}).get(task, task_config.get("num_fewshot"))
    template = chat_template(results)
    found = {
        "task version": text_of((results.get("versions") or {}).get(task)),
        **({GRADE: metric} if metric is not None else {}),
        FEW_SHOT: text_of(shots or 0),
        CHAT_TEMPLATE: template,
        "system instruction": text_of(results.get("system_instruction")),
        "description before the examples": text_of(task_config.get("description")),
        "question's text": text_of(task_config.get("doc_to_text")),
        "start of the answer": text_of(task_config.get("gen_prefix")),
        "answers per question": text_of(task_config.get("repeats") or 1),
    }
    if shots:
        found[SHOT_SEED] = text_of(results["config"].get("fewshot_seed"))
        if template != NO_TEMPLATE:
            found[SHOTS_AS_TURNS] = text_of(bool(results.get("fewshot_as_multiturn")))
    if task_config.get("output_type", "generate_until") == "generate_until":
        found |= generation(task_config, arguments)
        if found["sampling"] != GREEDY and not results["config"].get("tandem"):
            found[SAMPLING_SEED] = text_of(results["config"].get("torch_seed"))
    return found


def chat_template(results: Mapping[str, Any]) -> str:
    """Return the chat template of a run: `NO_TEMPLATE`, `SERVERS_TEMPLATE`, or its checksum's first digits."""
    if results.get("chat_template_sha"):
        return str(results["chat_template_sha"])[:8]
    # an API model that gets messages records an empty template, and a run without one records none
    return NO_TEMPLATE if results.get("chat_template") is None else SERVERS_TEMPLATE


def generation(task_config: Mapping[str, Any], arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the generation arguments of a task, under one name where the harness has several for the same."""
    given = {name: value for name, value in generation_arguments(task_config).items() if value is not None}
    do_sample = given.get("do_sample")
    temperature = float(given.get("temperature", 1.0 if do_sample else 0.0))
    greedy = do_sample is False or temperature == 0
    until = given.get("until") or []
    limit = token_limit(task_config, arguments)
    found = {
        "max_gen_toks": "not set" if limit is None else str(limit),
        "until": ", ".join(json.dumps(stop) for stop in ([until] if isinstance(until, str) else until)) or "none",
        "sampling": GREEDY if greedy else f"temperature {temperature:g}",
    }
    apart = {*TOKEN_LIMITS, "until", *SAMPLING, *(SAMPLING_DETAILS if greedy else ())}
    return found | {name: text_of(value) for name, value in given.items() if name not in apart}


def token_limit(task_config: Mapping[str, Any], arguments: Mapping[str, Any]) -> int | None:
    """Return how many tokens an answer may have; None if neither the task nor the model arguments say so."""
    given = generation_arguments(task_config)
    limits = [given.get(name) for name in TOKEN_LIMITS] + [arguments.get("max_gen_toks")]
    return next((int(limit) for limit in limits if limit is not None), None)


def generation_arguments(task_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the generation arguments that a task got, those of --gen_kwargs among them."""
    return task_config.get("generation_kwargs") or {}


def text_of(value: Any) -> str:
    """Return a setting as text; a long text ends in its checksum, so that texts which begin alike stay apart."""
    if value is None or value == "":
        return "none"
    text = value if isinstance(value, str) else json.dumps(rounded(value), sort_keys=True, default=str)
    if isinstance(value, str) and (len(text) > LONGEST or "\n" in text):
        return f"{one_line(text, LONGEST)} ({checksum(text)[:6]})"
    return text


def rounded(value: Any) -> Any:
    """Return a setting whose floats, within lists and mappings too, do not differ in their last bits alone."""
    if isinstance(value, Mapping):
        return {name: rounded(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(one) for one in value]
    return nearest_decimal(value) if isinstance(value, float) else value


def told_apart(ways: Sequence[Mapping[str, str]]) -> list[list[str]]:
    """Return for each of some ways to ask the words that tell it from the others: for each setting that differs, one.

    Examples
    --------
    >>> told_apart([{"few-shot examples": "0", "until": "none"}, {"few-shot examples": "2", "until": "none"}])
    [['0-shot'], ['2-shot']]
    """
    names = [name for name in dict.fromkeys(name for way in ways for name in way) if name != GRADE]
    differing = [name for name in names if len({way.get(name) for way in ways}) > 1]
    in_all = [name for name in differing if all(name in way for way in ways)]  # the seed of examples, if both have any
    is_enough = len({tuple(way[name] for name in in_all) for way in ways}) == len(ways)
    return [[in_words(name, way[name]) for name in (in_all if is_enough else differing) if name in way] for way in ways]


def in_words(name: str, value: str) -> str:
    """Return a setting as a part of a run's name."""
    if name == FEW_SHOT:
        return f"{value}-shot"
    if name == CHAT_TEMPLATE:
        return {NO_TEMPLATE: "without chat template", SERVERS_TEMPLATE: "with the server's chat template"}.get(
            value, f"with chat template {value}"
        )
    return f"{name} {value}"
