"""A LoRA adapter inside a loaded model: a judge reads with it, answers are written without it (extra `peft`).

On disk it has the form of peft's own: adapter_config.json and adapter_model.safetensors. Of the former only rank, alpha
and the names of the layers are taken, so reading one runs no code of it.
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

NAME = "judge"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
"""What peft puts before the names of a model's parameters."""


@dataclass(frozen=True)
class Shape:
    """What an adapter looks like. targets: names of the layers that it changes; None for all linear ones but the
    output layer.
    """

    rank: int
    alpha: int
    targets: tuple[str, ...] | None = None
    dropout: float = 0.0
    """Of its input, while it is trained."""


class Adapter:
    """A LoRA adapter put into `model`: off, but within `on`. A new one changes nothing until it is trained.

    Raises
    ------
    ClassifierError
        The model has adapters already, or no layers of these names.
    """

    def __init__(self, model: torch.nn.Module, shape: Shape, checksum: str = "") -> None:
        self.checksum = checksum
        if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
            raise ClassifierError(
                "The intern is loaded with a PEFT adapter of its own, beside which a judge's cannot be used; "
                "leave peft out of its arguments, or use a classifier fitted with --inputs hidden."
            )
        targets: Any = "all-linear" if shape.targets is None else list(shape.targets)
        config = LoraConfig(r=shape.rank, lora_alpha=shape.alpha, lora_dropout=shape.dropout, target_modules=targets)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # peft says which way round the layers of GPT-2 lie
                inject_adapter_in_model(config, model, adapter_name=NAME)
        except ValueError as error:
            raise ClassifierError(
                f"The intern cannot be given a LoRA adapter: {' '.join(str(error).split())}"
            ) from None
        assert config.target_modules is not None
        self.shape = Shape(shape.rank, shape.alpha, tuple(sorted(config.target_modules)), shape.dropout)
        self._modules: list[Any] = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
        self.weights = {
            PREFIX + name.replace(f".{NAME}.", "."): parameter
            for name, parameter in model.named_parameters()
            if ".lora_" in name
        }
        """Its own parameters in float32, whatever the model's are."""
        for parameter in self.weights.values():
            parameter.data = parameter.data.float()
        self.train(False)
        self._switch(False)

    @classmethod
    def read(cls, model: torch.nn.Module, folder: Path, checksum: str) -> Adapter:
        """The adapter that `files` wrote into the folder, in `model`.

        Raises
        ------
        ClassifierError
            The files are none of an adapter, or of one for another model.
        """
        try:
            shape = _shape(json.loads((folder / CONFIG).read_bytes()))
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
                "or sizes; use the intern that it was fitted on, or refit."
            )
        adapter.set(tensors)
        return adapter

    def set(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Take these values, by the names of `weights`."""
        for name, parameter in self.weights.items():
            parameter.data.copy_(tensors[name])

    def files(self, base: str) -> dict[str, bytes]:
        """Its two files by name; `base` says which model it is for. Equal adapters make equal bytes."""
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
    def on(self) -> Iterator[None]:
        """While it lasts, the model computes with the adapter."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)

    def train(self, mode: bool) -> None:
        """Whether inputs are dropped out; the model's own dropout stays as it is."""
        for layer in self._modules:
            layer.train(mode)

    def _switch(self, on: bool) -> None:
        for layer in self._modules:
            layer.enable_adapters(on)


def _shape(config: Any) -> Shape:
    """The shape that an adapter_config.json names; ValueError where it is none of ours."""
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        raise ValueError(f"{CONFIG} describes no LoRA adapter")
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if type(rank) is not int or type(alpha) is not int or rank < 1 or alpha < 1:
        raise ValueError(f"{CONFIG} gives r={rank!r} and lora_alpha={alpha!r}, where whole numbers belong")
    if not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
        raise ValueError(f"{CONFIG} names no layers")
    return Shape(rank, alpha, tuple(targets))
