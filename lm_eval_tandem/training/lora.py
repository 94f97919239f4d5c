"""Finetuning the intern with LoRA to tell whether it knows enough (paper, appendix E; extra `peft`).

Adapter and a linear head learn together, by cross-entropy, from the prompts of some questions; the epoch that serves
the others best is kept. The head is then given up: `fit` makes a classifier of the hidden states under the adapter.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lm_eval_tandem.engines.hf.engine import load_hflm
from lm_eval_tandem.engines.hf.kv_cache import Network
from lm_eval_tandem.engines.hf.lora_adapter import Adapter, LoraShape

States = NDArray[np.float32]
Prompts = list[NDArray[np.int32]]


@dataclass(frozen=True)
class Plan:
    """How the adapter is trained: its shape, AdamW's step sizes, prompts a step, passes over them, longest gradient."""

    shape: LoraShape = LoraShape(rank=8, alpha=16, dropout=0.05)
    lr: float = 2e-4
    head_lr: float = 2e-3
    rows: int = 16
    epochs: int = 3
    longest: float = 1.0


@dataclass
class Finetuning:
    """The intern, ready to be finetuned: what `fit_sufficiency` calls for `--inputs lora`.

    arguments: as its engine's (pretrained, dtype, ...). base: how the adapter's file calls the intern. together:
    prompts in one forward pass; more only need memory. Afterwards `files` holds the adapter's files and `told` what
    training did.

    Raises
    ------
    EngineError
        The intern cannot be loaded.
    ClassifierError
        It cannot be given an adapter.
    """

    arguments: Mapping[str, Any]
    base: str
    together: int = 8
    plan: Plan = field(default_factory=Plan)
    files: dict[str, bytes] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)

    def __call__(
        self, prompts: NDArray[np.object_], labels: NDArray[np.int64], held_out: NDArray[np.bool_], seed: int
    ) -> States:
        """Finetune, and the hidden states of all prompts under the adapter, float32 (Q, T, D).

        prompts: (Q, T) of token ids. labels: 0 or 1, (Q, T). held_out: (Q,), the questions that only choose the epoch.
        Torch's global random state stays as it was.
        """
        lm = load_hflm(self.arguments)
        network = Network(lm.model, lm.tokenizer.pad_token_id or 0)
        cards = [network.device] if network.device.type == "cuda" else []
        rows, truth = list(prompts.ravel()), labels.ravel().astype(np.float32)
        learns = np.repeat(~held_out, labels.shape[1])
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed)
            head = Head(self._states(network, [rows[place] for place in np.flatnonzero(learns)]), network.device)
            adapter = Adapter(network.model, self.plan.shape)
            self._train(network, adapter, head, rows, truth, learns)
        with adapter.enabled():
            found = self._states(network, rows)
        self.files = adapter.files(self.base)
        return found.reshape(*labels.shape, -1)

    def _train(
        self, network: Network, adapter: Adapter, head: Head, rows: Prompts, truth: States, learns: NDArray[np.bool_]
    ) -> None:
        plan, places = self.plan, np.flatnonzero(learns)
        groups: list[dict[str, Any]] = [
            {"params": list(adapter.weights.values()), "lr": plan.lr},
            {"params": list(head.parameters()), "lr": plan.head_lr},
        ]
        for parameter in network.model.parameters():
            parameter.requires_grad_(False)
        for parameter in adapter.weights.values():
            parameter.requires_grad_(True)
        adam = torch.optim.AdamW(groups, weight_decay=0.0)
        best: tuple[float, float] = (-1.0, 0.0)
        kept: dict[str, torch.Tensor] = {}
        with adapter.enabled():
            for epoch in range(1, plan.epochs + 1):
                adapter.train(True)
                order = places[torch.randperm(len(places)).numpy()]
                for start in range(0, len(order), plan.rows):
                    self._step(network, head, rows, truth, order[start : start + plan.rows])
                    torch.nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], plan.longest)
                    adam.step()
                    adam.zero_grad()
                adapter.train(False)
                states = self._states(network, [rows[place] for place in np.flatnonzero(~learns)])
                reached = head.reached(states, truth[~learns])
                print(
                    f"fit: LoRA, epoch {epoch} of {plan.epochs}: {100 * reached[0]:.1f} % of held-out looks right",
                    file=sys.stderr,
                )
                if reached > best:
                    best, kept = reached, {name: p.detach().clone() for name, p in adapter.weights.items()}
                    self.told = {"epoch": epoch, "accuracy": reached[0], "loss": -reached[1]}
        adapter.load(kept)

    def _step(self, network: Network, head: Head, rows: Prompts, truth: States, places: NDArray[np.int64]) -> None:
        """Gradients of the mean loss over some prompts."""
        for part in self._parts([rows[place] for place in places]):
            states = read(network, [rows[places[i]] for i in part])
            target = torch.from_numpy(truth[places[part]]).to(network.device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(head(states), target, reduction="sum")
            (loss / len(places)).backward()

    def _states(self, network: Network, rows: Prompts) -> States:
        """The hidden state at the last token of every prompt, float32 (N, D)."""
        found: States | None = None
        with torch.no_grad():
            for part in self._parts(rows):
                states = read(network, [rows[i] for i in part]).cpu().numpy()
                if found is None:
                    found = np.empty((len(rows), states.shape[1]), dtype=np.float32)
                found[part] = states
        assert found is not None
        return found

    def _parts(self, rows: Prompts) -> Iterator[list[int]]:
        """Places of prompts that are read together: of like lengths, the longest first."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        for start in range(0, len(order), self.together):
            yield order[start : start + self.together]


class Head(torch.nn.Module):
    """A logit of a hidden state, which is standardised by what is known of states before training; starts at 0."""

    def __init__(self, states: States, device: torch.device) -> None:
        super().__init__()
        spread = states.std(axis=0)
        self.mean = torch.from_numpy(states.mean(axis=0)).to(device)
        self.scale = torch.from_numpy(np.where(spread > 1e-6, spread, 1.0).astype(np.float32)).to(device)
        self.weight = torch.nn.Parameter(torch.zeros(states.shape[1], device=device))
        self.bias = torch.nn.Parameter(torch.zeros(1, device=device))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """Logits (N,) of states (N, D)."""
        return ((states - self.mean) / self.scale) @ self.weight + self.bias

    def reached(self, states: States, truth: States) -> tuple[float, float]:
        """Share of right guesses, and minus the mean loss."""
        with torch.no_grad():
            logits = self(torch.from_numpy(states).to(self.mean.device)).cpu()
        target = torch.from_numpy(truth)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        return float(((logits > 0) == (target > 0.5)).double().mean()), -float(loss)


def read(network: Network, rows: Prompts) -> torch.Tensor:
    """The hidden state at the last token of each prompt, float32 [B, D]; with gradients where they are on."""
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), network.pad)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for row, tokens in enumerate(rows):
        ids[row, width - len(tokens) :] = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
        mask[row, width - len(tokens) :] = 1
    arguments: dict[str, Any] = {"logits_to_keep": 1} if network.takes_last else {}
    if network.takes_positions:
        arguments["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0).to(network.device)
    with network.capture_hidden() as caught:
        network.model(
            input_ids=ids.to(network.device), attention_mask=mask.to(network.device), use_cache=False, **arguments
        )
    return caught[0].float()
