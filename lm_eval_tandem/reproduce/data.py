"""The tasks and documents of a run, beside those that are here."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from lm_eval_tandem.engines.identity import content_of
from lm_eval_tandem.errors import one_line
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.harness.run_report import checksum
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reproduce import harness_command
from lm_eval_tandem.reproduce.fact import Fact


def of(run: RecordedRun) -> list[Fact]:
    """Return the version and the documents of each task, and the local file that they were read from."""
    facts = []
    files = run.description.get("data") or {}
    for task in sorted(run.task_names):
        file = files.get(task)
        if file is not None and not os.environ.get(task_data.VARIABLE):
            here = None
            problem = f"the run read {file['file']} from the folder {task_data.VARIABLE}, which is not set here"
        else:
            here, problem = load_task(task, harness_command.include_path(run))
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
