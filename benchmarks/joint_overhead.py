"""What decoding together costs: a joint engine of two models beside each of them alone.

    python benchmarks/joint_overhead.py [--parameters 32e6 7e6] [--vocabulary 32000] [--batch 16] [--tokens 64]
                                        [--repeats 5] [--device cpu] [--output FILE]

The models have random weights and one vocabulary. In each repeat a batch of questions gets answers of a fixed length
from both models together (`hf.joint`, plain averaging), and then, or before, from each model alone (`hf.engine`). The
ratio is the seconds of the first over the sum of the others: 1 would mean that combining distributions costs nothing.
One table in Markdown has the median over the repeats with the smallest and the largest value. Every run asks other
questions, so that no cache helps. Use a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import torch
from local_speed import markdown, spread
from random_models import save_model, shape_of

from lm_eval_tandem.engines import Engine, Prompt, Sampling
from lm_eval_tandem.engines.hf.engine import HFEngine
from lm_eval_tandem.engines.hf.joint import JointEngine
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.machine import cores

PROMPT_WORDS = (20, 60)
"""Shortest and longest question, in words, which are tokens."""


class Clock:
    """Times engines on batches of questions that no run has asked before.

    Parameters
    ----------
    vocabulary, batch, tokens
        Number of words to ask with, of questions in a batch, and of tokens of an answer.
    """

    def __init__(self, vocabulary: int, batch: int, tokens: int) -> None:
        self.vocabulary, self.batch, self.tokens = vocabulary, batch, tokens
        self._random, self._loop = random.Random(0), EventLoopThread()

    def questions(self) -> list[Prompt]:
        """The next batch."""
        lengths = [self._random.randint(*PROMPT_WORDS) for _ in range(self.batch)]
        words = [[f"w{self._random.randrange(1, self.vocabulary)}" for _ in range(n)] for n in lengths]
        return [Prompt(" ".join(one)) for one in words]

    def seconds(self, engine: Engine, questions: Sequence[Prompt]) -> float:
        """Of an engine for a batch of answers; each has its full length."""

        async def answers() -> int:
            done = await asyncio.gather(*(engine.generate(one, Sampling(self.tokens)) for one in questions))
            return sum(one.new_tokens for one in done)

        started = time.perf_counter()
        total = self._loop.run(answers())
        elapsed = time.perf_counter() - started
        if total != self.batch * self.tokens:
            raise RuntimeError(f"{engine.name} wrote {total} tokens instead of {self.batch * self.tokens}")
        return elapsed


def measure(members: Sequence[HFEngine], clock: Clock, repeats: int) -> list[list[float]]:
    """Seconds of each repeat: of the models together, and of each alone."""
    joint = JointEngine(members, union=False)
    rows = []
    for repeat in range(repeats + 1):
        questions = clock.questions()
        engines: list[Engine] = [joint, *members]
        order = engines if repeat % 2 else engines[::-1]
        measured = {id(engine): clock.seconds(engine, questions) for engine in order}
        if repeat:  # the first one warms up
            rows.append([measured[id(engine)] for engine in engines])
    joint.close()
    return rows


def machine(device: str) -> str:
    """Processor and versions, in words."""
    name = f"{cores()} cores ({platform.machine()}), {torch.get_num_threads()} threads"
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    return (
        f"{name}; Python {platform.python_version()}, torch {version('torch')}, transformers {version('transformers')}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--parameters", type=float, nargs=2, default=(32e6, 7e6), help="of both models")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        members = []
        for seed, parameters in enumerate(given.parameters):
            saved = save_model(Path(folder, str(seed)), shape_of(parameters, given.vocabulary), seed)
            loaded = {"pretrained": str(saved), "dtype": "float32", "device": given.device, "batch_size": given.batch}
            members.append(HFEngine(loaded))
        rows = measure(members, Clock(given.vocabulary, given.batch, given.tokens), given.repeats)
    ratios = [together / sum(alone) for together, *alone in rows]
    names = [f"{member.parameters / 1e6:.1f}M" for member in members]
    table = markdown(
        ("models", "together, s", *(f"{name} alone, s" for name in names), "together / sum of both"),
        [[" and ".join(names), *(spread(values, 2) for values in zip(*rows, strict=True)), spread(ratios, 3)]],
    )
    text = (
        f"Joint decoding of {given.batch} answers of {given.tokens} tokens, vocabulary {given.vocabulary}, "
        f"{given.repeats} repeats; {machine(given.device)}:\n\n{table}"
    )
    print(text, end="")
    print(f"\nmedian ratio: {statistics.median(ratios):.3f}")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
