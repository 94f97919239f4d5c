"""The bundled pair as GGUF files: the cascade of llama.cpp is that of transformers, question by question."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from bundled import COMMON
from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import pair
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems

pytestmark = NEEDS_LLAMACPP


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The model arguments of the pair as GGUF files; all else is the bundled pair's."""
    from engines.llamacpp import to_gguf

    folder = tmp_path_factory.mktemp("gguf")
    models = {"mentor": pair.MENTOR, "intern": pair.INTERN}
    saved = {role: str(to_gguf.save(path, folder / f"{role}.gguf")) for role, path in models.items()}
    return {**saved, "prompts": "pair", "efforts": "18:24:40", "classifier": "pair"}


def asked(domain: str, n: int) -> list[Instance]:
    arguments = {"until": [], "max_gen_toks": 90, "do_sample": False}
    return [
        Instance("generate_until", {}, (str(row["question"]), arguments), 0, (domain, i, 1))
        for i, row in enumerate(problems.rows(domain, "test", n))
    ]


def answers(requests: list[Instance], policy: str, **given: Any) -> tuple[list[str], TandemLM]:
    lm = TandemLM(policy=policy, **given)
    found = lm.generate_until(requests, disable_tqdm=True)
    lm.close()
    return [str(answer) for answer in found], lm


@pytest.mark.parametrize("n", [10, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("domain", ["math", "code"])
def test_every_answer_and_score_is_that_of_transformers(files: dict[str, str], domain: str, n: int) -> None:
    requests = asked(domain, n)
    theirs, hf = answers(requests, "cascade", **COMMON)
    ours, llamacpp = answers(requests, "cascade", **files, batch_size=8, cache_type="f32")
    assert ours == theirs
    assert llamacpp.description["intern"]["engine"] == "llamacpp"
    records = [{record.doc_id: record for record in lm.records} for lm in (hf, llamacpp)]
    for one, other in ((records[0][i], records[1][i]) for i in range(n)):
        assert (one.stage, one.tokens.mentor_new) == (other.stage, other.tokens.mentor_new)
        scores = [[judged.score for judged in record.stages] for record in (one, other)]
        np.testing.assert_allclose(*scores, atol=1e-3)
    assert len({record.stage for record in llamacpp.records}) > 1, "the judge made no difference"


def test_both_models_alone_and_a_fixed_stage_answer_as_with_transformers(files: dict[str, str]) -> None:
    """With the numbers of the cache that llama.cpp has by itself."""
    requests = asked("math", 10)
    for policy in ("mentor", "stage:2"):
        theirs, hf = answers(requests, policy, **COMMON)
        ours, llamacpp = answers(requests, policy, **files, batch_size=4)
        assert ours == theirs
        costs = [{record.doc_id: record.tflops for record in lm.records} for lm in (hf, llamacpp)]
        assert costs[1] == pytest.approx(costs[0])
