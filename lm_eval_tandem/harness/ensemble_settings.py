"""The settings of an ensemble: its arguments, from `--model_args` and files, checked before a model is loaded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval_tandem.accounting import PRICES, Prices
from lm_eval_tandem.engines import Role
from lm_eval_tandem.engines.registry import check_view
from lm_eval_tandem.ensembles import scorers
from lm_eval_tandem.ensembles.reference_file import Reference, read_reference, reference_of
from lm_eval_tandem.ensembles.responses import extractor
from lm_eval_tandem.ensembles.selection import CONFIDENT
from lm_eval_tandem.ensembles.strategies import AGGREGATIONS, SELECTIONS, Strategy
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.arguments import PAIR, format_numbers
from lm_eval_tandem.harness.ensemble_arguments import ARGUMENTS, BUNDLED, unused
from lm_eval_tandem.harness.settings import (
    LOCAL_BACKENDS,
    PRICED_BACKENDS,
    Given,
    accepts,
    backend_for,
    check_batch_sizes,
    check_own_files,
    check_values,
    checked_model,
    refuse_secret,
)

OF_TANDEM = ("mentor", "intern", "policy", "efforts", "classifier", "thresholds")
"""Arguments of the other model, which are easily given to this one."""
LONGEST_NAME = 80
"""Letters of the models' names in the name of a run, which names a folder."""
POLICY = "ensemble:"
"""What the policy of an ensemble begins with, in records and reports."""
STEP_IN_TOKENS = "hf"
"""The backend whose models can decode in step."""
SCORER_OPTIONS = {"scorer_step_separator": "step_separator", "scorer_api_key_env": "api_key_env"}
"""Arguments of a scorer, by the names under which `scorers` takes them."""
OF_STRATEGIES = (
    *("count", "reference", "weights", "threshold", "scorer", "score_threshold"),
    *("segment_tokens", "segment_end", "max_rounds", "extract"),
)
"""Arguments that belong to some of the strategies."""
OF_MODELS = ("model", "name", "backend")
"""What the mapping of a model takes beside the arguments of its backend."""
LACKING = {
    "reference": "collect it with `lm-eval-tandem collect --reference` and give its file as reference=FILE (in a file "
    "of the authors' toolkit as model_stats: {stats_file: FILE})"
}
"""What to do where a strategy lacks an option, by its name; for others they are simply given."""


@dataclass(frozen=True)
class EnsembleSettings:
    """The settings of a run of an ensemble, checked and complete."""

    roles: Mapping[str, Role]
    selection: Strategy
    aggregation: Strategy
    options: Mapping[str, Any]
    """The arguments of the strategies (`OF_STRATEGIES`) that were given, by name."""
    reference: Mapping[str, Reference] | None
    scorer_options: Mapping[str, Any]
    loglikelihood: str
    store: Path | None
    ledger: Path | None
    seed: int
    bundled: bool
    max_rounds: int
    extract: str

    @property
    def pair_name(self) -> str:
        """How results call the models: by a few of them and a checksum where all names are long."""
        if self.bundled:
            return PAIR
        whole = "+".join(self.roles)
        checksum = hashlib.sha256(whole.encode()).hexdigest()[:8]
        return whole if len(whole) <= LONGEST_NAME else f"{whole[:LONGEST_NAME]}-{checksum}"

    @property
    def policy(self) -> str:
        """The strategies and their options, as records name them: "ensemble:zscore/loop (count=2)"."""
        strategies = self.aggregation.name
        if self.selection.name != "all":
            strategies = f"{self.selection.name}/{strategies}"
        shown = [f"{name}={short(name, value)}" for name, value in self.options.items()]
        if self.reference is not None:
            checksum = hashlib.sha256(repr(sorted(self.reference.items())).encode()).hexdigest()[:8]
            shown = [f"{one}-{checksum}" if one.startswith("reference=") else one for one in shown]
        if "step_separator" in self.scorer_options:
            shown.append(f"scorer_step_separator={short('', self.scorer_options['step_separator'])}")
        return POLICY + strategies + (f" ({', '.join(shown)})" if shown else "")

    @property
    def run_name(self) -> str:
        """How results call the run: the models and the strategies."""
        strategies = f"{self.selection.name}-{self.aggregation.name}".removeprefix("all-")
        return f"ensemble-{self.pair_name}-{strategies}"

    @property
    def members(self) -> tuple[str, ...]:
        """The names of the models, in order."""
        return tuple(self.roles)


def short(name: str, value: Any) -> str:
    """A value of an option, as a policy shows it: in one line, and of a path its last part."""
    if isinstance(value, tuple):
        return format_numbers(value)
    if isinstance(value, Path) or (name == "scorer" and scorers.kind_of(value) == "reward model"):
        return Path(value).name
    return str(value).replace("\n", "\\n")


def read_ensemble(
    given: Mapping[str, Any], engine_arguments: Callable[[str], Collection[str] | None]
) -> EnsembleSettings:
    """The settings of a run, from `--model_args` (and batch_size, max_batch_size, device, which the harness adds).

    Parameters
    ----------
    given
        All arguments by name; None counts as not given.
    engine_arguments
        The names that a backend takes (None: any). They are for every model whose backend takes them; a model that is
        a mapping has its own beside them.

    Raises
    ------
    ArgumentError
        An argument is unknown or malformed, or contradicts another.
    """
    arguments = expanded(given)
    own = Given(arguments, ARGUMENTS)
    names = {one.name for one in ARGUMENTS}
    shared = {name: value for name, value in arguments.items() if name not in names}
    check_batch_sizes(shared)
    roles = roles_of(own["models"] or list(BUNDLED), own, shared, engine_arguments)
    selection, aggregation = strategies_of(own, len(roles))
    options = {name: own[name] for name in OF_STRATEGIES if name in own}
    check_options(options, selection, aggregation, own, roles)
    if "segment_end" in options:
        options["segment_end"] = options["segment_end"].replace("\\n", "\n")
    reference = None
    if "reference" in own:
        reference = by_name(read_reference(own["reference"]), roles, own["reference"])
        if selection.name == "self_assessment":
            check_assessed(reference, own["reference"])
    loglikelihood = own["loglikelihood"] or next(iter(roles))
    if loglikelihood not in roles:
        raise ArgumentError(f"loglikelihood={loglikelihood} names no model; use one of {', '.join(roles)}.")
    check_own_files(own["store"], own["ledger"])
    return EnsembleSettings(
        roles=roles,
        selection=selection,
        aggregation=aggregation,
        options=options,
        reference=reference,
        scorer_options=scorer_options_of(own, shared),
        loglikelihood=loglikelihood,
        store=own["store"],
        ledger=own["ledger"],
        seed=own["seed"],
        bundled=[role.label for role in roles.values()] == list(BUNDLED),
        max_rounds=own["max_rounds"],
        extract=own["extract"],
    )


def expanded(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that have a value, and those of the file that `ensemble` names in its place."""
    arguments = {name: value for name, value in given.items() if value is not None}
    if arguments.get("ensemble"):
        arguments = read_file(Path(str(arguments.pop("ensemble"))).expanduser()) | arguments
    return arguments


def models_alone(given: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that say which models there are and how they are loaded, without those of strategies."""
    of_strategies = ("selection", "aggregation", "ledger", *OF_STRATEGIES, *SCORER_OPTIONS)
    return {name: value for name, value in expanded(given).items() if name not in of_strategies}


def read_file(path: Path) -> dict[str, Any]:
    """The arguments in a YAML file, in this package's layout or that of the authors' toolkit.

    Raises
    ------
    ArgumentError
        It cannot be read, or holds no arguments.
    """
    from lm_eval_tandem.harness import toolkit_config
    from lm_eval_tandem.harness.yaml_file import read_yaml

    content = read_yaml(path, f"ensemble={path}")
    if not isinstance(content, dict) or not content:
        raise ArgumentError(f"ensemble={path} holds no arguments; give models and aggregation, for example.")
    if not all(isinstance(name, str) for name in content):
        raise ArgumentError(f"ensemble={path} has an entry whose name is no text; name arguments, such as models.")
    if toolkit_config.is_toolkit_config(content):
        return toolkit_config.arguments_of(content, path)
    if "ensemble" in content:
        raise ArgumentError(f"ensemble={path} names a further file in its entry `ensemble`; put all into one.")
    check_values(content, f"ensemble={path}")
    return content


def roles_of(
    models: Sequence[Any],
    own: Given,
    shared: Mapping[str, Any],
    engine_arguments: Callable[[str], Collection[str] | None],
) -> dict[str, Role]:
    """The models by name, each with its arguments."""
    specs = [dict(model) if isinstance(model, dict) else {"model": model} for model in models]
    for spec in specs:
        if not all(isinstance(name, str) for name in spec):
            raise ArgumentError("models holds an entry whose names are no texts; give `model` and its arguments.")
        if not isinstance(spec.get("model"), str) or not spec["model"].strip():
            raise ArgumentError(
                f"models holds an entry with {', '.join(spec) or 'nothing'}, and without `model`; give the folder, hub "
                "id or name of the model there."
            )
    backends = [
        backend_for(spec["model"], spec.pop("backend", None), "backend" in own, own["backend"]) for spec in specs
    ]
    for spec, backend in zip(specs, backends, strict=True):
        check_name(spec["model"], backend)
    taken = {backend: engine_arguments(backend) for backend in backends}
    check_known(shared, taken)
    roles: dict[str, Role] = {}
    for spec, backend in zip(specs, backends, strict=True):
        model = spec.pop("model")
        label = model if model in BUNDLED else str(model)
        model = str(BUNDLED.get(model, model))
        own_name = str(spec.pop("name", "") or "")
        if own_name in roles:
            raise ArgumentError(f"models gives the name {own_name} to two models; give each a name of its own.")
        name = unused(own_name or Path(model).name, roles)
        check_known(spec, {backend: taken[backend]}, name)
        check_batch_sizes(spec)
        arguments = {key: value for key, value in shared.items() if accepts(taken[backend], key)} | spec
        prices = Prices.read(arguments)
        if backend not in PRICED_BACKENDS:
            arguments = {key: value for key, value in arguments.items() if key not in PRICES}
        model = checked_model("models", model, backend, arguments)
        roles[name] = Role(model, backend, arguments, label, prices)
    return roles


def check_name(model: str, backend: str) -> None:
    """Refuse the name of a model that can be none, because it names several or a bundled one that does not exist."""
    if ":" in model and backend in LOCAL_BACKENDS and not re.match(r"[A-Za-z]:\\", model) and not Path(model).exists():
        raise ArgumentError(
            f"models={model} names one model, with a colon in its name; put semicolons between models, as in a;b;c."
        )
    if model == PAIR or (model.startswith(f"{PAIR}/") and model not in BUNDLED):
        raise ArgumentError(f"models={model} is no bundled model; use {' or '.join(BUNDLED)}.")


def check_known(arguments: Mapping[str, Any], taken: Mapping[str, Collection[str] | None], whose: str = "") -> None:
    """Refuse arguments that no backend takes, and secrets.

    Parameters
    ----------
    arguments
        By name.
    taken
        By backend, the names that it takes; None for any.
    whose
        The model in whose mapping the arguments stand; "" for arguments of all models.
    """
    own = OF_MODELS if whose else tuple(one.name for one in ARGUMENTS)
    for name, value in arguments.items():
        refuse_secret(name, name, value)
        if name in OF_TANDEM:
            raise ArgumentError(f"{name} is an argument of --model tandem; --model ensemble takes models=…")
        if name == "pretrained" or not any(accepts(names, name) for names in taken.values()):
            if whose and any(name == one.name for one in ARGUMENTS):
                raise ArgumentError(
                    f"{name} is an argument of the whole ensemble; write it beside models, not in the mapping of "
                    f"{whose}."
                )
            known = sorted({*own, *(name for names in taken.values() for name in names or ())})
            close = get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else "leave it out."
            takes = "A model's mapping takes" if whose else "Its own arguments are"
            raise ArgumentError(
                f"the argument {name!r} {f'of {whose} ' if whose else ''}is not known to ensemble; {hint} "
                f"{takes} {', '.join(own)}; those of the backend (--model hf, …) are taken too."
            )


def strategies_of(own: Given, models: int) -> tuple[Strategy, Strategy]:
    """The selection and the aggregation of a run of so many models."""
    selection = SELECTIONS[own["selection"]]
    count = own["count"]
    if count is not None and count > models:
        raise ArgumentError(f"count={count} is more than the {models} models; give a number from 1 to {models}.")
    leaves_one = models == 1 or selection.name == "self_assessment" or count == 1
    leaves_one = leaves_one or (selection.name == "random" and count is None)
    chosen = own["aggregation"] or ("one" if leaves_one else None)
    if chosen is None:
        in_step = selection.name == "all"
        possible = [
            one.name for one in AGGREGATIONS.values() if one.name != "one" and (in_step or one.level != "token")
        ]
        lacking = "".join(f" It also needs {name}: {LACKING[name]}." for name in selection.required if name not in own)
        raise ArgumentError(
            f"selection={selection.name} may leave several models, so aggregation=… has to say how what they write "
            f"becomes one answer; use one of {', '.join(possible)}.{lacking}"
        )
    if chosen == "one" and (count or 1) > 1:
        raise ArgumentError(f"aggregation=one takes the answer of one model, but count={count} selects more; drop one.")
    if chosen == "one" and selection.name == "all" and models > 1:
        raise ArgumentError(
            f"aggregation=one takes the answer of one model, but selection=all selects all {models}; give another "
            "selection, or one model."
        )
    aggregation = AGGREGATIONS[chosen]
    if aggregation.level == "token" and selection.name != "all":
        raise ArgumentError(
            f"aggregation={chosen} decodes all models in step, so it does not go with selection={selection.name}; "
            "leave out selection, or use an aggregation by response or segment."
        )
    return selection, aggregation


def check_options(
    options: Mapping[str, Any], selection: Strategy, aggregation: Strategy, own: Given, roles: Mapping[str, Role]
) -> None:
    """Refuse options that the strategies do not have, need, or cannot use."""
    for name in options:
        if name not in (*selection.options, *aggregation.options):
            able = [f"selection={one.name}" for one in SELECTIONS.values() if name in one.options]
            able += [f"aggregation={one.name}" for one in AGGREGATIONS.values() if name in one.options]
            raise ArgumentError(
                f"{name} has no effect with selection={selection.name} and aggregation={aggregation.name}; it is for "
                f"{', '.join(able)}."
            )
    for kind, strategy in (("selection", selection), ("aggregation", aggregation)):
        for name in strategy.required:
            if name not in options:
                raise ArgumentError(f"{kind}={strategy.name} needs {name}; {LACKING.get(name, f'give {name}=…')}.")
    if "weights" in options and len(options["weights"]) != len(roles):
        raise ArgumentError(
            f"weights={format_numbers(options['weights'])} holds {len(options['weights'])} numbers for "
            f"{len(roles)} models; give one for each."
        )
    if "extract" in options:
        extractor(options["extract"])
    others = [f"{name} ({role.backend})" for name, role in roles.items() if role.backend != STEP_IN_TOKENS]
    if aggregation.level == "token" and others:
        raise ArgumentError(
            f"aggregation={aggregation.name} needs the whole next-token distribution of every model, which only "
            f"backend={STEP_IN_TOKENS} gives, and not {', '.join(others)}; use an aggregation by response or segment."
        )
    if selection.name == "zscore":
        for name, role in roles.items():
            check_view(CONFIDENT, role.backend, f"selection=zscore of {name}")
    of_scorer = [name for name in SCORER_OPTIONS if name in own]
    if "scorer" in options:
        scorers.check(options["scorer"], list(roles), {SCORER_OPTIONS[name]: own[name] for name in of_scorer})
    elif of_scorer:
        raise ArgumentError(f"{of_scorer[0]} has no effect without scorer=…; leave it out.")


def scorer_options_of(own: Given, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The options of the scorer, by the names under which `scorers` takes them."""
    options = {short: own[name] for name, short in SCORER_OPTIONS.items() if name in own}
    if "step_separator" in options:
        options["step_separator"] = options["step_separator"].replace("\\n", "\n")
    return options | {name: shared[name] for name in scorers.GENERAL if name in shared}


def by_name(reference: Mapping[str, Reference], roles: Mapping[str, Role], path: Path) -> dict[str, Reference]:
    """What is usual for each model, by its name instead of its label."""
    return {name: reference_of(role.label, reference, f"reference={path}") for name, role in roles.items()}


def check_assessed(reference: Mapping[str, Reference], path: Path) -> None:
    """Refuse a reference without the models' usual self-assessment."""
    lacking = [name for name, one in reference.items() if one.assessment_mean is None]
    if lacking:
        raise ArgumentError(
            f"reference={path} has no assessment_mean of {', '.join(lacking)}; collect it again with `lm-eval-tandem "
            "collect --reference`, or leave reference out."
        )
