"""The union of several vocabularies, over the bytes of tokens (GaC: Yu et al., Findings of EMNLP 2024).

Tokenizers write one and the same piece of text in different ways: " the" is "Ġthe" in byte-level BPE and "▁the" in
SentencePiece. So tokens are compared by the bytes that they stand for. Special tokens stand for no text; each has an
entry of its own name, and all tokens that end an answer share one entry.

`SharedVocabulary` is the union where all members have the same vocabulary: the vocabulary itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

Key = bytes | str
"""What an entry stands for: the bytes of ordinary tokens, or the name of a special one."""
END: Final = ""
"""The name of the entry of all end tokens; no other special token has an empty name."""
METASPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""How SentencePiece writes a blank."""
BYTE_TOKEN = re.compile("<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece writes a single byte."""
NOT_A_TOKEN = -1


class Vocabulary(Protocol):
    """The entries over which a joint engine averages, and the members' tokens for them."""

    @property
    def size(self) -> int:
        """Number of entries, U."""
        ...

    @property
    def ends(self) -> frozenset[int]:
        """Entries that end an answer."""
        ...

    @property
    def places(self) -> Sequence[NDArray[np.int64]] | None:
        """For each member the entry of each column of its logits, or `NOT_A_TOKEN`; None where both are the same."""
        ...

    def entry(self, member: int, token: int) -> int:
        """The entry of a member's token."""
        ...

    def tokens_of(self, member: int, entry: int) -> tuple[int, ...]:
        """How a member reads an entry: at least one of its own tokens."""
        ...


class SharedVocabulary:
    """One vocabulary of all members, whose entries are its token ids.

    Parameters
    ----------
    size
        Number of tokens of which all members have logits.
    ends
        Token ids that end an answer.
    """

    places = None

    def __init__(self, size: int, ends: Iterable[int]) -> None:
        self.size, self.ends = size, frozenset(ends)

    def entry(self, member: int, token: int) -> int:
        """See `Vocabulary.entry`."""
        return token

    def tokens_of(self, member: int, entry: int) -> tuple[int, ...]:
        """See `Vocabulary.tokens_of`."""
        return (entry,)


class MemberVocabulary:
    """The tokens of one member.

    Parameters
    ----------
    tokenizer
        Of transformers.
    columns
        Number of logits of the model. Tokens beyond them are left out: the model can neither read nor write them.
    ends
        Token ids that end an answer.
    encode
        Token ids of a text without special tokens around it.

    Attributes
    ----------
    keys
        What each token stands for, by token id in ascending order.
    ids
        The smallest token id for each of that.
    """

    def __init__(self, tokenizer: Any, columns: int, ends: Collection[int], encode: Callable[[str], list[int]]) -> None:
        self.encode = encode
        names = {token: name for name, token in tokenizer.get_vocab().items() if token < columns}
        special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        special |= {*tokenizer.all_special_ids, *ends}
        ordinary = {token: name for token, name in names.items() if token not in special}
        pieces = token_bytes(tokenizer, ordinary)
        self.keys: dict[int, Key] = {}
        for token in sorted(names):
            self.keys[token] = pieces[token] if token in pieces else END if token in ends else names[token]
        self.ids: dict[Key, int] = {}
        for token, key in self.keys.items():
            self.ids.setdefault(key, token)
        self._longest = max(map(len, pieces.values()), default=0)
        # Read where a tokenizer has no token at all for a text.
        unknown = tokenizer.unk_token_id
        self._filler = unknown if unknown in self.keys else min(ordinary or names)

    def read(self, key: Key) -> tuple[int, ...]:
        """The tokens in which the member reads an entry; at least one.

        They are its own token, or its tokenizer's tokens for the text if they have exactly these bytes, or else the
        longest matches from the left. A text that none of that can represent is read as the tokenizer encodes it.
        """
        if key in self.ids:
            return (self.ids[key],)
        whole = key if isinstance(key, bytes) else key.encode()
        text = whole.decode(errors="replace")
        encoded = tuple(token for token in self.encode(text) if token in self.keys)
        if encoded and self._bytes_of(encoded) == whole:
            return encoded
        return self._longest_matches(whole) or encoded or (self._filler,)

    def _bytes_of(self, tokens: Iterable[int]) -> bytes | None:
        """The bytes of tokens; None where one of them is special."""
        keys = [self.keys[token] for token in tokens]
        return None if any(isinstance(key, str) for key in keys) else b"".join(map(_ordinary, keys))

    def _longest_matches(self, whole: bytes) -> tuple[int, ...]:
        """The longest token at each place from the left; none where some place has no token."""
        tokens, start = [], 0
        while start < len(whole):
            ends = range(min(len(whole), start + self._longest), start, -1)
            end = next((end for end in ends if whole[start:end] in self.ids), None)
            if end is None:
                return ()
            tokens.append(self.ids[whole[start:end]])
            start = end
        return tuple(tokens)


class UnionVocabulary:
    """The union of different vocabularies.

    Its order is that of the first member's token ids, followed by what the second has besides, and so on.

    Parameters
    ----------
    members
        Their vocabularies.

    Attributes
    ----------
    keys
        What each entry stands for.
    """

    def __init__(self, members: Sequence[MemberVocabulary]) -> None:
        self._members = members
        numbers: dict[Key, int] = {}
        self.places: list[NDArray[np.int64]] = []
        for member in members:
            places = np.full(1 + max(member.keys), NOT_A_TOKEN, dtype=np.int64)
            for token, key in member.keys.items():
                places[token] = numbers.setdefault(key, len(numbers))
            self.places.append(places)
        self.keys = list(numbers)
        self.size = len(self.keys)
        self.ends = frozenset({numbers[END]} if END in numbers else ())
        self._read: list[dict[int, tuple[int, ...]]] = [{} for _ in members]

    def entry(self, member: int, token: int) -> int:
        """See `Vocabulary.entry`."""
        return int(self.places[member][token])

    def tokens_of(self, member: int, entry: int) -> tuple[int, ...]:
        """See `Vocabulary.tokens_of`, and `MemberVocabulary.read`."""
        known = self._read[member]
        if entry not in known:
            known[entry] = self._members[member].read(self.keys[entry])
        return known[entry]

    def text(self, entries: Iterable[int], special: Mapping[Key, str] | None = None) -> str:
        """The text of entries; bytes of no or half a character become U+FFFD.

        Parameters
        ----------
        entries
            Their numbers.
        special
            Other names of special entries, to include them by name; None to leave special entries out.
        """
        parts = []
        for key in map(self.keys.__getitem__, entries):
            if isinstance(key, bytes):
                parts.append(key)
            elif special is not None:
                parts.append(special.get(key, key).encode())
        return b"".join(parts).decode(errors="replace")


def token_bytes(tokenizer: Any, names: Mapping[int, str]) -> dict[int, bytes]:
    """The bytes that tokens add to a text, by token id.

    Parameters
    ----------
    tokenizer
        Of transformers.
    names
        Names of ordinary tokens, as they are in the vocabulary, by token id.
    """
    steps = _decoder_steps(tokenizer)
    kinds = {str(step.get("type")) for step in steps}
    if "ByteLevel" in kinds:
        letters = _byte_of_letter()
        return {token: _byte_level(name, letters) for token, name in names.items()}
    writes_blank = any(METASPACE in json.dumps(step, ensure_ascii=False) for step in steps)
    if hasattr(tokenizer, "sp_model") or writes_blank or kinds & {"Metaspace", "ByteFallback"}:
        return {token: _sentencepiece(name) for token, name in names.items()}
    return _added_when_decoded(tokenizer, names)


def _decoder_steps(tokenizer: Any) -> list[dict[str, Any]]:
    """The steps of a fast tokenizer's decoder; none for other tokenizers."""
    decoder = getattr(getattr(tokenizer, "backend_tokenizer", None), "decoder", None)
    if decoder is None:
        return []
    state = json.loads(decoder.__getstate__())
    steps: list[dict[str, Any]] = state.get("decoders", [state])
    return steps


def _byte_of_letter() -> dict[str, int]:
    """The byte that each letter of byte-level BPE stands for: visible Latin-1 characters are their own bytes.

    All other bytes, in order, are the letters from U+0100 on.
    """
    own = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in own]
    return {chr(byte): byte for byte in own} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _byte_level(name: str, letters: Mapping[str, int]) -> bytes:
    # An added token is plain text, which its decoder recognises by the same sign: a character that is no letter.
    if all(character in letters for character in name):
        return bytes(letters[character] for character in name)
    return name.encode()


def _sentencepiece(name: str) -> bytes:
    byte = BYTE_TOKEN.fullmatch(name)
    return bytes([int(byte[1], 16)]) if byte else name.replace(METASPACE, " ").encode()


def _added_when_decoded(tokenizer: Any, names: Mapping[int, str]) -> dict[int, bytes]:
    """What each token adds to the text of an ordinary token before it, by the tokenizer's own decoding."""

    def decode(tokens: list[int]) -> str:
        return str(tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    before = min(names, default=0)
    start = decode([before]) if names else ""
    added = {}
    for token in names:
        text = decode([before, token])
        added[token] = (text[len(start) :] if text.startswith(start) else decode([token])).encode()
    return added


def _ordinary(key: Key) -> bytes:
    assert isinstance(key, bytes)
    return key
