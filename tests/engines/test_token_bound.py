"""The fewest tokens that a text may have: never more than it has, on tokenizers that are made here."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm_eval_tandem import pair
from lm_eval_tandem.engines.token_bound import TokenBound

TEXTS = ["the the these theses  and  and", "coins: 1) buys a lantern " * 3, "\N{LATIN SMALL LETTER E WITH ACUTE}t" * 9]
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def trained(normalizer: Any = None, **added: Any) -> PreTrainedTokenizerFast:
    """A byte-level tokenizer."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet))
    tokenizer.add_special_tokens([AddedToken("<end>", **added)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def with_byte_fallback(tokens: list[str]) -> PreTrainedTokenizerFast:
    """One in the manner of SentencePiece: a blank is a mark, and unknown characters are bytes."""
    vocabulary = {token: number for number, token in enumerate([*tokens, "\N{LOWER ONE EIGHTH BLOCK}", "a", "b"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True, fuse_unk=True, unk_token="a"))
    tokenizer.normalizer = normalizers.Replace(" ", "\N{LOWER ONE EIGHTH BLOCK}")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


TOKENIZERS = {
    "byte level": trained(),
    "composing": trained(normalizers.NFC()),
    "blanks": trained(lstrip=True, rstrip=True),
    "byte fallback": with_byte_fallback(BYTES),
    "pair": AutoTokenizer.from_pretrained(pair.INTERN),
}


@pytest.mark.parametrize("name", TOKENIZERS)
@given(
    text=st.text(max_size=60)
    | st.lists(st.sampled_from([*TEXTS, "<end>", " ", "\t\n", "e\N{COMBINING ACUTE ACCENT}"])).map("".join)
)
@settings(max_examples=150, deadline=None)
def test_no_text_has_fewer_tokens(name: str, text: str) -> None:
    tokenizer = TOKENIZERS[name]
    bound = TokenBound.of(tokenizer)
    assert bound is not None
    assert bound.fewest(text) <= len(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_bound_is_of_use() -> None:
    for tokenizer in TOKENIZERS.values():
        bound = TokenBound.of(tokenizer)
        assert bound is not None
        assert bound.fewest("a" * 1000) >= 30


@pytest.mark.parametrize(
    "changed",
    [
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": " +"}, "content": " "}},
        {"normalizer": {"type": "Replace", "pattern": {"String": "aa"}, "content": "a"}},
        {"pre_tokenizer": {"type": "Whitespace"}},
        {"pre_tokenizer": None},
    ],
)
def test_a_tokenizer_that_drops_something_has_none(changed: dict[str, Any]) -> None:
    description = json.loads(TOKENIZERS["byte level"].backend_tokenizer.to_str()) | changed
    backend = Tokenizer.from_str(json.dumps(description))
    assert TokenBound.of(PreTrainedTokenizerFast(tokenizer_object=backend)) is None


def test_one_that_lacks_a_byte_or_is_of_another_kind_has_none() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "?": 1}, unk_token="?"))
    assert TokenBound.of(PreTrainedTokenizerFast(tokenizer_object=words)) is None
    assert TokenBound.of(with_byte_fallback(BYTES[:-1])) is None
    assert TokenBound.of(object()) is None
