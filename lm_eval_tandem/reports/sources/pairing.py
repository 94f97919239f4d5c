"""Which runs belong together: studies out of runs, by domain and pair, and what each pair is called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources.runs import SETTING, Run
from lm_eval_tandem.reports.sources.study import ORDER, Study, model_name, shown


def studies(runs: Sequence[Run]) -> list[Study]:
    """The studies that some runs make, by domain and pair.

    A single model's run belongs to every pair that has the model. Runs of other models stand in every study of their
    domain.

    Raises
    ------
    ArgumentError
        Runs on one domain answered different questions, or one name means two pairs.
    """
    found = []
    for domain in sorted({run.domain for run in runs}):
        here = [run for run in runs if run.domain == domain]
        same_questions(here)
        same_pairs(here)
        pairs = {pair_of(run): run for run in here if {"mentor", "intern"} <= set(run.about)}
        if not pairs:
            found.append(Study(domain, pair_name(here), tuple(sorted(here, key=place))))
        names = pair_names([run.about for run in pairs.values()])
        for key, like in sorted(pairs.items()):
            mine = [run for run in here if pair_of(run) == key or single_of(run, like) or not run.policy]
            found.append(Study(domain, names[key], tuple(sorted(mine, key=place))))
    return found


def place(run: Run) -> tuple[int, int, str, str]:
    """Where a run stands in a table."""
    name, _, number = run.policy.partition(":")
    order = ORDER.index(name) if name in ORDER else len(ORDER)
    return order, int(number) if number.isdigit() else 0, run.name, str(run.about.get("classifier", ""))


def pair_of(run: Run) -> str:
    """What has to be the same in all runs of a pair, the models and what they are told, as one string."""
    return pair_key(run.about)


def pair_key(about: Mapping[str, Any]) -> str:
    models = [about.get(role, {}).get("model", "") for role in ("mentor", "intern")]
    return json.dumps([models, {name: about.get(name) for name in SETTING}], sort_keys=True)


def single_of(run: Run, like: Run) -> bool:
    """Whether a run is that of one of a pair's models alone."""
    roles = [role for role in ("mentor", "intern") if role in run.about]
    same_mode = run.about.get("thinking") == like.about.get("thinking")
    return len(roles) == 1 and same_mode and run.about[roles[0]]["model"] == like.about[roles[0]]["model"]


def pair_names(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What each pair is called: its models, and whatever else tells it from another pair of the same models."""
    names = {pair_key(about): models_name(about) for about in pairs}
    for about in pairs:
        alike = [other for other in pairs if models_name(other) == models_name(about)]
        differing = [name for name in SETTING if len({json.dumps(other.get(name)) for other in alike}) > 1]
        values = [about.get(name) for name in differing]
        told = [
            f"{n} {':'.join(map(str, v)) if isinstance(v, list) else v}" for n, v in zip(differing, values, strict=True)
        ]
        names[pair_key(about)] = ", ".join([models_name(about), *told])
    return names


def models_name(about: Mapping[str, Any]) -> str:
    """Mentor and intern by the last parts of their names."""
    if about.get("pair") == "pair":
        return "the bundled pair"
    return " + ".join(model_name(about[role]["model"]) for role in ("mentor", "intern") if role in about)


def pair_name(runs: Sequence[Run]) -> str:
    """What to call runs of which none has both roles."""
    return next((models_name(run.about) for run in runs if run.about), "other models")


def same_questions(runs: Sequence[Run]) -> None:
    """Refuse runs on one domain that answered different questions."""
    for run in runs[1:]:
        if run.keys != runs[0].keys:
            raise ArgumentError(
                f"the runs {runs[0].name} ({len(runs[0].keys)} questions) and {run.name} ({len(run.keys)}) on "
                f"{run.domain} answered different questions, so they cannot be compared; "
                "run each with the same --limit and --samples."
            )


def same_pairs(runs: Sequence[Run]) -> None:
    """Refuse two different models under one name: their runs would be mixed up."""
    sizes: dict[str, int] = {}
    for run in runs:
        for role in ("mentor", "intern"):
            about = run.about.get(role)
            if about and sizes.setdefault(about["model"], about.get("parameters")) != about.get("parameters"):
                raise ArgumentError(
                    f"the runs on {run.domain} mix two pairs: {shown(about['model'])} has {sizes[about['model']]} "
                    f"parameters in one and {about.get('parameters')} in another; report each pair from its own folder."
                )
