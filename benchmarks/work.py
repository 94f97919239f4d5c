"""What `latency.py` measures: models of random weights, questions of random words, and each policy run on them."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tqdm import tqdm
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import Prompts, Question, Wording
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine, EngineWork, Prompt, Sampling
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.ledger import Record

EFFORTS = (100, 500, 1000)
STAGE_SHARES = (0.094, 0.115, 0.315, 0.476)
"""Questions that stop at stage 0, 1, 2, 3 (paper, Table 12)."""
QUESTION_TOKENS = (100, 200)
"""From so many to so many, evenly: where in a cache's block a prompt ends is then no accident of one length."""
ANSWERS = {"mentor": 2630, "intern": 2732, "stage:3": 1936, "cascade": 1996}
"""Tokens of the answer: lengths of Tables 1 and 6, without the mentor's part, which follows from the TFLOPs there."""
PAPER = {
    "mentor": {"hidden_size": 5120, "num_hidden_layers": 64, "heads": 40, "kv": 8, "intermediate_size": 27648},
    "intern": {"hidden_size": 3584, "num_hidden_layers": 28, "heads": 28, "kv": 4, "intermediate_size": 18944},
}
"""The shapes of the paper's 32B and 7B models."""
WORDING = Wording(request=" w2", open=" w3", close=" w4", force=" w5")


@dataclass
class StopsAt:
    """A classifier of the paper's size does its work, and then the stage that was asked for passes."""

    stage: int
    real: SufficiencyClassifier
    thresholds: tuple[float, ...] = (0.5,) * (len(EFFORTS) + 1)
    probe: None = None
    reads_prompt: bool = True
    clock: list[float] = field(default_factory=list)

    def look(self, features: NDArray[np.float64], begun: None) -> NDArray[np.float64]:
        """The 18 statistics and nothing else, as in the paper."""
        return features

    def score(self, features: NDArray[np.float64]) -> float:
        """1 from the stage on, 0 before it."""
        began = time.perf_counter()
        self.real.predict_proba(features.reshape(1, -1))
        self.clock.append(time.perf_counter() - began)
        return float(features[-1] >= self.stage)


# Models


def shape(parameters: float, vocabulary: int) -> dict[str, int]:
    """A transformer of about so many parameters, embeddings included: 8 layers, 16 of large ones, heads of 32.

    The paper's two have 28 and 64.
    """
    layers = 8 if parameters < 1e8 else 16
    width = 32
    while 2 * vocabulary * (width + 32) + layers * 10 * (width + 32) ** 2 < parameters:
        width += 32
    left = parameters - 2 * vocabulary * width - layers * 4 * width**2
    heads = width // 32
    return {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "heads": heads,
        "kv": heads,
        "intermediate_size": max(32, round(left / (3 * layers * width))),
    }


def build(folder: Path, sizes: dict[str, int], vocabulary: int, seed: int, weights: bool) -> Path:
    """Save a model of random weights with a tokenizer of `vocabulary` words; its end token is never the likeliest."""
    words = {"</s>": 0, **{f"w{i}": i for i in range(1, vocabulary)}}
    tokenizer = Tokenizer(WordLevel(words, unk_token="w1"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", pad_token="</s>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=sizes["hidden_size"],
        num_hidden_layers=sizes["num_hidden_layers"],
        num_attention_heads=sizes["heads"],
        num_key_value_heads=sizes["kv"],
        intermediate_size=sizes["intermediate_size"],
        max_position_embeddings=8192,
        eos_token_id=0,
        pad_token_id=0,
        bos_token_id=None,
        architectures=["LlamaForCausalLM"],
    )
    if not weights:
        config.save_pretrained(folder)
        return folder
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        model.lm_head.weight[0] = 0
    model.save_pretrained(folder)
    return folder


# The work


def spread(count: int, seed: str) -> NDArray[np.float64]:
    """So many numbers between 0 and 1, evenly apart, in an order that the seed fixes."""
    return np.array(random.Random(seed).sample(range(count), count)) / count + 0.5 / count


def tasks(name: str, count: int, answer: int) -> list[Task]:
    """Questions of random words, other ones for every policy, so that no cache of an earlier run helps."""
    draw = random.Random(name)
    low, high = QUESTION_TOKENS
    lengths = np.rint(low + (high - low) * spread(count, "lengths")).astype(int).tolist()
    asked = [" ".join(f"w{draw.randrange(10, 1000)}" for _ in range(length)) for length in lengths]
    return [Task(Question(text), Sampling(answer), name, i) for i, text in enumerate(asked)]


def stages_of(count: int) -> list[int]:
    """The stage at which each question stops: the paper's shares, evenly mixed."""
    bounds = np.cumsum(STAGE_SHARES)
    stages = np.searchsorted(bounds, spread(count, "stages"), side="right")
    return [int(stage) for stage in stages.clip(max=len(EFFORTS))]


async def in_flight(jobs: Sequence[Callable[[], Awaitable[Any]]], places: int, label: str) -> tuple[float, list[Any]]:
    """Wall seconds of all jobs, at most `places` at once, and what each gave with its own seconds."""
    free, bar = asyncio.Semaphore(places), tqdm(total=len(jobs), desc=label, leave=False)

    async def one(job: Callable[[], Awaitable[Any]]) -> Any:
        async with free:
            began = time.perf_counter()
            found = await job()
            bar.update(1)
            return time.perf_counter() - began, found

    began = time.perf_counter()
    found = await asyncio.gather(*map(one, jobs))
    bar.close()
    return time.perf_counter() - began, found


@dataclass
class Run:
    """One policy's figures."""

    policy: str
    wall: float
    seconds: list[float]
    records: list[Record]
    work: dict[str, EngineWork]
    classified: float

    @property
    def tokens(self) -> int:
        return sum(record.tokens.length for record in self.records)

    @property
    def judge_share(self) -> float:
        busy = sum(work.generate_seconds + work.judge_seconds for work in self.work.values())
        return (self.work["intern"].judge_seconds + self.classified) / busy if busy else 0.0

    @property
    def recomputed(self) -> float:
        """Tokens computed beyond the fewest that this policy could do with, as a share of those."""
        computed = sum(work.prefill_tokens + work.decode_tokens for work in self.work.values())
        needed = sum(sum(record.tokens.as_tuple()) for record in self.records)
        return sum(work.recomputed_tokens for work in self.work.values()) / max(1, min(computed, needed))


class Bench:
    """Both engines, and the policies on them."""

    def __init__(self, mentor: Engine, intern: Engine) -> None:
        self.mentor, self.intern = mentor, intern
        draw = np.random.default_rng(0)
        self.judge = SufficiencyClassifier().fit(draw.random((200, 18)), np.arange(200) % 2)
        self.base = Cascade(mentor, intern, Prompts(WORDING), Policy("intern"), EFFORTS)

    @staticmethod
    def efforts(scale: float) -> tuple[int, ...]:
        """The paper's budgets times `scale`, still rising."""
        return tuple(max(1 + i, round(effort * scale)) for i, effort in enumerate(EFFORTS))

    def policy(self, name: str, count: int, places: int, scale: float = 1.0) -> Run:
        """Run one policy over so many questions."""
        before = self._work()
        asked = tasks(f"{name} {count} {places} {scale}", count, max(1, round(ANSWERS[name] * scale)))
        base, clock = replace(self.base, efforts=self.efforts(scale)), []
        cascades = []
        for stage in stages_of(count):
            judge = StopsAt(stage, self.judge)
            judge.clock = clock
            cascades.append(replace(base, policy=Policy.parse(name, len(EFFORTS)), judge=judge))
        jobs = [lambda c=c, t=t: c.answer(t) for c, t in zip(cascades, asked, strict=True)]
        wall, found = asyncio.run(in_flight(jobs, places, name))
        after = self._work()
        work = {role: EngineWork(*(b - a for a, b in zip(before[role], after[role], strict=True))) for role in after}
        return Run(name, wall, [s for s, _ in found], [record for _, (_, record) in found], work, sum(clock))

    def apart(self, count: int, places: int, scale: float = 1.0) -> tuple[float, float]:
        """Seconds that the mentor's and the intern's part of the cascade's work take, each engine driven alone."""
        stages = stages_of(count)
        asked = tasks(f"apart {count} {places} {scale}", count, 1)
        efforts = [0, *self.efforts(scale)]
        said: dict[int, list[str]] = {}

        async def advise(i: int) -> None:
            ids: tuple[int, ...] = ()
            said[i] = [""]
            for stage in range(1, stages[i] + 1):
                prompt = Prompt(self.base.prompts.mentor(self.mentor, asked[i].question), ids, f"m{i}")
                ids += (await self.mentor.generate(prompt, Sampling(efforts[stage] - len(ids)))).token_ids
                said[i].append(self.mentor.decode(ids))
            self.mentor.release(f"m{i}")

        async def answer(i: int) -> None:
            for insight in said[i]:
                prompt = Prompt(self.base.prompts.intern(self.intern, asked[i].question, insight), (), f"i{i}")
                await self.intern.score(prompt)
            await self.intern.generate(prompt, Sampling(max(1, round(ANSWERS["cascade"] * scale))))
            self.intern.release(f"i{i}")

        def alone(part: Callable[[int], Awaitable[None]], label: str) -> float:
            return asyncio.run(in_flight([lambda i=i: part(i) for i in range(count)], places, label))[0]

        return alone(advise, "mentor's part alone"), alone(answer, "intern's part alone")

    def _work(self) -> dict[str, tuple[Any, ...]]:
        engines = {"mentor": self.mentor, "intern": self.intern}
        return {role: tuple(vars(engine.work).values()) for role, engine in engines.items()}
