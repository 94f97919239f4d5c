"""The stop rule finds exactly what a search of the whole text after each token finds, in tokenizers of every kind."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lm_eval.models.utils import postprocess_generated_text
from lm_eval.models.utils_hf import MultiTokenEOSCriteria
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from torch import tensor
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from engines.conformance import stopped_after
from lm_eval_tandem import pair
from lm_eval_tandem.engines.stopping import StopRule, answer_text

PIECES = ["a", "b", " a", " b", "ab", "\n", "\n\n", " ", "é", "。", "答案", "🙂", "</think>", ".", " b."]
KINDS = ["bytes", "pieces with bytes", "words"]


@lru_cache
def tokenizer(kind: str) -> Any:
    """Byte-level BPE; pieces with a mark for spaces and bytes for what is missing (Llama 2); words (BERT)."""
    if kind == "bytes":
        return AutoTokenizer.from_pretrained(pair.INTERN)
    if kind == "words":
        words = ["[UNK]", "a", "##a", "b", "##b", "##ab", "答", "案", "。", ".", "é", "##é", "<", "/", "think", ">"]
        made = Tokenizer(models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
        made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(cleanup=True)
        return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="[UNK]")
    words = ["▁", "a", "b", "▁a", "▁b", "ab", "é", "案", ".", "\n", "</think>", "<unk>"]
    words += [f"<0x{i:02X}>" for i in range(256)]
    made = Tokenizer(
        models.BPE({word: i for i, word in enumerate(words)}, [("▁", "a"), ("▁", "b")], byte_fallback=True)
    )
    made.normalizer = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    made.decoder = decoders.Sequence(steps)
    made.add_tokens(["</think>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>")


texts = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)
words = st.lists(st.sampled_from(PIECES), min_size=1, max_size=3).map("".join).filter(lambda word: "think" not in word)


@st.composite
def answers(draw: st.DrawFn, kind: str) -> list[int]:
    """Token ids of a text, or any ids: parts of characters, and pieces that the tokenizer would have joined."""
    made = tokenizer(kind)
    ids: list[int] = []
    for _ in range(draw(st.integers(1, 4))):
        ids += made.encode(draw(texts), add_special_tokens=False)
        # One wrong byte among others makes all of them unreadable in the second kind; its bytes are those of texts.
        ids += draw(st.lists(st.integers(0, {"pieces with bytes": 10}.get(kind, len(made) - 1)), max_size=4))
    return ids


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("think_end", [None, "</think>"])
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_a_stop_string_is_found_at_the_token_that_completes_it(kind: str, think_end: str | None, data: Any) -> None:
    made = tokenizer(kind)
    ids, stop = data.draw(answers(kind)), data.draw(st.lists(words, min_size=1, max_size=3))
    expected = stopped_after(made, ids, stop, think_end)
    continued = data.draw(st.integers(0, max(0, expected - 1)))
    search = StopRule(made.decode, think_end).search(stop, ids[:continued])
    assert not search.stopped
    assert continued + search.length(ids[continued:]) == expected
    whole = made.decode(ids[:expected])
    after = answer_text(whole, stop, think_end)[1] and (think_end is None or think_end in whole)
    assert search.stopped == after


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_answer_is_that_of_lm_eval_s_hf(kind: str, data: Any) -> None:
    """Its search ends a generation with the same token or later, and then cuts the same text."""
    made = tokenizer(kind)
    ids, stop = data.draw(answers(kind)), data.draw(st.lists(words, min_size=1, max_size=3))
    criteria = [MultiTokenEOSCriteria(word, made, 0, 1) for word in stop]
    theirs = next((n for n in range(1, len(ids) + 1) if any([one(tensor([ids[:n]]), None) for one in criteria])), None)
    n = StopRule(made.decode).search(stop).length(ids)
    assert theirs is None or n <= theirs
    text = made.decode(ids[:theirs], skip_special_tokens=True)
    assert answer_text(made.decode(ids[:n], skip_special_tokens=True), stop)[0] == postprocess_generated_text(
        text, stop, None
    )


@given(text=texts, stop=st.lists(words | st.just(""), max_size=3), think_end=st.sampled_from([None, "</think>"]))
def test_a_whole_text_is_cut_as_lm_eval_cuts_it(text: str, stop: list[str], think_end: str | None) -> None:
    assert answer_text(text, stop, think_end)[0] == postprocess_generated_text(text, stop, think_end)


def test_an_empty_stop_string_ends_nothing() -> None:
    made = tokenizer("bytes")
    ids = made.encode("a b")
    search = StopRule(made.decode).search(("",))
    assert search.length(ids) == len(ids)
    assert not search.stopped
