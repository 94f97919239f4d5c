"""Results of groups of tasks: what the harness has aggregated, once it follows from the results of the tasks.

The harness does not record how a group's metric was aggregated. It knows two ways, the mean over the tasks weighted by
their numbers of questions and the mean of the tasks alike, so both are computed and the one that fits is named.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lm_eval_tandem.digits import total
from lm_eval_tandem.reports.sources import reading
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.task_runs import TaskRun
from lm_eval_tandem.submissions import samples_check
from lm_eval_tandem.submissions.scores import Score, scores_of
from lm_eval_tandem.submissions.task_results import TaskResults

BY_QUESTIONS, ALIKE = "number of questions of each task", "each task alike"
"""How the tasks of a group may be weighted."""
EITHER = "each task alike, all having the same number of questions"


def read(recorded: RecordedRun, tasks: Sequence[TaskResults]) -> tuple[tuple[TaskResults, ...], list[str]]:
    """Return the groups of a results file, and a sentence for each result that does not follow from those of the tasks.

    Parameters
    ----------
    recorded
        The results file.
    tasks
        Those of its tasks that are submitted; a group is left out unless all its tasks are among them.
    """
    by_name = {task.name: task for task in tasks}
    found: list[TaskResults] = []
    unverified: list[str] = []
    for group in recorded.results.get("groups") or {}:
        names = tasks_of(recorded, group)
        if names and set(names) <= set(by_name):
            parts = tuple(by_name[name] for name in names)
            scores = scores_of(recorded.file, recorded.results, group, {})
            checked = [weighted(score, parts) for score in scores]
            unverified += [
                f"{group}: {score.metric} is no mean of what its tasks have, and does not go out"
                for score, one in zip(scores, checked, strict=True)
                if one is None
            ]
            known = tuple(one for one in checked if one is not None)
            if known:
                found.append(joined(recorded, group, parts, known))
    return tuple(found), unverified


def tasks_of(recorded: RecordedRun, group: str) -> list[str]:
    """Return the tasks of a group and of the groups in it, sorted, as a report joins them."""
    children = recorded.results.get("group_subtasks") or {}
    names: set[str] = set()
    waiting = [group]
    while waiting:
        name = waiting.pop()
        waiting += children.get(name) or []
        if name in recorded.results["configs"]:
            names.add(name)
    return sorted(names)


def weighted(score: Score, parts: Sequence[TaskResults]) -> Score | None:
    """Return a group's metric with its values per question and its weights; None if it is no mean of its tasks'.

    Only tasks that have the metric count, as with the harness.
    """
    own = [
        (one, len(part.run.questions))
        for part in parts
        for one in part.scores
        if (one.metric, one.filter) == (score.metric, score.filter)
    ]
    if not own:
        return None
    sizes = [size for _, size in own]
    by_questions = total([one.value * size for one, size in own]) / sum(sizes)
    alike = total([one.value for one, _ in own]) / len(own)
    values = [one.values for one, _ in own if one.values is not None]
    whole = np.concatenate(values) if len(values) == len(parts) else None
    if samples_check.is_close(score.value, by_questions):
        return replace(score, values=whole, weights=EITHER if len(set(sizes)) == 1 else BY_QUESTIONS)
    return replace(score, weights=ALIKE) if samples_check.is_close(score.value, alike) else None


def joined(recorded: RecordedRun, group: str, parts: tuple[TaskResults, ...], scores: tuple[Score, ...]) -> TaskResults:
    """Return the results of a group, its run being that of its tasks together, as a report joins them."""
    task_runs = [TaskRun(part.run, [{}] * len(part.run.questions), recorded) for part in parts]
    run = reading.join_tasks(group, task_runs, None)
    records = tuple(record for part in parts for record in part.records)
    words = parts[0].told_apart if len({part.told_apart for part in parts}) == 1 else ()
    return TaskResults(run=run, config={}, scores=scores, samples={}, records=records, parts=parts, told_apart=words)
