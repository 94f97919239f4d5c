"""The models of a run as RouterArena knows them: their names, and their prices in its price list."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.sources.files import describe
from lm_eval_tandem.reports.sources.runs import models_of
from lm_eval_tandem.submissions.models import SELF, Part, is_hub_id, parts_of
from lm_eval_tandem.submissions.sources import SubmittedRun

INPUT, OUTPUT = "input_token_price_per_million", "output_token_price_per_million"
"""The entries of a model in RouterArena's model_cost.json."""


@dataclass(frozen=True)
class PricedModel:
    """One model of a run.

    Attributes
    ----------
    role
        "mentor", "intern", or its name in an ensemble.
    name
        Its name in RouterArena's universal_model_names.py.
    input, output
        Dollars per million prompt tokens and generated tokens.
    cached
        The same of prompt tokens that a cache held, for which the list has no price.
    listed
        Whether the price list has it.
    provider
        Who ran it: a public server, "self-hosted", or "unknown".
    """

    role: str
    name: str
    input: float
    output: float
    cached: float
    listed: bool
    provider: str

    @property
    def prices(self) -> tuple[float, float]:
        """The prices of prompt tokens and of generated tokens."""
        return self.input, self.output

    @property
    def entry(self) -> dict[str, float]:
        """Its entry in a price list."""
        return {INPUT: self.input, OUTPUT: self.output}


def read(submitted: SubmittedRun, names: Sequence[str], price_list: Path | None) -> dict[str, PricedModel]:
    """The models of a run by role.

    Parameters
    ----------
    submitted
        The run.
    names
        ROLE=NAME, as typed.
    price_list
        RouterArena's model_cost.json; None for none.

    Raises
    ------
    ArgumentError
        A name is given for a role that the run does not have, two models have one name, or a price is not known or
        not that of the list.
    """
    described = models_of(submitted.description)
    if not described:
        raise ArgumentError(
            f"{submitted.name} is no run of --model tandem or --model ensemble; RouterArena ranks systems of several "
            "models."
        )
    roles = list(described) if submitted.description.get("models") else ["mentor", "intern"]
    given = parse_names(names, roles)
    listed = {} if price_list is None else read_prices(price_list)
    found = {}
    for part in parts_of(submitted, None):
        name = given.get(part.role) or usual_name(part)
        prices = part.facts.get("prices")
        if not isinstance(prices, Mapping):
            raise ArgumentError(
                f"{submitted.name} has no prices of {part.role}, and RouterArena ranks by dollars; run it again with "
                f"{price_arguments(part.role, listed.get(name))} (with store=FILE no answer is generated twice)."
            )
        model = PricedModel(
            part.role,
            name,
            prices["input"],
            prices["output"],
            prices["cached"],
            name in listed,
            part.platform or ("self-hosted" if part.deployment == SELF else "unknown"),
        )
        if listed.get(name, model.prices) != model.prices:
            raise ArgumentError(
                f"{submitted.name} counted {part.role} at {model.input:g} and {model.output:g} dollars per million "
                f"tokens, and the price list has {listed[name][0]:g} and {listed[name][1]:g} for {name}; run it again "
                f"with {price_arguments(part.role, listed[name])} (with store=FILE no answer is generated twice)."
            )
        found[part.role] = model
    if len({model.name for model in found.values()}) < len(found):
        raise ArgumentError(
            f"two models of {submitted.name} are called {next(iter(found.values())).name}; tell them apart with "
            "--name ROLE=NAME."
        )
    return found


def usual_name(part: Part) -> str:
    """What RouterArena calls a model where no name is given: its id on a hub, or its name without a developer."""
    return f"{part.developer}/{part.name}" if is_hub_id(str(part.facts.get("model"))) else part.name


def price_arguments(role: str, listed: tuple[float, float] | None) -> str:
    """The model arguments that give a model the prices of the list, or some where it has none."""
    first, last = ("…", "…") if listed is None else (f"{listed[0]:g}", f"{listed[1]:g}")
    return f"{role}_price_input={first},{role}_price_output={last}"


def parse_names(names: Sequence[str], roles: Sequence[str]) -> dict[str, str]:
    """The names that were typed as ROLE=NAME, by role; a role that a policy does not need may have one, too."""
    given = {}
    for text in names:
        role, found, name = text.partition("=")
        if not found or not name or role not in roles:
            raise ArgumentError(f"--name {text} has to be ROLE=NAME; the roles of this run are {', '.join(roles)}.")
        given[role] = name
    return given


def read_prices(file: Path) -> dict[str, tuple[float, float]]:
    """The prices of prompt and generated tokens in a copy of RouterArena's model_cost.json, by model."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return {name: (float(entry[INPUT]), float(entry[OUTPUT])) for name, entry in content.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArgumentError(
            f"--prices {file} cannot be read ({describe(error)}); give RouterArena's model_cost/model_cost.json."
        ) from None
