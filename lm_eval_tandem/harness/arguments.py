"""The arguments of `--model tandem`, checked before any model is loaded. One sentence per mistake."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, cast, get_args

from lm_eval_tandem import _paths, pair
from lm_eval_tandem.accounting import PRICES, Prices
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import GPRA, Guidance, Insights, Prompts, Wording
from lm_eval_tandem.engines import Role
from lm_eval_tandem.errors import ArgumentError

EFFORTS = (100, 500, 1000)
"""Mentor tokens in total after stages 1, 2 and 3 (paper, 3.1)."""
ROLES = ("mentor", "intern")
THINKING = ("auto", "none", "mentor", "intern", "both")
PAIR = "pair"
"""The name of the bundled mentor and intern, and of their classifier."""


@dataclass(frozen=True)
class Settings:
    """Everything that a run of the cascade is told, checked and complete."""

    mentor: Role | None
    intern: Role | None
    policy: Policy
    efforts: tuple[int, ...]
    prompts: Prompts
    classifier: Path | None
    thresholds: tuple[float, ...] | None
    loglikelihood: str
    store: Path | None
    ledger: Path | None
    seed: int
    record_features: bool
    bundled: bool

    @property
    def roles(self) -> dict[str, Role | None]:
        """Both roles by name; None for one that the policy does not need."""
        return {"mentor": self.mentor, "intern": self.intern}

    @property
    def pair_name(self) -> str:
        """How results call the two models."""
        if self.bundled:
            return PAIR
        return "+".join(role.short for role in (self.mentor, self.intern) if role is not None)

    @property
    def run_name(self) -> str:
        """How results call the run: the pair and the policy."""
        return f"tandem-{self.pair_name}-{str(self.policy).replace(':', '-')}"


def read(given: Mapping[str, Any], engine_arguments: Callable[[str], Collection[str] | None]) -> Settings:
    """The settings that the arguments of `--model_args` (and batch_size, max_batch_size, device) describe.

    engine_arguments: names that a backend takes (None: any), allowed bare (for every role whose backend takes them),
        or as mentor_<name>, intern_<name>.

    Raises
    ------
    ArgumentError
        An argument is unknown, malformed, or contradicts another.
    """
    arguments = {name: value for name, value in given.items() if value is not None}
    own = {name: arguments.pop(name) for name in CASCADE_ARGUMENTS if name in arguments}
    backends = {role: str(own.get(f"{role}_backend", own.get("backend", "hf"))) for role in ROLES}
    per_role = split_by_role(arguments, {role: engine_arguments(backend) for role, backend in backends.items()})
    prices = {role: Prices.read(per_role[role]) for role in ROLES}
    for role in ROLES:
        if backends[role] not in PRICED_BACKENDS:
            per_role[role] = {name: value for name, value in per_role[role].items() if name not in PRICES}

    bundled = is_bundled(own)
    profile = pair_profile() if bundled or any(own.get(role) == PAIR for role in ROLES) else {}
    efforts = numbers("efforts", own.get("efforts", profile.get("efforts", EFFORTS)), int, "100:500:1000")
    if list(efforts) != sorted(set(efforts)) or efforts[0] < 1:
        raise ArgumentError(f"efforts={format_numbers(efforts)} has to rise from stage to stage, as 100:500:1000 does.")
    policy = Policy.parse(own.get("policy", "cascade"), len(efforts))

    for role, needed in (("mentor", policy.needs_mentor), ("intern", policy.needs_intern)):
        if needed and role not in own and backends[role] not in LOCAL_BACKENDS:
            raise ArgumentError(f"{role}_backend={backends[role]} needs {role}=…, the name of the model there.")
    models = models_of(own, bundled, policy)
    roles: dict[str, Role | None] = {}
    for role in ROLES:
        needed = policy.needs_mentor if role == "mentor" else policy.needs_intern
        label = f"{PAIR}/{role}" if bundled or own.get(role) == PAIR else str(models[role])
        found = role_of(role, models[role], backends[role], label, own, per_role[role]) if needed else None
        roles[role] = found and replace(found, prices=prices[role])
    answering = "mentor" if policy.mentor_alone else "intern"
    loglikelihood = one_of("loglikelihood", own.get("loglikelihood", answering), ROLES)
    if roles[loglikelihood] is None:
        raise ArgumentError(
            f"loglikelihood={loglikelihood} has no model under policy={policy}; "
            f"use loglikelihood={answering}, or another policy."
        )
    thresholds = None
    if "thresholds" in own:
        thresholds = numbers("thresholds", own["thresholds"], float, "0.5:0.5:0.6:0.7")
        if len(thresholds) != len(efforts) + 1 or not all(0 <= value <= 1 for value in thresholds):
            raise ArgumentError(
                f"thresholds={format_numbers(thresholds)} has to hold {len(efforts) + 1} values from 0 to 1: "
                f"one for the question alone and one for each of the {len(efforts)} efforts."
            )
    return Settings(
        mentor=roles["mentor"],
        intern=roles["intern"],
        policy=policy,
        efforts=efforts,
        prompts=prompts_of(own, PAIR if profile else "gpra"),
        classifier=classifier_of(own, bundled),
        thresholds=thresholds,
        loglikelihood=loglikelihood,
        store=path_of(own, "store"),
        ledger=path_of(own, "ledger"),
        seed=integer("seed", own.get("seed", 42)),
        record_features=parse_bool("record_features", own.get("record_features", False)),
        bundled=bundled,
    )


CASCADE_ARGUMENTS = (
    *ROLES,
    "backend",
    "mentor_backend",
    "intern_backend",
    "policy",
    "classifier",
    "thresholds",
    "efforts",
    "insights",
    "guidance",
    "prompts",
    "thinking",
    "loglikelihood",
    "store",
    "ledger",
    "seed",
    "record_features",
)
"""The arguments of the cascade itself; all others belong to an engine."""
SECRETS = {"token": "HF_TOKEN", "api_key": "OPENAI_API_KEY", "auth_token": "OPENAI_API_KEY"}
"""Arguments that are never taken, and the environment variable that takes their place."""
PRICED_BACKENDS = ("openai",)
"""Backends that take prices themselves, since servers say what they bill."""
LOCAL_BACKENDS = ("hf", "vllm")
"""Backends that load a model from a folder or hub; for others its name may be anything."""


def split_by_role(
    arguments: Mapping[str, Any], taken: Mapping[str, Collection[str] | None]
) -> dict[str, dict[str, Any]]:
    """Engine arguments for each role, of those that its backend takes; a prefixed one goes before a bare one."""
    bare: dict[str, dict[str, Any]] = {role: {} for role in ROLES}
    prefixed: dict[str, dict[str, Any]] = {role: {} for role in ROLES}
    for name, value in arguments.items():
        role, _, rest = name.partition("_")
        secret = SECRETS.get(rest if role in ROLES else name)
        if secret is not None:
            raise ArgumentError(
                f"{name} would be printed and kept with the results; set the environment variable {secret} instead."
            )
        if role in ROLES and rest != "pretrained" and accepts(taken[role], rest):
            prefixed[role][rest] = value
            continue
        takers = [role for role in ROLES if name != "pretrained" and accepts(taken[role], name)]
        for role in takers:
            bare[role][name] = value
        if not takers or role_prefix(name):
            known = {role: sorted({*(taken[role] or ()), *PRICES}) for role in ROLES}
            spellings = [*CASCADE_ARGUMENTS, *known["mentor"], *known["intern"]]
            spellings += [f"{role}_{name}" for role in ROLES for name in known[role]]
            close = get_close_matches(name, spellings, n=1) or ["mentor=… and intern=…"]
            raise ArgumentError(
                f"the model argument {name!r} is not known to tandem; did you mean {close[0]}? "
                f"Its own arguments are {', '.join(CASCADE_ARGUMENTS)}; those of the backend (--model hf, …) are "
                "taken too, for one role as mentor_<argument> or intern_<argument>."
            )
    return {role: {**bare[role], **prefixed[role]} for role in ROLES}


def accepts(names: Collection[str] | None, name: str) -> bool:
    """Whether a role takes the argument: one of its backend (any, where those are not known), or a price."""
    return names is None or name in names or name in PRICES


def role_prefix(name: str) -> bool:
    """Whether the argument is meant for one role."""
    return name.partition("_")[0] in ROLES


def pair_profile() -> dict[str, Any]:
    """The sizes and prompts that the bundled pair was trained with."""
    profile: dict[str, Any] = json.loads((Path(pair.__file__).parent / "profile.json").read_text(encoding="utf-8"))
    return profile


def is_bundled(own: Mapping[str, Any]) -> bool:
    """Whether the run uses the pair that ships with the package."""
    paths = {"mentor": pair.MENTOR, "intern": pair.INTERN}
    return all(own.get(role, PAIR) == PAIR or Path(str(own[role])).resolve() == paths[role] for role in ROLES)


def models_of(own: Mapping[str, Any], bundled: bool, policy: Policy) -> dict[str, str | None]:
    """The model of each role; both are named (`pair`: the bundled one), or neither (the bundled pair)."""
    if bundled:
        return {"mentor": str(pair.MENTOR), "intern": str(pair.INTERN)}
    for role, needed in (("mentor", policy.needs_mentor), ("intern", policy.needs_intern)):
        if needed and role not in own:
            other = next(name for name in ROLES if name != role)
            raise ArgumentError(
                f"{other}={own[other]} was given without {role}=…, which policy={policy} needs; "
                f"name both models, or neither for the bundled pair ({role}={PAIR} is its {role})."
            )
    named = {role: str(own[role]) if role in own else None for role in ROLES}
    paths = {"mentor": str(pair.MENTOR), "intern": str(pair.INTERN)}
    return {role: paths[role] if model == PAIR else model for role, model in named.items()}


def role_of(
    role: str, model: str | None, backend: str, label: str, own: Mapping[str, Any], arguments: dict[str, Any]
) -> Role:
    """One role, with its path and thinking mode checked."""
    assert model is not None
    looks_local = backend in LOCAL_BACKENDS and (re.match(r"[./~]|[A-Za-z]:\\", model) or model.count("/") > 1)
    if looks_local and not Path(model).expanduser().is_dir():
        raise ArgumentError(f"{role}={model} is no folder; give the path of a saved model, or the id of one on a hub.")
    if looks_local:
        model = str(Path(model).expanduser())
    thinking = one_of("thinking", own.get("thinking", "auto"), THINKING)
    if thinking != "auto":
        if "enable_thinking" in arguments:
            raise ArgumentError(f"thinking={thinking} and {role}_enable_thinking were both given; keep one of them.")
        arguments = {**arguments, "enable_thinking": thinking in (role, "both")}
    return Role(model, backend, arguments, label)


def prompts_of(own: Mapping[str, Any], usual: str) -> Prompts:
    """The prompts of a run: by name, from a file, or the bundled pair's own."""
    insights = one_of("insights", own.get("insights", "cutoff"), get_args(Insights))
    guidance = one_of("guidance", own.get("guidance", "guided"), get_args(Guidance))
    asked = str(own.get("prompts", usual))
    if asked == PAIR:
        wording = Wording(**pair_profile()["insights"])
    elif asked == "gpra":
        wording = GPRA
    else:
        wording = Wording.read(Path(asked).expanduser())
    if insights == "staged" and not wording.deepen:
        raise ArgumentError(
            f"insights=staged needs a wording that asks for a deeper pass, and prompts={asked} has none; "
            "use insights=cutoff, or a prompts file with `deepen`."
        )
    return Prompts(wording, cast(Insights, insights), cast(Guidance, guidance))


def classifier_of(own: Mapping[str, Any], bundled: bool) -> Path | None:
    """The folder of the classifier: the name of one that ships with the package, or a path (./name for one beside)."""
    asked = own.get("classifier", PAIR if bundled else None)
    if asked is None:
        return None
    shipped = _paths.classifiers() / str(asked)
    if re.fullmatch(r"\w[\w.-]*", str(asked)) and shipped.is_dir():
        return shipped
    return Path(str(asked)).expanduser()


def one_of(name: str, value: Any, allowed: Collection[str]) -> str:
    """The value, if it is one of those allowed."""
    if str(value) not in allowed:
        raise ArgumentError(f"{name}={value} is not known; use one of {', '.join(allowed)}.")
    return str(value)


def numbers(name: str, value: Any, kind: type[int] | type[float], example: str) -> tuple[Any, ...]:
    """Numbers from a list, or from text with colons between them."""
    parts = value if isinstance(value, (list, tuple)) else str(value).split(":")
    try:
        return tuple(kind(str(part)) for part in parts)
    except ValueError as error:
        raise ArgumentError(f"{name}={value} has to be numbers with colons between them, as in {example}.") from error


def format_numbers(values: Collection[Any]) -> str:
    """Numbers as they are written in --model_args."""
    return ":".join(map(str, values))


def integer(name: str, value: Any) -> int:
    """A whole number."""
    try:
        return int(str(value))
    except ValueError as error:
        raise ArgumentError(f"{name}={value} has to be a whole number.") from error


def parse_bool(name: str, value: Any) -> bool:
    """True or False."""
    if str(value).lower() in ("true", "false"):
        return str(value).lower() == "true"
    raise ArgumentError(f"{name}={value} has to be True or False.")


def path_of(own: Mapping[str, Any], name: str) -> Path | None:
    """A path that was given, or None."""
    return Path(str(own[name])).expanduser() if name in own else None
