"""Models other than tandem's (`--model hf`, `vllm`, an API): which one a run had, and what of its cost is known.

The harness records no tokens, and of most models no number of parameters. What it did not record is given on the
command line, by the name of a model: `--parameters NAME=NUMBER`, `--tokenizer NAME=FOLDER`,
`--price NAME=INPUT:CACHED:OUTPUT`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_tandem.accounting import Prices, parse_price
from lm_eval_tandem.errors import ArgumentError

WITHOUT_EFFECT = ("batch_size", "max_batch_size", "device", "num_concurrent", "max_retries", "timeout")
"""Model arguments in which two runs of the same model may differ: they change no answer."""
REASONING_CUT_OFF = "think_end_token"
"""The model argument that makes the harness cut the reasoning off before it records an answer."""


@dataclass(frozen=True)
class OtherModel:
    """The model of a run that is not tandem's.

    Attributes
    ----------
    kind
        What `lm_eval --model` got: hf, vllm, local-completions; "" if the results file does not name it.
    name
        The model's name or folder.
    key
        A string that is the same for two runs of the same model with the same arguments.
    parameters
        Number of parameters; None if it is not known.
    tokenizer
        Folder or file of the tokenizer that counts its tokens; None if none was given.
    prices
        Prices of its tokens; None if none were given.
    uncounted
        Why its tokens cannot be counted, even with a tokenizer, as the end of a sentence; "" if they can.
    """

    kind: str
    name: str
    key: str
    parameters: int | None = None
    tokenizer: Path | None = None
    prices: Prices | None = None
    uncounted: str = ""

    @property
    def short_name(self) -> str:
        """The last part of its name: "lab/large" is "large"."""
        return self.name.rstrip("/\\").replace("\\", "/").rpartition("/")[2]

    @property
    def label(self) -> str:
        """What a report calls it: its kind and the last part of its name."""
        return f"{self.kind} {self.short_name}".strip()

    @property
    def names(self) -> tuple[str, ...]:
        """Names under which the command line may give what is not recorded."""
        return self.short_name, self.name, self.label


@dataclass(frozen=True)
class GivenCosts:
    """What the command line says of other models, each by one of a model's `names`.

    Attributes
    ----------
    parameters
        Numbers of parameters.
    tokenizers
        Folders with a tokenizer.json, or such files.
    prices
        Prices of tokens.
    """

    parameters: Mapping[str, int] = field(default_factory=dict)
    tokenizers: Mapping[str, Path] = field(default_factory=dict)
    prices: Mapping[str, Prices] = field(default_factory=dict)

    @classmethod
    def read(
        cls, parameters: Iterable[str] = (), tokenizers: Iterable[str] = (), prices: Iterable[str] = ()
    ) -> GivenCosts:
        """Return what options of the form NAME=VALUE say.

        Parameters
        ----------
        parameters
            NAME=NUMBER, such as qwen=7e9.
        tokenizers
            NAME=FOLDER.
        prices
            NAME=INPUT:CACHED:OUTPUT or NAME=INPUT:OUTPUT, in dollars per million tokens.

        Raises
        ------
        ArgumentError
            An option has another form.

        Examples
        --------
        >>> given = GivenCosts.read(["small=7e9"], prices=["small=2:0.5:8"])
        >>> given.parameters["small"], given.prices["small"].output
        (7000000000, 8.0)
        """
        return cls(
            {name: parse_parameters(name, text) for name, text in named("--parameters", "NUMBER", parameters)},
            {name: Path(text) for name, text in named("--tokenizer", "FOLDER", tokenizers)},
            {name: parse_prices(name, text) for name, text in named("--price", "INPUT:CACHED:OUTPUT", prices)},
        )

    def complete(self, model: OtherModel) -> OtherModel:
        """Return a model with what is given of it; a number of parameters that is given counts for the recorded one."""

        def of(given: Mapping[str, Any]) -> Any:
            return next((given[name] for name in model.names if name in given), None)

        return OtherModel(
            model.kind,
            model.name,
            model.key,
            of(self.parameters) or model.parameters,
            of(self.tokenizers),
            of(self.prices),
            model.uncounted,
        )

    def check_names(self, models: Sequence[OtherModel]) -> None:
        """Refuse a name that none of the models has.

        Raises
        ------
        ArgumentError
            Some name is not one of theirs.
        """
        known = {name for model in models for name in model.names}
        options = {"--parameters": self.parameters, "--tokenizer": self.tokenizers, "--price": self.prices}
        for option, given in options.items():
            for name in given:
                if name not in known:
                    have = ", ".join(sorted({model.short_name for model in models})) or "there are none"
                    raise ArgumentError(
                        f"{option} {name}: none of the runs is of another model with this name; "
                        f"the models other than tandem's: {have}."
                    )


def read(results: Mapping[str, Any], folder: str, arguments: Mapping[str, Any]) -> OtherModel:
    """Return the model of a results file without the description of a tandem.

    Parameters
    ----------
    results
        The content of the results file.
    folder
        Name of the folder that the file lies in, which is the model's where the file does not name it.
    arguments
        Its model arguments (`harness_files.model_arguments`).
    """
    config = results["config"]
    kind, name = str(config.get("model") or ""), str(results.get("model_name") or folder)
    recorded = config.get("model_num_parameters")  # the harness's hf counts them
    given = {argument: value for argument, value in arguments.items() if argument not in WITHOUT_EFFECT}
    cut_off = arguments.get(REASONING_CUT_OFF) not in (None, "", "None")
    return OtherModel(
        kind,
        name,
        json.dumps([kind, name, given], sort_keys=True, default=str),
        recorded if isinstance(recorded, int) and recorded > 0 else None,
        uncounted=f"the harness cut its reasoning off ({REASONING_CUT_OFF})" if cut_off else "",
    )


def named(option: str, form: str, given: Iterable[str]) -> list[tuple[str, str]]:
    """Return the names and values of options NAME=VALUE.

    Raises
    ------
    ArgumentError
        One has another form, or names a model for the second time.
    """
    pairs: dict[str, str] = {}
    for text in given:
        name, _, value = text.partition("=")
        if not name.strip() or not value.strip():
            raise ArgumentError(f"{option} {text}: write {option} NAME={form}, with the name of a model.")
        if name.strip() in pairs:
            raise ArgumentError(f"{option} {text}: {name.strip()} was given before; give it once.")
        pairs[name.strip()] = value.strip()
    return list(pairs.items())


def parse_parameters(name: str, text: str) -> int:
    """Return a number of parameters, written as 7e9 or 7000000000."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 1 <= number < math.inf:
        raise ArgumentError(f"--parameters {name}={text} has to be a number of parameters, such as 7e9.")
    return round(number)


def parse_prices(name: str, text: str) -> Prices:
    """Return prices written as INPUT:CACHED:OUTPUT, or as INPUT:OUTPUT where cached tokens cost as much as others."""
    amounts = [parse_price(f"--price {name}", part) for part in text.split(":")]
    if len(amounts) not in (2, 3):
        raise ArgumentError(
            f"--price {name}={text} has to be INPUT:CACHED:OUTPUT, three numbers of dollars per million tokens."
        )
    return Prices(amounts[0], amounts[-2], amounts[-1])
