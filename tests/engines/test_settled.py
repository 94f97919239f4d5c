"""What is shown of an answer while it grows is the beginning of the whole answer, whatever the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from lm_eval_tandem import pair
from lm_eval_tandem.engines.settled import CHARACTER, held_back, incomplete_character, settled_text
from lm_eval_tandem.engines.stopping import StopRule, after_token, answer_text

PIECES = "▁ ▁a ▁coin s n't ▁n . ▁. ' Q : </ think > </think> é 答 \ufffd".split(" ")
STOPS = ["\n\n", "Q:", "s.", "答", "答案", "🙂", " a", ".", "</s>", "'"]
END, THINK = "</s>", "</think>"


@cache
def bytes_apart() -> PreTrainedTokenizerFast:
    """A tokenizer as of Llama 2: pieces with a blank before words, and bytes for all that has no piece."""
    names = ["<unk>", "<s>", END, *(f"<0x{byte:02X}>" for byte in range(256)), *PIECES]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in ("<unk>", "<s>", END)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token="<s>", unk_token="<unk>")


@cache
def tidying() -> PreTrainedTokenizerFast:
    """A tokenizer whose decoding takes blanks out, before full stops and the like."""
    names = [END, " ", " .", ".", " '", "'", " n", "'t", "n't", "a", " a", " ' ", "s", "\n", THINK, "Q", ":", "?", " ,"]
    tokenizer = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="a"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens([AddedToken(END, special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, clean_up_tokenization_spaces=True)


@cache
def byte_level() -> Any:
    """The bundled pair's."""
    return AutoTokenizer.from_pretrained(pair.INTERN)


TOKENIZERS = {"bytes apart": bytes_apart, "tidying": tidying, "byte level": byte_level}


def prefixes(
    tokenizer: Any, ids: Sequence[int], stop: tuple[str, ...], think_end: str | int | None
) -> tuple[list[str], str]:
    """What is settled after each token of a generation by the stop rule, and the whole answer."""

    def text_of(tokens: tuple[int, ...]) -> str:
        return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

    def settled(tokens: tuple[int, ...]) -> str:
        if isinstance(think_end, int) and think_end not in tokens:
            return ""
        return settled_text(text_of, after_token(tokens, think_end), incomplete, stop, think_end)

    incomplete = incomplete_character(lambda text: tokenizer.encode(text, add_special_tokens=False))
    rule = StopRule(lambda tokens: str(tokenizer.decode(list(tokens))), think_end)
    n = rule.search(stop).length(ids)
    whole = answer_text(text_of(after_token(tuple(ids[:n]), think_end)), stop, think_end)[0]
    return [settled(tuple(ids[:i])) for i in range(n + 1)], whole


@pytest.mark.parametrize("name", TOKENIZERS)
@settings(deadline=None)
@given(data=st.data())
def test_what_is_settled_is_never_taken_back(name: str, data: st.DataObject) -> None:
    tokenizer = TOKENIZERS[name]()
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=24))
    stop = tuple(data.draw(st.lists(st.sampled_from(STOPS), max_size=3)))
    think_end = data.draw(st.sampled_from([None, THINK, len(tokenizer) - 1]))
    if isinstance(think_end, int):
        ids = [i for at, i in enumerate(ids) if i != think_end or think_end not in ids[:at]]
    elif think_end is not None and str(tokenizer.decode(ids)).count(think_end) > 1:
        think_end = None
    grown, whole = prefixes(tokenizer, ids, stop, think_end)
    for i, text in enumerate(grown):
        assert whole.startswith(text), (i, text, whole)


def ids_of(tokenizer: Any, *pieces: str) -> list[int]:
    """Token ids of a text in pieces: the token of each, or else those of its bytes."""
    names = tokenizer.get_vocab()
    found: list[int] = []
    for piece in pieces:
        known = [names[piece]] if piece in names else [names.get(f"<0x{byte:02X}>", -1) for byte in piece.encode()]
        found += tokenizer.encode(piece, add_special_tokens=False) if -1 in known else known
    return found


@pytest.mark.parametrize("name", ["bytes apart", "byte level"])
def test_a_text_is_shown_but_for_what_is_open_at_its_end(name: str) -> None:
    """Characters of several bytes, and a stop string that begins and does not come."""
    tokenizer = TOKENIZERS[name]()
    pieces = ["▁a", "▁coin", "s", "🙂", ".", "答", "案", "s", "Q", ":", "s", "\n", "\n"]
    if name == "byte level":
        pieces = [piece.replace("▁", " ").removeprefix(" a") or "a" for piece in pieces]
    grown, whole = prefixes(tokenizer, ids_of(tokenizer, *pieces), ("\n\n", "Q:a"), None)
    assert whole == "a coins🙂.答案sQ:s"
    assert {"a coins", "a coins🙂.", "a coins🙂.答案s", whole} <= set(grown)
    assert not any(shown.endswith(("Q", "Q:", "\n", "\N{REPLACEMENT CHARACTER}")) for shown in grown)


def test_a_run_of_bytes_waits_for_its_end() -> None:
    """Where the last character of the run is incomplete, the whole run is decoded to replacement characters."""
    tokenizer = bytes_apart()
    ids = ids_of(tokenizer, "▁a", "\n案案", "s")
    assert tokenizer.decode(ids[:-1]) == "a\n案案"
    assert tokenizer.decode(ids[:-2]) == "a" + "\N{REPLACEMENT CHARACTER}" * 6
    grown, _ = prefixes(tokenizer, ids, (), None)
    assert set(grown) == {"", "a", "a\n案案s"}


@pytest.mark.parametrize("think_end", [THINK, "token"])
def test_nothing_of_a_thought_is_shown(think_end: str) -> None:
    tokenizer = bytes_apart()
    ids = ids_of(tokenizer, "▁a", "▁coin", THINK, "▁", "Q", ":", "▁a", "s")
    end = tokenizer.convert_tokens_to_ids(THINK) if think_end == "token" else think_end
    grown, whole = prefixes(tokenizer, ids, (), end)
    assert whole == "Q: as"
    assert set(grown) == {"", "Q", "Q:", "Q: a", "Q: as"}


@settings(deadline=None)
@given(st.text(alphabet="ab\n", max_size=12), st.lists(st.text(alphabet="ab\n", min_size=1, max_size=4), max_size=3))
def test_what_is_held_back_may_begin_a_stop_string_and_the_rest_may_not(text: str, stop: list[str]) -> None:
    shown = held_back(text, stop)

    def begins(rest: str) -> bool:
        return any(word != rest and word.startswith(rest) for word in stop)

    assert text.startswith(shown)
    assert shown == text or begins(text[len(shown) :])
    assert not any(begins(text[at:]) for at in range(len(shown)))


@pytest.mark.parametrize("name", ["bytes apart", "byte level"])
def test_three_of_four_bytes_of_a_character_are_incomplete(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    decode: Callable[..., str] = tokenizer.decode
    three = incomplete_character(lambda text: tokenizer.encode(text, add_special_tokens=False))
    assert len(three) == 3
    assert set(decode(list(three))) == {"\N{REPLACEMENT CHARACTER}"}
    assert decode([*three, tokenizer.encode(CHARACTER, add_special_tokens=False)[-1]]) == CHARACTER
