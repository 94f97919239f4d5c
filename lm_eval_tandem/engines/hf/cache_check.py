"""What a model's cache can bear: one batched call is compared with single calls when the model is loaded.

Most models compute with the mask and the positions that they are given. Some count the cells of the cache instead:
GPT-Neo's window and MPT's ALiBi take the distance of two tokens from their cells, so empty cells between them are wrong
there; others ignore the mask of padded rows. No attribute of a configuration says so, but a few short passes do.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence

import torch

from lm_eval_tandem.engines.hf.kv_cache import BatchedCache, Network
from lm_eval_tandem.errors import EngineError

PROMPT = "A farmer has 17 sheep and buys 5 more. After a storm only 9 of them are left, so how many did run away?"
LENGTHS = (12, 7)
"""Tokens of the prompt that are compared, row by row."""
KEPT = (3, 2)
"""Leading tokens of each row that are in the cache before the others are read."""
GAP = 64
"""Empty cells between both where a model has no window of its own; with one, as many as the window, and one more."""
MAX_WINDOW = 1024
"""Largest window that is tried: empty cells take memory."""
TOLERANCE = 2e-3
"""Total variation, from 0 to 1, by which a distribution of the next token may differ in float32."""
HALF_TOLERANCE = 0.1
"""The same in half precision, where batching alone changes it by a few hundredths."""

log = logging.getLogger(__name__)


def check_cache(network: Network, encode: Callable[[str], Sequence[int]], name: str) -> None:
    """Find out what the cache of a loaded model bears, and set `stackable`, `paddable` and `continues` accordingly.

    Parameters
    ----------
    network
        The model.
    encode
        Token ids of a text.
    name
        The model's name, for messages.

    Raises
    ------
    EngineError
        Even one row alone, read token by token, differs from one pass over it.
    """
    ids = list(encode(PROMPT))
    ids = (ids * max(LENGTHS))[: max(LENGTHS)]
    check = _Check(network, [ids[:n] for n in LENGTHS])
    if network.stackable and check.agrees(check.with_gaps):
        return
    if network.stackable:
        log.info("%s: its attention is wrong where the cache has gaps; rows start together, without reuse.", name)
    network.stackable = False
    network.paddable = check.agrees(check.padded)
    # To read a prompt in one pass costs little, so a small difference is enough to do so.
    network.continues = check.agrees(check.continued, strict=True)
    if not network.paddable and not check.agrees(check.single):
        raise EngineError(
            f"{name} gives other tokens when it reads a text in steps, from its cache, than when it reads it at once, "
            "so no answer of it could be trusted; name another model, or load it with another attn_implementation."
        )


class _Check:
    """Rows of token ids, and the distributions (n, V) of the next token after each, from one pass over each row."""

    def __init__(self, network: Network, rows: list[list[int]]) -> None:
        self.network = network
        self.rows = rows
        passes = [network.model(input_ids=torch.tensor([row], device=network.device)).logits[0] for row in rows]
        self.expected = [_distributions(logits) for logits in passes]
        half = next(network.model.parameters()).dtype != torch.float32 or torch.is_autocast_enabled(network.device.type)
        self.tolerance = HALF_TOLERANCE if half else TOLERANCE

    def agrees(self, read: Callable[[], Iterator[torch.Tensor]], strict: bool = False) -> bool:
        """Whether the logits (K, V) after the last K tokens, which `read` yields by row, make those distributions."""
        tolerance = self.tolerance / (4 if strict else 1)
        try:
            return all(_near(logits, row, tolerance) for logits, row in zip(read(), self.expected, strict=True))
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # it cannot be called in this way
            return False

    def with_gaps(self) -> Iterator[torch.Tensor]:
        """Prefixes stacked into one batch, a gap, the rest of each row but its last token, and that one."""
        kept = []
        for row, n in zip(self.rows, KEPT, strict=True):
            cache = self._empty(1)
            cache.read([row])
            kept.append([(key[:, :n], value[:, :n]) for key, value in cache.copy_row(0)])
        cache = BatchedCache(self.network)
        cache.stack(kept)
        cache.insert_gap(_gap(self.network))
        return self._in_two_passes(cache, [row[n:] for row, n in zip(self.rows, KEPT, strict=True)])

    def padded(self) -> Iterator[torch.Tensor]:
        """All rows but their last tokens from an empty cache, padded on the left, and then those."""
        return self._in_two_passes(self._empty(len(self.rows)), self.rows)

    def _in_two_passes(self, cache: BatchedCache, unread: list[list[int]]) -> Iterator[torch.Tensor]:
        first = cache.read([row[:-1] for row in unread], last=max(map(len, unread)) - 1)
        second = cache.read([row[-1:] for row in unread])
        for row, tokens in enumerate(unread):
            yield torch.cat([first[row, 1 - len(tokens) :], second[row]])

    def continued(self) -> Iterator[torch.Tensor]:
        """Each row alone, in two passes of several tokens."""
        return self._alone(lambda row: len(row) // 2)

    def single(self) -> Iterator[torch.Tensor]:
        """Each row alone, all but its last token, and that one."""
        return self._alone(lambda row: len(row) - 1)

    def _alone(self, middle: Callable[[list[int]], int]) -> Iterator[torch.Tensor]:
        for row in self.rows:
            cache = self._empty(1)
            cache.read([row[: middle(row)]])
            yield cache.read([row[middle(row) :]], last=len(row) - middle(row))[0]

    def _empty(self, rows: int) -> BatchedCache:
        cache = BatchedCache(self.network)
        cache.stack([[]] * rows)
        return cache


def _near(logits: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    distance = 0.5 * (_distributions(logits) - expected[-len(logits) :]).abs().sum(-1).max()
    # A model whose logits are NaN is reported by its first question; the cache is not to blame.
    return bool(distance <= tolerance) or bool(expected.isnan().any())


def _distributions(logits: torch.Tensor) -> torch.Tensor:
    return logits.float().cpu().softmax(-1)


def _gap(network: Network) -> int:
    """Number of empty cells that a window of the model's own cannot reach across."""
    settings = network.model.config.get_text_config(decoder=True).to_dict()
    windows = [value for name, value in settings.items() if "window" in name and type(value) is int]
    return 1 + max([GAP, *(value for value in windows if value <= MAX_WINDOW)])
