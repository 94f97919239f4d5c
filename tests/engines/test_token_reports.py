"""Each token of a call is reported once, in order, however often the call begins again."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_tandem.engines.token_reports import TokenReports


@settings(deadline=None)
@given(st.lists(st.integers(0, 3), max_size=9), st.lists(st.integers(0, 9), max_size=3), st.integers(1, 4))
def test_attempts_that_break_off_report_each_token_once(whole: list[int], cuts: list[int], size: int) -> None:
    reported: list[int] = []
    reports = TokenReports(reported.extend)
    for attempt in (*(whole[:cut] for cut in cuts), whole):
        for start in range(0, len(attempt), size):
            reports.add(start, attempt[start : start + size])
    assert reported == whole


def test_tokens_that_are_generated_again_are_not_reported_again() -> None:
    calls: list[tuple[int, ...]] = []
    reports = TokenReports(calls.append)
    reports.add(0, [1, 2])
    reports.add(0, [1])
    reports.add(1, [2, 3])
    assert calls == [(1, 2), (3,)]


def test_nothing_is_reported_of_an_attempt_that_differs() -> None:
    calls: list[tuple[int, ...]] = []
    reports = TokenReports(calls.append)
    reports.add(0, [1, 2])
    reports.add(0, [1, 5])
    reports.add(2, [6])
    assert calls == [(1, 2)]
