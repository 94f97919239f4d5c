"""Runs of the same models with the same settings that were asked in different ways: which of them belong together.

Each way to ask is a row of its own in a report and a result of its own in a submission (`Run.variant`), named by the
settings that differ (`question_settings.told_apart`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from lm_eval_tandem.reports.sources.question_settings import ASKED, GRADE, text_of
from lm_eval_tandem.reports.sources.repeats import key_of
from lm_eval_tandem.reports.sources.task_runs import TaskRun


def tell_apart(task_runs: Sequence[TaskRun], group_of: Mapping[str, str]) -> list[TaskRun]:
    """Return runs with their `variant`, which is set where one system has several runs on a task.

    Parameters
    ----------
    task_runs
        Runs on single tasks, no two of which repeat each other.
    group_of
        The group of each task that is part of one.
    """
    systems: dict[tuple[str, str], list[TaskRun]] = {}
    for one in with_questions_asked(task_runs):
        systems.setdefault((group_of.get(one.run.domain, one.run.domain), one.run.system), []).append(one)
    named = []
    for members in systems.values():
        names = differing(members)
        together = clusters(members, names) if names else [members]
        for cluster in together:
            ways = {one.run.domain: way(one, names) for one in cluster}
            variant = json.dumps(ways, sort_keys=True) if len(together) > 1 else ""
            named += [replace(one, run=replace(one.run, variant=variant)) for one in cluster]
    return named


def with_questions_asked(task_runs: Sequence[TaskRun]) -> list[TaskRun]:
    """Return runs, with the setting `ASKED` where runs of one system, asked alike, have different questions."""
    ways = Counter(key_of(one) for one in task_runs)
    told = []
    for one in task_runs:
        if ways[key_of(one)] > 1:
            asked = {ASKED: text_of(", ".join(str(doc_id) for _, doc_id in one.run.questions))}
            settings = {one.run.domain: {**one.run.settings[one.run.domain], **asked}}
            one = replace(one, run=replace(one.run, settings=settings))
        told.append(one)
    return told


def differing(members: Sequence[TaskRun]) -> list[str]:
    """Return the settings in which runs on the same task differ."""
    found = set()
    for task in {one.run.domain for one in members}:
        ways = [one.run.settings[task] for one in members if one.run.domain == task]
        found |= {name for one in ways for name in one if len({other.get(name) for other in ways}) > 1}
    return sorted(found - {GRADE})


def way(one: TaskRun, names: Collection[str]) -> dict[str, str]:
    """Return some settings of a run."""
    return {name: value for name, value in one.run.settings[one.run.domain].items() if name in names}


def clusters(members: Sequence[TaskRun], names: Collection[str]) -> list[list[TaskRun]]:
    """Return the runs on the tasks of a group that belong together, none with two runs on a task.

    Those of one results file do, and those of several files that were asked in the same way.

    Parameters
    ----------
    members
        Runs of one system.
    names
        The settings in which those on the same task differ.
    """
    files: dict[str, list[TaskRun]] = {}
    for one in members:
        files.setdefault(str(one.recorded.file), []).append(one)
    together: list[list[TaskRun]] = []
    for own in files.values():
        home = next((other for other in together if belong_together(other, own, names)), None)
        if home is None:
            together.append(own)
        else:
            home += own
    return together


def belong_together(one: Sequence[TaskRun], other: Sequence[TaskRun], names: Collection[str]) -> bool:
    """Whether two sets of runs are on different tasks, and some of them were asked in the same way."""
    tasks, others = ({part.run.domain for part in parts} for parts in (one, other))
    return not tasks & others and any(way(a, names) == way(b, names) for a in one for b in other)
