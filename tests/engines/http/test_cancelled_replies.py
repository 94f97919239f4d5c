"""A call that is cancelled as its reply arrives ends cancelled: otherwise its question would be answered to the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("openai", reason="the package openai is not installed")

from lm_eval_tandem.engines.http.client import ServerPool, ServerWork
from lm_eval_tandem.engines.http.options import Options
from lm_eval_tandem.engines.http.scorer import HTTPScorer
from lm_eval_tandem.engines.rating import Candidate

URL = "http://127.0.0.1:9"


def pooled(post: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> Awaitable[Any]:
    pool = ServerPool(Options("m", URL), "", ServerWork())
    monkeypatch.setattr(pool, "_client", lambda *_: SimpleNamespace(post=post))
    return pool.post("/completion", {}, "s", 0)


def scored(post: Callable[..., Awaitable[Any]], monkeypatch: pytest.MonkeyPatch) -> Awaitable[Any]:
    scorer = HTTPScorer(URL)
    monkeypatch.setattr(scorer, "_connected", lambda: SimpleNamespace(post=post))
    return scorer.score([Candidate("q", None, "", "a", {}, "s")])


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("asked", [pooled, scored])
def test_a_cancellation_that_arrives_with_the_reply_is_not_lost(
    asked: Callable[..., Awaitable[Any]], turns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So many turns of the event loop after the reply; which of them meet, no real server could be made to repeat."""

    async def cancelled() -> None:
        reply = asyncio.get_running_loop().create_future()

        async def post(*_: Any, **__: Any) -> Any:
            return await reply

        task = asyncio.ensure_future(asked(post, monkeypatch))
        for _ in range(6):
            await asyncio.sleep(0)
        reply.set_result('{"scores": [0.5]}')
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            await task

    asyncio.run(cancelled())
