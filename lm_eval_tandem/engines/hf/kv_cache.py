"""Rows of different lengths in one key-value cache: stacked for a forward pass, taken apart again to be kept.

Shapes: a layer's keys and values are [B, H, T, D] in a batch and [H, n, D] for one row. A batch is padded on the left;
a mask [B, T] of booleans says which cells hold a token, so a hole between kept cells and new tokens does no harm.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from lm_eval_tandem.engines.entropy import SMALL

Layers = list[tuple[torch.Tensor, torch.Tensor]]

SURE = 10.0
"""Nats by which the logit of a token is above all others that need not be measured to be certain (`entropy.told`). In
800 questions of the bundled pair no such token had more than 0.12 nats. That is no bound: the worst that V others can
make is V e^-10 (1 + 10), 0.67 over the pair's 1,335 tokens."""

UNLIKELY = -16.0
"""Log-probability of a token beside which sums in float32 are off by more than 1e-5."""

SCORED_CELLS = 2**27
"""Logits (rows x positions x vocabulary) that one forward pass of `score` may hold in float32: 512 MB."""


@dataclass
class PrefixEntry:
    """What is computed of one sequence: its first tokens, their keys and values, and the statistics of those scored."""

    ids: list[int]
    layers: Layers
    logprob: NDArray[Any] | None = None
    entropy: NDArray[Any] | None = None

    @property
    def bytes(self) -> int:
        """Memory of the keys and values."""
        return sum(cells.numel() * cells.element_size() for pair in self.layers for cells in pair)

    def cut(self, n: int) -> Layers:
        """The first n tokens' keys and values, as views; nothing for n = 0."""
        return [(key[:, :n], value[:, :n]) for key, value in self.layers] if n else []


class PrefixCache:
    """What is kept for each session, within a number of bytes; the longest unused goes first."""

    def __init__(self, room: int) -> None:
        self.room = room
        self._kept: OrderedDict[str, PrefixEntry] = OrderedDict()
        self._bytes = 0

    def get(self, session: str | None) -> PrefixEntry | None:
        """What is kept for the session, if it is still there."""
        if session is None or session not in self._kept:
            return None
        self._kept.move_to_end(session)
        return self._kept[session]

    def put(self, session: str, kept: PrefixEntry) -> None:
        """Keep this instead of what was kept for the session."""
        self.drop(session)
        self._kept[session] = kept
        self._bytes += kept.bytes
        while self._bytes > self.room and self._kept:
            self.drop(next(iter(self._kept)))

    def drop(self, session: str) -> None:
        """Forget the session."""
        kept = self._kept.pop(session, None)
        if kept is not None:
            self._bytes -= kept.bytes


class Network:
    """A decoder-only model and what one has to know to batch it, found out once.

    `stackable` is False for models whose cache is not plain keys and values over the whole prefix (sliding windows,
    state spaces): their rows are computed together from the beginning and never taken apart.
    """

    def __init__(self, model: PreTrainedModel, pad: int) -> None:
        self.model = model
        self.pad = pad
        self.device = model.device
        self.vocabulary = int(model.config.get_text_config(decoder=True).vocab_size)
        accepted = inspect.signature(model.forward).parameters
        self.takes_positions = "position_ids" in accepted
        self.takes_last = "logits_to_keep" in accepted
        self.stackable = all(type(layer) is DynamicLayer for layer in DynamicCache(config=model.config).layers)

    @property
    def width(self) -> int | None:
        """D, the numbers of a hidden state; None for an architecture whose output layer is not known."""
        head = self.model.get_output_embeddings()
        width = getattr(head, "in_features", None)
        return None if width is None else int(width)

    @contextmanager
    def hidden(self) -> Iterator[list[torch.Tensor]]:
        """While it lasts, the list holds the hidden state at the last position of the newest forward pass, [B, D].

        It is taken on its way into the output layer, so no pass is made for it and no other layer's is kept.
        """
        caught: list[torch.Tensor] = []
        head = self.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(lambda _, given: caught.__setitem__(slice(None), [given[0][:, -1]]))
        try:
            yield caught
        finally:
            hook.remove()


class BatchedCache:
    """A batch of sequences in one cache."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.clear()

    def clear(self) -> None:
        """Forget all rows."""
        network = self.network
        self.cache = DynamicCache() if network.stackable else DynamicCache(config=network.model.config)
        self.mask = torch.zeros((0, 0), dtype=torch.bool, device=network.device)

    def stack(self, kept: Sequence[Layers]) -> None:
        """Put rows side by side: the cells of each, padded on the left to the longest. Replaces what was there."""
        self.clear()
        lengths = [layers[0][0].shape[1] if layers else 0 for layers in kept]
        longest = max(lengths)
        self.mask = torch.zeros((len(kept), longest), dtype=torch.bool, device=self.network.device)
        for row, n in enumerate(lengths):
            self.mask[row, longest - n :] = True
        if longest == 0:
            return
        template = next(layers for layers in kept if layers)
        for depth, pair in enumerate(template):
            stacked = []
            for side, cells in enumerate(pair):
                heads, _, width = cells.shape
                whole = cells.new_zeros((len(kept), heads, longest, width))
                for row, n in enumerate(lengths):
                    if n:
                        whole[row, :, longest - n :] = kept[row][depth][side]
                stacked.append(whole)
            self.cache.update(stacked[0], stacked[1], depth)

    def take(self, row: int) -> Layers:
        """A copy of one row's cells without padding: [H, n, D] a layer."""
        filled = self.mask[row].nonzero()[:, 0]
        first = int(filled[0])
        if len(filled) == self.mask.shape[1] - first:  # no hole, which is the common case and far cheaper
            return [
                (layer.keys[row, :, first:].clone(), layer.values[row, :, first:].clone())
                for layer in self.cache.layers
            ]
        return [(layer.keys[row][:, filled], layer.values[row][:, filled]) for layer in self.cache.layers]

    def forget(self, row: int, cells: int) -> None:
        """The newest cells of a row hold nothing that was written; they become a hole."""
        if cells:
            self.mask[row, -cells:] = False

    def forward(self, ids: torch.Tensor, real: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """One pass over new tokens `ids` [B, M] (`real` [B, M] says which are no padding); logits [B, M, V].

        last: of so many positions at the end alone, [B, last, V].
        """
        before = self.mask.sum(1, keepdim=True)
        self.mask = torch.cat([self.mask, real], dim=1)
        arguments: dict[str, Any] = {}
        if last is not None and self.network.takes_last:
            arguments["logits_to_keep"] = last
        if self.network.takes_positions:
            arguments["position_ids"] = (before + real.cumsum(1) - 1).clamp(min=0)
        output = self.network.model(
            input_ids=ids,
            attention_mask=self.mask.long(),
            past_key_values=self.cache,
            use_cache=True,
            **arguments,
        )
        logits: torch.Tensor = output.logits
        return logits if last is None else logits[:, -last:]

    def read(self, new: Sequence[Sequence[int]], last: int = 1) -> torch.Tensor:
        """Read each row's new tokens, aligned on the right; logits after each of the last ones, [B, last, V]."""
        ids, real = self._align(new)
        return self.forward(ids, real, last)

    def score(self, new: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        """Read each row's new tokens; log-probability and entropy of each of them but the first, [B, M - 1] float32.

        Aligned on the right: the last len(new[i]) - 1 entries of row i are its own.
        """
        ids, real = self._align(new)
        width = ids.shape[1]
        step = max(1, SCORED_CELLS // (len(new) * self.network.vocabulary))
        logprob, entropy = [], []
        for start in range(0, width, step):
            stop = min(width, start + step)
            logits = self.forward(ids[:, start:stop], real[:, start:stop])
            logits = logits[:, : min(stop, width - 1) - start]
            targets = ids[:, start + 1 : start + 1 + logits.shape[1]]
            each = measures(logits, targets.unsqueeze(-1))
            logprob.append(each[0].squeeze(-1))
            entropy.append(each[1].squeeze(-1))
        return torch.cat(logprob, dim=1), torch.cat(entropy, dim=1)

    def _align(self, new: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
        width, pad, device = max(map(len, new)), self.network.pad, self.network.device
        ids = torch.tensor([[pad] * (width - len(tokens)) + list(tokens) for tokens in new], device=device)
        real = torch.tensor([[False] * (width - len(tokens)) + [True] * len(tokens) for tokens in new], device=device)
        return ids, real


def measures(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Log-probability of `targets` [..., 1] and entropy, [..., 1] each, of logits [..., V]; float32.

    H = log Z - (1/Z) sum e^z z with z = logits - max, which reads the vocabulary half as often as log-softmax first.
    """
    z = logits.float()
    z = z - z.amax(-1, keepdim=True)
    e = z.exp()
    total = e.sum(-1, keepdim=True)
    log_total = total.log()
    entropy = log_total - torch.linalg.vecdot(e, z).unsqueeze(-1) / total
    # A masked logit is minus infinity and makes 0 * -inf; only then is the slower, exact sum needed.
    if not bool(entropy.isfinite().all()):
        entropy = torch.special.entr(e / total).sum(-1, keepdim=True)
    return z.gather(-1, targets) - log_total, entropy


def best_of(logits: torch.Tensor) -> list[int]:
    """The likeliest token of each of logits [N, V]. On a CPU numpy finds it many times faster than torch."""
    if logits.device.type == "cpu" and logits.dtype == torch.float32:
        return list(logits.numpy().argmax(-1).tolist())
    return list(logits.argmax(-1).tolist())


def measured(logits: torch.Tensor, tokens: Sequence[int]) -> list[tuple[float, float]]:
    """Log-probability and entropy of each of these tokens [N], a pair each, of logits [N, V]; see `measures`.

    On a CPU, over a small vocabulary, a token that is `SURE` is told as certain, and the few others are measured one by
    one: it is done at every step, and there each call counts. The logits are overwritten, and numpy may warn of
    infinities, which are mended; who calls it at every step says once that they are to be ignored.
    """
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and logits.shape[1] <= SMALL:
        rows = logits.numpy()
        leads = enumerate(_leads(rows, tokens))
        return [(0.0, 0.0) if lead >= SURE else _measured(rows[row], tokens[row]) for row, lead in leads]
    chosen = torch.tensor(tokens, device=logits.device).unsqueeze(-1)
    found: list[list[float]] = torch.cat(measures(logits, chosen), dim=1).tolist()
    return [(logprob, entropy) for logprob, entropy in found]


def _leads(rows: NDArray[np.float32], tokens: Sequence[int]) -> list[float]:
    """How far each token's logit [N] is above the best other one of its row [N, V], in nats."""
    if len(rows) == 1:
        (row,), (token,) = rows, tokens
        own = row.item(token)
        row[token] = -math.inf
        best = row.item(row.argmax())
        row[token] = own
        return [own - best]
    chosen = np.arange(0, rows.size, rows.shape[1]) + tokens
    theirs = rows.take(chosen)
    rows.put(chosen, -math.inf)
    leads: list[float] = (theirs - np.maximum.reduce(rows, 1)).tolist()
    rows.put(chosen, theirs)
    return leads


def _measured(row: NDArray[np.float32], token: int) -> tuple[float, float]:
    """The same of one row [V], exactly: with z = logits - that of the token, log Z - (1/Z) sum e^z z."""
    row -= row.item(token)
    e = np.exp(row)
    total = np.add.reduce(e).item()
    logprob = -math.log(total)
    entropy = -logprob - np.dot(e, row).item() / total
    # Neither masked logits, as in `measures`, nor a token so unlikely that z magnifies the error of e.
    if math.isfinite(entropy) and logprob > UNLIKELY:
        return logprob, entropy
    exactly = measures(torch.from_numpy(row), torch.tensor([token]))
    return exactly[0].item(), exactly[1].item()
