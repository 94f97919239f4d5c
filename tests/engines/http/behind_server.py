"""What an intern behind a real server has to show: answers of the same intern in process, and beginnings that end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer

from bundled import COMMON, instances
from engines.conformance import EngineConformance, Reference, run, together, together_reported
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Completion, Engine, Prompt, Sampling
from lm_eval_tandem.engines.http.openai import APIEngine
from lm_eval_tandem.engines.http.text import encode_reply, server_ids
from lm_eval_tandem.errors import ContextError
from lm_eval_tandem.harness.model import TandemLM

TOKENIZER = AutoTokenizer.from_pretrained(pair.INTERN)
EXACT = {"tokenizer": str(pair.INTERN), "send_ids": True, "entropy": f"topk:{len(TOKENIZER)}"}
"""Prompts as token ids, and the whole vocabulary with each token: nothing is estimated."""


class InIds(APIEngine):
    """An APIEngine that measures every call and gives the server's token ids, to compare them with another engine's."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        text = TOKENIZER.decode(prompt.continued, skip_special_tokens=True)
        continued = encode_reply(text, prompt.continued) if prompt.continued else ()
        found = await super().generate(replace(prompt, continued=continued), replace(sampling, return_token_stats=True))
        stats = {} if sampling.return_token_stats else {"logprob": None, "entropy": None}
        return replace(found, token_ids=tuple(server_ids(found.token_ids)), counted=None, **stats)

    def decode(self, token_ids: tuple[int, ...]) -> str:
        text: str = TOKENIZER.decode(token_ids, skip_special_tokens=True)
        return text.rstrip("\N{REPLACEMENT CHARACTER}")


class JudgedConformance(EngineConformance):
    """The contract of an engine whose answers are streams."""

    @pytest.mark.skip(reason="this server reports nothing of a prompt")
    def test_score_is_exact_over_the_whole_vocabulary(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="this server reports nothing of a prompt")
    def test_what_is_scored_since_a_token_is_what_is_scored_of_the_whole(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="this server reports nothing of a prompt")
    def test_a_prompt_that_grows_is_scored_as_if_read_at_once(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="this engine reads no drafts")
    def test_a_draft_changes_no_output(self) -> None: ...  # type: ignore[override]

    def test_a_text_that_grows_is_that_of_one_uninterrupted_call(self, engine: Engine, reference: Reference) -> None:
        """In one stream; what it reads again is not known before its end."""

        async def grow(text: str) -> tuple[int, ...]:
            ids: tuple[int, ...] = ()
            for budget in (3, 7, 15):
                prompt = Prompt(text, ids, text, horizon=15 - len(ids))
                completion = await engine.generate(prompt, Sampling(budget - len(ids)))
                ids += completion.token_ids
                if completion.finish_reason == "stop":
                    break
            engine.release(text)
            return ids

        texts = [f"Mira starts with {n} coins" for n in range(20, 26)]
        for text, ids in zip(texts, run(together(*map(grow, texts))), strict=True):
            assert list(ids) == reference.greedy(text, 15), text

    def test_reported_tokens_are_the_beginning_of_the_result(self, engine: Engine) -> None:
        """Of the text's bytes, as the server's token ids are known at the end alone."""
        sampling, prompts = Sampling(15), [Prompt(f"Mira starts with {n} coins") for n in range(20, 26)]
        plain = run(together(*(engine.generate(prompt, sampling) for prompt in prompts)))
        calls, found = run(together_reported(engine, prompts, sampling))
        assert [one.token_ids for one in found] == [one.token_ids for one in plain]
        for reported, completion in zip(calls, found, strict=True):
            ids = tuple(token for new in reported for token in new)
            assert encode_reply(completion.text)[: len(ids)] == ids[: len(encode_reply(completion.text))]
        assert max(map(len, calls)) > 2, "nothing was reported while it was generated"

    @pytest.mark.skip(reason="the server's token ids are known at the end of a call alone")
    def test_a_call_that_goes_on_reports_its_own_tokens(self) -> None: ...  # type: ignore[override]

    def test_a_call_that_exceeds_the_window_is_refused(self, engine: Engine) -> None:
        with pytest.raises(ContextError, match="window"):
            run(engine.generate(Prompt("word " * (engine.window + 1)), Sampling(1)))
        with pytest.raises(ContextError, match="max_gen_toks"):
            run(engine.generate(Prompt("x"), Sampling(engine.window + 1)))


def assert_answers_are_those_in_process(
    url: str, n: int, policy: str = "cascade", intern: Path = pair.INTERN, **options: Any
) -> None:
    """Greedy answers, a judge's stages and scores: of an intern behind the server, and of the same one in process."""
    requests = instances(n)

    def answered(**given: Any) -> tuple[list[str], TandemLM]:
        lm = TandemLM(policy=policy, **{**COMMON, **given})
        answers = [str(answer) for answer in lm.generate_until(requests, disable_tqdm=True)]
        lm.close()
        return answers, lm

    common = {"mentor": str(pair.MENTOR), "prompts": "pair", "efforts": "18:24:40", "classifier": "pair"}
    theirs, local = answered(**common, intern=str(intern))
    ours, remote = answered(
        **common,
        intern="served",
        intern_backend="openai",
        intern_base_url=url,
        **{f"intern_{name}": value for name, value in (options or EXACT).items()},
    )
    assert sum(one == other for one, other in zip(ours, theirs, strict=True)) == n
    if policy != "cascade":
        return
    assert remote.description["intern"]["entropy"] == EXACT["entropy"]
    records = [{record.doc_id: record for record in lm.records} for lm in (local, remote)]
    for one, other in ((records[0][i], records[1][i]) for i in range(n)):
        assert (one.stage, one.tokens.mentor_new) == (other.stage, other.tokens.mentor_new)
        scores = [[judged.score for judged in record.stages] for record in (one, other)]
        np.testing.assert_allclose(*scores, atol=1e-3)
    assert len({record.stage for record in remote.records}) > 1, "the judge made no difference"


def assert_refused_beginnings_end(engine: APIEngine, written: Callable[[], int], questions: list[str]) -> int:
    """Refuse the beginning of an answer to each question; the most tokens that the server wrote after one.

    `written` is the server's own count of all tokens so far. A toy model writes hundreds of tokens a second, so when
    the processor is busy with something else for a moment, many are written before the refusal is even said: of a
    question's tries (at most 3, each of 200 tokens were it not refused) the best counts.
    """
    assert engine.cannot_measure == ""

    async def refuse(question: str) -> int:
        before = written()
        prompt = Prompt(question, session=question, horizon=200)
        found = await engine.generate(prompt, Sampling(8, return_token_stats=True))
        assert found.new_tokens == 8
        engine.stop(question)
        await asyncio.sleep(2.0)
        seen = written()
        await asyncio.sleep(2.0)
        assert written() == seen, "it writes on"
        return seen - before - found.new_tokens

    beyond: list[int] = []
    for question in questions:
        tries = [asyncio.run(refuse(question))]
        while tries[-1] > 16 and len(tries) < 3:
            tries.append(asyncio.run(refuse(question)))
        assert min(tries) <= 16, (beyond, tries)
        beyond.append(min(tries))
    return max(beyond)
