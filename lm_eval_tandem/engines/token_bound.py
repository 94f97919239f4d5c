"""A lower bound on the number of tokens of a text, without tokenizing it: most texts that are far too long are long.

No token stands for more bytes than the longest one of the vocabulary. That bounds the number of tokens from below where
the tokenizer drops nothing of a text and has tokens for all bytes; of any other tokenizer nothing is known here.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tokenizers.pre_tokenizers import ByteLevel

SPLITTERS = ("Split", "Digits", "Punctuation", "Metaspace", "ByteLevel")
"""Pre-tokenizers that keep every character, unless their behaviour is "Removed"."""


@dataclass(frozen=True)
class TokenBound:
    """The bound of one tokenizer.

    Attributes
    ----------
    longest
        Number of bytes of the longest token.
    composes
        Whether texts are brought into Unicode's form NFC first, which may make them shorter.
    takes_blanks
        Whether some special token also stands for all white space beside it.
    """

    longest: int
    composes: bool
    takes_blanks: bool

    @classmethod
    def of(cls, tokenizer: Any) -> TokenBound | None:
        """The bound of a tokenizer of transformers; None where its number of tokens has none.

        Parameters
        ----------
        tokenizer
            Only those of the library tokenizers, of the kind BPE, have a bound.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None or type(backend.model).__name__ != "BPE":
            return None
        normalizers, splitters = list(steps(backend.normalizer)), list(steps(backend.pre_tokenizer))
        of_bytes = any(step["type"] == "ByteLevel" for step in (*normalizers, *splitters))
        vocabulary = tokenizer.get_vocab()
        if not has_all_bytes(vocabulary, of_bytes, backend.model.byte_fallback):
            return None  # unknown characters may be dropped, or any number of them be one token
        if not all(map(lengthens, normalizers)) or not all(map(keeps_all, splitters)):
            return None
        added = tokenizer.added_tokens_decoder.values()
        special = {token.content for token in added}
        # In a vocabulary of bytes each character of a token stands for one.
        sizes = (
            len(token) if of_bytes and token not in special else len(token.encode("utf-8", "replace"))
            for token in vocabulary
        )
        return cls(
            longest=max(sizes),
            composes=any(step["type"] == "NFC" for step in normalizers),
            takes_blanks=any(token.lstrip or token.rstrip for token in added),
        )

    def fewest(self, text: str) -> int:
        """The text has at least so many tokens."""
        if self.composes and not text.isascii():
            text = unicodedata.normalize("NFC", text)
        if self.takes_blanks:
            text = "".join(text.split())
        return -(-len(text.encode("utf-8", "replace")) // self.longest)


def has_all_bytes(vocabulary: Mapping[str, int], of_bytes: bool, byte_fallback: bool) -> bool:
    """Whether there is a token for every byte, so that no character is unknown."""
    if of_bytes:
        return all(character in vocabulary for character in ByteLevel.alphabet())
    return byte_fallback and all(f"<0x{byte:02X}>" in vocabulary for byte in range(256))


def steps(component: Any) -> Iterator[Mapping[str, Any]]:
    """The steps of a normalizer or a pre-tokenizer as the file of a tokenizer describes them; none of None."""
    waiting = [] if component is None else [json.loads(component.__getstate__())]
    while waiting:
        step = waiting.pop()
        parts = step.get("normalizers") or step.get("pretokenizers")
        if step["type"] == "Sequence":
            waiting += parts or ()
        else:
            yield step


def lengthens(normalizer: Mapping[str, Any]) -> bool:
    """Whether a step of a normalizer makes no text shorter, in bytes, other than by NFC."""
    if normalizer["type"] == "Replace":
        replaced = normalizer["pattern"].get("String")
        return replaced is not None and len(normalizer["content"].encode()) >= len(replaced.encode())
    return normalizer["type"] in ("NFC", "Prepend", "ByteLevel")


def keeps_all(splitter: Mapping[str, Any]) -> bool:
    """Whether a step of a pre-tokenizer keeps every character."""
    return splitter["type"] in SPLITTERS and splitter.get("behavior") != "Removed"
