"""Which runs are compared with each other: one `Comparison` per domain and pair, and what each pair is called."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from lm_eval_tandem.cascade.policies import kind_of
from lm_eval_tandem.cascade.prompts import SETTING
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources.comparison import POLICY_ORDER, Comparison
from lm_eval_tandem.reports.sources.joining import Joined, join
from lm_eval_tandem.reports.sources.labels import model_names, without_paths
from lm_eval_tandem.reports.sources.runs import PAIR_SETTINGS, Run, models_of

OWN_WORDING, PAPERS_WORDING = "pair", "gpra"
"""The wordings (`prompts=`) of runs that do not name theirs: for the bundled pair, and for all others."""


def group(runs: Sequence[Run]) -> list[Comparison]:
    """Return the comparisons that some runs allow, one per domain and pair.

    A run of a single model belongs to every pair that has this model, an ensemble to every pair that has both models
    among its own (to every pair if there is none), and a run of any other model to every comparison of its domain. One
    that answered some of a comparison's questions only is in its `partial`.

    Raises
    ------
    ArgumentError
        Runs of tandem on one domain answered different questions, or one name stands for two models.
    """
    comparisons = []
    for domain in sorted({run.domain for run in runs}):
        on_domain, partial = on_same_questions([run for run in runs if run.domain == domain])
        check_same_models(on_domain)
        pairs = examples(on_domain)
        if not pairs:
            comparisons.append(Comparison(domain, name_without_pair(on_domain), ordered(on_domain), partial))
        names = pair_names([run.description for run in pairs])
        for example in sorted(pairs, key=lambda run: pair_key(run.description)):
            members = [run for run in on_domain if belongs(run, example, pairs)]
            name = names[pair_key(example.description)]
            comparisons.append(Comparison(domain, name, ordered(members), partial))
    return comparisons


def examples(runs: Sequence[Run]) -> list[Run]:
    """Return one run of each pair.

    Those whose policy has stages come first: they say what the efforts of a pair are, with which others have nothing
    to do.
    """
    found: list[Run] = []
    for run in sorted(runs, key=lambda run: not has_stages(run.description)):
        if run.has_both_models and not any(is_of_pair(run, other) for other in found):
            found.append(run)
    return found


def on_same_questions(runs: Sequence[Run]) -> tuple[list[Run], tuple[Joined, ...]]:
    """Return the runs on one domain that answered the same questions, and those of other models that lack some.

    Tandem's runs say which questions these are, or without them the run that answered most. What another model answered
    besides is left out.
    """
    base = [run for run in runs if run.model is None] or [max(runs, key=lambda run: len(run.questions))]
    check_same_questions(base)
    joined = [join(run, base[0]) for run in runs if run not in base]
    complete = [one.run for one in joined if len(one.places) == len(base[0].questions)]
    partial = tuple(one for one in joined if len(one.places) < len(base[0].questions))
    return [*base, *[replace(run, subjects=base[0].subjects) for run in complete]], partial


def ordered(runs: Sequence[Run]) -> tuple[Run, ...]:
    """Return runs in the order of a table's rows: by policy and its number, then by name and classifier."""

    def key(run: Run) -> tuple[int, int, str, str]:
        name, _, number = run.policy.partition(":")
        return (
            policy_rank(name),
            int(number) if number.isdecimal() else 0,
            run.name,
            str(run.description.get("classifier", "")),
        )

    return tuple(sorted(runs, key=key))


def policy_rank(policy: str) -> int:
    """Return the place of a policy in `POLICY_ORDER`; unknown ones come last."""
    name = policy.partition(":")[0]
    return POLICY_ORDER.index(name) if name in POLICY_ORDER else len(POLICY_ORDER)


def pair_key(description: Mapping[str, Any], names: Sequence[str] = PAIR_SETTINGS) -> str:
    """Return a string that is the same for all runs of the same models with the same settings."""
    models = [description.get(role, {}).get("model", "") for role in ("mentor", "intern")]
    return json.dumps([models, {name: pair_setting(description, name) for name in names}], sort_keys=True)


def has_stages(description: Mapping[str, Any]) -> bool:
    """Return whether a run's policy depends on its efforts and insights; so it is taken to be if nothing is known."""
    kind = kind_of(str(description.get("policy")))
    return kind is None or kind.has_stages


def is_of_pair(run: Run, example: Run) -> bool:
    """Return whether a run with both models is of the pair of another: in all settings that both depend on."""
    ours, theirs = run.description, example.description
    names = PAIR_SETTINGS if has_stages(ours) and has_stages(theirs) else [n for n in PAIR_SETTINGS if n not in SETTING]
    return pair_key(ours, names) == pair_key(theirs, names)


def pair_setting(description: Mapping[str, Any], name: str) -> Any:
    """Return one of `PAIR_SETTINGS` of a run.

    Runs from before there were several wordings do not name theirs; it was the pair's own, or else the paper's.
    """
    if name == "prompts" and "efforts" in description and name not in description:
        return OWN_WORDING if description.get("pair") == OWN_WORDING else PAPERS_WORDING
    return description.get(name)


def belongs(run: Run, example: Run, pairs: Sequence[Run]) -> bool:
    """Whether a run is compared with those of a pair.

    Parameters
    ----------
    run
        The run.
    example
        The pair's run among `pairs`.
    pairs
        A run of each pair on the domain (`examples`).
    """
    if run.is_ensemble:
        return combines(run, example) or not any(combines(run, other) for other in pairs)
    return not run.policy or is_of_pair(run, example) or is_one_model_of(run, example)


def combines(run: Run, example: Run) -> bool:
    """Whether both models of a pair, of which `example` is a run, are among those of an ensemble."""
    ours, theirs = ({facts["model"] for facts in models_of(one.description).values()} for one in (run, example))
    return theirs <= ours


def is_one_model_of(run: Run, example: Run) -> bool:
    """Whether a run is that of one of a pair's models alone; `example` is any run of the pair."""
    roles = [role for role in ("mentor", "intern") if role in run.description]
    ours, theirs = run.description, example.description
    return (
        len(roles) == 1
        and ours.get("thinking") == theirs.get("thinking")
        and is_same_model(ours[roles[0]], theirs[roles[0]])
    )


def is_same_model(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two descriptions are of one model: the same label, or one GGUF file in two folders.

    Such files are told apart by checksum where results have it, and otherwise by name and number of parameters.
    """
    labels = [str(facts["model"]) for facts in (one, other)]
    if labels[0] == labels[1]:
        return True
    names = [label.rpartition("/")[2] for label in labels]
    if not names[0].endswith(".gguf") or names[0] != names[1]:
        return False
    return all(one.get(name) == other.get(name) for name in ("sha256", "parameters") if name in one and name in other)


def pair_names(pairs: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what each pair is called, by `pair_key`: its models, and the settings in which pairs of them differ.

    Parameters
    ----------
    pairs
        The description of one run of each pair.
    """
    called = called_in(pairs)
    names = {}
    for description in pairs:
        same_models = [other for other in pairs if models_name(other, called) == models_name(description, called)]
        differing = [n for n in PAIR_SETTINGS if len({json.dumps(pair_setting(o, n)) for o in same_models}) > 1]
        settings = []
        for name in differing:
            value = pair_setting(description, name)
            settings.append(f"{name} {':'.join(map(str, value)) if isinstance(value, list) else value}")
        names[pair_key(description)] = ", ".join([models_name(description, called), *settings])
    return names


def called_in(descriptions: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return what each model of some runs is called (`labels.model_names`)."""
    return model_names(facts["model"] for description in descriptions for facts in models_of(description).values())


def models_name(description: Mapping[str, Any], called: Mapping[str, str]) -> str:
    """Return the models of a run by what they are called (`labels.model_names`)."""
    if description.get("pair") == "pair":
        return "the bundled pair"
    return " + ".join(called[facts["model"]] for facts in models_of(description).values())


def name_without_pair(runs: Sequence[Run]) -> str:
    """Return what to call runs none of which has both models."""
    described = [run.description for run in runs if run.description]
    return models_name(described[0], called_in(described)) if described else "other models"


def check_same_questions(runs: Sequence[Run]) -> None:
    """Refuse runs on one domain that answered different questions."""
    for run in runs[1:]:
        if run.questions != runs[0].questions:
            raise ArgumentError(
                f"the runs {runs[0].name} ({len(runs[0].questions)} questions) and {run.name} "
                f"({len(run.questions)}) on {run.domain} answered different questions, so they cannot be compared; "
                "run each with the same --limit and --samples."
            )


def check_same_models(runs: Sequence[Run]) -> None:
    """Refuse two models of one name but different sizes: their runs would be mixed up."""
    sizes: dict[str, Any] = {}
    for run in runs:
        for facts in models_of(run.description).values():
            if sizes.setdefault(facts["model"], facts.get("parameters")) != facts.get("parameters"):
                raise ArgumentError(
                    f"the runs on {run.domain} mix two pairs: {without_paths(facts['model'])} has "
                    f"{sizes[facts['model']]} parameters in one and {facts.get('parameters')} in another; "
                    "report each pair from its own folder."
                )
