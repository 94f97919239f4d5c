"""The arguments of `--model ensemble`, as `arguments.py` has those of `--model tandem`."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from lm_eval_tandem import pair
from lm_eval_tandem.ensembles.responses import FINAL_ANSWER
from lm_eval_tandem.ensembles.run import SCORER
from lm_eval_tandem.ensembles.strategies import AGGREGATIONS, SELECTIONS
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.arguments import (
    BACKENDS,
    BY_NAME,
    PAIR,
    Argument,
    to_choice,
    to_numbers,
    to_path,
    to_text,
    to_whole_number,
    words,
)

MAX_ROUNDS = 500
BUNDLED = {f"{PAIR}/mentor": pair.MENTOR, f"{PAIR}/intern": pair.INTERN}
"""The bundled models, by the names under which they are given."""


def unused(name: str, taken: Collection[str]) -> str:
    """A name, with a number where another model, or the scorer in records, has it."""
    taken = {*taken, SCORER}
    if name not in taken:
        return name
    return next(f"{name}-{n}" for n in range(2, len(taken) + 3) if f"{name}-{n}" not in taken)


def to_models(name: str, value: Any) -> list[Any]:
    """A list of models, or text with semicolons between them."""
    if isinstance(value, dict):
        return [value]
    models = value if isinstance(value, list) else [part.strip() for part in str(value).split(";")]
    if models == [PAIR]:
        return list(BUNDLED)
    if not all(isinstance(model, (str, dict)) and model for model in models):
        # without its values, among which a key may be
        given = f"{name}={value}" if isinstance(value, str) else f"{name} is a list with an entry that names none, and"
        raise ArgumentError(f"{given} has to name models with semicolons between them, as in a;b;c.")
    return models


def to_words(name: str, value: Any) -> str:
    """Text, and no list of texts."""
    if isinstance(value, (list, dict)):
        raise ArgumentError(f"{name} has to be one text.")
    return str(value)


def to_positive(name: str, value: Any) -> int:
    """A whole number from 1."""
    number = to_whole_number(name, value)
    if number < 1:
        raise ArgumentError(f"{name}={number} has to be 1 or more.")
    return number


def to_weights(name: str, value: Any) -> tuple[float, ...]:
    """Numbers of 0 or more, not all of them 0."""
    weights: tuple[float, ...] = to_numbers(float, "0.7:0.3")(name, value)
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ArgumentError(f"{name}={value} has to be numbers of 0 or more, one of them above 0, as in 0.7:0.3.")
    return weights


def to_number(name: str, value: Any) -> float:
    """A finite number."""
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    if not abs(number) < float("inf"):
        raise ArgumentError(f"{name}={value} has to be a number.")
    return number


def to_share(name: str, value: Any) -> float:
    """A number from 0 to 1."""
    number = to_number(name, value)
    if not 0 <= number <= 1:
        raise ArgumentError(f"{name}={value} has to be a number from 0 to 1.")
    return number


ARGUMENTS = (
    Argument(
        "models",
        to_models,
        "folders, hub ids, GGUF files or names at a server with semicolons between them; `pair/mentor` and "
        "`pair/intern` for the bundled ones, `pair` alone for both",
        "The models, in an order that decides ties. In a YAML file each may be a mapping: `model`, and its own `name`, "
        "`backend` and arguments.",
        otherwise="the bundled pair",
    ),
    Argument(
        "ensemble",
        to_path,
        "YAML file",
        "More arguments; those of `--model_args` go before them. The layout of the authors' toolkit, with "
        "`model_specs`, is read too.",
    ),
    Argument("backend", to_text, BACKENDS, BY_NAME["backend"].meaning.replace("both", "all"), default="hf"),
    Argument("selection", to_choice(*SELECTIONS), words(*SELECTIONS), "Which models answer a question.", default="all"),
    Argument("count", to_positive, "whole number", "How many models `random` and `zscore` select.", otherwise="theirs"),
    Argument(
        "reference",
        to_path,
        "file that `lm-eval-tandem collect --reference` wrote",
        "How each model reads questions in general, for `zscore` and `self_assessment`.",
    ),
    Argument(
        "aggregation",
        to_choice(*AGGREGATIONS),
        words(*AGGREGATIONS),
        "How what the models write becomes one answer.",
        otherwise="`one` where a single model is selected; otherwise it has to be given",
    ),
    Argument(
        "weights", to_weights, "numbers with colons between them", "One for each model, for `distribution`, `gac`."
    ),
    Argument(
        "threshold", to_share, "number from 0 to 1", "Top probability with which the first model of `gac` decides."
    ),
    Argument(
        "scorer",
        to_text,
        "`logprob:NAME` of one of the models, folder or hub id of a reward model, or `http://…`",
        "What rates responses (`best_of`) or segments (`reward_based`).",
    ),
    Argument(
        "scorer_step_separator",
        to_text,
        "text, a line break being written `\\n`",
        "What ends a step for a process reward model.",
        otherwise=r"`\n\n`",
    ),
    Argument(
        "scorer_api_key_env",
        to_text,
        "name of an environment variable",
        "Which variable holds the key for a scorer behind a server.",
    ),
    Argument(
        "score_threshold",
        to_number,
        "number",
        "Score that a segment of `reward_based` has to reach; the answer ends where none does.",
    ),
    Argument(
        "segment_tokens",
        to_positive,
        "whole number",
        "Largest number of tokens of a segment.",
        otherwise="; ".join(f"`{one.name}` {one.tokens}" for one in AGGREGATIONS.values() if one.tokens),
    ),
    Argument("segment_end", to_words, "text, a line break being written `\\n`", "What ends a segment before that."),
    Argument("max_rounds", to_positive, "whole number", "Largest number of segments.", default=MAX_ROUNDS),
    Argument(
        "extract",
        to_words,
        f"`{FINAL_ANSWER}` (the final answer, as the package's math tasks read it), or a regular expression",
        "Finds the answer in a response, for `vote`.",
        default=FINAL_ANSWER,
    ),
    Argument(
        "loglikelihood",
        to_text,
        "name of a model",
        "The model that answers loglikelihood requests; these are not combined.",
        otherwise="the first",
    ),
    BY_NAME["store"],
    BY_NAME["ledger"],
    BY_NAME["seed"],
)
"""In the order of the documentation."""
