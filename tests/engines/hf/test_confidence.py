"""The probability of the most likely token at every place of a prompt: exact, never stale, and only where requested."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import tiny
from engines.conformance import TEXTS, Reference, run, together
from lm_eval_tandem.engines import DEFAULT_VIEW, Prompt, Sampling, ScoringView, registry
from lm_eval_tandem.engines.cached import CachedEngine
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.store import Store

CONFIDENT = ScoringView(confidence=True)
OLD_KEYS = {
    DEFAULT_VIEW: "ca6acada3e8ffaeaf322f40e8b68d66b75911f665667e8cbd516ff5c6dd14656",
    ScoringView(hidden=True): "1d83746ecf1848d95e32a4d3014da54cd4785680363b4d5ea53f275597c3d6f0",
}
"""Keys of "Mira has 4 coins." for the model {"model": "fixed"}, as the version before this view computed them."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tmp_path_factory.mktemp("llama"))


def opened(folder: Path, batch_size: int) -> HFEngine:
    return HFEngine({"pretrained": str(folder), "dtype": "float32", "device": "cpu", "batch_size": batch_size})


def expected(reference: Reference, text: str) -> Any:
    with torch.inference_mode():
        logits = reference.model(reference.tokenizer(text, return_tensors="pt").input_ids).logits[0, :-1]
    return torch.log_softmax(logits.double(), -1).amax(-1).numpy()


@pytest.mark.parametrize(("kind", "batch_size"), [("llama", 1), ("llama", 3), ("mistral", 3)])
def test_confidence_is_that_of_one_forward_pass_whatever_the_session_has_read(
    kind: str, batch_size: int, tmp_path: Path
) -> None:
    folder = tiny.save(tmp_path, kind)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reference, engine = Reference(model, AutoTokenizer.from_pretrained(folder)), opened(folder, batch_size)

    async def question(text: str) -> list[Any]:
        """Read half of it without confidence, then with it; go on from there, and after an answer."""
        half = text[: len(text) // 2] + " end"
        plain = await engine.score(Prompt(half, session=text))
        found = [(half, await engine.score(Prompt(half, session=text), CONFIDENT))]
        again = await engine.score(Prompt(half, session=text), CONFIDENT)
        found += [(half, again), (text, await engine.score(Prompt(text, session=text), CONFIDENT))]
        await engine.generate(Prompt(text, session=text), Sampling(3))
        found += [(text, await engine.score(Prompt(text, session=text), CONFIDENT))]
        found += [(text, await engine.score(Prompt(text), CONFIDENT))]
        assert plain.confidence is None
        if engine.reads_drafts:  # its cache can be reused
            assert [one.cached_tokens for _, one in found[:2]] == [0, len(again) - 1]
        return found

    for found in run(together(*map(question, TEXTS[:4]))):
        for text, stats in found:
            assert stats.confidence.dtype == np.float32
            assert np.isnan(stats.confidence[0])
            np.testing.assert_allclose(stats.confidence[1:], expected(reference, text), atol=2e-4)
            np.testing.assert_allclose(stats.logprob[1:], reference.stats(text)[0], atol=2e-4)
            assert (stats.confidence[1:] >= stats.logprob[1:]).all()
    engine.close()


def test_a_batch_holds_confidence_for_the_calls_alone_that_request_it(folder: Path) -> None:
    engine, views = opened(folder, 3), [DEFAULT_VIEW, CONFIDENT, DEFAULT_VIEW]
    found = run(together(*(engine.score(Prompt(text), view) for text, view in zip(TEXTS[:3], views, strict=True))))
    assert [one.confidence is not None for one in found] == [view.confidence for view in views]
    engine.close()


def test_a_store_keeps_confidence_apart_and_the_keys_of_earlier_versions(folder: Path, tmp_path: Path) -> None:
    engine, store = opened(folder, 1), Store(tmp_path / "store")
    engine.identity = {"model": "fixed"}
    prompt = Prompt("Mira has 4 coins.")
    cached = CachedEngine(engine, store)
    for view, key in OLD_KEYS.items():
        assert store.get(key) is None
        assert run(cached.score(prompt, view)).confidence is None
        assert store.get(key) is not None
    computed = run(cached.score(prompt, CONFIDENT))
    assert (cached.hits, len(store)) == (0, len(OLD_KEYS) + 1)
    known = run(cached.score(prompt, CONFIDENT))
    assert cached.hits == 1
    np.testing.assert_array_equal(known.confidence, computed.confidence)
    engine.close()
    store.close()


def test_other_backends_are_refused_before_a_model_is_loaded() -> None:
    registry.check_view(CONFIDENT, "hf", "selection=zscore")
    for backend in ("vllm", "openai", "local-completions"):
        with pytest.raises(ArgumentError, match=f"^selection=zscore needs .* backend={backend} does not report; use"):
            registry.check_view(CONFIDENT, backend, "selection=zscore")
