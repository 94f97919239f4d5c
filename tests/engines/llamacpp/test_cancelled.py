"""A llama-server stops working on a question whose caller has hung up, and its slot is free for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from engines.conformance import TEXTS, run
from engines.llamacpp.llama_server import passes, serving
from engines.llamacpp.local import NEEDS_LLAMACPP, converted, opened
from lm_eval_tandem import pair
from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import Prompts, Question
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.cascade.watcher import Watcher
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.llamacpp.engine import LIVE_BLOCK

pytestmark = NEEDS_LLAMACPP

WINDOW, LONG = 8192, 8000


class Begun(Watcher):
    """Notes that the answer has begun to grow."""

    grew = False

    def answer_grew(self, text: str) -> None:
        self.grew = True


@pytest.mark.parametrize("watched", [False, True])
def test_a_server_stops_where_nobody_waits_any_more(tmp_path: Path, watched: bool) -> None:
    folder = tiny.save(tmp_path / "model", "llama", num_hidden_layers=24, max_position_embeddings=WINDOW)
    with serving(converted(folder, tmp_path), slots=1, window=WINDOW) as address:
        engine = opened(Path("tiny"), base_url=address, tokenizer=str(pair.INTERN))
        cascade = Cascade(engine, None, Prompts(), Policy("mentor"), (9,))
        task = Task(Question(TEXTS[0]), Sampling(LONG), "t", 1)

        async def works(after: int) -> None:
            while await asyncio.to_thread(passes, address) <= after:  # noqa: ASYNC110  the server counts
                await asyncio.sleep(0.02)

        async def hang_up() -> None:
            begun, watcher = passes(address), Begun()
            answer = asyncio.ensure_future(cascade.answer(task, watcher) if watched else cascade.answer(task))
            await works(begun + 20)
            answer.cancel()
            with pytest.raises(asyncio.CancelledError):
                await answer
            assert (await engine.generate(Prompt("x"), Sampling(3))).new_tokens == 3, "the slot is not free"
            ended = passes(address)
            await asyncio.sleep(2)
            assert passes(address) == ended, "the server generates on"
            assert ended - begun < LONG
            assert watcher.grew <= watched

        run(hang_up())
        assert not engine._sessions
        engine.close()


def test_a_greedy_call_is_reported_in_blocks_and_a_sampled_one_at_its_end(tmp_path: Path) -> None:
    engine = opened(converted(pair.INTERN, tmp_path))

    def reported(sampling: Sampling) -> list[int]:
        calls: list[tuple[int, ...]] = []
        on_tokens: Callable[[tuple[int, ...]], None] = calls.append
        found = run(engine.generate(Prompt(TEXTS[0], on_tokens=on_tokens), sampling))
        assert tuple(token for new in calls for token in new) == found.token_ids
        assert found.token_ids == run(engine.generate(Prompt(TEXTS[0]), sampling)).token_ids
        return list(map(len, calls))

    assert reported(Sampling(2 * LIVE_BLOCK + 1))[:2] == [LIVE_BLOCK] * 2
    assert len(reported(Sampling(2 * LIVE_BLOCK + 1, temperature=1.0, seed=3))) == 1
    engine.close()
