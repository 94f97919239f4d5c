"""Which model, or system of models, a run was of: its name and developer, what ran it, and where."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources.labels import model_name
from lm_eval_tandem.reports.sources.recorded_runs import RecordedRun
from lm_eval_tandem.reports.sources.runs import models_of
from lm_eval_tandem.submissions.redaction import short

PROJECT = "lm-eval-tandem"
"""Developer of the bundled pair and of the policies."""
BUNDLED = re.compile(r"(?:.*lm_eval_tandem/)?pair/(mentor|intern)/?")
"""The bundled models, by the names under which runs record them, and as folders."""
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
FILES = (".gguf", ".bin", ".safetensors", ".pt")
"""Endings of files that are a model; such a name is no id of the Hugging Face Hub."""
NAME_ARGUMENTS = ("peft", "delta", "pretrained", "model", "path", "engine")
"""Model arguments that name the model of other classes of the harness, the most specific first, as the harness does."""
ENGINES = {
    "hf": "transformers",
    "huggingface": "transformers",
    "hf-multimodal": "transformers",
    "llamacpp": "llama.cpp",
    "gguf": "llama.cpp",
    "vllm": "vllm",
    "vllm-vlm": "vllm",
    "sglang": "sglang",
}
"""What the engines are called elsewhere, by their names here and in the harness."""
VERSIONS = {"transformers": "transformers", "vllm": "vllm", "llama.cpp": "xllamacpp"}
"""Under which name a run recorded the version of an engine."""
PLATFORMS = {
    "api.openai.com": "openai",
    "api.anthropic.com": "anthropic",
    "openrouter.ai": "openrouter",
    "router.huggingface.co": "huggingface",
    "api.together.xyz": "together",
    "api.deepseek.com": "deepseek",
    "api.mistral.ai": "mistral",
    "api.groq.com": "groq",
    "api.x.ai": "xai",
    "api.fireworks.ai": "fireworks",
    "generativelanguage.googleapis.com": "google",
}
"""What public servers are called, by their hosts; no other host is named."""
PLATFORM_OF_MODEL = {"openai": "openai", "anthropic": "anthropic", "together": "together"}
"""The platform of classes of the harness that begin so (openai-chat-completions) and were given no address."""
SELF, MANAGED, UNKNOWN = "self_deployed", "externally_managed", "unknown"
OPEN = "open_weights"


@dataclass(frozen=True)
class Part:
    """One model of a run.

    Attributes
    ----------
    role
        "mentor", "intern", a name in an ensemble, or "" for a model of the harness.
    developer, name
        Who made it ("" where its name does not say), and its name without that.
    engine, version
        What ran it, with its version; "" where that is not known.
    platform
        The public server that ran it; "" for any other.
    deployment, availability
        Who ran it, and whether its weights are public, in Every Eval Ever's words.
    facts
        What the run recorded about it besides.
    """

    role: str
    developer: str
    name: str
    engine: str
    version: str
    platform: str
    deployment: str
    availability: str
    facts: Mapping[str, Any]


@dataclass(frozen=True)
class Identity:
    """The model of a run, or the system that its models are.

    Attributes
    ----------
    developer, name
        Who made it, and what it is called: for a system its models, policy and the start of the classifier's checksum.
    parts
        Its models; one for a model alone.
    """

    developer: str
    name: str
    parts: tuple[Part, ...]

    @property
    def id(self) -> str:
        """Both, as the Hugging Face Hub writes them."""
        return f"{slug(self.developer)}/{self.name}"

    @property
    def is_system(self) -> bool:
        """Whether several models took part."""
        return len(self.parts) > 1

    def common(self, attribute: str, otherwise: str) -> str:
        """Return what an attribute of all parts is; `otherwise` where they differ."""
        values = {getattr(part, attribute) for part in self.parts}
        return str(values.pop()) if len(values) == 1 else otherwise

    def joined(self, attribute: str) -> str:
        """Return what an attribute of the parts is, each value once, with "+" between; "" where one is not known."""
        values = list(dict.fromkeys(getattr(part, attribute) for part in self.parts))
        return "" if "" in values else "+".join(values)


def identify(submitted: RecordedRun, organization: str, developer: str | None, availability: str | None) -> Identity:
    """Return what a run was of.

    Parameters
    ----------
    submitted
        The run.
    organization
        Who submits it: the developer of a system of several models, which are combined by who runs it.
    developer
        Who made models whose names do not say so.
    availability
        Whether the weights of models are public of which it is not known.

    Raises
    ------
    ArgumentError
        A model's developer is not known.
    """
    parts = parts_of(submitted, availability)
    bundled = all(part.developer == PROJECT for part in parts)
    if len(parts) > 1:
        return Identity(PROJECT if bundled else organization, system_name(submitted.description, parts), parts)
    maker = parts[0].developer or developer
    if not maker:
        raise ArgumentError(
            f"the name {parts[0].name} of {submitted.name} does not say who made the model; give --developer NAME."
        )
    return Identity(maker, parts[0].name, parts)


def system_name(description: Mapping[str, Any], parts: tuple[Part, ...]) -> str:
    """Return what a system is called: its models, its policy, and the start of its classifier's checksum."""
    models = "+".join(part.name for part in parts)
    if description.get("pair") == "pair":
        models = "pair"
    kind = "ensemble" if description.get("models") else "tandem"
    policy = str(description.get("policy") or "")
    if kind == "ensemble":
        policy = f"{description.get('selection')}-{description.get('aggregation')}"
    checksum = str((description.get("judge") or {}).get("sha256") or "")[:12]
    return slug("-".join(part for part in (kind, models, policy, checksum) if part))


def parts_of(submitted: RecordedRun, availability: str | None) -> tuple[Part, ...]:
    """Return the models of a run: those of a tandem or an ensemble, or the one of another class of the harness."""
    arguments = submitted.arguments
    described = models_of(submitted.description)
    if described:
        return tuple(
            part_of(role, facts, str(facts.get("model")), str(facts.get("engine") or ""), arguments, availability)
            for role, facts in described.items()
        )
    named = next((str(arguments[name]) for name in NAME_ARGUMENTS if arguments.get(name)), None)
    given = submitted.config.get("model_args")
    if named is None and isinstance(given, Mapping):
        named = given.get("model")  # `model_arguments` leaves it out
    if named is None and isinstance(given, str):
        found = re.search(r"(?:^|,)\s*model=([^,]+)", given)
        named = found[1] if found else None
    named = str(named or submitted.results.get("model_name") or submitted.name)
    facts = {
        "transformers": submitted.results.get("transformers_version"),
        "parameters": submitted.config.get("model_num_parameters"),
        "dtype": submitted.config.get("model_dtype"),
        "revision": submitted.config.get("model_revision"),
        "sha": submitted.config.get("model_sha"),
        "window": submitted.results.get("max_length"),
        "adapters": {
            name: {"name": arguments[name], "commit": submitted.config.get(f"{name}_sha") or None}
            for name in ("peft", "delta")
            if arguments.get(name)
        },
    }
    return (part_of("", facts, named, str(submitted.config.get("model") or ""), arguments, availability),)


def part_of(
    role: str, facts: Mapping[str, Any], model: str, engine: str, arguments: Mapping[str, Any], availability: str | None
) -> Part:
    """Return one model of a run.

    Parameters
    ----------
    role
        Its role or name; "" for a model of the harness.
    facts
        What the run recorded about it.
    model
        Its name as given: an id of the Hugging Face Hub, a folder, a file, or its name at a server.
    engine
        The name of the backend here, or of the model's class in the harness.
    arguments
        The run's model arguments.
    availability
        Whether its weights are public, where it is not known.
    """
    engine = engine.removeprefix("lm_eval ")  # as `backend` records other classes of the harness
    bundled = BUNDLED.fullmatch(model.replace("\\", "/"))
    on_hub = not bundled and is_hub_id(model)
    developer = PROJECT if bundled else model.partition("/")[0] if on_hub else ""
    name = f"pair-{bundled[1]}" if bundled else slug(short(model_name(model)) or "model")
    if not on_hub:  # a folder or a file has no revision, though the harness records its default
        facts = {name: value for name, value in facts.items() if name != "revision"}
    known, server = ENGINES.get(engine, ""), arguments.get(f"{role}_base_url") or arguments.get("base_url")
    local = bool(known) and not (server and engine == "gguf")
    public = OPEN if bundled or (on_hub and local) else availability or UNKNOWN
    return Part(
        role=role,
        developer=developer,
        name=name,
        engine=known,
        version=short(facts.get(VERSIONS.get(known, "")) or "") or "",
        platform="" if local else platform_of(server, engine),
        deployment=SELF if local else deployment_of(server, engine),
        availability=public,
        facts=facts,
    )


def is_hub_id(model: str) -> bool:
    """Whether a model's name is an id of the Hugging Face Hub or of a server that names models so: org/name."""
    return bool(HUB_ID.fullmatch(model)) and not model.lower().endswith(FILES) and not Path(model).exists()


def hosts(server: Any) -> list[str]:
    """Return the hosts of a server's addresses, which semicolons separate."""
    return [urlsplit(part.strip()).hostname or "" for part in str(server or "").split(";") if part.strip()]


def platform_of(server: Any, engine: str) -> str:
    """Return what a public server is called; "" for any other, whose address is nobody's business."""
    if not server:
        return next((name for start, name in PLATFORM_OF_MODEL.items() if engine.startswith(start)), "")
    known = {PLATFORMS.get(host, "") for host in hosts(server)}
    return known.pop() if len(known) == 1 else ""


def deployment_of(server: Any, engine: str) -> str:
    """Return who runs a model behind a server: by its address, or by its class where it was given none."""
    if not server:
        return MANAGED if platform_of(None, engine) else UNKNOWN
    private = {is_private(host) for host in hosts(server)}
    return (SELF if private.pop() else MANAGED) if len(private) == 1 else UNKNOWN


def is_private(host: str) -> bool:
    """Whether a host is this machine or one of a private network."""
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return "." not in host or host.endswith((".local", ".internal", ".lan", ".localdomain"))


def slug(text: str) -> str:
    """Return a text that can be part of a path on any system, its letters kept as they are."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", text).strip("-. ") or "unnamed"
