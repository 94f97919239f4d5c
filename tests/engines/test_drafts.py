"""What a draft saved is counted by the token ids alone."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from lm_eval_tandem.engines.drafts import accepted_draft_tokens

tokens = st.lists(st.integers(0, 2), max_size=6)


@given(draft=tokens, generated=tokens)
def test_accepted_tokens_are_the_shared_ones_but_never_the_last(draft: list[int], generated: list[int]) -> None:
    accepted = accepted_draft_tokens(draft, generated)
    assert accepted >= 0, "an empty completion accepts nothing"
    assert draft[:accepted] == generated[:accepted]
    assert accepted == len(generated) == 0 or accepted < len(generated)
    assert accepted in (len(draft), len(generated) - 1, 0) or draft[accepted] != generated[accepted]
