"""The section `ensemble` of a file of the authors' toolkit, as arguments of this package (`toolkit_config`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.arguments import Check, to_bool, to_whole_number
from lm_eval_tandem.harness.ensemble_arguments import to_number, to_positive, to_share, to_weights
from lm_eval_tandem.harness.toolkit_models import Model, as_roles, by_size, choice, scorer_of, section

ENSEMBLE = (
    "model_selection_method",
    "model_selection_params",
    "output_aggregation_method",
    "output_aggregation_params",
    "max_rounds",
    "score_threshold",
    "progressive",
    "generation",
)
PARAMETERS = "output_aggregation_params"
SELECTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "all": ("all", ()),
    "random": ("random", ("model_count",)),
    "zscore": ("zscore", ("model_count",)),
    "model_judgment": ("self_assessment", ()),
}
"""Their selections: what each is called here, and its parameters."""
SEGMENTS = ("max_new_tokens_per_round", "max_rounds", "max_repeat")
TOKENS = ("method", "temperature", "top_k", "weights", "model_weights")
AGGREGATIONS: Mapping[str, tuple[str, ...]] = {
    "loop": SEGMENTS,
    "random": SEGMENTS,
    "reward_based": (*SEGMENTS, "score_threshold", "reward_specs", "exclude_self_scoring"),
    "progressive": ("outline_max_tokens", "outline_prompt_template", "final_prompt_template", "template_language"),
    "switch": ("switch_after_tokens",),
    "gac": (*TOKENS, "threshold"),
    "weighted_average": TOKENS,
    "distribution": TOKENS,
    "average": TOKENS[:3],
}
"""Their aggregations and the parameters of each; all take `max_tokens` and `name` too."""
POLICIES = {"progressive": ("outline", "outline_max_tokens"), "switch": ("handoff", "switch_after_tokens")}
"""Aggregations that are policies of two models here: the policy, and the parameter that is its number."""
POLICY_TOKENS = 500
"""That number where none is given, as in their toolkit."""
GENERATION: Mapping[str, tuple[str, Check]] = {
    "max_tokens": ("max_gen_toks", to_positive),
    "temperature": ("temperature", to_number),
    "do_sample": ("do_sample", to_bool),
    "top_p": ("top_p", to_number),
    "top_k": ("top_k", to_whole_number),
    "repetition_penalty": ("repetition_penalty", to_number),
}
"""Their settings of generation: what each is called here, and its check."""
STOPS = ("stop_strings", "stop_sequences")
_BEAMS, _WORDS = "no beams are searched", "write model: tandem with policy: stage:1, efforts: N and prompts: FILE"
ONLY: Mapping[str, tuple[tuple[Any, ...], str]] = {
    "presence_penalty": ((0,), "write repetition_penalty"),
    "frequency_penalty": ((0,), "write repetition_penalty"),
    "diversity_penalty": ((0,), _BEAMS),
    "length_penalty": ((1,), _BEAMS),
    "max_repeat": ((3,), "an answer ends with three equal segments"),
    "method": (("avg",), "probabilities are averaged, with weights where they are given"),
    "temperature": ((1,), "write temperature in ensemble.generation"),
    "top_k": ((), "write top_k in ensemble.generation"),
    "template_language": (("en",), "the outline is asked for in English"),
    "outline_prompt_template": ((), _WORDS),
    "final_prompt_template": ((), _WORDS),
}
"""Keys that may have only these values here, or none, and the reason or what to write instead."""
PENALTIES = tuple(name for name in ONLY if name.endswith("_penalty"))
GENERATION_KEYS = (*GENERATION, *STOPS, "extract_after", "seed", *PENALTIES)


def method_of(ensemble: Mapping[str, Any]) -> str:
    """Their output aggregation method."""
    where = "ensemble.output_aggregation_method"
    if ensemble.get("output_aggregation_method") == "simple":
        raise ArgumentError(
            f"{where}: simple stands in their README, but not in their code; of what is here the nearest are "
            "aggregation: one (the first model answers alone) and aggregation: vote in this package's layout, or one "
            f"of {', '.join(AGGREGATIONS)} in theirs."
        )
    return choice(where, ensemble.get("output_aggregation_method", "loop"), AGGREGATIONS)


def parameters_of(ensemble: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of the aggregation, those checked that may have only one value."""
    method = method_of(ensemble)
    known = (*AGGREGATIONS[method], "max_tokens", "name")
    given = ensemble.get(PARAMETERS)
    for key in given if isinstance(given, Mapping) else ():
        able = [one for one, keys in AGGREGATIONS.items() if key in keys]
        if able and key not in known:
            raise ArgumentError(
                f"{PARAMETERS}.{key} has no effect with {method}, only with {', '.join(able)}; leave it out."
            )
    parameters = section(ensemble, PARAMETERS, known, "ensemble.")
    check_only(parameters, PARAMETERS)
    return parameters


def check_only(given: Mapping[str, Any], where: str) -> None:
    """Refuse values that cannot work here, by `ONLY`."""
    for name, value in given.items():
        if name in ONLY and value not in ONLY[name][0]:
            allowed = " or ".join(map(str, ONLY[name][0]))
            only = f"has to be {allowed} here" if allowed else "cannot be given here"
            raise ArgumentError(f"{where}.{name}={value!r} {only} ({ONLY[name][1]}); change it, or leave it out.")


def generation(ensemble: Mapping[str, Any]) -> dict[str, Any]:
    """The generation arguments of a run."""
    parameters = parameters_of(ensemble)
    given = section(ensemble, "generation", GENERATION_KEYS, "ensemble.")
    check_only({name: given[name] for name in PENALTIES if name in given}, "generation")
    if given.get("extract_after"):
        raise ArgumentError(
            f"generation.extract_after={given['extract_after']!r} has no counterpart, because answers are kept whole; "
            "leave it out, and find the answer with a filter of the task, or with extract=REGEX of aggregation=vote."
        )
    if "max_tokens" in parameters:
        longest = parameters["max_tokens"]
        if given.setdefault("max_tokens", longest) != longest:
            raise ArgumentError(f"generation.max_tokens and {PARAMETERS}.max_tokens differ; keep one of them.")
    found = {name: check(f"generation.{key}", given[key]) for key, (name, check) in GENERATION.items() if key in given}
    if "max_gen_toks" in found and method_of(ensemble) == "progressive":
        found["max_gen_toks"] = left_after_outline(found["max_gen_toks"], policy_tokens(ensemble))
    for key in STOPS:
        texts = [given[key]] if isinstance(given.get(key), str) else given.get(key, [])
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise ArgumentError(f"generation.{key}={texts} has to be a list of texts.")
        if texts:
            found["until"] = found.get("until", []) + texts
    return found


def left_after_outline(longest: int, outline: int) -> int:
    """The longest answer of progressive in tokens; their limit counts the outline, which is no part of the answer."""
    if longest <= outline:
        raise ArgumentError(
            f"generation.max_tokens={longest} counts the outline of up to {outline} tokens and leaves none for the "
            f"answer; raise it, or lower {PARAMETERS}.outline_max_tokens."
        )
    return longest - outline


def policy_tokens(ensemble: Mapping[str, Any]) -> int:
    """How many tokens the larger model writes at most, with progressive and switch."""
    key = POLICIES[method_of(ensemble)][1]
    return to_positive(f"{PARAMETERS}.{key}", parameters_of(ensemble).get(key, POLICY_TOKENS))


def selection(ensemble: Mapping[str, Any], stats: Any, without_effect: list[str]) -> dict[str, Any]:
    """The arguments of the selection; `stats` is `model_stats`, of which a file of this package's format is taken."""
    key = "ensemble.model_selection_method"
    method = ensemble.get("model_selection_method", "all")
    if method == "learned":
        raise ArgumentError(
            f"{key}: learned selects all models in their toolkit, because it is not written there; write all, "
            "or zscore or model_judgment."
        )
    name, known = SELECTIONS[choice(key, method, SELECTIONS)]
    parameters = section(ensemble, "model_selection_params", (*known, "name"), "ensemble.")
    without_effect += ["model_selection_params.name"] * ("name" in parameters)
    arguments: dict[str, Any] = {"selection": name}
    if parameters.get("model_count", -1) != -1:  # -1 leaves it to the strategy
        arguments["count"] = to_positive("model_selection_params.model_count", parameters["model_count"])
    if stats and name not in ("zscore", "self_assessment"):
        without_effect.append("model_stats")
    elif stats:
        if not isinstance(stats, Mapping) or set(stats) != {"stats_file"}:
            raise ArgumentError(
                "model_stats hold less than this package compares with; collect a reference of the models with "
                "`lm-eval-tandem collect --reference`, and write model_stats: {stats_file: FILE}."
            )
        arguments["reference"] = str(stats["stats_file"])
    return arguments


def aggregation(
    ensemble: Mapping[str, Any],
    models: list[Model],
    selected: Mapping[str, Any],
    rewards: Any,
    without_effect: list[str],
) -> dict[str, Any]:
    """The arguments of an aggregation that is no policy.

    Parameters
    ----------
    ensemble
        The section.
    models
        The models of the ensemble.
    selected
        The arguments of the selection.
    rewards
        `reward_specs`.
    without_effect
        Gets the keys that have no effect here.
    """
    method, parameters = method_of(ensemble), parameters_of(ensemble)
    if "progressive" in ensemble:
        without_effect.append("ensemble.progressive")
    without_effect += [f"{PARAMETERS}.{name}" for name in ("name", "exclude_self_scoring") if name in parameters]
    if method in ("loop", "random", "reward_based"):
        arguments = segments(ensemble, method, parameters, leaves_one(models, selected), without_effect)
    else:
        arguments = tokens(method, parameters)
        without_effect += ["ensemble.max_rounds"] * ("max_rounds" in ensemble)
    if method == "reward_based":
        given = [one for one in (rewards, parameters.get("reward_specs")) if one]
        if len(given) > 1:
            raise ArgumentError(f"reward_specs and {PARAMETERS}.reward_specs were both given; keep one of them.")
        threshold = parameters.get("score_threshold", ensemble.get("score_threshold"))
        return arguments | scorer_of(given[0] if given else [], models, threshold, without_effect)
    without_effect += ["reward_specs"] * bool(rewards)
    without_effect += ["ensemble.score_threshold"] * ("score_threshold" in ensemble)
    return arguments


def leaves_one(models: list[Model], selected: Mapping[str, Any]) -> bool:
    """Whether a selection leaves one model for sure."""
    usual = {"self_assessment": 1, "random": 1}.get(selected["selection"], len(models))
    return bool(selected.get("count", usual) == 1)


def segments(
    ensemble: Mapping[str, Any], method: str, parameters: Mapping[str, Any], alone: bool, without_effect: list[str]
) -> dict[str, Any]:
    """The arguments of an aggregation by segments; a model that is `alone` writes its answer whole, as in theirs."""
    key = "max_new_tokens_per_round"
    given = {"ensemble.max_rounds": ("max_rounds", ensemble.get("max_rounds"))}
    given |= {
        f"{PARAMETERS}.max_rounds": ("max_rounds", parameters.get("max_rounds")),
        f"{PARAMETERS}.{key}": ("segment_tokens", parameters.get(key)),
    }
    given = {where: (name, to_positive(where, value)) for where, (name, value) in given.items() if value is not None}
    if len({value for name, value in given.values() if name == "max_rounds"}) > 1:
        raise ArgumentError(f"ensemble.max_rounds and {PARAMETERS}.max_rounds differ; keep one of them.")
    if alone and method != "reward_based":
        without_effect += given
        return {"aggregation": "one"}
    return {"aggregation": method, **dict(given.values())}


def tokens(method: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of an aggregation by tokens; the weighted ones are plain averages without weights, as in theirs."""
    arguments: dict[str, Any] = {}
    for name in ("model_weights", "weights"):
        if name in parameters:
            arguments["weights"] = to_weights(f"{PARAMETERS}.{name}", parameters[name])
    if "threshold" in parameters:
        arguments["threshold"] = to_share(f"{PARAMETERS}.threshold", parameters["threshold"])
    if method == "gac":
        return {"aggregation": "gac", **arguments}
    return {"aggregation": "distribution" if "weights" in arguments else "average", **arguments}


def policy(
    ensemble: Mapping[str, Any], models: list[Model], selected: Mapping[str, Any], without_effect: list[str]
) -> tuple[dict[str, Any], str]:
    """The arguments of `--model tandem` for progressive and switch, and a sentence on who is the mentor."""
    method, parameters = method_of(ensemble), parameters_of(ensemble)
    if selected["selection"] != "all":
        raise ArgumentError(
            f"ensemble.model_selection_method: {ensemble['model_selection_method']} may leave one model, and {method} "
            "takes two; write all."
        )
    if len(models) != 2:
        raise ArgumentError(f"model_specs holds {len(models)} models, and {method} takes two; keep the two to be used.")
    if "progressive" in ensemble and method == "progressive":
        raise ArgumentError(
            f"ensemble.progressive is of an older version of their toolkit; write {PARAMETERS}: "
            "{outline_max_tokens: N} instead."
        )
    without_effect += [
        f"ensemble.{name}" for name in ("progressive", "max_rounds", "score_threshold") if name in ensemble
    ]
    without_effect += [f"{PARAMETERS}.name"] * ("name" in parameters)
    (mentor, intern), how = by_size(models)
    note = f"{mentor['model']} is the larger model ({how}), hence the mentor, and {intern['model']} the intern."
    if method == "progressive" and "template_language" not in parameters:
        note = note.removesuffix(".") + "; the outline is asked for in English."
    return {**as_roles(mentor, intern), "policy": f"{POLICIES[method][0]}:{policy_tokens(ensemble)}"}, note
