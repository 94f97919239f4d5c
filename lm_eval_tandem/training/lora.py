"""Finetuning the intern with LoRA, so that its hidden state tells whether it will answer correctly.

This is an alternative of the paper (appendix E) and needs the extra `peft`. Adapter and a linear head learn together,
by cross-entropy, from the prompts of some questions; the epoch that judges the other questions best is kept. Then the
head is dropped, and `fit` trains a classifier on the hidden states under the adapter.
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
from lm_eval_tandem.errors import loading

States = NDArray[np.float32]
Prompts = list[NDArray[np.int32]]


ADAPTER_SHAPE = LoraShape(rank=8, alpha=16, dropout=0.05)


@dataclass(frozen=True)
class Plan:
    """How the adapter is trained.

    Parameters
    ----------
    shape
        Rank, scale and dropout of the adapter.
    lr, head_lr
        AdamW's learning rates of the adapter and of the head.
    rows
        Prompts per training step.
    epochs
        Passes over the training prompts.
    max_gradient_norm
        Longer gradients are scaled down to this norm.
    """

    shape: LoraShape = ADAPTER_SHAPE
    lr: float = 2e-4
    head_lr: float = 2e-3
    rows: int = 16
    epochs: int = 3
    max_gradient_norm: float = 1.0


@dataclass
class Finetuning:
    """The intern, ready to be finetuned: what `fit_sufficiency` calls for `--inputs lora`.

    Parameters
    ----------
    arguments
        The arguments of its engine (pretrained, dtype, ...).
    base
        The name of the intern in the adapter's file.
    batch_size
        Prompts per forward pass; a larger number only takes more memory.
    plan
        How the adapter is trained.

    Attributes
    ----------
    files
        After a call: the adapter's files by name.

    Raises
    ------
    EngineError
        The intern cannot be loaded.
    ClassifierError
        It cannot be given an adapter.
    """

    arguments: Mapping[str, Any]
    base: str
    batch_size: int = 8
    plan: Plan = field(default_factory=Plan)
    files: dict[str, bytes] = field(default_factory=dict)

    def __call__(
        self, prompts: NDArray[np.object_], labels: NDArray[np.int64], held_out: NDArray[np.bool_], seed: int
    ) -> States:
        """Finetune the intern; torch's global random state stays as it was.

        Parameters
        ----------
        prompts
            Token ids, (Q, T) of arrays.
        labels
            0 or 1, (Q, T).
        held_out
            bool (Q,): the questions that only choose the epoch.
        seed
            Of initial weights, dropout and the order of the prompts.

        Returns
        -------
        NDArray[numpy.float32]
            The hidden states of all prompts under the adapter, (Q, T, D).
        """
        with loading(f"the model {self.arguments['pretrained']}"):
            lm = load_hflm(self.arguments)
        tokenizer: Any = lm.tokenizer
        network = Network(lm.model, tokenizer.pad_token_id or 0)
        cards = [network.device] if network.device.type == "cuda" else []
        rows, truth = list(prompts.ravel()), labels.ravel().astype(np.float32)
        learns = np.repeat(~held_out, labels.shape[1])
        with torch.random.fork_rng(devices=cards):
            torch.manual_seed(seed)
            head = Head(self._states(network, [rows[index] for index in np.flatnonzero(learns)]), network.device)
            adapter = Adapter(network.model, self.plan.shape)
            self._train(network, adapter, head, rows, truth, learns)
        with adapter.enabled():
            states = self._states(network, rows)
        self.files = adapter.files(self.base)
        return states.reshape(*labels.shape, -1)

    def _train(
        self, network: Network, adapter: Adapter, head: Head, rows: Prompts, truth: States, learns: NDArray[np.bool_]
    ) -> None:
        """Train adapter and head on the prompts marked in `learns`, and leave the adapter of the best epoch."""
        plan, indices = self.plan, np.flatnonzero(learns)
        groups: list[dict[str, Any]] = [
            {"params": list(adapter.weights.values()), "lr": plan.lr},
            {"params": list(head.parameters()), "lr": plan.head_lr},
        ]
        for parameter in network.model.parameters():
            parameter.requires_grad_(False)
        for parameter in adapter.weights.values():
            parameter.requires_grad_(True)
        adam = torch.optim.AdamW(groups, weight_decay=0.0)
        parameters = [parameter for group in groups for parameter in group["params"]]
        best: tuple[float, float] = (-1.0, 0.0)
        best_weights: dict[str, torch.Tensor] = {}
        with adapter.enabled():
            for epoch in range(1, plan.epochs + 1):
                adapter.train(True)
                order = indices[torch.randperm(len(indices)).numpy()]
                for start in range(0, len(order), plan.rows):
                    self._step(network, head, rows, truth, order[start : start + plan.rows])
                    torch.nn.utils.clip_grad_norm_(parameters, plan.max_gradient_norm)
                    adam.step()
                    adam.zero_grad()
                adapter.train(False)
                states = self._states(network, [rows[index] for index in np.flatnonzero(~learns)])
                reached = head.evaluate(states, truth[~learns])
                print(
                    f"fit: LoRA, epoch {epoch} of {plan.epochs}: {100 * reached[0]:.1f} % of the held-out prompts are "
                    "judged correctly",
                    file=sys.stderr,
                )
                if reached > best:
                    best, best_weights = reached, {name: p.detach().clone() for name, p in adapter.weights.items()}
        adapter.load(best_weights)

    def _step(self, network: Network, head: Head, rows: Prompts, truth: States, indices: NDArray[np.int64]) -> None:
        """Add the gradients of the mean loss over some prompts."""
        for batch in self._batches([rows[index] for index in indices]):
            states = last_hidden_states(network, [rows[indices[i]] for i in batch])
            target = torch.from_numpy(truth[indices[batch]]).to(network.device)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(head(states), target, reduction="sum")
            (loss / len(indices)).backward()

    def _states(self, network: Network, rows: Prompts) -> States:
        """The hidden state at the last token of every prompt, float32 (N, D)."""
        result: States | None = None
        with torch.no_grad():
            for batch in self._batches(rows):
                states = last_hidden_states(network, [rows[i] for i in batch]).cpu().numpy()
                if result is None:
                    result = np.empty((len(rows), states.shape[1]), dtype=np.float32)
                result[batch] = states
        assert result is not None
        return result

    def _batches(self, rows: Prompts) -> Iterator[list[int]]:
        """Indices of prompts for one forward pass each: of similar lengths, the longest first."""
        order = sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i))
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


class Head(torch.nn.Module):
    """A linear head on standardised hidden states; its logits start at 0.

    Parameters
    ----------
    states
        float32 (N, D): hidden states before training, whose mean and deviation standardise all later ones.
    device
        Where it computes.
    """

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

    def evaluate(self, states: States, truth: States) -> tuple[float, float]:
        """Accuracy at a logit of 0, and the negative mean cross-entropy."""
        with torch.no_grad():
            logits = self(torch.from_numpy(states).to(self.mean.device)).cpu()
        target = torch.from_numpy(truth)
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, target)
        return float(((logits > 0) == (target > 0.5)).double().mean()), -float(loss)


def last_hidden_states(network: Network, rows: Prompts) -> torch.Tensor:
    """The hidden state at the last token of each prompt, float32 (B, D), with gradients if they are enabled."""
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
