"""The command `lm-eval-tandem run`: any policy or ensemble over a user's own questions, without a task.

Questions come from a JSON Lines file, in any of four shapes: `messages` (a conversation), `prompt`, `question`, or
`instruction` with an optional `input`. The settings come from a YAML file as lm_eval takes it with `--config`, or from
one of the authors' ensemble toolkit (`toolkit_config.py`). Each row comes back in its place, with the answer, who wrote
it, and what it cost.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem.errors import ArgumentError, ContextError, TandemError, without_content
from lm_eval_tandem.harness import toolkit_config
from lm_eval_tandem.ledger import Record, rounded
from lm_eval_tandem.whole_files import replacing

if TYPE_CHECKING:
    from lm_eval_tandem.harness.answering import AnsweringLM
    from lm_eval_tandem.harness.requests import ChatPrompt

TASK = "run"
"""What the records call the task of own questions."""
MODELS = ("tandem", "ensemble")
BESIDE = ("apply_chat_template", "system_instruction", "batch_size", "device")
"""Entries of a configuration that are used in either layout."""
USED = ("model", "model_args", "gen_kwargs", *BESIDE)
"""Entries of a configuration as for lm_eval that are used; the others are of tasks."""
SHAPES = "messages, prompt, question, or instruction (and input)"
ADDED = ("answer", "tandem", "error")
"""What is added to a row."""
LEFT_OUT = ("task", "doc_id", "repeat")
"""Entries of a record that say nothing of a row."""


def run(config: Path, questions: Path, output: Path, limit: int | None = None) -> tuple[int, int]:
    """Answer the questions of a file and write one line for each, in their order.

    Parameters
    ----------
    config
        A YAML file with `model_args` and, if wanted, the other entries of `USED`; or one of the authors' toolkit, with
        those of `BESIDE` if wanted.
    questions
        A JSON Lines file.
    output
        The file to write. Beside it stands the store from which a run that was broken off goes on, unless the
        configuration names another.
    limit
        Answer the first so many rows; None for all.

    Returns
    -------
    tuple[int, int]
        How many rows were answered, and how many have an `error` instead.

    Raises
    ------
    ArgumentError
        Before a model is loaded: a file cannot be read, or holds what cannot work.
    TandemError
        No further question can be answered; those that were are written.
    """
    given = read_config(config)
    if limit is not None and limit < 1:
        raise ArgumentError(f"--limit {limit} selects no questions; give a number from 1.")
    rows = read_rows(questions)[:limit]
    conversations = [turns_of(row, given) for row in rows]
    check_output(output, questions)
    arguments = {name: given[name] for name in ("batch_size", "device") if given.get(name) is not None}
    arguments |= {"store": str(output) + ".sqlite"} | given["model_args"]

    lm = load(given.get("model", MODELS[0]), arguments)
    try:
        answered, ended_by = answer(lm, rows, conversations, given)
    finally:
        lm.close()
    write(output, answered)
    if ended_by is not None:
        raise ended_by
    failed = sum("error" in row for row in answered)
    return len(answered) - failed, failed


def load(model: str, arguments: Mapping[str, Any]) -> AnsweringLM:
    """The model of a configuration, ready to answer; brings torch and transformers."""
    if model == "ensemble":
        from lm_eval_tandem.harness.ensemble_model import EnsembleLM

        return EnsembleLM(**arguments)
    from lm_eval_tandem.harness.model import TandemLM

    return TandemLM(**arguments)


def answer(
    lm: AnsweringLM,
    rows: Sequence[dict[str, Any]],
    conversations: Sequence[list[dict[str, str]]],
    given: Mapping[str, Any],
) -> tuple[list[dict[str, Any]], TandemError | None]:
    """The rows with their answers or errors, and the error that ended the run, where one did."""
    from lm_eval.api.instance import Instance

    from lm_eval_tandem.harness.requests import tasks_of

    generation = {"until": [], **given["gen_kwargs"]}
    prompts = [prompt_of(turns, lm, given) for turns in conversations]
    instances = [
        Instance("generate_until", row, (prompt, generation), 0, (TASK, i, 1))
        for i, (row, prompt) in enumerate(zip(rows, prompts, strict=True))
    ]
    tasks = tasks_of(instances, lm.max_answer_tokens, lm.settings.seed)
    errors: dict[int, str] = {}
    sizes: dict[int, int] = {}
    for i, task in enumerate(tasks):
        try:
            sizes[i] = lm.check_fits(task)
        except ContextError as error:
            errors[i] = str(error)
    found: dict[int, tuple[str, Record]] = {}
    places = list(sizes)

    def take(place: int, text: str, record: Record) -> None:
        found[places[place]] = text, record

    outcome = lm.answer_tasks([tasks[i] for i in places], list(sizes.values()), take)
    errors |= {doc_id: sentence for (_, doc_id, _), sentence in outcome.failed.items()}
    never = "not asked, because the run ended before"
    added = [result(*found[i]) if i in found else {"error": errors.get(i, never)} for i in range(len(rows))]
    return [asked(row) | more for row, more in zip(rows, added, strict=True)], outcome.ended_by


def asked(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what an earlier run may have added to it."""
    return {name: value for name, value in row.items() if name not in ADDED}


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
    import yaml
    from lm_eval.utils import simple_parse_args_string

    try:
        given = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ArgumentError(f"{path} cannot be read ({without_content(error)}); give a YAML file.") from None
    if isinstance(given, dict) and toolkit_config.is_toolkit_config(given):
        beside = {name: given.pop(name) for name in BESIDE if name in given}
        given = toolkit_config.run_of(given, path) | beside
    if not isinstance(given, dict) or not given.get("model_args"):
        raise ArgumentError(
            f"{path} has no model_args; give mentor, intern and policy there, or with model: ensemble, models and "
            "aggregation, as for lm_eval --config."
        )
    if given.get("model", MODELS[0]) not in MODELS:
        raise ArgumentError(f"{path} is for model: {given['model']}; this command runs model: tandem and ensemble.")
    unused = [name for name in given if name not in USED]
    if unused:
        print(f"{command}: {', '.join(unused)} of {path} belong to tasks and are not used.", file=sys.stderr)
    for name in ("model_args", "gen_kwargs"):
        value = given.get(name) or {}
        given[name] = value if isinstance(value, dict) else simple_parse_args_string(str(value))
        if not all(isinstance(key, str) for key in given[name]):
            raise ArgumentError(f"{path}: {name} has an entry whose name is no text; give names of arguments.")
    return given


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON Lines file; each holds a question.

    Raises
    ------
    ArgumentError
        It cannot be read, or a line holds no question.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"--input {path} cannot be read ({error}); give a JSON Lines file.") from None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            conversation_of(row)
        except (ValueError, KeyError, TypeError):
            raise ArgumentError(
                f"--input {path}: line {number} holds no question; give an object with {SHAPES}."
            ) from None
        rows.append(row)
    if not rows:
        raise ArgumentError(f"--input {path} holds no questions; give one in each line.")
    return rows


def conversation_of(row: Any) -> list[dict[str, str]]:
    """The conversation of a row; raises KeyError, TypeError or ValueError where there is none."""
    if not isinstance(row, dict):
        raise TypeError
    if "messages" in row:
        turns = [{"role": str(turn["role"]), "content": turn["content"]} for turn in row["messages"]]
        if not turns or not all(isinstance(turn["content"], str) for turn in turns):
            raise ValueError
        return turns
    text = row.get("prompt", row.get("question"))
    if text is None:
        text = "\n\n".join(part for part in (row["instruction"], row.get("input")) if part)
    if not isinstance(text, str) or not text:
        raise ValueError
    return [{"role": "user", "content": text}]


def turns_of(row: dict[str, Any], given: Mapping[str, Any]) -> list[dict[str, str]]:
    """The conversation of a row, the system's instruction first.

    Raises
    ------
    ArgumentError
        It has several turns, and no chat template is asked for.
    """
    turns = conversation_of(row)
    if given.get("system_instruction"):
        turns = [{"role": "system", "content": str(given["system_instruction"])}, *turns]
    if len(turns) > 1 and not given.get("apply_chat_template"):
        raise ArgumentError("a conversation needs the models' chat templates; add apply_chat_template: true.")
    return turns


def prompt_of(turns: list[dict[str, str]], lm: AnsweringLM, given: Mapping[str, Any]) -> str:
    """A conversation as the harness would ask it: with each role's chat template where that is asked for."""
    return chat_prompt_of(turns, lm) if given.get("apply_chat_template") else turns[0]["content"]


def chat_prompt_of(turns: list[dict[str, str]], lm: AnsweringLM) -> ChatPrompt:
    """A conversation in each model's own chat template; a last turn of the assistant is continued."""
    return lm.apply_chat_template(turns, turns[-1]["role"] != "assistant")


def check_output(output: Path, questions: Path) -> None:
    """Raise ArgumentError where the output is a folder, has no folder, or is the input."""
    if output.is_dir() or not output.absolute().parent.is_dir():
        raise ArgumentError(f"--output {output} cannot be written; give a file in a folder that is there.")
    if output.resolve() == questions.resolve():
        raise ArgumentError(f"--output {output} is the input; give another file.")


def write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as JSON Lines, atomically."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    try:
        with replacing(path) as unfinished:
            unfinished.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArgumentError(
            f"--output {path} cannot be written ({error.strerror}); make room or give another file and the same store, "
            "where all answers are."
        ) from None
