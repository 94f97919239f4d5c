"""Drafts: token ids that a generation may start with because an earlier answer to a similar prompt did.

An engine with `Engine.reads_drafts` checks a draft in one forward pass (`Prompt.draft`). The functions here prepare a
draft for another prompt and count what it saved; they need the token ids alone, so any engine's results can be
accounted for, those from a store included.
"""

from __future__ import annotations

from collections.abc import Sequence

PROMPT_TAIL = 8
"""Number of tokens at a prompt's end that `strip_prompt_overlap` compares with a draft."""


def common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Number of leading tokens that two sequences share.

    Examples
    --------
    >>> common_prefix_length([1, 2, 3], [1, 2, 4, 5])
    2
    """
    n = min(len(a), len(b))
    for i in range(n):
        if a[i] != b[i]:
            return i
    return n


def accepted_draft_tokens(draft: Sequence[int], generated: Sequence[int]) -> int:
    """Number of generated tokens that the engine took from the draft instead of decoding them.

    At least one token of every call is decoded, so it is less than len(generated), or 0 for an empty completion.

    Examples
    --------
    >>> accepted_draft_tokens([5, 6, 7], [5, 6, 8])
    2
    >>> accepted_draft_tokens([5, 6, 7], [])
    0
    """
    return min(common_prefix_length(draft, generated), max(0, len(generated) - 1))


def strip_prompt_overlap(prompt: Sequence[int], draft: tuple[int, ...]) -> tuple[int, ...]:
    """The draft without those of its leading tokens with which the new prompt already ends.

    After one prompt the model wrote a cue such as "Answer:" itself; another prompt ends with it. At most
    `PROMPT_TAIL` tokens are compared.

    Examples
    --------
    >>> strip_prompt_overlap([9, 7, 8], (7, 8, 1, 2))
    (1, 2)
    """
    for n in range(min(PROMPT_TAIL, len(draft), len(prompt)), 0, -1):
        if tuple(prompt[-n:]) == draft[:n]:
            return draft[n:]
    return draft
