"""The entries of a configuration of `run` and `serve`: those that are used, those of tasks, and mistyped ones."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness import arguments, ensemble_arguments
from lm_eval_tandem.harness.requests import GENERATION
from lm_eval_tandem.harness.toolkit_config import GAC, SECTIONS
from lm_eval_tandem.harness.toolkit_models import mapping

BESIDE = ("apply_chat_template", "system_instruction", "batch_size", "max_batch_size", "device")
"""Entries that are used in either layout of a configuration."""
USED = ("model", "model_args", "gen_kwargs", *BESIDE)
"""Entries of a configuration as for lm_eval that are used."""
ELSEWHERE = {
    "limit": "it counts documents of tasks; leave it out, and give --limit to run",
    "seed": "it is of tasks and their examples; give the seed of sampling as seed in model_args",
    "use_cache": "finished calls are kept in a store; give store in model_args",
    "trust_remote_code": "give it in model_args, for the models that need it",
}
"""Entries of lm_eval's configuration that have a meaning without tasks, and how to say it here."""


def check_entries(given: Mapping[Any, Any], path: Path, command: str) -> None:
    """Name the entries that belong to tasks, and refuse those that nobody knows.

    Parameters
    ----------
    given
        The entries of a configuration as for lm_eval.
    path
        The file, for messages.
    command
        The command that reads it.

    Raises
    ------
    ArgumentError
        An entry is no entry of lm_eval's configuration, or has to be said in another way here.
    """
    from lm_eval.config.evaluate_config import EvaluatorConfig

    known = {field.name for field in fields(EvaluatorConfig)}
    unused = [name for name in given if name not in USED]
    unknown = [name for name in unused if name not in known]
    if unknown:
        raise ArgumentError(
            f"{path}: {' and '.join(map(str, unknown))} {'is' if len(unknown) == 1 else 'are'} not known"
            f"{suggestion(unknown, known)}; use {', '.join(USED)}, beside which may stand what lm_eval has for tasks."
        )
    for name in unused:
        if name in ELSEWHERE and given[name] not in (None, False):
            raise ArgumentError(f"{path}: {name} has no effect here: {ELSEWHERE[name]}.")
    if unused:
        print(f"{command}: {', '.join(unused)} of {path} belong to tasks and are not used.", file=sys.stderr)


def check_toolkit_entries(given: Mapping[Any, Any], path: Path) -> None:
    """Refuse entries that neither the authors' toolkit knows nor `BESIDE`; the toolkit's own are checked further on."""
    try:
        mapping(given, "", (*(GAC if GAC[0] in given else SECTIONS), *BESIDE))
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None


def suggestion(unknown: Iterable[Any], known: Collection[str]) -> str:
    """What may have been meant by unknown names, as ", did you mean … or …?"; "" where nothing is near.

    Examples
    --------
    >>> suggestion(["gen_kwarg", "policy"], {"gen_kwargs", "tasks"})
    ' (did you mean gen_kwargs or policy in model_args?)'
    """
    of_models = {one.name for one in (*arguments.ARGUMENTS, *ensemble_arguments.ARGUMENTS)}
    places = dict.fromkeys(of_models, " in model_args") | dict.fromkeys(GENERATION, " in gen_kwargs")
    places |= dict.fromkeys(known, "")
    near = [get_close_matches(str(name), places, n=1) for name in unknown]
    meant = dict.fromkeys(f"{name}{places[name]}" for names in near for name in names)
    return f" (did you mean {' or '.join(meant)}?)" if meant else ""
