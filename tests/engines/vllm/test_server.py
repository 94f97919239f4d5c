"""The HTTP engine against a real `vllm serve`: the contract, and every way of continuing a text."""

from __future__ import annotations

import asyncio
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

pytest.importorskip("openai", reason="the package openai is not installed")

from engines.conformance import TEXTS, EngineConformance, Reference, run, together
from engines.http.behind_server import (
    EXACT,
    JudgedConformance,
    assert_answers_are_those_in_process,
    assert_refused_beginnings_end,
)
from engines.vllm.vllm_server import INSTALLED, serve
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Completion, Prompt, Sampling
from lm_eval_tandem.engines.http.openai import APIEngine
from lm_eval_tandem.engines.http.text import encode_reply, server_ids
from lm_eval_tandem.errors import ArgumentError, ContextError
from lm_eval_tandem.pair import problems

pytestmark = pytest.mark.skipif(not INSTALLED, reason="vLLM is not installed; `make vllm` runs these tests with it")

QUESTIONS = [str(row["question"]) for row in problems.rows("math", "test", 40)]


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that slows the server down while it exists."""
    return tmp_path_factory.mktemp("pace") / "slow"


@pytest.fixture(scope="module")
def server(switch: Path) -> Iterator[str]:
    with serve(pair.MENTOR, "--enable-prompt-tokens-details", slow_while=switch) as url:
        yield url


@pytest.fixture
def slow(switch: Path) -> Iterator[None]:
    """The server writes no faster than a large model does."""
    switch.touch()
    yield
    switch.unlink()


@pytest.fixture(scope="module")
def reference() -> Reference:
    model = AutoModelForCausalLM.from_pretrained(pair.MENTOR, dtype=torch.float32).eval()
    return Reference(model, AutoTokenizer.from_pretrained(pair.MENTOR))


class InIds(APIEngine):
    """An APIEngine whose token ids are the server's own, so that they can be compared with another engine's."""

    async def generate(self, prompt: Prompt, sampling: Sampling) -> Completion:
        found = await super().generate(replace(prompt, continued=encode_reply("", prompt.continued)), sampling)
        return replace(found, token_ids=tuple(server_ids(found.token_ids)))

    def decode(self, token_ids: tuple[int, ...]) -> str:
        text: str = self._counter._tokenizer.decode(token_ids, skip_special_tokens=True)
        return text.rstrip("\N{REPLACEMENT CHARACTER}")


@pytest.fixture
def engine(server: str) -> Iterator[InIds]:
    engine = InIds("served", {"base_url": server, "tokenizer": str(pair.MENTOR)})
    assert engine.resume == "ids"
    yield engine
    engine.close()


class TestAPIEngine(EngineConformance):
    """The contract of an engine that continues texts by token ids."""

    block = 32

    # the server's token ids are known at the end of a call alone
    test_reported_tokens_are_the_beginning_of_the_result = (
        JudgedConformance.test_reported_tokens_are_the_beginning_of_the_result
    )
    test_a_call_that_goes_on_reports_its_own_tokens = JudgedConformance.test_a_call_that_goes_on_reports_its_own_tokens

    @pytest.mark.usefixtures("slow")
    def test_a_cancelled_call_reports_nothing_more(self, engine: Any) -> None:
        super().test_a_cancelled_call_reports_nothing_more(engine)

    @pytest.mark.skip(reason="entropies are estimates here; that of the whole vocabulary is tested below")
    def test_stats_of_generated_tokens_are_those_of_a_scored_prompt(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="entropies are estimates here; that of the whole vocabulary is tested below")
    def test_max_entropy_ends_a_generation_with_the_token_that_exceeds_it(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="entropies are estimates here; that of the whole vocabulary is tested below")
    def test_score_is_exact_over_the_whole_vocabulary(self) -> None: ...  # type: ignore[override]

    @pytest.mark.skip(reason="entropies are estimates here; that of the whole vocabulary is tested below")
    def test_a_prompt_that_grows_is_scored_as_if_read_at_once(self) -> None: ...  # type: ignore[override]

    def test_a_call_that_exceeds_the_window_is_refused(self, engine: Any) -> None:
        with pytest.raises(ContextError, match="window"):
            run(engine.generate(Prompt("word " * (engine.window + 1)), Sampling(1)))
        with pytest.raises(ContextError, match="max_gen_toks"):
            run(engine.generate(Prompt("x"), Sampling(engine.window + 1)))
        assert run(engine.generate(Prompt("x"), Sampling(2))).new_tokens >= 1


@pytest.mark.parametrize("resume", ["ids", "prefix", "stream"])
def test_every_way_of_continuing_gives_the_uninterrupted_text(server: str, reference: Reference, resume: str) -> None:
    engine = APIEngine("served", {"base_url": server, "tokenizer": str(pair.MENTOR), "resume": resume})

    async def grown(question: str) -> tuple[str, int]:
        text, written, tokens = engine.render((("user", question),)), (), 0
        for budget in (18, 24, 40):
            prompt = Prompt(text, written, question, 40 - tokens)
            part = await engine.generate(prompt, Sampling(budget - tokens))
            written, tokens = written + part.token_ids, tokens + part.new_tokens
            if part.finish_reason == "stop":
                break
        engine.release(question)
        return engine.decode(written), tokens

    found = run(together(*map(grown, QUESTIONS)))
    expected = [reference.greedy(question, 40) for question in QUESTIONS]
    texts = [reference.tokenizer.decode(ids, skip_special_tokens=True) for ids in expected]
    assert [text for text, _ in found] == texts
    assert [tokens for _, tokens in found] == [len(ids) for ids in expected]
    engine.close()


def test_prompts_are_scored_with_estimates_where_that_is_requested(server: str, reference: Reference) -> None:
    """Log-probabilities are exact; entropies are the middle of what the 20 likeliest tokens leave possible."""
    given = {"base_url": server, "tokenizer": str(pair.MENTOR), "entropy": "topk:20"}
    engine = APIEngine("served", given)
    assert engine.identity["entropy"] == "topk:20"
    errors = []
    for text, stats in zip(QUESTIONS, run(together(*(engine.score(Prompt(q)) for q in QUESTIONS))), strict=True):
        logprob, entropy = reference.stats(text)
        assert np.isnan(stats.logprob[0])
        assert np.isnan(stats.entropy[0])
        assert len(stats) == len(engine.encode(text))
        np.testing.assert_allclose(stats.logprob[1:], logprob, atol=2e-4)
        errors.append(np.abs(stats.entropy[1:] - entropy))
    print("entropy, mean and largest error:", np.concatenate(errors).mean(), np.concatenate(errors).max())
    assert np.concatenate(errors).mean() < 0.1
    engine.close()
    with pytest.raises(ArgumentError, match="exact ones need backend=hf"):
        APIEngine("served", {**given, "entropy": "exact"})


@pytest.mark.usefixtures("slow")
def test_a_closed_stream_ends_the_request_at_the_server(server: str) -> None:
    engine = APIEngine("served", {"base_url": server, "resume": "stream", "price_input": 1, "price_output": 1})

    async def first_stage(text: str) -> int:
        prompt = Prompt(engine.render((("user", text),)), (), text, 300)
        await engine.generate(prompt, Sampling(8))
        unused = engine.release(text)
        return 0 if unused is None else unused.tokens

    assert sum(run(together(*(first_stage(text) for text in TEXTS)))) < 300 * len(TEXTS) / 4
    asyncio.run(asyncio.sleep(0.2))
    engine.close()


OPTIONS = {name: EXACT[name] for name in ("tokenizer", "send_ids")}
"""Its log-probabilities have the tokens' texts for keys, of which some are alike, so those of the whole vocabulary are
not to be had, and entropies are estimates."""


@pytest.mark.parametrize("n", [8, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["intern", "stage:2"])
def test_the_answers_of_an_intern_are_those_in_process(server: str, policy: str, n: int) -> None:
    """The intern is the bundled mentor, whose server runs already."""
    assert_answers_are_those_in_process(server, n, policy, pair.MENTOR, **OPTIONS)


@pytest.mark.usefixtures("slow")
def test_refused_beginnings_end_at_the_server_within_16_tokens(server: str) -> None:
    def written() -> int:
        with urllib.request.urlopen(server.removesuffix("/v1") + "/metrics") as reply:
            lines = reply.read().decode().splitlines()
        return sum(int(float(line.split()[-1])) for line in lines if line.startswith("vllm:generation_tokens_total"))

    engine = APIEngine("served", {"base_url": server, **OPTIONS})
    print("tokens after a refusal, at most:", assert_refused_beginnings_end(engine, written, QUESTIONS[:4]))
    engine.close()
