"""How long a question takes: the mentor alone, the intern alone, always-high and the cascade, side by side (Table 13).

The models have the sizes that are asked for and random weights, so nothing is downloaded and no answer means anything;
the numbers of tokens, and the share of questions that stop at each stage, are forced to the paper's averages. What is
measured is real: engines, judge passes with a classifier, prompts that grow. One run compares everything:

    python benchmarks/latency.py --engine hf --mentor 32e6 --intern 7e6
    python benchmarks/latency.py --engine vllm --preset paper          (32B and 7B shapes, bfloat16, one large GPU)
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import random
import resource
import statistics
import tempfile
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

from lm_eval_tandem.cascade import Cascade, Policy, Task
from lm_eval_tandem.engines import Engine, Prompt, Sampling, Work, loading
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.prompts import Prompts, Question, Wording
from lm_eval_tandem.settings import Role
from lm_eval_tandem.sufficiency.mlp import SufficiencyClassifier

EFFORTS = (100, 500, 1000)
STAGE_SHARES = (0.094, 0.115, 0.315, 0.476)
"""Questions that stop at stage 0, 1, 2, 3 (paper, Table 12)."""
QUESTION_TOKENS = 150
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
    """A transformer of about so many parameters, embeddings included: 8 layers or more, heads of 32."""
    layers = 8 if parameters < 1e8 else 24
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


def tasks(name: str, count: int, answer: int) -> list[Task]:
    """Questions of random words, other ones for every policy, so that no cache of an earlier run helps."""
    draw = random.Random(name)
    asked = [" ".join(f"w{draw.randrange(10, 1000)}" for _ in range(QUESTION_TOKENS)) for _ in range(count)]
    return [Task(Question(text), Sampling(answer), name, i) for i, text in enumerate(asked)]


def stages_of(count: int) -> list[int]:
    """The stage at which each question stops: the paper's shares, evenly mixed."""
    bounds = np.cumsum(STAGE_SHARES)
    spread = (np.arange(count) + 0.5) / count
    stages = np.searchsorted(bounds, spread, side="right").clip(max=len(EFFORTS)).tolist()
    random.Random("stages").shuffle(stages)
    return list(map(int, stages))


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
    work: dict[str, Work]
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

    def policy(self, name: str, count: int, places: int, scale: float = 1.0) -> Run:
        """Run one policy over so many questions."""
        before = self._work()
        asked = tasks(f"{name} {count} {places} {scale}", count, max(1, round(ANSWERS[name] * scale)))
        efforts = tuple(max(1 + i, round(effort * scale)) for i, effort in enumerate(EFFORTS))
        base, clock = replace(self.base, efforts=efforts), []
        cascades = []
        for stage in stages_of(count):
            judge = StopsAt(stage, self.judge)
            judge.clock = clock
            cascades.append(replace(base, policy=Policy.parse(name, len(EFFORTS)), judge=judge))
        jobs = [lambda c=c, t=t: c.answer(t) for c, t in zip(cascades, asked, strict=True)]
        wall, found = asyncio.run(in_flight(jobs, places, name))
        after = self._work()
        work = {role: Work(*(b - a for a, b in zip(before[role], after[role], strict=True))) for role in after}
        return Run(name, wall, [s for s, _ in found], [record for _, (_, record) in found], work, sum(clock))

    def apart(self, count: int, places: int, scale: float = 1.0) -> float:
        """Seconds that the cascade's work takes when each engine is driven alone, one after the other."""
        stages = stages_of(count)
        asked = tasks(f"apart {count} {places} {scale}", count, 1)
        efforts = [0, *(round(effort * scale) for effort in EFFORTS)]
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

        total = 0.0
        for part, label in ((advise, "mentor's part alone"), (answer, "intern's part alone")):
            jobs = [lambda i=i, part=part: part(i) for i in range(count)]
            total += asyncio.run(in_flight(jobs, places, label))[0]
        return total

    def _work(self) -> dict[str, tuple[Any, ...]]:
        engines = {"mentor": self.mentor, "intern": self.intern}
        return {role: tuple(vars(engine.work).values()) for role, engine in engines.items()}


# What is said of it


def row(run: Run, mentor: Run | None) -> str:
    """One line of the table."""
    mean, median = statistics.fmean(run.seconds), statistics.median(run.seconds)
    faster = f"{mentor.wall / run.wall:.2f}" if mentor is not None else ""
    return (
        f"| {run.policy} | {len(run.seconds)} | {run.wall / len(run.seconds):.2f} | {mean:.2f} | {median:.2f} | "
        f"{run.tokens / run.wall:.0f} | {100 * run.judge_share:.1f} | {100 * run.recomputed:.2f} | {faster} |"
    )


HEAD = (
    "| policy | questions | s per question (wall) | latency mean s | median s | tokens/s | judge % | read again % | "
    "times as fast as the mentor |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|"
)


def peak_memory() -> str:
    """The largest resident size of this process and of a child, or what the GPU held at most."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB on the GPU"
    own, child = (resource.getrusage(who).ru_maxrss / 2**20 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return f"{own:.2f} GiB resident" + (f", {child:.2f} GiB in the largest child" if child else "")


def hardware() -> str:
    """What it ran on, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{os.cpu_count()} CPU cores ({platform.machine()}), {torch.get_num_threads()} threads"


def engine_of(name: str, folder: Path, arguments: dict[str, Any]) -> Engine:
    """A loaded engine."""
    return loading.load(Role(str(folder), name, arguments, folder.name))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", default="hf", help="hf or vllm")
    parser.add_argument("--mentor", type=float, default=32e6, help="parameters, about")
    parser.add_argument("--intern", type=float, default=7e6, help="parameters, about")
    parser.add_argument("--preset", choices=["paper"], help="the paper's 32B and 7B shapes instead")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--in_flight", default="1", help="one number, or several with commas")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the paper's tokens, for quick looks")
    parser.add_argument("--policies", default="mentor,intern,stage:3,cascade")
    parser.add_argument("--apart", action="store_true", help="also drive each engine alone with the cascade's work")
    parser.add_argument("--mentor_args", default="", help="engine arguments, as name=value,…")
    parser.add_argument("--intern_args", default="")
    parser.add_argument("--output", type=Path, help="folder for latency-<engine>.json and .md")
    given = parser.parse_args()

    from lm_eval.utils import simple_parse_args_string

    with tempfile.TemporaryDirectory() as folder:
        engines = []
        for seed, role in enumerate(("mentor", "intern")):
            sizes = PAPER[role] if given.preset else shape(getattr(given, role), given.vocabulary)
            dummy = given.preset is not None and given.engine == "vllm"
            arguments: dict[str, Any] = {"dtype": given.dtype, "batch_size": max(map(int, given.in_flight.split(",")))}
            arguments |= {"load_format": "dummy"} if dummy else {}
            arguments |= simple_parse_args_string(getattr(given, f"{role}_args"))
            built = build(Path(folder) / role, sizes, given.vocabulary, seed, weights=not dummy)
            engines.append(engine_of(given.engine, built, arguments))
        measure(Bench(*engines), given)
        for engine in engines:
            engine.close()


def measure(bench: Bench, given: argparse.Namespace) -> None:
    """Everything that was asked for; the table as it grows, and the files."""
    mentor, intern = bench.mentor.parameters, bench.intern.parameters
    text = [
        f"# Latency: {given.engine}, {mentor / 1e6:,.1f}M + {intern / 1e6:,.1f}M parameters ({mentor / intern:.2f}:1)",
        "",
        f"Random weights, {given.dtype}; the paper's token counts and stage shares"
        + (f", times {given.scale}" if given.scale != 1 else "")
        + f". {hardware()}; torch {torch.__version__}. `{command()}`",
    ]
    print("\n".join(text), flush=True)
    runs: dict[int, list[Run]] = {}
    for places in map(int, given.in_flight.split(",")):
        lines = ["", f"## {places} in flight", "", HEAD]
        print("\n".join(lines), flush=True)
        bench.policy("cascade", min(2, given.questions), places, 0.02)  # warms everything up
        for policy in given.policies.split(","):
            run = bench.policy(policy, given.questions, places, given.scale)
            done = runs.setdefault(places, [])
            done.append(run)
            first = next((other for other in done if other.policy == "mentor"), None)
            lines.append(row(run, first))
            print(lines[-1], flush=True)
        if given.apart:
            alone = bench.apart(given.questions, places, given.scale)
            together = next(run.wall for run in runs[places] if run.policy == "cascade")
            lines += ["", f"The cascade's work took {together:.1f} s, and {alone:.1f} s with each engine driven alone,"]
            lines[-1] += f" one after the other: {100 * alone / together:.0f} % of that throughput."
            print(lines[-1], flush=True)
        text += lines
    text += ["", f"Peak memory: {peak_memory()}."]
    print(text[-1])
    if given.output is not None:
        write(given, text, runs)


def command() -> str:
    """The command line that is running, for the head of the table."""
    import sys

    return " ".join(["python benchmarks/latency.py", *sys.argv[1:]])


def write(given: argparse.Namespace, text: list[str], runs: dict[int, list[Run]]) -> None:
    """The table, and per number in flight the file that `lm-eval-tandem report` reads."""
    given.output.mkdir(parents=True, exist_ok=True)
    (given.output / f"latency-{given.engine}.md").write_text("\n".join(text) + "\n", encoding="utf-8")
    for places, done in runs.items():
        found = {
            "format": "tandem-latency/1",
            "task": "token counts of MATH",
            "pair": "random weights",
            "engine": given.engine,
            "hardware": hardware(),
            "concurrency": places,
            "runs": [
                {
                    "policy": run.policy,
                    "seconds": [round(value, 4) for value in run.seconds],
                    "wall": round(run.wall, 3),
                    "judge_share": round(run.judge_share, 5),
                    "recomputed": round(run.recomputed, 5),
                }
                for run in done
            ],
        }
        path = given.output / f"latency-{given.engine}-{places}.json"
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
