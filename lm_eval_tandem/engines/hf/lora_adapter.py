"""A LoRA adapter inside a loaded model: on while a judge's prompts are read, off while answers are generated.

Needs the extra `peft`. On disk an adapter has peft's format, adapter_config.json and adapter_model.safetensors. Only
rank, alpha and the names of the layers are read from the configuration, so that loading an adapter runs no code of it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import SafetensorError

from lm_eval_tandem.errors import ClassifierError

ADAPTER_NAME = "judge"
"""Name of the adapter inside peft's layers."""
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PARAMETER_PREFIX = "base_model.model."
"""What peft puts before the names of a model's parameters in its files."""


@dataclass(frozen=True)
class LoraShape:
    """The form of an adapter.

    Attributes
    ----------
    rank, alpha
        r and alpha of LoRA.
    targets
        Names of the layers that it changes; None for all linear layers but the output layer.
    dropout
        Dropout probability of its input while it is trained.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0


class Adapter:
    """A LoRA adapter put into a model. It is off except within `enabled`, and a new one changes nothing.

    Parameters
    ----------
    model
        Its layers are replaced by peft's, which work as before while the adapter is off.
    shape
        Of the adapter.
    checksum
        Identifies the adapter in `ScoringView.adapter`.

    Attributes
    ----------
    weights
        The adapter's parameters by their names in peft's files; float32, whatever the model's dtype is.

    Raises
    ------
    ClassifierError
        The model has an adapter already, or no layers of these names.
    """

    def __init__(self, model: torch.nn.Module, shape: LoraShape, checksum: str = "") -> None:
        self.checksum = checksum
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ClassifierError(
                "The intern is loaded with a PEFT adapter, and a judge's adapter cannot be used together with it; "
                "leave peft out of its arguments, or use a classifier fitted with --inputs hidden."
            )
        targets: Any = "all-linear" if shape.targets is None else list(shape.targets)
        config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, lora_dropout=shape.dropout, target_modules=targets)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft warns that the layers of GPT-2 are transposed
                inject_adapter_in_model(config, model, adapter_name=ADAPTER_NAME)
        except ValueError as error:
            raise ClassifierError(
                f"The intern cannot be given a LoRA adapter: {' '.join(str(error).split())}"
            ) from None
        assert config.target_modules is not None
        self.shape = LoraShape(shape.rank, shape.alpha, tuple(sorted(config.target_modules)), shape.dropout)
        self._modules: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self.weights = {
            PARAMETER_PREFIX + name.replace(f".{ADAPTER_NAME}.", "."): parameter
            for name, parameter in model.named_parameters()
            if ".lora_" in name
        }
        for parameter in self.weights.values():
            parameter.data = parameter.data.float()
        self.train(False)
        self._switch(False)

    @classmethod
    def read(cls, model: torch.nn.Module, folder: Path, checksum: str) -> Adapter:
        """Put the adapter of a folder (see `files`) into the model.

        Raises
        ------
        ClassifierError
            The folder holds no adapter, or one for another model.
        """
        try:
            shape = _read_shape(json.loads((folder / CONFIG).read_bytes()))
            tensors = safetensors.torch.load((folder / WEIGHTS).read_bytes())
        except (OSError, ValueError, SafetensorError) as error:
            raise ClassifierError(
                f"{folder} holds no LoRA adapter ({error}); fetch the folder again or refit."
            ) from None
        adapter = cls(model, shape, checksum)
        wanted = {name: tuple(parameter.shape) for name, parameter in adapter.weights.items()}
        if wanted != {name: tuple(tensor.shape) for name, tensor in tensors.items()}:
            raise ClassifierError(
                f"The LoRA adapter of {folder} was made for another model than the intern: its layers have other names "
                "or sizes; use the intern that the classifier was fitted on, or refit."
            )
        adapter.load(tensors)
        return adapter

    def load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Set the adapter's parameters; the names are those of `weights`."""
        for name, parameter in self.weights.items():
            parameter.data.copy_(tensors[name])

    def files(self, base: str) -> dict[str, bytes]:
        """The adapter's two files, content by name; equal adapters make equal bytes.

        Parameters
        ----------
        base
            Name of the model that it is for, as the file records it.
        """
        config = {
            "base_model_name_or_path": base,
            "inference_mode": True,
            "lora_alpha": self.shape.alpha,
            "lora_dropout": self.shape.dropout,
            "peft_type": "LORA",
            "r": self.shape.rank,
            "target_modules": list(self.shape.targets or ()),
        }
        tensors = {name: parameter.detach().float().cpu().contiguous() for name, parameter in self.weights.items()}
        return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: safetensors.torch.save(tensors)}

    @contextmanager
    def enabled(self) -> Iterator[None]:
        """Within the block, the model computes with the adapter."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    def train(self, mode: bool) -> None:
        """Turn the adapter's dropout on or off; the model's own dropout stays as it is."""
        for layer in self._modules:
            layer.train(mode)

    def _switch(self, on: bool) -> None:
        for layer in self._modules:
            layer.enable_adapters(on)


def _read_shape(config: Any) -> LoraShape:
    """The shape in the content of an adapter_config.json; ValueError where it is not one that `files` writes."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG} describes no LoRA adapter")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or type(alpha) is not int or rank < 1 or alpha < 1:
        raise ValueError(f"{CONFIG} gives r={rank!r} and lora_alpha={alpha!r}, where whole numbers belong")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError(f"{CONFIG} names no layers")
    return LoraShape(rank, alpha, tuple(targets))
