"""A fixed policy of one model is that model: the same strings as `--model hf`, whatever the harness asks."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import tiny
from lm_eval_tandem import pair
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems

UNTIL: list[list[str]] = [[], ["</s>"], [" 3)", "\n\n"], ["Answer"], [" 2", "7"], ["\n"], ["zzz", " = "]]


def contexts(n: int) -> list[str]:
    """Questions of both domains, alone, after few-shot examples, and broken off after a step.

    Nothing is cut within a word: there the pair writes bytes that are near ties, on which `--model hf` does not agree
    with itself at another batch size.
    """
    rng = random.Random(7)
    questions = [str(row["question"]) for domain in ("math", "code") for row in problems.rows(domain, "test", n)]
    found = []
    for i in range(n):
        text = rng.choice(questions)
        if i % 4 == 1:
            text = "\n\n".join([*rng.sample(questions, 2), text])
        if i % 4 == 2:
            ends = [match.end() for match in re.finditer(r"[,:]|\n", text)]
            text = text[: rng.choice(ends)].rstrip()
        found.append(text)
    return found


def requests(render: Callable[[str], str], of_each: int) -> list[Instance]:
    """At most so many requests of each combination of stop texts and length, out of 200."""
    rng, kinds = random.Random(11), Counter[str]()
    found = []
    for i, context in enumerate(contexts(200)):
        generation = {"until": list(rng.choice(UNTIL)), "max_gen_toks": rng.choice([1, 9, 40, 90]), "do_sample": False}
        kinds[str(generation)] += 1
        if kinds[str(generation)] > of_each:
            continue
        found.append(Instance("generate_until", {}, (render(context), generation), 0, ("parity", i, 1)))
    return found


def messages(text: str) -> list[dict[str, str]]:
    turns = text.split("\n\n")
    history = [{"role": "system", "content": "Be brief."}]
    for turn in turns[:-1]:
        history += [{"role": "user", "content": turn}, {"role": "assistant", "content": " Answer: 1"}]
    return [*history, {"role": "user", "content": turns[-1]}]


@pytest.fixture(scope="module", params=["pair", "gpt2"])
def folders(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    if request.param == "pair":
        return {"mentor": str(pair.MENTOR), "intern": str(pair.INTERN)}
    base = tmp_path_factory.mktemp("tiny")
    return {role: str(tiny.save(base / role, "gpt2", seed)) for seed, role in enumerate(["mentor", "intern"])}


@pytest.mark.parametrize(("role", "batch_size"), [("intern", 1), ("intern", 7), ("intern", 64), ("mentor", 32)])
@pytest.mark.parametrize("chat", [False, True])
def test_a_role_alone_answers_like_model_hf(folders: dict[str, str], role: str, batch_size: int, chat: bool) -> None:
    if chat and batch_size in (1, 7):
        pytest.skip("the template changes the context alone; two batch sizes suffice for it")
    common: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": batch_size}
    plain = HFLM(pretrained=folders[role], **common)
    tandem = TandemLM(policy=role, **folders, **common)

    def render(lm: Any) -> Callable[[str], str]:
        return (lambda text: lm.apply_chat_template(messages(text))) if chat else (lambda text: text)

    of_each = 2 if batch_size == 1 else 200  # one row at a time takes minutes
    expected = plain.generate_until(requests(render(plain), of_each), disable_tqdm=True)
    found = tandem.generate_until(requests(render(tandem), of_each), disable_tqdm=True)
    tandem.close()
    differing = [i for i, (a, b) in enumerate(zip(expected, found, strict=True)) if a != b]
    assert not differing, f"{len(differing)} of {len(found)} differ, first: {differing[:5]}"


def test_loglikelihoods_are_those_of_the_role(tmp_path: Path) -> None:
    folders = {role: str(tiny.save(tmp_path / role, "llama", seed)) for seed, role in enumerate(["mentor", "intern"])}
    asked = [Instance("loglikelihood", {}, (text, " 3"), 0, ("t", i, 1)) for i, text in enumerate(contexts(12))]
    rolling = [Instance("loglikelihood_rolling", {}, (text,), 0, ("t", i, 1)) for i, text in enumerate(contexts(12))]
    common: dict[str, Any] = {"dtype": "float32", "device": "cpu", "batch_size": 4}
    for role in ("intern", "mentor"):
        plain = HFLM(pretrained=folders[role], **common)
        tandem = TandemLM(policy="stage:1", loglikelihood=role, **folders, **common)
        assert tandem.loglikelihood(asked) == plain.loglikelihood(asked)
        assert tandem.loglikelihood_rolling(rolling) == plain.loglikelihood_rolling(rolling)
        tandem.close()
