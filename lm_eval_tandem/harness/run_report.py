"""What a run was and what it did, as it goes into the harness's results file and into the head of the ledger.

`description` says what ran: models, policy, thresholds, versions. `computed` counts what the engines of one process
really did. `totals` adds the ledger's figures, what all processes computed, and the shares of time.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lm_eval_tandem import __version__, ledger
from lm_eval_tandem.cascade.prompts import SETTING
from lm_eval_tandem.engines import Engine, EngineWork, Role
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.identity import ENGINE_PACKAGES, content_of
from lm_eval_tandem.engines.rating import Scorer
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.harness.ensemble_settings import EnsembleSettings
from lm_eval_tandem.harness.settings import Settings
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.store import Store

if TYPE_CHECKING:
    from lm_eval_tandem.judge.artefact import Sufficiency

Engines = Mapping[str, Engine | None]
"""The engine of each model by its name ("mentor" and "intern" in a tandem); None for one that is not needed."""

ENGINE_FACTS = ("engine", *ENGINE_PACKAGES, "resume", "entropy", "dtype", "device")
"""Entries of `Engine.identity` that results repeat, where an engine has them."""
ADAPTERS = ("peft", "delta", "lora_local_path")
"""Arguments of engines that name weights beside those of the model."""
JUDGE_FACTS = ("schema", "sha256", "model", "tasks", "labels", "per", "adapter")
"""Entries of a classifier's configuration that results repeat, where it has them."""
PACKAGES = ("numpy", "tokenizers", "accelerate", "jinja2", "scikit-learn", "math-verify", "sympy")
"""Packages whose version results name for the whole run, beside those that `ENGINE_FACTS` names for an engine."""
SHA256 = re.compile("[0-9a-f]{64}")
CUT_ANSWERS = 0.1
"""The share of answers that are cut, from which on a run warns of it."""


def description(settings: Settings, engines: Engines, judge: Sufficiency | None) -> dict[str, Any]:
    """What ran: pair, policy, efforts, thresholds, classifier, parameters, versions; JSON-serialisable."""
    described: dict[str, Any] = {
        "run": settings.run_name,
        "version": __version__,
        "versions": versions(),
        "pair": settings.pair_name,
        "policy": str(settings.policy),
        **setting(settings),
        "seed": settings.seed,
        "loglikelihood": settings.loglikelihood,
    }
    if judge is not None:
        config = {**judge.config, **judge.config["fitted_on"]}
        described["classifier"] = judge.name
        described["recipe"] = judge.recipe
        described["thresholds"] = list(judge.thresholds)
        described["judge"] = {name: config[name] for name in JUDGE_FACTS if name in config} | dict(judge.origin)
    for name, role in settings.roles.items():
        engine = engines[name]
        if role is not None and engine is not None:
            described[name] = model_facts(role, engine)
    return described


def model_facts(role: Role, engine: Engine) -> dict[str, Any]:
    """What results say of one model."""
    identity = engine.identity
    content = {"sha256": checksum(identity.get("model")), "commit": identity.get("commit")}
    return {
        "model": role.label,
        "parameters": engine.parameters,
        "window": engine.window,
        **{key: identity[key] for key in ENGINE_FACTS if key in identity},
        **{name: value for name, value in content.items() if value},
        **adapter_facts(role, identity),
        **({"prices": asdict(role.prices)} if role.prices is not None else {}),
    }


def adapter_facts(role: Role, identity: Mapping[str, Any]) -> dict[str, Any]:
    """The entry `adapters` of a model's facts: name and content of the weights that `ADAPTERS` name; {} without any.

    Returns
    -------
    dict
        {"adapters": {argument: {"name": ..., "sha256": ...}}}, with "commit" in place of "sha256" for one of a hub, and
        neither where the content is not known.
    """
    identified, found = identity.get("arguments"), {}
    for argument in ADAPTERS:
        if role.arguments.get(argument):
            content = identified.get(argument) if isinstance(identified, Mapping) else None
            known = {"sha256": checksum(content), "commit": content[1] if isinstance(content, list) else None}
            known = {name: value for name, value in known.items() if value}
            found[argument] = {"name": str(role.arguments[argument]), **known}
    return {"adapters": found} if found else {}


def checksum(content: Any) -> str | None:
    """One SHA-256 of what `engines.identity.content_of` returned; None for anything else, such as the id of a hub.

    Parameters
    ----------
    content
        The SHA-256 of a file, or those of the files of a folder by their names.

    Examples
    --------
    >>> checksum("Qwen/Qwen3-8B") is None
    True
    """
    if isinstance(content, str):
        return content if SHA256.fullmatch(content) else None
    if not isinstance(content, Mapping) or not content:
        return None
    if not all(isinstance(one, str) and SHA256.fullmatch(one) for one in content.values()):
        return None
    return hashlib.sha256(json.dumps(dict(content), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """The versions of Python and of the installed ones of `PACKAGES`."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def data_files(records: Iterable[Record]) -> dict[str, Any]:
    """The entry `data` of a description: name and SHA-256 of the local file of each task that was read from one.

    Returns
    -------
    dict
        {"data": {task: {"file": ..., "sha256": ...}}}, or nothing where no task has a local file.
    """
    tasks = sorted({record.task for record in records} & set(task_data.LOCAL_FILES))
    files = {task: task_data.LOCAL_FILES[task] for task in tasks}
    known = {task: {"file": file.name, "sha256": content_of(file)} for task, file in files.items()}
    return {"data": known} if known else {}


def ensemble_description(
    settings: EnsembleSettings, engines: Mapping[str, Engine], scorer: Scorer | None
) -> dict[str, Any]:
    """What ran: models, strategies, parameters, versions; JSON-serialisable."""
    described: dict[str, Any] = {
        "run": settings.run_name,
        "version": __version__,
        "versions": versions(),
        "pair": settings.pair_name,
        "policy": settings.policy,
        "selection": settings.selection.name,
        "aggregation": settings.aggregation.name,
        "options": {name: as_json(value) for name, value in settings.options.items()},
        "seed": settings.seed,
        "loglikelihood": settings.loglikelihood,
        "models": {name: model_facts(role, engines[name]) for name, role in settings.roles.items()},
    }
    if scorer is not None:
        described["scorer"] = {"name": scorer.name, "parameters": scorer.parameters, **scorer.identity}
    if settings.reference is not None:
        described["reference"] = {name: asdict(one) for name, one in settings.reference.items()}
    return described


def as_json(value: Any) -> Any:
    """The value of an option as results keep it: of a file its name alone."""
    if isinstance(value, Path):
        return value.name
    return list(value) if isinstance(value, tuple) else value


def setting(settings: Settings) -> dict[str, Any]:
    """The entries of a description that `prompts.SETTING` names."""
    prompts = settings.prompts
    values = (list(settings.efforts), prompts.insights, prompts.guidance, prompts.name)
    return dict(zip(SETTING, values, strict=True))


def work_by_model(engines: Engines, called: Iterable[Engine]) -> dict[str, EngineWork]:
    """What each model's engine has computed, by the model's name.

    Models that decode together are one more engine, which has the names of all of them, joined by "+"; what they read
    and generate is counted there once, in the first one's tokens.

    Parameters
    ----------
    engines, called
        As for `computed`.
    """
    found = {name: engine.work for name, engine in engines.items() if engine is not None}
    together = [engine.work for engine in called if all(engine.work is not work for work in found.values())]
    return found | {"+".join(found): work for work in together}


def computed(engines: Engines, called: Iterable[Engine], store: Store | None) -> dict[str, Any]:
    """What the engines of this process computed, and what the store answered in their place.

    Parameters
    ----------
    engines
        The engines themselves.
    called
        The same, with the store around them where there is one.
    store
        The store; None without one.
    """
    work = work_by_model(engines, called)
    found: dict[str, Any] = {"computed": {name: asdict(one) for name, one in work.items()}}
    if store is not None:
        found["found_in_store"] = sum(engine.hits for engine in called if isinstance(engine, CachedEngine))
        found["refused_in_store"] = store.corrupted_rows
        found["unkept_in_store"] = store.failed_writes
    return found


def totals(records: Iterable[Record], processes: Iterable[Mapping[str, Any]], wall_seconds: float) -> dict[str, Any]:
    """The figures of a whole run.

    Parameters
    ----------
    records
        One per question, of all processes.
    processes
        What `computed` returned in each process.
    wall_seconds
        From the first request to the last answer; of the slowest process.
    """
    found = ledger.totals(records)
    for process in processes:
        found = added(found, process)
    found["wall_seconds"] = wall_seconds
    return found | shares(found)


def cut_answers(records: Collection[Record]) -> str:
    """What to warn of where many answers ended at their longest length, which is 256 tokens in most tasks of lm-eval.

    Returns
    -------
    str
        A sentence, or "" where less than `CUT_ANSWERS` of the answers were cut.
    """
    cut = sum(record.truncated for record in records)
    if not cut or cut < CUT_ANSWERS * len(records):
        return ""
    return (
        f"{cut} of {len(records)} answers were cut at the longest answer that was allowed, perhaps before what is "
        "graded; raise max_gen_toks (--gen_kwargs, generation_kwargs of the task, or gen_kwargs of a configuration)."
    )


def shares(totals: Mapping[str, Any]) -> dict[str, float]:
    """The time spent judging, as a share of the time spent generating answers and insights.

    judge_share: scoring passes, entropies, the classifier, and partial answers that the judge refused.
    refused_share: the refused partial answers alone. Their time is estimated: their share of the intern's tokens times
    the intern's seconds.
    """
    work = totals["computed"]
    generating = sum(part["generate_seconds"] for part in work.values())
    judging, refused = sum(part["judge_seconds"] for part in work.values()), 0.0
    written = totals.get("tokens", {}).get("intern_new", 0)
    if written and "intern" in work:
        refused = totals["refused_tokens"] * totals["questions"] / written * work["intern"]["generate_seconds"]
    used = generating - refused
    parts = {"judge_share": judging + refused, "refused_share": refused}
    return {name: part / used if used > 0 else 0.0 for name, part in parts.items()}


def added(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Two nested dictionaries of numbers, added up name by name; an entry that only one has is kept."""
    total = dict(one)
    for name, value in other.items():
        if name not in total:
            total[name] = value
        else:
            total[name] = added(total[name], value) if isinstance(value, dict) else total[name] + value
    return total
