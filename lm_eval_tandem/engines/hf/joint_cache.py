"""The caches of several networks that decode one text in step, and how their distributions become one.

Each member reads the text in its own tokens, into a cache of its own. With a threshold, the first member is the gate:
where it is sure of the next token, the others do not run, and what they have not read is kept until they are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from lm_eval_tandem.engines.hf.kv_cache import BatchedCache, Layers, Network
from lm_eval_tandem.engines.hf.union_vocabulary import NOT_A_TOKEN, Vocabulary
from lm_eval_tandem.engines.hf.worker import autocast


@dataclass(frozen=True)
class Member:
    """One of the models.

    Attributes
    ----------
    name
        Of the model.
    network
        The model itself.
    precision
        For `torch.autocast`; None for the model's own dtype.
    window
        Largest number of its tokens of a row.
    """

    name: str
    network: Network
    precision: torch.dtype | None
    window: int


class Combination:
    """How the distributions of several models become one.

    Parameters
    ----------
    members
        The models.
    vocabulary
        The entries over which their probabilities are averaged.
    weights
        Of the members; they add up to 1.
    threshold
        Probability of the first member's most likely token from which on that token is taken; None for never.
    """

    def __init__(
        self, members: Sequence[Member], vocabulary: Vocabulary, weights: Sequence[float], threshold: float | None
    ) -> None:
        self.members, self.vocabulary, self.weights, self.threshold = members, vocabulary, weights, threshold
        self._device = members[0].network.device
        self._entries: list[torch.Tensor] = []
        self._no_tokens: list[torch.Tensor | None] = []
        for places in vocabulary.places or ():
            entries = torch.from_numpy(places).to(self._device)
            no_tokens = entries == NOT_A_TOKEN
            self._entries.append(entries.clamp(min=0))
            self._no_tokens.append(no_tokens if bool(no_tokens.any()) else None)

    def distribution(self, member: int, logits: torch.Tensor) -> torch.Tensor:
        """A member's probabilities of its own tokens, float32 (B, V), from its logits (B, >= V) in any dtype."""
        width = len(self._entries[member]) if self._entries else self.vocabulary.size
        logits = logits[:, :width].to(self._device)
        if self._entries and (no_tokens := self._no_tokens[member]) is not None:
            logits = logits.masked_fill(no_tokens, -torch.inf)
        return logits.softmax(-1, dtype=torch.float32)

    def average(self, distributions: Sequence[torch.Tensor], weights: Sequence[float]) -> torch.Tensor:
        """The weighted sum of the first members' distributions (B, V), mapped into the vocabulary: (B, U)."""
        if not self._entries:
            total = distributions[0] * weights[0]
            for distribution, weight in zip(distributions[1:], weights[1:], strict=True):
                total.add_(distribution, alpha=weight)
            return total
        total = distributions[0].new_zeros((len(distributions[0]), self.vocabulary.size))
        for entries, distribution, weight in zip(self._entries, distributions, weights, strict=False):
            total.scatter_add_(1, entries.expand(len(distribution), -1), distribution * weight)
        return total


@dataclass
class MemberRow:
    """What a member has of one text: keys and values of the tokens that it has read, and the tokens after them."""

    layers: Layers
    unread: list[int]

    @property
    def read(self) -> int:
        """Number of tokens that it has read."""
        return self.layers[0][0].shape[1] if self.layers else 0


class JointCache:
    """A batch of texts in the caches of all members.

    Attributes
    ----------
    alone
        For each row, after `read`: whether the gate alone chooses its next token.
    gate_entries
        With a threshold, after `read`: the entry of the gate's most likely token in each row.
    """

    def __init__(self, combination: Combination) -> None:
        self.combination = combination
        self.alone: list[bool] = []
        self.gate_entries: list[int] = []
        self._caches = [BatchedCache(member.network) for member in combination.members]
        # By member and row
        self._unread: list[list[list[int]]] = [[] for _ in self._caches]
        self._started: list[list[bool]] = [[] for _ in self._caches]

    def stack(self, rows: Sequence[Sequence[MemberRow]]) -> None:
        """Replace the batch by these rows, each given by its `MemberRow` for every member."""
        for m, cache in enumerate(self._caches):
            cache.stack([row[m].layers for row in rows])
            self._unread[m] = [list(row[m].unread) for row in rows]
            self._started[m] = [bool(row[m].layers) for row in rows]

    def copy_row(self, row: int) -> list[MemberRow]:
        """A copy of what each member has of one row."""
        pairs = zip(self._caches, self._unread, strict=True)
        return [MemberRow(cache.copy_row(row), list(unread[row])) for cache, unread in pairs]

    def read(self, new: Sequence[Sequence[int]], last: int = 1) -> torch.Tensor:
        """Append entries to each row, let the members read them as far as needed, and combine what they predict.

        Parameters
        ----------
        new
            Entries of the vocabulary. A row that has nothing unread afterwards has ended; its result means nothing.
        last
            1: only the next token is predicted.

        Returns
        -------
        probabilities : float32 of shape (B, 1, U)
            The gate's alone in rows that are `alone`.
        """
        combination, vocabulary = self.combination, self.combination.vocabulary
        for m, unread in enumerate(self._unread):
            for tokens, entries in zip(unread, new, strict=True):
                for entry in entries:
                    tokens.extend(vocabulary.tokens_of(m, entry))
        ended = [not tokens for tokens in self._unread[0]]
        rows = list(range(len(new)))
        gate = combination.distribution(0, self._read_member(0, rows))
        self.alone = [False] * len(rows)
        if combination.threshold is not None:
            top, best = (values.tolist() for values in gate.max(-1))
            self.gate_entries = [vocabulary.entry(0, token) for token in best]
            self.alone = [end or p >= combination.threshold for end, p in zip(ended, top, strict=True)]
        needed = [row for row in rows if not self.alone[row]]
        everyone = len(needed) == len(rows)
        joint = [gate if everyone else gate[needed]]
        for m in range(1, len(self._caches) if needed else 1):
            joint.append(combination.distribution(m, self._read_member(m, needed)))
        if everyone:
            return combination.average(joint, combination.weights).unsqueeze(1)
        probabilities = combination.average([gate], [1.0])
        if needed:
            probabilities[needed] = combination.average(joint, combination.weights)
        return probabilities.unsqueeze(1)

    def _read_member(self, m: int, needed: list[int]) -> torch.Tensor:
        """Let a member catch up in these rows, whose logits (len(needed), V) are returned.

        A row of which it has not even read the prompt is read apart from those that it is in the middle of.
        """
        member, started = self.combination.members[m], self._started[m]
        fresh = [row for row in needed if not started[row]]
        apart: dict[int, torch.Tensor] = {}
        with autocast(member.network.device, member.precision):
            if self.combination.threshold is not None and 0 < len(fresh) < len(started):
                apart = dict(zip(fresh, self._read_apart(m, fresh), strict=True))
            rest = [row for row in needed if row not in apart]
            logits = self._catch_up(m, rest) if rest else None
        if logits is None or apart:
            return torch.stack([apart[row] if logits is None or row in apart else logits[row] for row in needed])
        return logits if len(rest) == len(started) else logits[rest]

    def _catch_up(self, m: int, wanted: list[int]) -> torch.Tensor:
        """Read what is unread in these rows; logits (B, V).

        All other rows that were started catch up as well: a pass over some rows costs as much as one over all.
        """
        cache, unread, started = self._caches[m], self._unread[m], self._started[m]
        begins = set(wanted)
        reads = [bool(unread[row]) and (started[row] or row in begins) for row in range(len(unread))]
        pad = [cache.network.pad]
        logits = cache.read([tokens if some else pad for tokens, some in zip(unread, reads, strict=True)])[:, 0]
        for row, some in enumerate(reads):
            if some:
                unread[row], started[row] = [], True
            else:
                cache.discard_newest(row, 1)
        return logits

    def _read_apart(self, m: int, rows: list[int]) -> torch.Tensor:
        """Read the texts of rows of which a member has read nothing, and put them into its cache; logits (n, V)."""
        cache, unread = self._caches[m], self._unread[m]
        apart = BatchedCache(cache.network)
        apart.stack([[]] * len(rows))
        logits = apart.read([unread[row] for row in rows])[:, 0]
        read = {row: apart.copy_row(i) for i, row in enumerate(rows)}
        cache.stack([read[row] if row in read else cache.copy_row(row) for row in range(len(unread))])
        for row in rows:
            unread[row], self._started[m][row] = [], True
        return logits
