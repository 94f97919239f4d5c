"""What runs, models, files and subjects are called in a report."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval_tandem.digits import colon_separated, nearest_decimal
from lm_eval_tandem.reports.sources.question_settings import CHAT_TEMPLATE, FEW_SHOT, in_words, told_apart
from lm_eval_tandem.reports.sources.runs import IDENTIFYING, Run


def run_label(run: Run, others: Sequence[Run]) -> str:
    """Return a run's policy, followed by as much of its classifier as distinguishes it from the other runs.

    A run of another model has its name, followed by what distinguishes it from others of this name.

    Parameters
    ----------
    run
        The run to name.
    others
        All runs of the comparison that have the same policy, `run` included.
    """
    if not run.policy:
        return _other_label(run, [other for other in others if other.name == run.name])
    variants = [other for other in others if other.system == run.system]
    words = told_apart([_settings(variant) for variant in variants])
    own = next(told for told, variant in zip(words, variants, strict=True) if variant.identity == run.identity)
    return ", ".join([_tandem_label(run, list({other.system: other for other in others}.values())), *own])


def _tandem_label(run: Run, others: Sequence[Run]) -> str:
    """Return the policy of a run with as much as tells it from other systems, of which `others` has one run each."""
    for label in (_policy, _with_classifier, _with_recipe, _with_thresholds):
        if len({label(other) for other in others}) == len(others):
            return label(run)
    labels = {other.system: _with_settings(other, others) for other in others}
    if len(set(labels.values())) == len(others):
        return labels[run.system]
    return f"{_with_thresholds(run)}, number {[other.system for other in others].index(run.system) + 1}"


def _other_label(run: Run, namesakes: Sequence[Run]) -> str:
    """Return the name of another model, with as much as tells its run apart from others of this name."""
    about = {other.identity: _told_apart_by(other) for other in namesakes}
    differing = [name for name in about[run.identity] if len({facts.get(name) for facts in about.values()}) > 1]
    for length in range(len(differing) + 1):
        labels = {
            key: ", ".join([run.name, *[facts[name] for name in differing[:length] if name in facts]])
            for key, facts in about.items()
        }
        if len(set(labels.values())) == len(labels):
            return labels[run.identity]
    return f"{labels[run.identity]}, number {1 + list(about).index(run.identity)}"


def _told_apart_by(run: Run) -> dict[str, str]:
    """Return what may tell runs of one other model apart, the first thing first: how it was asked, its arguments."""
    settings = _settings(run)
    first = [name for name in (FEW_SHOT, CHAT_TEMPLATE, "max_gen_toks", "sampling") if name in settings]
    facts = {name: in_words(name, settings[name]) for name in dict.fromkeys([*first, *settings])}
    return facts | {name: f"{name} {without_paths(value)}" for name, value in sorted(run.arguments.items())}


def _settings(run: Run) -> dict[str, str]:
    """Return how a run was asked; where its tasks differ in a setting, all their values."""
    names = dict.fromkeys(name for of_task in run.settings.values() for name in of_task)
    return {
        name: " or ".join(dict.fromkeys(of_task[name] for of_task in run.settings.values() if name in of_task))
        for name in names
    }


def _policy(run: Run) -> str:
    return run.policy


def _classifier(run: Run) -> str:
    return str(run.description.get("classifier", run.name))


def _with_classifier(run: Run) -> str:
    return f"{run.policy} ({_classifier(run)})"


def _with_recipe(run: Run) -> str:
    return f"{run.policy} ({_classifier(run)}, {run.description.get('recipe', '')})"


def _with_thresholds(run: Run) -> str:
    return f"{run.policy} ({_classifier(run)}, {colon_separated(run.description.get('thresholds') or ())})"


def _with_settings(run: Run, others: Sequence[Run]) -> str:
    """Return the policy of a run, and the settings in which it differs from other runs of this policy."""
    values = [
        {name: other.description.get(name) for name in IDENTIFYING if name not in ("run", "policy")} for other in others
    ]
    differing = [name for name in values[0] if any(one[name] != values[0][name] for one in values)]
    own = {name: run.description.get(name) for name in differing}
    told = [f"{name} {without_paths(value)}" for name, value in own.items() if isinstance(value, (str, int, float))]
    return ", ".join([run.policy, *told])


def model_name(model: str) -> str:
    """Return a model's name without its folder or account: "lab/large" is "large"."""
    return re.split(r"[/\\]", str(model).rstrip("/\\"))[-1]


def model_names(models: Iterable[str]) -> dict[str, str]:
    """Return what to call each of some models: the last part of its name, and more where two would be called alike."""
    parts = {model: re.split(r"[/\\]", str(model).rstrip("/\\")) for model in models}
    names = {}
    for model, own in parts.items():
        same = [other for other in parts.values() if other[-1] == own[-1]]
        depth = next((n for n in range(1, len(own)) if [other[-n:] for other in same].count(own[-n:]) == 1), len(own))
        names[model] = "/".join(own[-depth:])
    return names


def without_paths(value: Any) -> str:
    """Return a value as text in which paths on this machine are cut to their last part: "/lab/large" is "…/large"."""
    if isinstance(value, float):
        value = nearest_decimal(value)
    text = ":".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    if text.startswith("http"):
        return text
    return re.sub(r"(?:^|(?<=[=,;: ]))(?:~|/|[A-Za-z]:\\)[^,; ]*[/\\]", "…/", text)


def slug(text: str) -> str:
    """Return a text in lower case with only letters, digits and dashes, for file names and anchors."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def natural_order(subject: str) -> tuple[str, float]:
    """Return a sorting key that puts "level 9" before "level 10"."""
    words, _, last = subject.rpartition(" ")
    return (words, float(last)) if last.replace(".", "", 1).isdecimal() else (subject, 0.0)
