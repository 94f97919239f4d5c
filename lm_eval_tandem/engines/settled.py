r"""The part of a growing text that no further token changes, so that it can be shown while the rest is generated.

Four things change the end of a text that was decoded from its first tokens: the rest of a character, a stop string that
is complete only later, the end of a thought, which removes all of it, and, with some tokenizers, the next token.
SentencePiece's decoder turns a whole run of bytes into U+FFFD while the last character of the run is incomplete, and
some tokenizers take out a blank before a full stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from lm_eval_tandem.engines.stopping import REPLACEMENT, answer_text

CHARACTER = "\U0010fffd"
"""A character that no vocabulary has as one token: its tokens are bytes, where a tokenizer has tokens for bytes."""
TIDIED = re.compile(r"[ '][ 'nvr]*\Z")
"""An end of which a tokenizer with `clean_up_tokenization_spaces` may take out the blank, as in " ." or " n't"."""


def incomplete_character(encode: Callable[[str], Sequence[int]]) -> tuple[int, ...]:
    """The first three of the four bytes of a character as tokens; of tokenizers without such tokens anything, or none.

    What comes before them, as the first token of a text or SentencePiece's blank, is left out.
    """
    return tuple(encode(CHARACTER))[-4:-1]


def settled_text(
    text_of: Callable[[tuple[int, ...]], str],
    token_ids: tuple[int, ...],
    incomplete: tuple[int, ...] = (),
    stop: Iterable[str] = (),
    think_end: str | int | None = None,
) -> str:
    """What the answer of these tokens and of any that follow them begins with.

    Parameters
    ----------
    text_of
        The decoded text of tokens.
    token_ids
        The tokens so far; with an integer `think_end` those after that token.
    incomplete
        See `incomplete_character`.
    stop, think_end
        As in `stopping.answer_text`, whose answers these are.

    Returns
    -------
    str
        "" while the model thinks. A model that ends its thinking twice takes back what it has said between.
    """
    text = text_of(token_ids).rstrip(REPLACEMENT)
    if incomplete and text:
        text = text[: common_length(text, text_of((*token_ids, *incomplete)))]
    text = TIDIED.sub("", text)
    if isinstance(think_end, str) and think_end not in text:
        return ""
    stop = tuple(stop)
    return held_back(answer_text(text, stop, think_end)[0], stop)


def held_back(text: str, stop: Iterable[str]) -> str:
    r"""A text without an end that may be the beginning of a stop string.

    Examples
    --------
    >>> held_back("Six.\nQ", ["\n\n", "\nQ:"])
    'Six.'
    """
    held = 0
    for word in stop:
        lengths = range(min(len(word) - 1, len(text)), held, -1)
        held = next((length for length in lengths if text.endswith(word[:length])), held)
    return text[: len(text) - held]


def common_length(one: str, other: str) -> int:
    """Number of characters with which two texts begin alike."""
    shortest = min(len(one), len(other))
    if one[:shortest] == other[:shortest]:
        return shortest
    return next(i for i in range(shortest) if one[i] != other[i])
