"""Real models as GGUF files: TANDEM_TEST_MODELS names the folder that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.conformance import run, together
from engines.llamacpp.local import NEEDS_REAL_MODELS, REAL_MODELS
from lm_eval_tandem.engines import Prompt, Sampling
from lm_eval_tandem.engines.llamacpp.gguf_file import GGUFFile

pytestmark = NEEDS_REAL_MODELS

PARAMETERS = {
    "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf": 1_543_714_304,
    "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf": 494_032_768,
    "smollm2-135m-instruct-q4_1.gguf": 134_515_008,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_those_that_the_authors_state(name: str) -> None:
    """The first two store the output layer apart, rounded in another way than the input layer."""
    assert GGUFFile.read(Path(REAL_MODELS, name)).parameters == PARAMETERS[name]


def test_a_small_real_model_answers_and_is_measured() -> None:
    from lm_eval_tandem.engines.llamacpp.engine import LlamaEngine

    engine = LlamaEngine(
        str(Path(REAL_MODELS, "smollm2-135m-instruct-q4_1.gguf")), {"batch_size": 2, "max_length": 512}
    )
    assert len(engine.encode("2048")) == 4, "its tokenizer has a token for each digit"
    text = engine.render((("user", "What is the capital of France? Answer in one word."),))
    assert text.startswith("<|im_start|>")
    assert text.endswith("<|im_start|>assistant\n")

    async def ask() -> None:
        answer = await engine.generate(Prompt(text, session="a"), Sampling(40, return_token_stats=True))
        assert "Paris" in answer.text
        assert "<|" not in answer.text
        assert answer.finish_reason == "stop"
        again, stats = await together(
            engine.generate(Prompt(text, answer.token_ids[:2], session="a"), Sampling(40)),
            engine.score(Prompt(text, answer.token_ids, session="b")),
        )
        assert answer.token_ids[:2] + again.token_ids == answer.token_ids
        assert again.prompt_tokens - again.cached_tokens == 1
        assert answer.logprob is not None
        # the pass over the prompt rounds in another way than one token after the other
        np.testing.assert_allclose(stats.logprob[-len(answer.logprob) :], answer.logprob, atol=0.1)

    run(ask())
    engine.close()
