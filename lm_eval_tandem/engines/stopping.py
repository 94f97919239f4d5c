"""The stop rule of all engines: a generation ends with the token that completes a stop string in the answer.

The answer is what follows the thinking, because a thinking model may think a stop string. Stop strings are searched for
in decoded text, special tokens included, so characters of several tokens are found like all others. lm-eval's `hf` has
the same rule for models that do not think, so its answers are the same; its rule for those that do is that of `vllm`.

`StopRule` is for tokens, `answer_text` for a text that is complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
"""What a tokenizer decodes the bytes of an incomplete character to."""
LONGEST_CHARACTER = 4
"""Bytes of the longest character in UTF-8, and so the largest number of tokens of one character."""
MARGIN = 2 * LONGEST_CHARACTER
"""Tokens that are decoded before those that may hold a stop string: the first of them may be parts of a character."""


def after_thinking(text: str, think_end: str | int | None) -> str:
    """The part of a generated text that follows the last end of thinking, without leading whitespace.

    Parameters
    ----------
    text
        Generated text; for an integer `think_end`, what follows that token.
    think_end
        Text or token id that ends the thinking; None for a text without thinking, which is returned as it is.
    """
    if think_end is None or think_end == "":
        return text
    return (text.split(think_end)[-1] if isinstance(think_end, str) else text).lstrip()


def after_token(token_ids: tuple[int, ...], think_end: str | int | None) -> tuple[int, ...]:
    """The tokens after the last one that ends the thinking; all of them where none does.

    Examples
    --------
    >>> after_token((1, 9, 2, 9, 3), 9)
    (3,)
    """
    if not isinstance(think_end, int) or think_end not in token_ids:
        return token_ids
    return token_ids[len(token_ids) - token_ids[::-1].index(think_end) :]


def answer_text(text: str, stop: Iterable[str], think_end: str | int | None = None) -> tuple[str, bool]:
    r"""The answer in a generated text: after the thinking and before the stop strings, as lm-eval cuts it.

    Returns
    -------
    answer : str
    stopped : bool
        Whether a stop string was found.

    Examples
    --------
    >>> answer_text("Well.\n\nSo</think>\n\n4\n\n5", ["\n\n"], "</think>")
    ('4', True)
    """
    whole = answer = after_thinking(text, think_end)
    for word in stop:
        answer = answer.split(word)[0] if word else answer
    return answer, answer != whole


class StopRule:
    """The stop rule of a model with a tokenizer.

    Parameters
    ----------
    decode
        The text of token ids, special tokens included.
    think_end
        Text or token id that ends the thinking; None for a model that does not think. Until it has been generated, no
        stop string ends a generation.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], think_end: str | int | None = None) -> None:
        self.decode = decode
        self.think_end = None if think_end == "" else think_end
        self._characters: dict[int, str | None] = {}

    def search(self, stop: Iterable[str], continued: Sequence[int] = ()) -> StopSearch:
        """The search for stop strings in one answer, of which the tokens `continued` are generated already."""
        return StopSearch(self, tuple(word for word in stop if word), continued)

    def may_complete(self, token: int, last: frozenset[str]) -> bool:
        """Whether the token can add one of the characters `last` to a text; False is certain.

        Decoding costs far more than this, and few tokens can complete a stop string.
        """
        if token not in self._characters:
            # Alone, a token may be decoded without its leading space; the second of two is not.
            text = self.decode([token, token])
            self._characters[token] = None if not text or REPLACEMENT in text else text
        characters = self._characters[token]
        return characters is None or not last.isdisjoint(characters)


class StopSearch:
    """The search for stop strings in one answer, token by token; `StopRule.search` makes it.

    Attributes
    ----------
    stopped
        Whether the answer contains a stop string.
    """

    def __init__(self, rule: StopRule, stop: tuple[str, ...], continued: Sequence[int]) -> None:
        self.stopped = False
        self._rule, self._stop = rule, stop
        self._last = frozenset(word[-1] for word in stop)
        self._window = MARGIN + max((len(word.encode("utf-8", "replace")) for word in stop), default=0)
        self._ids: list[int] = []
        self._thinking = rule.think_end is not None
        self._start = 0
        """Index of a token before which nothing matters: the answer, or the end of its thinking, comes after it."""
        self._first_word: float = math.inf if self._thinking else -1
        """Index of the token with the answer's first visible character; whitespace before it does not count."""
        for token in continued:
            self.add(token)

    def add(self, token: int) -> bool:
        """Add the next token; whether the answer contains a stop string now."""
        if self.stopped or not self._stop:
            return self.stopped
        self._ids.append(token)
        if self._ends_thinking(token):
            self._thinking, self._first_word = False, math.inf
        if self._thinking:
            return False
        if self._first_word == math.inf or self._rule.may_complete(token, self._last):
            self.stopped = any(word in text for text in self._newest_texts() for word in self._stop)
        return self.stopped

    def length(self, tokens: Sequence[int]) -> int:
        """Add tokens up to the one that completes a stop string; their number, that one included."""
        for n, token in enumerate(tokens, 1):
            if self.add(token):
                return n
        return len(tokens)

    def _ends_thinking(self, token: int) -> bool:
        end = self._rule.think_end
        if isinstance(end, int):
            if token == end:
                self._start = len(self._ids)
            return token == end
        if end is None or not self._rule.may_complete(token, frozenset(end[-1])):
            return False
        begin = max(0, len(self._ids) - MARGIN - len(end.encode()))
        found = end in self._rule.decode(self._ids[begin:])
        if found:
            self._start = begin
        return found

    def _newest_texts(self) -> Iterator[str]:
        """The end of the answer so far, long enough to hold a stop string that the newest token completes.

        Where it has incomplete characters, it is followed by texts that begin somewhat earlier: the first character may
        be cut, and some tokenizers decode nothing of a sequence of bytes of which one character is cut.
        """
        begin = len(self._ids) - self._window
        if begin <= self._first_word:
            text = after_thinking(self._rule.decode(self._ids[self._start :]), self._rule.think_end)
            if text and self._first_word == math.inf:
                self._first_word = len(self._ids) - 1
            yield text
            return
        for earlier in range(min(begin + 1, LONGEST_CHARACTER)):
            text = self._rule.decode(self._ids[begin - earlier :])
            yield text
            if REPLACEMENT not in text:
                return
