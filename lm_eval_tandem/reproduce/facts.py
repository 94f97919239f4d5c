"""What a run recorded of itself, beside what is here: versions, and checksums of models, classifier and data."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lm_eval_tandem import __version__, _paths, pair
from lm_eval_tandem.engines.identity import content_of, hub_commit
from lm_eval_tandem.errors import TandemError, one_line
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.harness.arguments import PAIR
from lm_eval_tandem.harness.run_report import checksum
from lm_eval_tandem.judge import repository
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.reports.sources.runs import models_of
from lm_eval_tandem.reproduce.recorded import RecordedRun

ENGINE_PACKAGES = ("torch", "transformers", "vllm", "openai", "xllamacpp", "peft")
"""Packages of which an engine records the version."""
BUNDLED = {f"{PAIR}/mentor": pair.MENTOR, f"{PAIR}/intern": pair.INTERN}
"""The folders of the bundled models by the names that results have for them."""
SHOWN_DIGITS = 12
"""Digits of a checksum that are printed."""


@dataclass(frozen=True)
class Fact:
    """One thing that a run depended on.

    Attributes
    ----------
    label
        What it is.
    then
        Its version or checksum as the results have it; None where they do not say.
    now
        The same here; None where it cannot be found out.
    difference
        A sentence where both are known to differ, or where it is missing here; "" otherwise.
    """

    label: str
    then: str | None
    now: str | None
    difference: str = ""

    @property
    def line(self) -> str:
        """The fact as it is printed."""
        then = "not recorded" if self.then is None else shortened(self.then)
        return f"{self.label}: {then}"


def of(run: RecordedRun) -> list[Fact]:
    """Return the facts of a run: versions, models, classifier, data."""
    return [*versions(run), *models(run), *classifier(run), *data(run)]


# Versions


def versions(run: RecordedRun) -> list[Fact]:
    """Return the versions of this package, of lm_eval, of Python and of what the models ran on."""
    described = run.description
    then: dict[str, str | None] = {"lm_eval": run.results.get("lm_eval_version")}
    if described:
        then = {"lm-eval-tandem": described.get("version"), **then}
    for facts in models_of(described).values():
        then |= {name: str(facts[name]) for name in ENGINE_PACKAGES if name in facts}
    if run.results.get("transformers_version") and not described:
        then["transformers"] = run.results["transformers_version"]
    then |= described.get("versions") or {}
    return [version_fact(name, value) for name, value in then.items()]


def version_fact(package: str, then: str | None) -> Fact:
    """Return the version of a package then and now."""
    now = installed(package)
    difference = ""
    if then is not None and now is None:
        difference = f"{package} was {then} and is not installed here."
    elif then is not None and now != then:
        difference = f"{package} was {then} and is {now} here."
    return Fact(package, then, now, difference)


def installed(package: str) -> str | None:
    """Return the version of a package here; None where it is not installed."""
    if package == "python":
        return platform.python_version()
    if package == "lm-eval-tandem":
        return __version__
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# Models and classifier


def models(run: RecordedRun) -> list[Fact]:
    """Return the content of each model: a checksum of its files, or its commit on a hub."""
    arguments, facts = run.arguments, []
    for role, recorded in models_of(run.description).items():
        name = str(recorded.get("model"))
        if "sha256" in recorded or "commit" not in recorded:
            facts.append(local_model(f"{role} {name}", name, recorded.get("sha256")))
            continue
        revision = arguments.get(f"{role}_revision") or arguments.get("revision") or "main"
        facts.append(hub_model(f"{role} {name}", name, str(revision), str(recorded["commit"])))
    if not run.description and arguments.get("pretrained"):
        facts.append(model_of_harness(run))
    return facts


def model_of_harness(run: RecordedRun) -> Fact:
    """Return the model of a run that is no tandem's: of one of a hub the commit, which the harness records for `hf`."""
    name = str(run.arguments["pretrained"])
    label, commit = f"model {name}", run.config.get("model_sha") or None
    if commit is not None:
        return hub_model(label, name, str(run.arguments.get("revision") or "main"), str(commit))
    is_missing = Path(name).is_absolute() and not Path(name).exists()
    return Fact(label, None, None, f"The model {name} is not here." if is_missing else "")


def hub_model(label: str, name: str, revision: str, then: str) -> Fact:
    """Return the commit of a model of a hub.

    Parameters
    ----------
    label
        What the fact is called.
    name, revision
        The model's id, and the branch, tag or commit that was asked for.
    then
        The commit that was recorded.
    """
    now = hub_commit(name, revision)
    differs = now is not None and now != then
    difference = f"The model {name} had the commit {then} and has {now} here." if differs else ""
    return Fact(label, then, now, difference)


def local_model(label: str, name: str, then: str | None) -> Fact:
    """Return one checksum of the files of a model.

    Parameters
    ----------
    label
        What the fact is called.
    name
        The model as results name it: a folder, a file, the name of a bundled one, or one at a server.
    then
        The checksum that was recorded; None where none was.
    """
    now = checksum(content_of(BUNDLED.get(name, Path(name))))
    if then is not None and now is None:
        return Fact(label, then, None, f"The model {name} is not here.")
    differs = then is not None and now != then
    return Fact(label, then, now, f"The files of the model {name} are not those of the run." if differs else "")


def classifier(run: RecordedRun) -> list[Fact]:
    """Return the weights of the classifier, and its thresholds unless the run had others as an argument."""
    described = run.description
    if "classifier" not in described:
        return []
    name, then = str(described["classifier"]), (described.get("judge") or {}).get("sha256")
    label = f"classifier {name}"
    try:
        folder = classifier_folder(run.arguments.get("classifier"))
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (TandemError, OSError, ValueError) as error:
        return [Fact(label, then, None, f"The classifier {name} cannot be read here ({one_line(error)}).")]
    now = checksum(content_of(folder / "model.safetensors"))
    if then is not None and now != then:
        return [Fact(label, then, now, f"The classifier {name} has other weights here than in the run.")]
    thresholds = (config.get("policy_thresholds") or {}).get(described.get("policy"), config.get("thresholds"))
    if "thresholds" not in run.arguments and thresholds != described.get("thresholds"):
        sentence = f"The classifier {name} has the thresholds {thresholds} here and had {described.get('thresholds')}."
        return [Fact(label, then, now, sentence)]
    return [Fact(label, then, now)]


def classifier_folder(argument: Any) -> Path:
    """Return the folder that the argument `classifier` names; without one that of the bundled pair."""
    chosen = str(argument or PAIR)
    shipped = _paths.classifiers() / chosen
    if re.fullmatch(r"\w[\w.-]*", chosen) and shipped.is_dir():
        return shipped
    return repository.find(repository.parse(chosen)).folder


# Data


def data(run: RecordedRun) -> list[Fact]:
    """Return the version and the documents of each task, and the local file that they were read from."""
    facts = []
    files = run.description.get("data") or {}
    for task in run.tasks:
        file = files.get(task)
        if file is not None and not os.environ.get(task_data.VARIABLE):
            here = None
            problem = f"the run read {file['file']} from the folder {task_data.VARIABLE}, which is not set here"
        else:
            here, problem = load_task(task, run.include_path())
        facts.append(task_version(run, task, here))
        if file is not None:
            facts.append(local_file(task, file, here is not None, is_told=run.samples(task) is not None))
        facts.append(documents(run, task, here, problem))
    return facts


def local_file(task: str, recorded: Mapping[str, str], is_loaded: bool, is_told: bool) -> Fact:
    """Return the checksum of the file that a task was read from.

    Parameters
    ----------
    task
        The task.
    recorded
        Name and checksum of the file.
    is_loaded
        Whether the task could be loaded here.
    is_told
        Whether the documents tell what differs.
    """
    here = task_data.LOCAL_FILES.get(task) if is_loaded else None
    now = None if here is None else checksum(content_of(here))
    differs = now is not None and now != recorded["sha256"] and not is_told
    difference = f"{recorded['file']} is not the file that {task} was read from." if differs else ""
    return Fact(f"file {recorded['file']}", recorded["sha256"], now, difference)


def task_version(run: RecordedRun, task: str, here: Any) -> Fact:
    """Return the version of a task's own file."""
    then = (run.results.get("versions") or {}).get(task)
    now = None if here is None else (here.config.metadata or {}).get("version")
    label = f"task {task}"
    if then is None or now is None or str(then) == str(now):
        return Fact(label, None if then is None else str(then), None if now is None else str(now))
    return Fact(label, str(then), str(now), f"The task {task} had version {then} and has {now} here.")


def documents(run: RecordedRun, task: str, here: Any, problem: str) -> Fact:
    """Return one checksum of the documents that were asked.

    Parameters
    ----------
    run, task
        The run, and its task.
    here
        The task as it is here; None if it cannot be loaded.
    problem
        Why it cannot.
    """
    label = f"documents of {task}"
    kept = {int(sample["doc_id"]): harness_files.document_checksum(sample) for sample in run.samples(task) or ()}
    then = {number: one for number, one in kept.items() if one}
    if here is None:
        sentence = f"The task {task} cannot be loaded here ({problem})."
        return Fact(label, combined(then.values()) if then else None, None, sentence)
    if not then:
        return Fact(label, None, None)
    present = list(here.eval_docs)
    now = {number: document_checksum(present[number]) for number in then if number < len(present)}
    differing = [number for number, one in sorted(then.items()) if now.get(number) != one]
    difference = ""
    if differing:
        difference = (
            f"{len(differing):,} of the {len(then):,} documents of {task} differ here, the first is number "
            f"{differing[0]}."
        )
        if file := (run.description.get("data") or {}).get(task):
            difference = f"{file['file']} is not the file that {task} was read from: {difference}"
    return Fact(label, combined(then.values()), combined(now.values()), difference)


def document_checksum(document: Mapping[str, Any]) -> str:
    """Return the checksum of a document as the harness computes it for a sample."""
    from lm_eval.utils import handle_non_serializable

    plain = json.loads(json.dumps(document, default=handle_non_serializable))
    return harness_files.document_checksum({"doc": plain})


def combined(checksums: Iterable[str]) -> str:
    """Return one checksum of several in their order."""
    return hashlib.sha256("".join(checksums).encode()).hexdigest()


@cache
def load_task(task: str, folder: Path | None) -> tuple[Any, str]:
    """Return the harness's task of a name, or None and why it cannot be loaded.

    Parameters
    ----------
    task
        The name.
    folder
        A folder of task files besides this package's and the harness's; None for none.
    """
    from lm_eval_tandem.training.collect import task_manager

    try:
        manager = task_manager([task], [] if folder is None else [str(folder)])
        return manager.load([task])["tasks"][task], ""
    except Exception as error:  # what a task's own code and the data library may raise
        return None, one_line(error) or type(error).__name__


def shortened(text: str) -> str:
    """Return a checksum or commit by its first digits, and any other text as it is."""
    return f"{text[:SHOWN_DIGITS]}…" if re.fullmatch("[0-9a-f]{40,64}", text) else text


def grouped(facts: Sequence[Fact]) -> list[str]:
    """Return the facts as lines: versions on one, everything else on its own."""
    plain = [fact for fact in facts if fact.then is None or re.fullmatch("[0-9a-f]{40,64}", fact.then)]
    versioned = [f"{fact.label} {fact.then}" for fact in facts if fact not in plain]
    lines = [f"versions: {', '.join(versioned)}"] if versioned else []
    return lines + [fact.line for fact in plain]
