"""What `latency.py` and `gpu.py` measure: questions of random words, and one policy run on them.

Numbers of tokens and the stage at which each question stops are forced to the paper's averages; everything that takes
time is real: engines, growing prompts, and a classifier of the paper's size behind the judge.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lm_eval_tandem.cascade.algorithm import Cascade
from lm_eval_tandem.cascade.policies import Policy
from lm_eval_tandem.cascade.prompts import Prompts, Question, Wording
from lm_eval_tandem.cascade.question_run import Task
from lm_eval_tandem.engines import Engine, EngineWork, Prompt, Sampling
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.ledger import Record

EFFORTS = (100, 500, 1000)
"""Mentor tokens in total at stages 1, 2 and 3, as in the paper."""
STAGE_SHARES = (0.094, 0.115, 0.315, 0.476)
"""Shares of questions that stop at stage 0, 1, 2 and 3 (paper, Table 12)."""
QUESTION_TOKENS = (100, 200)
"""Shortest and longest question; lengths are spread evenly, so that block boundaries of a KV cache average out."""
ANSWER_TOKENS = {"mentor": 2630, "intern": 2732, "stage:3": 1936, "cascade": 1996}
"""Tokens of the answer: the lengths of the paper's Tables 1 and 6 without the mentor's part, which follows from the
TFLOPs there."""
WORDING = Wording(request=" w2", open=" w3", close=" w4", force=" w5")
"""The parts of prompts as single words of the random vocabulary."""


@dataclass
class ForcedJudge:
    """A judge that stops at a given stage, after a classifier of the paper's size has computed a score.

    Attributes
    ----------
    stage
        The stage from which on the score is 1.
    classifier
        The classifier whose score is computed and not used.
    classifier_seconds
        Gets the seconds of every call of the classifier.
    """

    stage: int
    classifier: SufficiencyClassifier
    thresholds: tuple[float, ...] = (0.5,) * (len(EFFORTS) + 1)
    probe: None = None
    reads_prompt: bool = True
    classifier_seconds: list[float] = field(default_factory=list)

    def inputs(self, features: NDArray[np.float64], answer: None) -> NDArray[np.float64]:
        """Return the classifier's input: the 18 statistics, as in the paper."""
        return features

    def score(self, features: NDArray[np.float64]) -> float:
        """Return 1 from the given stage on, 0 before it."""
        started = time.perf_counter()
        self.classifier.predict_proba(features.reshape(1, -1))
        self.classifier_seconds.append(time.perf_counter() - started)
        return float(features[-1] >= self.stage)


# Questions


def evenly_spread(count: int, seed: str) -> NDArray[np.float64]:
    """Return numbers between 0 and 1 at equal distances, (count,), shuffled by the seed."""
    return np.array(random.Random(seed).sample(range(count), count)) / count + 0.5 / count


def questions(name: str, count: int, answer_tokens: int) -> list[Task]:
    """Return questions of random words; `name` seeds them, so that no cache of an earlier run has them."""
    rng = random.Random(name)
    low, high = QUESTION_TOKENS
    lengths = np.rint(low + (high - low) * evenly_spread(count, "lengths")).astype(int).tolist()
    texts = [" ".join(f"w{rng.randrange(10, 1000)}" for _ in range(length)) for length in lengths]
    return [Task(Question(text), Sampling(answer_tokens), name, i) for i, text in enumerate(texts)]


def stopping_stages(count: int) -> list[int]:
    """Return the stage at which each question stops: in the paper's shares, evenly mixed."""
    bounds = np.cumsum(STAGE_SHARES)
    stages = np.searchsorted(bounds, evenly_spread(count, "stages"), side="right")
    return [int(stage) for stage in stages.clip(max=len(EFFORTS))]


# Measuring


@dataclass
class Run:
    """The measurements of one policy.

    Attributes
    ----------
    policy
        Its name.
    wall
        Wall-clock seconds of the whole run.
    seconds
        Seconds of each question, from its start to its answer.
    records
        Ledger records of the questions.
    work
        What each engine did, by role.
    classifier_seconds
        Seconds in the judge's classifier.
    """

    policy: str
    wall: float
    seconds: list[float]
    records: list[Record]
    work: dict[str, EngineWork]
    classifier_seconds: float

    @property
    def tokens(self) -> int:
        """Number of tokens that mentor and intern generated."""
        return sum(record.tokens.length for record in self.records)

    @property
    def judge_share(self) -> float:
        """Share of the engines' working time that went into judging."""
        busy = sum(work.generate_seconds + work.judge_seconds for work in self.work.values())
        return (self.work["intern"].judge_seconds + self.classifier_seconds) / busy if busy else 0.0

    @property
    def recomputed(self) -> float:
        """Tokens computed again, relative to the smallest number of tokens that this policy has to compute.

        A prefix that an engine has dropped, because memory was short, shows only in the number of all tokens computed.
        """
        computed = sum(work.prefill_tokens + work.decode_tokens for work in self.work.values())
        needed = sum(sum(record.tokens.as_tuple()) for record in self.records)
        again = max(sum(work.recomputed_tokens for work in self.work.values()), computed - needed)
        return again / max(1, min(computed, needed))

    def to_json(self) -> dict[str, Any]:
        """Return the measurements as the report reads them (`lm_eval_tandem/reports/sections/latency.py`), and more."""
        count = len(self.records)
        return {
            "policy": self.policy,
            "seconds": [round(value, 3) for value in self.seconds],
            "wall": round(self.wall, 3),
            "tokens_per_second": round(self.tokens / self.wall, 1),
            "judge_share": round(self.judge_share, 5),
            "recomputed": round(self.recomputed, 5),
            "mentor_tokens": round(sum(record.tokens.mentor_new for record in self.records) / count, 1),
            "intern_tokens": round(sum(record.tokens.intern_new for record in self.records) / count, 1),
        }


async def run_all(
    jobs: Sequence[Callable[[], Awaitable[Any]]], concurrency: int, label: str
) -> tuple[float, list[tuple[float, Any]]]:
    """Run jobs, at most `concurrency` at a time; return the wall seconds, and for each job its seconds and result."""
    slots, bar = asyncio.Semaphore(concurrency), tqdm(total=len(jobs), desc=label, leave=False)

    async def run(job: Callable[[], Awaitable[Any]]) -> tuple[float, Any]:
        async with slots:
            started = time.perf_counter()
            result = await job()
            bar.update(1)
            return time.perf_counter() - started, result

    started = time.perf_counter()
    results = await asyncio.gather(*map(run, jobs))
    bar.close()
    return time.perf_counter() - started, results


class Bench:
    """A mentor and an intern, and the policies run on them.

    Parameters
    ----------
    mentor, intern
        Loaded engines.
    """

    def __init__(self, mentor: Engine, intern: Engine) -> None:
        self.mentor, self.intern = mentor, intern
        rng = np.random.default_rng(0)
        self.classifier = SufficiencyClassifier().fit(rng.random((200, 18)), np.arange(200) % 2)
        self.base = Cascade(mentor, intern, Prompts(WORDING), Policy("intern"), EFFORTS)

    @staticmethod
    def efforts(scale: float) -> tuple[int, ...]:
        """Return the paper's efforts times `scale`, still rising."""
        return tuple(max(1 + i, round(effort * scale)) for i, effort in enumerate(EFFORTS))

    def policy(self, name: str, count: int, concurrency: int, scale: float = 1.0) -> Run:
        """Run a policy.

        Parameters
        ----------
        name
            The policy.
        count
            Number of questions.
        concurrency
            Number of questions that run at the same time.
        scale
            Factor on the paper's numbers of tokens.
        """
        before = self._work()
        answer_tokens = max(1, round(ANSWER_TOKENS[name] * scale))
        asked = questions(f"{name} {count} {concurrency} {scale}", count, answer_tokens)
        policy = Policy.parse(name, len(EFFORTS))
        base, classifier_seconds = replace(self.base, efforts=self.efforts(scale)), []
        cascades = [
            replace(
                base,
                policy=policy,
                judge=ForcedJudge(stage, self.classifier, classifier_seconds=classifier_seconds),
            )
            for stage in stopping_stages(count)
        ]
        jobs = [lambda c=c, q=q: c.answer(q) for c, q in zip(cascades, asked, strict=True)]
        wall, results = asyncio.run(run_all(jobs, concurrency, name))
        after = self._work()
        work = {role: EngineWork(*(b - a for a, b in zip(before[role], after[role], strict=True))) for role in after}
        seconds, records = [s for s, _ in results], [record for _, (_, record) in results]
        return Run(name, wall, seconds, records, work, sum(classifier_seconds))

    def engines_alone(self, count: int, concurrency: int, scale: float = 1.0) -> tuple[float, float]:
        """Return the seconds that the mentor's and the intern's part of the cascade take, one engine after the other.

        Parameters as for `policy`.
        """
        stages = stopping_stages(count)
        asked = questions(f"apart {count} {concurrency} {scale}", count, 1)
        efforts = [0, *self.efforts(scale)]
        insights: dict[int, list[str]] = {}

        async def mentor_part(i: int) -> None:
            ids: tuple[int, ...] = ()
            insights[i] = [""]
            for stage in range(1, stages[i] + 1):
                prompt = Prompt(self.base.prompts.mentor(self.mentor, asked[i].question), ids, f"m{i}")
                ids += (await self.mentor.generate(prompt, Sampling(efforts[stage] - len(ids)))).token_ids
                insights[i].append(self.mentor.decode(ids))
            self.mentor.release(f"m{i}")

        async def intern_part(i: int) -> None:
            for insight in insights[i]:
                prompt = Prompt(self.base.prompts.intern(self.intern, asked[i].question, insight), (), f"i{i}")
                await self.intern.score(prompt)
            await self.intern.generate(prompt, Sampling(max(1, round(ANSWER_TOKENS["cascade"] * scale))))
            self.intern.release(f"i{i}")

        def seconds_of(part: Callable[[int], Awaitable[None]], label: str) -> float:
            return asyncio.run(run_all([lambda i=i: part(i) for i in range(count)], concurrency, label))[0]

        return seconds_of(mentor_part, "mentor's part alone"), seconds_of(intern_part, "intern's part alone")

    def _work(self) -> dict[str, tuple[Any, ...]]:
        """Return the engines' counters so far, by role."""
        engines = {"mentor": self.mentor, "intern": self.intern}
        return {role: tuple(vars(engine.work).values()) for role, engine in engines.items()}
