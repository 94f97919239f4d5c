"""A run's settings: the model arguments, checked one by one (`arguments.py`) and then against each other.

Everything is refused here, in one sentence per mistake, before a model is loaded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from lm_eval_tandem import _paths, pair
from lm_eval_tandem.accounting import PRICES, Prices
from lm_eval_tandem.cascade.policies import POLICIES, Policy, kind_of
from lm_eval_tandem.cascade.prompts import HANDOFF, WORDINGS, Guidance, Prompts, Wording
from lm_eval_tandem.engines import Role
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.arguments import ARGUMENTS, BY_NAME, EFFORTS, PAIR, ROLES, Argument, format_numbers
from lm_eval_tandem.judge import repository
from lm_eval_tandem.judge.repository import HubRepository

SERVER_KEY = "OPENAI_API_KEY (for another server than OpenAI's: one that you name in api_key_env=…)"
SECRETS = {"token": "HF_TOKEN", "api_key": SERVER_KEY, "auth_token": SERVER_KEY}
"""Arguments that are never taken, and the environment variable that takes their place."""
PRICED_BACKENDS = ("openai",)
"""Backends that take prices themselves, since servers say what they bill."""
LOCAL_BACKENDS = ("hf", "vllm")
"""Backends that load a model from a folder or hub; for others its name may be anything."""
PAPERS_MODELS = re.compile(r"deepseek-r1-distill|qwen3-(8|32)b\b|gpt-oss-120b", re.IGNORECASE)
"""Names of the models that the paper reports on, which keep its way of guiding."""
GGUF_BACKEND, GGUF_SUFFIX = "llamacpp", ".gguf"
"""The backend that runs GGUF files, and what their names end in."""


@dataclass(frozen=True)
class Settings:
    """The settings of a run, checked and complete."""

    mentor: Role | None
    intern: Role | None
    policy: Policy
    efforts: tuple[int, ...]
    prompts: Prompts
    classifier: Path | HubRepository | None
    thresholds: tuple[float, ...] | None
    loglikelihood: str
    store: Path | None
    ledger: Path | None
    seed: int
    recorded: bool | str
    record_insights: bool
    bundled: bool
    step_end: str

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


class Given:
    """The arguments of a table that were given, checked one by one, and the defaults of the others."""

    def __init__(self, arguments: Mapping[str, Any], table: Sequence[Argument] = ARGUMENTS) -> None:
        self._table = {one.name: one for one in table}
        given = {name: arguments[name] for name in self._table if name in arguments}
        empty = [name for name, value in given.items() if value in ("", [], ())]
        if empty:
            raise ArgumentError(f"{empty[0]}= has no value; give one, or leave the argument out for its default.")
        self._values = {name: self._table[name].check(name, value) for name, value in given.items()}

    def __contains__(self, name: str) -> bool:
        return name in self._values

    def __getitem__(self, name: str) -> Any:
        """The value of an argument: as it was given, else its default (None where that depends on others)."""
        return self._values.get(name, self._table[name].default)


def read_settings(given: Mapping[str, Any], engine_arguments: Callable[[str], Collection[str] | None]) -> Settings:
    """The settings of a run, from `--model_args` (and batch_size, max_batch_size, device, which the harness adds).

    Parameters
    ----------
    given
        All arguments by name; None counts as not given.
    engine_arguments
        The names that a backend takes (None: any). They may be given as they are, for every role whose backend takes
        them, or as mentor_<name> and intern_<name>.

    Raises
    ------
    ArgumentError
        An argument is unknown or malformed, or contradicts another.
    """
    arguments = {name: value for name, value in given.items() if value is not None}
    own = Given(arguments)
    backends = {role: backend_of(role, own) for role in ROLES}
    engine = {name: value for name, value in arguments.items() if name not in BY_NAME}
    check_batch_sizes(engine)
    per_role = split_by_role(engine, {role: engine_arguments(backend) for role, backend in backends.items()})
    prices = {role: Prices.read(per_role[role]) for role in ROLES}
    for role in ROLES:
        if backends[role] not in PRICED_BACKENDS:
            per_role[role] = {name: value for name, value in per_role[role].items() if name not in PRICES}

    bundled = is_bundled(own)
    profile = pair_profile() if bundled or any(own[role] == PAIR for role in ROLES) else {}
    efforts: tuple[int, ...] = own["efforts"] or tuple(profile.get("efforts", EFFORTS))
    policy = Policy.parse(own["policy"], len(efforts))
    roles = roles_of(own, bundled, policy, backends, per_role, prices)
    check_own_files(own["store"], own["ledger"])
    return Settings(
        mentor=roles["mentor"],
        intern=roles["intern"],
        policy=policy,
        efforts=efforts,
        prompts=prompts_of(own, PAIR if profile else "gpra", guidance_of(own, backends, bool(profile))),
        classifier=classifier_of(own, bundled),
        thresholds=thresholds_of(own, len(efforts), policy),
        loglikelihood=loglikelihood_of(own, policy, roles),
        store=own["store"],
        ledger=own["ledger"],
        seed=own["seed"],
        recorded=own["record_features"],
        record_insights=own["record_insights"],
        bundled=bundled,
        step_end=own["step_end"].replace("\\n", "\n"),
    )


def backend_of(role: str, own: Given) -> str:
    """What runs a role's model: as it is given; otherwise llama.cpp for a GGUF file, and transformers for others."""
    return backend_for(str(own[role]), own[f"{role}_backend"], "backend" in own, own["backend"])


def backend_for(model: str, own: str | None, is_given: bool, usual: str) -> str:
    """What runs a model: its own backend; else the one that was given for all; else by what the model is."""
    if own:
        return str(own)
    return GGUF_BACKEND if not is_given and model.endswith(GGUF_SUFFIX) else usual


def check_values(given: Mapping[str, Any], where: str) -> None:
    """Refuse arguments from a file that have no value, and would count as not given."""
    empty = next((name for name, value in given.items() if value is None), None)
    if empty is not None:
        raise ArgumentError(f"{where}: {empty} has no value; give one, or leave the argument out for its default.")


def check_batch_sizes(arguments: Mapping[str, Any]) -> None:
    """Refuse batches of no questions, for which a run would wait for ever."""
    for name, value in arguments.items():
        if name.removeprefix("mentor_").removeprefix("intern_") not in ("batch_size", "max_batch_size"):
            continue
        text = str(value)
        if not text.startswith("auto") and not (text.isdecimal() and int(text) > 0):
            raise ArgumentError(f"{name}={value} has to be a whole number from 1, or auto.")


def check_own_files(store: Path | None, ledger: Path | None) -> None:
    """Refuse one file for the store and the ledger, which would replace it."""
    if store is not None and ledger is not None and store.resolve() == ledger.resolve():
        raise ArgumentError(f"store and ledger both name {ledger}; give each a file of its own.")


def check_one_policy(given: Mapping[str, Any]) -> None:
    """Refuse, in a run that stays with one policy, what has an effect on other policies alone.

    A server that has loaded both models goes on from one policy to others, so that what is given there may be for any
    of them.

    Raises
    ------
    ArgumentError
        `step_end` is given for a policy that does not write step by step.
    """
    policy = str(given.get("policy") or BY_NAME["policy"].default)
    kind = kind_of(policy)
    if given.get("step_end") is not None and kind is not None and not kind.is_stepwise:
        stepwise = " and ".join(one.syntax for one in POLICIES.values() if one.is_stepwise)
        raise ArgumentError(f"step_end has no effect with policy={policy}; it is for {stepwise}, so leave it out.")


def thresholds_of(own: Given, efforts: int, policy: Policy) -> tuple[float, ...] | None:
    """The thresholds that replace the classifier's: one per stage, stage 0 included; None where none are given."""
    thresholds: tuple[float, ...] | None = own["thresholds"]
    if thresholds is None:
        return None
    if not policy.needs_judge:
        judged = ", ".join(kind.syntax for kind in POLICIES.values() if kind.needs_judge)
        raise ArgumentError(
            f"thresholds has no effect with policy={policy}, under which no classifier decides; it is for {judged}, so "
            "leave it out."
        )
    outside = [value for value in thresholds if not 0 <= value <= 1]
    if outside:
        raise ArgumentError(f"thresholds holds {outside[0]:g}, which is not from 0 to 1; give scores, as in 0.8:0.5.")
    if len(thresholds) != efforts + 1:
        raise ArgumentError(
            f"thresholds={format_numbers(thresholds)} holds {len(thresholds)} values, but has to hold {efforts + 1}: "
            f"one for the question alone and one for each of the {efforts} efforts."
        )
    return thresholds


def loglikelihood_of(own: Given, policy: Policy, roles: Mapping[str, Role | None]) -> str:
    """The role that answers loglikelihood requests."""
    answering = "mentor" if policy.mentor_alone else "intern"
    role: str = own["loglikelihood"] or answering
    if roles[role] is None:
        raise ArgumentError(
            f"loglikelihood={role} has no model under policy={policy}; "
            f"use loglikelihood={answering}, or another policy."
        )
    return role


def split_by_role(
    arguments: Mapping[str, Any], taken: Mapping[str, Collection[str] | None]
) -> dict[str, dict[str, Any]]:
    """Engine arguments for each role, of those that its backend takes; a prefixed one goes before a bare one."""
    bare: dict[str, dict[str, Any]] = {role: {} for role in ROLES}
    prefixed: dict[str, dict[str, Any]] = {role: {} for role in ROLES}
    for name, value in arguments.items():
        role, _, rest = name.partition("_")
        refuse_secret(name, rest if role in ROLES else name, value)
        if role in ROLES and rest != "pretrained" and accepts(taken[role], rest):
            prefixed[role][rest] = value
            continue
        takers = [role for role in ROLES if name != "pretrained" and accepts(taken[role], name)]
        for role in takers:
            bare[role][name] = value
        if not takers or is_prefixed(name):
            known = {role: sorted({*(taken[role] or ()), *PRICES}) for role in ROLES}
            spellings = [*BY_NAME, *known["mentor"], *known["intern"]]
            spellings += [f"{role}_{name}" for role in ROLES for name in known[role]]
            close = get_close_matches(name, spellings, n=1) or ["mentor=… and intern=…"]
            raise ArgumentError(
                f"the model argument {name!r} is not known to tandem; did you mean {close[0]}? "
                f"Its own arguments are {', '.join(BY_NAME)}; those of the backend (--model hf, …) are "
                "taken too, for one role as mentor_<argument> or intern_<argument>."
            )
    return {role: {**bare[role], **prefixed[role]} for role in ROLES}


def refuse_secret(name: str, bare: str, value: Any) -> None:
    """Refuse an argument, `bare` without its prefix, that is a key or token, or a mapping that holds one."""
    for inner in value if isinstance(value, Mapping) else ():
        if str(inner).lower() in (*SECRETS, "authorization"):
            raise ArgumentError(
                f"{name} holds {inner}, which would be printed and kept with the results; put the key into an "
                "environment variable, and name that in api_key_env=…"
            )
    if bare in SECRETS:
        raise ArgumentError(
            f"{name} would be printed and kept with the results; set the environment variable {SECRETS[bare]} instead."
        )


def accepts(names: Collection[str] | None, name: str) -> bool:
    """Whether a role takes the argument: one of its backend (any, where those are not known), or a price."""
    return names is None or name in names or name in PRICES


def is_prefixed(name: str) -> bool:
    """Whether the argument is meant for one role."""
    return name.partition("_")[0] in ROLES


def pair_profile() -> dict[str, Any]:
    """The sizes and prompts that the bundled pair was trained with."""
    profile: dict[str, Any] = json.loads((Path(pair.__file__).parent / "profile.json").read_text(encoding="utf-8"))
    return profile


def is_bundled(own: Given) -> bool:
    """Whether the run uses the pair that ships with the package."""
    paths = {"mentor": pair.MENTOR, "intern": pair.INTERN}
    return all(own[role] in (None, PAIR) or Path(own[role]).resolve() == paths[role] for role in ROLES)


def roles_of(
    own: Given,
    bundled: bool,
    policy: Policy,
    backends: Mapping[str, str],
    per_role: Mapping[str, dict[str, Any]],
    prices: Mapping[str, Prices | None],
) -> dict[str, Role | None]:
    """Mentor and intern, each None where the policy does not need it."""
    needed = {"mentor": policy.needs_mentor, "intern": policy.needs_intern}
    for role in ROLES:
        if needed[role] and role not in own and backends[role] not in LOCAL_BACKENDS:
            raise ArgumentError(f"{role}_backend={backends[role]} needs {role}=…, the name of the model there.")
    models = models_of(own, bundled, needed, policy)
    roles: dict[str, Role | None] = {}
    for role in ROLES:
        label = f"{PAIR}/{role}" if bundled or own[role] == PAIR else str(models[role])
        found = role_of(role, models[role], backends[role], label, own, per_role[role]) if needed[role] else None
        roles[role] = found and replace(found, prices=prices[role])
    return roles


def models_of(own: Given, bundled: bool, needed: Mapping[str, bool], policy: Policy) -> dict[str, str | None]:
    """The model of each role; both are named (`pair`: the bundled one), or neither (the bundled pair)."""
    paths = {"mentor": str(pair.MENTOR), "intern": str(pair.INTERN)}
    if bundled:
        return dict(paths)
    for role in ROLES:
        if needed[role] and role not in own:
            other = next(name for name in ROLES if name != role)
            raise ArgumentError(
                f"{other}={own[other]} was given without {role}=…, which policy={policy} needs; "
                f"name both models, or neither for the bundled pair ({role}={PAIR} is its {role})."
            )
    return {role: paths[role] if own[role] == PAIR else own[role] for role in ROLES}


def role_of(role: str, model: str | None, backend: str, label: str, own: Given, arguments: dict[str, Any]) -> Role:
    """One role, with its path and thinking mode checked."""
    assert model is not None
    model = checked_model(role, model, backend, arguments)
    thinking = own["thinking"]
    if thinking != "auto":
        if "enable_thinking" in arguments:
            raise ArgumentError(f"thinking={thinking} and {role}_enable_thinking were both given; keep one of them.")
        arguments = {**arguments, "enable_thinking": thinking in (role, "both")}
    return Role(model, backend, arguments, label)


def checked_model(role: str, model: str, backend: str, arguments: Mapping[str, Any]) -> str:
    """The folder, hub id, file or name of a model, if its backend can run it; `role` is the argument that names it."""
    if model.endswith(GGUF_SUFFIX) or backend == GGUF_BACKEND:
        check_gguf(role, model, backend, has_server="base_url" in arguments)
    looks_local = backend in LOCAL_BACKENDS and (re.match(r"[./~]|[A-Za-z]:\\", model) or model.count("/") > 1)
    if looks_local and not Path(model).expanduser().is_dir():
        raise ArgumentError(f"{role}={model} is no folder; give the path of a saved model, or the id of one on a hub.")
    return str(Path(model).expanduser()) if looks_local else model


def check_gguf(role: str, model: str, backend: str, has_server: bool) -> None:
    """Refuse a GGUF file that is not there, that its backend does not run, or any other model for llama.cpp."""
    file = Path(model).expanduser()
    if backend in LOCAL_BACKENDS:
        raise ArgumentError(
            f"{role}={model} is a GGUF file; leave out backend={backend}, so that llama.cpp runs it, or for hf, which "
            f"takes far more memory, give its folder and its name: {role}={file.parent},{role}_gguf_file={file.name}."
        )
    if backend == GGUF_BACKEND and not has_server and not file.is_file():
        raise ArgumentError(
            f"{role}={model} is no file; backend={GGUF_BACKEND} takes a GGUF file ({role}=PATH{GGUF_SUFFIX}), or the "
            f"address of a llama-server that runs already ({role}_base_url=http://…)."
        )


def guidance_of(own: Given, backends: Mapping[str, str], has_profile: bool) -> Guidance:
    """How the mentor helps: as it is given, else the mentor begins the answer, where that is known to work better.

    That is so for models that can go on with any text, and of which neither the paper nor the bundled pair's profile
    says otherwise (docs/real-models.md has the evidence). Who names words or kinds of insights wants insights.
    """
    if own["guidance"] is not None:
        given: Guidance = own["guidance"]
        return given
    asks_for_insights = "prompts" in own or "insights" in own
    continue_texts = all(backend in (*LOCAL_BACKENDS, GGUF_BACKEND) for backend in backends.values())
    papers_own = any(PAPERS_MODELS.search(str(own[role])) for role in ROLES)
    return "guided" if has_profile or asks_for_insights or papers_own or not continue_texts else HANDOFF


def prompts_of(own: Given, usual: str, guidance: Guidance) -> Prompts:
    """The prompts of a run: by name, from a file, or, where none are given, the usual ones."""
    chosen = own["prompts"] or usual
    if chosen == PAIR:
        name, wording = PAIR, Wording(**pair_profile()["insights"])
    elif chosen in WORDINGS:
        name, wording = chosen, WORDINGS[chosen]
    else:
        file = Path(chosen).expanduser()
        wording = Wording.read(file)
        name = f"{file.stem}-{wording.checksum}"
    if own["insights"] == "staged" and not wording.deepen:
        raise ArgumentError(
            f"insights=staged needs a wording that asks for a deeper pass, and prompts={chosen} has none; "
            "use insights=cutoff, or a prompts file with `deepen`."
        )
    if own["insights"] == "staged" and guidance == HANDOFF:
        raise ArgumentError(
            "insights=staged asks for deeper insights, but with guidance=handoff the mentor writes the answer itself; "
            "use insights=cutoff."
        )
    return Prompts(wording, own["insights"], guidance, name)


def classifier_of(own: Given, bundled: bool) -> Path | HubRepository | None:
    """Where the classifier is: the name of one that ships, hub:org/name, or a folder (./name for one beside)."""
    chosen: str | None = own["classifier"] or (PAIR if bundled else None)
    if chosen is None:
        return None
    shipped = _paths.classifiers() / chosen
    if re.fullmatch(r"\w[\w.-]*", chosen) and shipped.is_dir():
        return shipped
    return repository.parse(chosen)
