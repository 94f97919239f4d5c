"""The arguments of `--model tandem`: what each takes, its default, what it means, and how its value is checked.

This table is the only place where they are described. `settings.read_settings` checks by it before a model is loaded;
`help(TandemLM)`, `lm-eval-tandem arguments` and the documentation print it. To add an argument, add a row, and use its
value in `settings.read_settings`.
"""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from lm_eval_tandem.cascade import policies
from lm_eval_tandem.cascade.prompts import Guidance, Insights
from lm_eval_tandem.engines.http.options import Options, OptionSet
from lm_eval_tandem.engines.llamacpp.arguments import LlamaArguments
from lm_eval_tandem.ensembles import strategies
from lm_eval_tandem.errors import ArgumentError

EFFORTS = (100, 500, 1000)
"""Mentor tokens in total after stages 1, 2 and 3 (paper, 3.1)."""
ROLES = ("mentor", "intern")
THINKING = ("auto", "none", "mentor", "intern", "both")
PAIR = "pair"
"""The name of the bundled mentor and intern, and of their classifier."""

Check = Callable[[str, Any], Any]
"""Turns the value that was given for an argument (its name, the value) into what the program works with.

Raises `ArgumentError` in one sentence for any other value.
"""


def to_text(name: str, value: Any) -> str:
    """Any value, as text."""
    return str(value)


def to_path(name: str, value: Any) -> Path:
    """A path, with `~` for the home directory."""
    return Path(str(value)).expanduser()


def to_whole_number(name: str, value: Any) -> int:
    """A whole number; the harness makes -3 a float."""
    try:
        return int(value) if isinstance(value, float) and value.is_integer() else int(str(value))
    except ValueError as error:
        raise ArgumentError(f"{name}={value} has to be a whole number.") from error


def to_bool(name: str, value: Any) -> bool:
    """True or False."""
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ArgumentError(f"{name}={value} has to be True or False.")


def to_recorded(name: str, value: Any) -> bool | str:
    """True, False, or the word answers."""
    if str(value).lower() not in ("true", "false", "answers"):
        raise ArgumentError(f"{name}={value} has to be True, False or answers.")
    return "answers" if str(value).lower() == "answers" else to_bool(name, value)


def to_choice(*allowed: str) -> Check:
    """A check that accepts some words and no others."""

    def check(name: str, value: Any) -> str:
        if str(value) not in allowed:
            raise ArgumentError(f"{name}={value} is not known; use one of {', '.join(allowed)}.")
        return str(value)

    return check


def to_numbers(kind: type[int] | type[float], example: str) -> Check:
    """A check that accepts a list of numbers, or text with colons between them."""

    def check(name: str, value: Any) -> tuple[Any, ...]:
        parts = value if isinstance(value, (list, tuple)) else str(value).split(":")
        try:
            return tuple(kind(str(part)) for part in parts)
        except ValueError as error:
            raise ArgumentError(
                f"{name}={value} has to be numbers with colons between them, as in {example}."
            ) from error

    return check


def to_efforts(name: str, value: Any) -> tuple[int, ...]:
    """Token budgets that rise from stage to stage."""
    efforts: tuple[int, ...] = to_numbers(int, "100:500:1000")(name, value)
    if list(efforts) != sorted(set(efforts)) or efforts[0] < 1:
        raise ArgumentError(f"{name}={format_numbers(efforts)} has to rise from stage to stage, as 100:500:1000 does.")
    return efforts


def format_numbers(values: Collection[Any]) -> str:
    """Numbers as they are written in --model_args."""
    return ":".join(map(str, values))


@dataclass(frozen=True)
class Argument:
    """One argument of the cascade itself (those of an engine belong to the engine).

    Attributes
    ----------
    name
        As it is written in `--model_args`.
    check
        Checks a given value.
    takes
        Which values are allowed, in Markdown.
    meaning
        What it does, in Markdown: one or two sentences.
    default
        The value where none is given; None where that depends on other arguments.
    otherwise
        In words what holds where none is given and `default` is None; "" for nothing.
    """

    name: str
    check: Check
    takes: str
    meaning: str
    default: Any = None
    otherwise: str = ""

    @property
    def default_text(self) -> str:
        """The default as a table shows it, in Markdown."""
        return self.otherwise or "none" if self.default is None else f"`{self.default}`"


def words(*values: str) -> str:
    """Words as a table lists them, in Markdown."""
    return ", ".join(f"`{value}`" for value in values)


BACKENDS = (
    "`hf` (transformers), `vllm`, `llamacpp` (GGUF files), `openai` (a server of its protocol), or another registered "
    "model of lm-eval"
)

ARGUMENTS = (
    Argument(
        "mentor",
        to_text,
        "folder or hub id of a causal language model, a GGUF file, or its name at a server; `pair` for the bundled one",
        "The large model, which writes the insights.",
        otherwise="the bundled pair",
    ),
    Argument(
        "intern",
        to_text,
        "as `mentor`",
        "The small model, which is judged and answers.",
        otherwise="the bundled pair",
    ),
    Argument(
        "backend",
        to_text,
        BACKENDS,
        "What runs both models; where it is not given, `llamacpp` runs those that are GGUF files.",
        default="hf",
    ),
    Argument("mentor_backend", to_text, "as `backend`", "What runs the mentor.", otherwise="`backend`"),
    Argument(
        "intern_backend",
        to_text,
        "as `backend`",
        "What runs the intern; where a classifier judges, one that reports entropies.",
        otherwise="`backend`",
    ),
    Argument(
        "policy",
        to_text,
        words(*(syntax for syntax, _ in policies.described())),
        "Which model answers, and what decides how much the mentor writes.",
        default="cascade",
    ),
    Argument(
        "efforts",
        to_efforts,
        "rising whole numbers with colons between them",
        "Mentor tokens in total after each stage.",
        otherwise=f"`{format_numbers(EFFORTS)}`; the bundled pair's own",
    ),
    Argument(
        "classifier",
        to_text,
        "folder of a fitted classifier, the name of one that ships, or `hub:org/name@COMMIT` for a model repository",
        "The judge, for the policies `cascade`, `llm_cascade` and `escalate`.",
        otherwise="the bundled pair's; none for other models",
    ),
    Argument(
        "thresholds",
        to_numbers(float, "0.5:0.5:0.6:0.7"),
        "one number from 0 to 1 per stage, with colons between them; the question alone comes first",
        "Replaces the classifier's own thresholds: the cascade stops where a score is higher.",
        otherwise="the classifier's",
    ),
    Argument(
        "insights",
        to_choice(*get_args(Insights)),
        words(*get_args(Insights)),
        "One text, cut at the efforts, or at each stage a new, deeper pass.",
        default="cutoff",
    ),
    Argument(
        "guidance",
        to_choice(*get_args(Guidance)),
        words(*get_args(Guidance)),
        "Insights stand in the intern's prompt; or the intern continues the mentor's text; or they begin the intern's "
        "thought; or the mentor begins the answer itself, without being asked for insights, and the intern goes on "
        "with it.",
        otherwise="`handoff` for models of `hf`, `vllm` and `llamacpp`; `guided` for the bundled pair, the paper's "
        "models and other backends, and where `prompts` or `insights` is given",
    ),
    Argument(
        "step_end",
        to_text,
        "text, a line break being written `\\n`",
        "What ends a step, for the policies `steps` and `verify`.",
        default=r"\n\n",
    ),
    Argument(
        "prompts",
        to_text,
        "`gpra`, `pair` (the bundled models' own), or a JSON file with `request`, `open`, `close` and, for `staged`, "
        "`deepen`, for `budget_forcing`, `force`, for whole lines alone `whole_lines`",
        "The words that ask for insights and hand them to the intern.",
        otherwise="`gpra`; the bundled pair's own",
    ),
    Argument(
        "thinking",
        to_choice(*THINKING),
        words(*THINKING),
        "Which models think: `enable_thinking` of their chat templates. `auto` leaves it to the templates. With `hf` "
        "and `vllm` a model that is to think needs `think_end_token` too, such as `</think>`.",
        default="auto",
    ),
    Argument(
        "loglikelihood",
        to_choice(*ROLES),
        words(*ROLES),
        "The model that answers loglikelihood requests; these are not cascaded.",
        otherwise="`intern`; the mentor where the policy has no intern",
    ),
    Argument(
        "store",
        to_path,
        "SQLite file",
        "Keeps finished generations: a killed run continues where it stopped, and policies share the mentor's text.",
    ),
    Argument(
        "ledger",
        to_path,
        "JSON-lines file",
        "One record per question: stages, scores, tokens, cost. Each run needs a file of its own; only the same run "
        "(policy and models) replaces it.",
    ),
    Argument("seed", to_whole_number, "whole number", "Seed of sampling; greedy answers need none.", default=42),
    Argument(
        "record_features",
        to_recorded,
        words("True", "False", "answers"),
        "Keep the judge's features in the ledger, at fixed stages too; `answers`: only those of the intern's answer, "
        "without its pass over the prompt. `lm_eval` writes records only with `ledger`.",
        default=False,
    ),
    Argument(
        "record_insights",
        to_bool,
        words("True", "False"),
        "Keep what the intern reads of the mentor in the record of each question, as the text `insight` of each stage. "
        "`lm_eval` writes records only with `ledger`.",
        default=False,
    ),
)
"""In the order of the documentation."""

BY_NAME = {argument.name: argument for argument in ARGUMENTS}

ENGINE_ROWS = (
    (
        "`mentor_price_input`, `mentor_price_cached`, `mentor_price_output`, and `intern_…`",
        "dollars per million tokens",
        "What a question costs, or would cost at these prices, with any backend.",
        "none: no dollars",
    ),
    (
        "any argument of the backend (`--model hf`, …), `batch_size` and `device` included",
        "as there",
        "For both models, or for one as `mentor_<argument>` or `intern_<argument>`.",
        "as there",
    ),
)
"""What is taken besides: rows of the same table, for arguments that belong to the engines."""
ENSEMBLE_ENGINE_ROW = (
    "any argument of the backends (`--model hf`, …), `batch_size`, `device` and prices included",
    "as there",
    "For every model whose backend takes it; for one model in its mapping of a YAML file.",
    "as there",
)
"""The same for an ensemble."""


Row = tuple[str, ...]
"""One row of a table, in Markdown."""

HEADINGS: dict[str, Row] = {
    "cascade": ("argument", "values", "meaning", "default"),
    "policies": ("policy", "meaning"),
    "ensemble": ("argument", "values", "meaning", "default"),
    "selections": ("selection", "meaning"),
    "aggregations": ("aggregation", "decides", "meaning"),
    "openai": ("option", "values", "meaning", "default"),
    "llamacpp": ("option", "values", "meaning", "default"),
}
"""The tables that can be printed: the arguments of both models, their policies and strategies, and the options of a
model behind a server and of one that llama.cpp runs."""


OPTION_SETS: dict[str, type[OptionSet]] = {"openai": Options, "llamacpp": LlamaArguments}


def rows(table: str = "cascade") -> list[Row]:
    """The rows of one of the tables named in `HEADINGS`."""
    if table == "policies":
        return [(f"`{syntax}`", description) for syntax, description in policies.described()]
    if table == "selections":
        return [(f"`{one.name}`", one.description) for one in strategies.SELECTIONS.values()]
    if table == "aggregations":
        return [(f"`{one.name}`", f"by {one.level}", one.description) for one in strategies.AGGREGATIONS.values()]
    if table in OPTION_SETS:
        return [
            (f"`{name}`", kind, description, "none" if default in (None, {}) else f"`{default}`")
            for name, kind, default, description in OPTION_SETS[table].described()
        ]
    if table == "ensemble":
        from lm_eval_tandem.harness import ensemble_arguments  # which is made of what is here

        return [*rows_of(ensemble_arguments.ARGUMENTS), ENSEMBLE_ENGINE_ROW]
    return [*rows_of(ARGUMENTS), *ENGINE_ROWS]


def rows_of(arguments: Sequence[Argument]) -> list[Row]:
    """One row for each argument."""
    return [(f"`{one.name}`", one.takes, one.meaning, one.default_text) for one in arguments]


def markdown(table: str = "cascade") -> str:
    """One of the tables named in `HEADINGS`, as the documentation has it."""
    lines = [HEADINGS[table], ("---",) * len(HEADINGS[table]), *rows(table)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def plain_text(table: str = "cascade", width: int = 100) -> str:
    """The same as text for a terminal of that width."""
    paragraphs = []
    for name, *cells in rows(table):
        if len(cells) == 1:
            text = cells[0]
        elif len(cells) == 2:
            text = f"{cells[1]} Decides {cells[0]}."
        else:
            values, meaning, default = cells
            text = f"{meaning} Values: {values}. Default: {default}."
        body = textwrap.fill(text.replace("`", ""), width, initial_indent="    ", subsequent_indent="    ")
        paragraphs.append(name.replace("`", "") + "\n" + body)
    return "\n".join(paragraphs)


def docstring(arguments: Sequence[Argument] = ARGUMENTS) -> str:
    """The `Parameters` section of a model of the harness, in numpy's form."""
    lines = ["Parameters", "----------"]
    for argument in arguments:
        text = f"{argument.meaning} Values: {argument.takes}. Default: {argument.default_text}."
        lines += [argument.name, *textwrap.wrap(text, 112, initial_indent="    ", subsequent_indent="    ")]
    for_one = "; with mentor_ or intern_ before it, for one model" if arguments is ARGUMENTS else ""
    lines += ["**engine_arguments", f"    Every argument of the backends{for_one}."]
    return textwrap.indent("\n".join(lines), "    ")


def signature(first: Sequence[inspect.Parameter] = (), table: Sequence[Argument] = ARGUMENTS) -> inspect.Signature:
    """What a model takes, for `help()` and editors: keywords with their defaults, then the engines' arguments."""
    keyword, rest = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD
    own = [inspect.Parameter(one.name, keyword, default=one.default) for one in table]
    return inspect.Signature([*first, *own, inspect.Parameter("engine_arguments", rest)])
