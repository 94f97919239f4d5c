"""The command `lm-eval-tandem run`: any policy or ensemble over a user's own questions, without a task.

Questions come from a JSON Lines file, in any of four shapes: `messages` (a conversation), `prompt`, `question`, or
`instruction` with an optional `input`. The settings come from a YAML file as lm_eval takes it with `--config`, or from
one of the authors' ensemble toolkit (`toolkit_config.py`). Each row comes back in its place, with the answer, who wrote
it, and what it cost.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ENDS_THE_RUN, ArgumentError, TandemError
from lm_eval_tandem.harness import answers_file, toolkit_config
from lm_eval_tandem.harness.config_entries import BESIDE, check_entries, check_toolkit_entries
from lm_eval_tandem.harness.question_rows import QuestionRow, read_rows
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.ledger_file import rounded

if TYPE_CHECKING:
    from lm_eval_tandem.harness.answering import AnsweringLM
    from lm_eval_tandem.harness.ensemble_settings import EnsembleSettings
    from lm_eval_tandem.harness.requests import ChatPrompt
    from lm_eval_tandem.harness.settings import Settings

log = logging.getLogger(__name__)

TASK = "run"
"""What the records call the task of own questions."""
MODELS = ("tandem", "ensemble")
RUNNING = ("batch_size", "max_batch_size", "device")
"""Entries of a configuration that become model arguments."""
EXAMPLE = (
    "give model_args with mentor, intern and policy, or with model: ensemble, models and aggregation, as for lm_eval "
    "--config."
)
"""What to do where a configuration lacks what names the models."""
CHAT_MODELS = re.compile("inst|chat", re.IGNORECASE)
"""What names of models for chats hold."""
ASKING = ("apply_chat_template", "system_instruction")
"""Entries of a configuration that change what the models read."""
LEFT_OUT = ("task", "doc_id", "repeat", "answer_sha256")
"""Entries of a record that say nothing of a row, beside which the answer itself stands."""


def run(config: Path, questions: Path, output: Path, limit: int | None = None) -> tuple[int, int]:
    """Answer the questions of a file and write one line for each, in their order.

    Parameters
    ----------
    config
        A YAML file with `model_args` and, if wanted, the other entries of `config_entries.USED`; or one of the authors'
        toolkit, with those of `config_entries.BESIDE` if wanted.
    questions
        A JSON Lines file.
    output
        The file to write; one that is there is replaced only by the run that wrote it. Beside it stands the store from
        which a run that was broken off goes on, unless the configuration names another.
    limit
        Answer the first so many rows; None for all.

    Returns
    -------
    tuple[int, int]
        How many rows were answered, and how many have an `error` instead.

    Raises
    ------
    ArgumentError
        Before a model is loaded: a file cannot be read, holds what cannot work, or would be lost.
    TandemError
        No further question can be answered; those that were are written.
    """
    from lm_eval_tandem.harness.requests import sampling_of
    from lm_eval_tandem.harness.settings import check_one_policy

    given = read_config(config)
    if limit is not None and limit < 1:
        raise ArgumentError(f"--limit {limit} selects no questions; give a number from 1.")
    all_rows = read_rows(questions)
    rows = all_rows[:limit]
    conversations = [turns_of(row, given, questions) for row in rows]
    sampling_of({"until": [], **given["gen_kwargs"]}, 1, 0)  # refuses what has no meaning
    model = given.get("model", MODELS[0])
    arguments = {name: given[name] for name in RUNNING if given.get(name) is not None}
    arguments = complete(model, arguments | {"store": str(output) + ".sqlite"} | given["model_args"])
    settings = settings_of(model, arguments)
    if model == MODELS[0]:
        check_one_policy(arguments)
    asked_with = {"gen_kwargs": given["gen_kwargs"], **{name: given.get(name) or None for name in ASKING}}
    identity = answers_file.identity_of(settings, asked_with)
    answers_file.check_output(output, questions, (settings.store, settings.ledger))
    answers_file.check_replaceable(output, identity, [row.returned for row in all_rows])

    if not given.get("apply_chat_template"):
        warn_of_plain_text(settings)
    lm = load(model, arguments)
    try:
        added, ended_by = answer(lm, rows, conversations, given)
    finally:
        lm.close()
    for one in added:
        if "tandem" in one:
            one["tandem"] |= identity.entries
    answers_file.write(output, [row.returned | more for row, more in zip(rows, added, strict=True)])
    if ended_by is not None:
        raise ended_by
    failed = sum("error" in one for one in added)
    return len(added) - failed, failed


def complete(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a model, with those of the file that `ensemble` names: it is read, and warned of, once."""
    if model == "ensemble":
        from lm_eval_tandem.harness.ensemble_settings import expanded

        return expanded(arguments)
    return dict(arguments)


def settings_of(model: str, arguments: Mapping[str, Any]) -> Settings | EnsembleSettings:
    """The settings of a model before it is loaded; refuses arguments that cannot work."""
    from lm_eval_tandem.engines import registry

    if model == "ensemble":
        from lm_eval_tandem.harness.ensemble_settings import read_ensemble

        return read_ensemble(arguments, registry.arguments)
    from lm_eval_tandem.harness.settings import read_settings

    return read_settings(arguments, registry.arguments)


def load(model: str, arguments: Mapping[str, Any]) -> AnsweringLM:
    """The model of a configuration, ready to answer; brings torch and transformers."""
    if model == "ensemble":
        from lm_eval_tandem.harness.ensemble_model import EnsembleLM

        return EnsembleLM(**arguments)
    from lm_eval_tandem.harness.model import TandemLM

    return TandemLM(**arguments)


def warn_of_plain_text(settings: Settings | EnsembleSettings) -> None:
    """Warn, where no chat template is asked for, of models whose names say that they were trained for chats.

    The harness warns of the same names (`simple_evaluate`).
    """
    labels = [role.label for role in settings.roles.values() if role is not None]
    chat = [label for label in dict.fromkeys(labels) if CHAT_MODELS.search(label)]
    if chat:
        log.warning(
            "%s: the name is of a model for chats, and the questions are asked as plain text; add "
            "apply_chat_template: true.",
            " and ".join(chat),
        )


def answer(
    lm: AnsweringLM,
    rows: Sequence[QuestionRow],
    conversations: Sequence[list[dict[str, str]]],
    given: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], TandemError | None]:
    """What each row gets, its answer or its error, and the error that ended the run, where one did."""
    from lm_eval.api.instance import Instance

    from lm_eval_tandem.harness.requests import tasks_of

    if given.get("apply_chat_template"):
        for engine in lm.engines.values():  # one without a template would fail every question
            if engine is not None:
                engine.render((("user", "?"),))
    generation = {"until": [], **given["gen_kwargs"]}
    tasks, sizes = {}, {}
    errors: dict[int, str] = {}
    for i, (row, turns) in enumerate(zip(rows, conversations, strict=True)):
        try:
            prompt = prompt_of(turns, lm, given)
            request = Instance("generate_until", row.fields, (prompt, generation), 0, (TASK, i, 1))
            (task,) = tasks_of([request], lm.max_answer_tokens, lm.settings.seed)
            tasks[i] = replace(task, place=row.place)
            sizes[i] = lm.check_fits(tasks[i])
        except ENDS_THE_RUN:
            raise
        except TandemError as error:  # of this row alone, as a conversation that a chat template does not accept
            errors[i] = str(error)
    found: dict[int, tuple[str, Record]] = {}
    places = list(sizes)

    def take(place: int, text: str, record: Record) -> None:
        found[places[place]] = text, record

    outcome = lm.answer_tasks([tasks[i] for i in places], list(sizes.values()), take)
    errors |= {doc_id: sentence for (_, doc_id, _), sentence in outcome.failed.items()}
    never = "not asked, because the run ended before"
    added = [result(*found[i]) if i in found else {"error": errors.get(i, never)} for i in range(len(rows))]
    return added, outcome.ended_by


def result(text: str, record: Record) -> dict[str, Any]:
    """What is added to a row that was answered."""
    return {"answer": text, "tandem": record_entries(record)}


def record_entries(record: Record) -> dict[str, Any]:
    """A record as it is shown beside an answer, without what identifies the question within a run."""
    return {name: value for name, value in rounded(asdict(record)).items() if name not in LEFT_OUT}


def read_config(path: Path, command: str = "run") -> dict[str, Any]:
    """The entries of a configuration, `model_args` and `gen_kwargs` as mappings.

    Parameters
    ----------
    path
        The YAML file.
    command
        The command that reads it, for its messages.

    Raises
    ------
    ArgumentError
        It cannot be read, is of another model, or has entries without a meaning.
    """
    from lm_eval.utils import simple_parse_args_string

    from lm_eval_tandem.harness.settings import check_values
    from lm_eval_tandem.harness.yaml_file import read_yaml

    given = read_yaml(path)
    if not isinstance(given, dict):
        raise ArgumentError(f"{path} holds no entries; {EXAMPLE}")
    if toolkit_config.is_toolkit_config(given):
        check_toolkit_entries(given, path)
        beside = {name: given.pop(name) for name in BESIDE if name in given}
        given = toolkit_config.run_of(given, path) | beside
    if given.get("model", MODELS[0]) not in MODELS:
        raise ArgumentError(f"{path} is for model: {given['model']}; this command runs model: tandem and ensemble.")
    check_entries(given, path, command)
    if not given.get("model_args"):
        raise ArgumentError(f"{path} has no model_args; {EXAMPLE}")
    for name in ("model_args", "gen_kwargs"):
        value = given.get(name) or {}
        if not isinstance(value, dict) and "=" not in str(value):
            raise ArgumentError(f"{path}: {name} is {value}, which names no argument; give {name}: {{NAME: VALUE}}.")
        given[name] = value if isinstance(value, dict) else simple_parse_args_string(str(value))
        if not all(isinstance(key, str) for key in given[name]):
            raise ArgumentError(f"{path}: {name} has an entry whose name is no text; give names of arguments.")
    check_values(given["model_args"], str(path))
    return given


def turns_of(row: QuestionRow, given: Mapping[str, Any], questions: Path) -> list[dict[str, str]]:
    """The conversation of a row, the system's instruction first.

    Raises
    ------
    ArgumentError
        It has several turns, and no chat template is asked for.
    """
    turns, system = row.conversation, given.get("system_instruction")
    if system:
        turns = [{"role": "system", "content": str(system)}, *turns]
    if len(turns) > 1 and not given.get("apply_chat_template"):
        beside = ", the system_instruction among them" if system else ""
        raise ArgumentError(
            f"--input {questions}: {row.place} has {len(turns)} turns{beside}, and several turns need the models' chat "
            "templates; add apply_chat_template: true."
        )
    return turns


def prompt_of(turns: list[dict[str, str]], lm: AnsweringLM, given: Mapping[str, Any]) -> str:
    """A conversation as the harness would ask it: with each role's chat template where that is asked for."""
    return chat_prompt_of(turns, lm) if given.get("apply_chat_template") else turns[0]["content"]


def chat_prompt_of(turns: list[dict[str, str]], lm: AnsweringLM) -> ChatPrompt:
    """A conversation in each model's own chat template; a last turn of the assistant is continued."""
    return lm.apply_chat_template(turns, turns[-1]["role"] != "assistant")
