"""Key-value caches: sequences of different lengths in one batch, and what is kept of them between calls.

Shapes: a layer's keys and values are (B, H, T, D) in a batch and (H, n, D) for one row. A batch is padded on the left;
a boolean mask (B, T) marks the cells that hold a token, so that a gap between reused cells and new tokens does no harm.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from lm_eval_tandem.engines.hf.loading import cache_argument, refuse_other_caches
from lm_eval_tandem.engines.hf.token_stats import token_stats

Layers = list[tuple[torch.Tensor, torch.Tensor]]
"""Keys and values of one row, each (H, n, D), layer by layer."""

MAX_SCORED_LOGITS = 2**27
"""Logits (rows x positions x vocabulary) that one forward pass of `BatchedCache.score` may hold: 512 MB in float32."""


@dataclass
class PrefixEntry:
    """What has been computed of one sequence.

    Attributes
    ----------
    ids
        Its leading n tokens.
    layers
        Their keys and values.
    logprob, entropy
        Statistics of those of the tokens that have been scored, float32; None where none have.
    confidence
        The same of their `TokenStats.confidence`; None where the call that scored them did not request it.
    """

    ids: list[int]
    layers: Layers
    logprob: NDArray[Any] | None = None
    entropy: NDArray[Any] | None = None
    confidence: NDArray[Any] | None = None

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(cells.numel() * cells.element_size() for pair in self.layers for cells in pair)

    def prefix(self, n: int) -> Layers:
        """Keys and values of the first n tokens, as views; an empty list for n = 0."""
        return [(key[:, :n], value[:, :n]) for key, value in self.layers] if n else []


class PrefixCache:
    """One `PrefixEntry` for each session; when the memory is used up, the least recently used entry is dropped.

    Attributes
    ----------
    max_bytes
        Memory that all entries together may take.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, PrefixEntry] = OrderedDict()
        self._bytes = 0

    def get(self, session: str | None) -> PrefixEntry | None:
        """The entry of a session; None where there is none any more."""
        if session is None or session not in self._entries:
            return None
        self._entries.move_to_end(session)
        return self._entries[session]

    def put(self, session: str, entry: PrefixEntry) -> None:
        """Set the entry of a session."""
        self.drop(session)
        self._entries[session] = entry
        self._bytes += entry.bytes
        while self._bytes > self.max_bytes and self._entries:
            self.drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Remove all entries."""
        self._entries.clear()
        self._bytes = 0

    def drop(self, session: str) -> None:
        """Remove the entry of a session."""
        entry = self._entries.pop(session, None)
        if entry is not None:
            self._bytes -= entry.bytes


class Network:
    """A decoder-only model and what batching it requires to know.

    Attributes
    ----------
    pad
        Token id that fills a batch.
    vocabulary
        Number of tokens of the vocabulary.
    takes_positions, takes_last
        Whether the model accepts `position_ids` and `logits_to_keep`.
    cache_argument
        The name under which it accepts a cache.
    has_keys
        False for state-space models, none of whose layers stores keys and values.
    stackable
        False for models whose cache is not plain keys and values of the whole prefix (sliding windows, state spaces),
        or whose attention is wrong where the cache has empty cells between tokens (`cache_check`). Their rows start
        together and are never taken out of their batch, so nothing is reused.
    paddable
        False for models that a padded row changes: they run one row at a time.
    continues
        False for models that read several tokens right only from an empty cache: each prompt is read in one pass.
    """

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self.model = model
        self.device = model.device
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        # A pad token that was added to a tokenizer may lie beyond the model's embeddings; any token can fill a batch.
        self.pad = pad if pad < self.vocabulary else 0
        inner = unwrapped(model)
        accepted = inspect.signature(inner.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_last = "logits_to_keep" in accepted
        self.cache_argument = cache_argument(inner)
        if self.cache_argument is None:
            refuse_other_caches(self.name, model.config.model_type, "causal", type(inner))
        layers = DynamicCache(config=model.config).layers
        self.has_keys = any(isinstance(layer, CacheLayerMixin) for layer in layers)
        self.stackable = all(type(layer) is DynamicLayer for layer in layers)
        self.paddable = self.continues = True

    @property
    def name(self) -> str:
        """The model's path or hub id."""
        return str(self.model.name_or_path)

    @property
    def hidden_size(self) -> int | None:
        """D, the size of a hidden state; None for an architecture whose output layer is unknown."""
        head = self.model.get_output_embeddings()
        size = getattr(head, "in_features", None)
        return None if size is None else int(size)

    @contextmanager
    def capture_hidden(self) -> Iterator[list[torch.Tensor]]:
        """Within the block, the list holds the hidden state at the last position of the latest forward pass, (B, D).

        It is taken at the input of the output layer, so it costs no forward pass, and no other layer's state is stored.
        """
        captured: list[torch.Tensor] = []
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, inputs: captured.__setitem__(slice(None), [inputs[0][:, -1]]))
        try:
            yield captured
        finally:
            hook.remove()


def unwrapped(model: Any) -> Any:
    """The model of transformers itself, whose `forward` names its arguments, inside a wrapper (peft, GPTQ)."""
    if hasattr(model, "get_base_model"):
        return model.get_base_model()
    return model if "input_ids" in inspect.signature(model.forward).parameters else getattr(model, "model", model)


class BatchedCache:
    """A batch of sequences in one key-value cache.

    Attributes
    ----------
    cache
        Of transformers, B rows of T cells.
    mask
        bool of shape (B, T): which cells hold a token.
    """

    def __init__(self, network: Network) -> None:
        self.network = network
        self.clear()

    def clear(self) -> None:
        """Remove all rows."""
        network = self.network
        self.cache = DynamicCache() if network.stackable else DynamicCache(config=network.model.config)
        self.mask = torch.zeros((0, 0), dtype=torch.bool, device=network.device)

    def stack(self, rows: Sequence[Layers]) -> None:
        """Replace the batch by these rows, padded on the left to the longest; an empty list is an empty row."""
        self.clear()
        lengths = [layers[0][0].shape[1] if layers else 0 for layers in rows]
        longest = max(lengths)
        self.mask = torch.zeros((len(rows), longest), dtype=torch.bool, device=self.network.device)
        for row, n in enumerate(lengths):
            self.mask[row, longest - n :] = True
        if longest == 0:
            return
        template = next(layers for layers in rows if layers)
        for depth, pair in enumerate(template):
            stacked = []
            for side, cells in enumerate(pair):
                heads, _, width = cells.shape
                whole = cells.new_zeros((len(rows), heads, longest, width))
                for row, n in enumerate(lengths):
                    if n:
                        whole[row, :, longest - n :] = rows[row][depth][side]
                stacked.append(whole)
            self.cache.update(stacked[0], stacked[1], depth)

    def copy_row(self, row: int) -> Layers:
        """A copy of one row's cells without padding and gaps: (H, n, D) for each layer; an empty list for none."""
        filled = self.mask[row].nonzero()[:, 0]
        if not len(filled):
            return []
        first = int(filled[0])
        if len(filled) == self.mask.shape[1] - first:  # without a gap, the usual case, slices are far cheaper
            return [
                (layer.keys[row, :, first:].clone(), layer.values[row, :, first:].clone())
                for layer in self.cache.layers
            ]
        return [(layer.keys[row][:, filled], layer.values[row][:, filled]) for layer in self.cache.layers]

    def discard_newest(self, row: int, cells: int) -> None:
        """Mark the newest cells of a row as empty, because their tokens were not accepted; they become a gap."""
        if cells:
            self.mask[row, -cells:] = False

    def insert_gap(self, cells: int) -> None:
        """Append empty cells to every row."""
        for depth, layer in enumerate(self.cache.layers):
            pair = (layer.keys, layer.values)
            self.cache.update(*(side.new_zeros((*side.shape[:2], cells, side.shape[3])) for side in pair), depth)
        self.mask = torch.nn.functional.pad(self.mask, (0, cells))

    def forward(self, ids: torch.Tensor, real: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """One forward pass over new tokens.

        Parameters
        ----------
        ids
            Token ids of shape (B, M).
        real
            bool of shape (B, M): which of them are no padding.
        last
            Number of positions at the end whose logits are returned; None for all.

        Returns
        -------
        logits : shape (B, M, V), or (B, last, V)
        """
        before = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, real], dim=1)
        arguments: dict[str, Any] = {}
        if last is not None and self.network.takes_last:
            arguments["logits_to_keep"] = last
        if self.network.takes_positions:
            arguments["position_ids"] = (before + real.cumsum(1) - 1).clamp(min=0)
        # A state-space model looks at the mask of its input alone; what it has read before is in its state.
        mask = self.mask if self.network.has_keys else real
        arguments[str(self.network.cache_argument)] = self.cache
        output = self.network.model(input_ids=ids, attention_mask=mask.long(), use_cache=True, **arguments)
        logits: torch.Tensor = output.logits
        return logits if last is None else logits[:, -last:]

    def read(self, new: Sequence[Sequence[int]], last: int = 1) -> torch.Tensor:
        """Read each row's new tokens, aligned on the right; logits at the `last` positions, (B, last, V)."""
        ids, real = self._align(new)
        return self.forward(ids, real, last)

    def score(self, new: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Read each row's new tokens and compute the statistics of each of them but the first.

        Returns
        -------
        logprob, entropy, confidence : float32 of shape (B, M - 1), in nats
            M is the largest number of new tokens. Aligned on the right: the last len(new[i]) - 1 entries of row i are
            those of its tokens.
        """
        ids, real = self._align(new)
        width = ids.shape[1]
        step = max(1, MAX_SCORED_LOGITS // (len(new) * self.network.vocabulary)) if self.network.continues else width
        parts = []
        for start in range(0, width, step):
            stop = min(width, start + step)
            logits = self.forward(ids[:, start:stop], real[:, start:stop])
            logits = logits[:, : min(stop, width - 1) - start]
            targets = ids[:, start + 1 : start + 1 + logits.shape[1]]
            parts.append(token_stats(logits, targets.unsqueeze(-1)))
        logprob, entropy, confidence = (torch.cat(values, dim=1).squeeze(-1) for values in zip(*parts, strict=True))
        return logprob, entropy, confidence

    def _align(self, new: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids padded on the left, and which of them are no padding; (B, M) each."""
        width, pad, device = max(map(len, new)), self.network.pad, self.network.device
        ids = torch.tensor([[pad] * (width - len(tokens)) + list(tokens) for tokens in new], device=device)
        real = torch.tensor([[False] * (width - len(tokens)) + [True] * len(tokens) for tokens in new], device=device)
        return ids, real
