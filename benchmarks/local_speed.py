"""How fast GGUF models are on this machine: llama.cpp beside transformers, and both roles at once.

    python benchmarks/local_speed.py MENTOR.gguf INTERN.gguf [--tokens 48] [--repeats 3] [--output FILE]

Two tables in Markdown, from one run:

- tokens per second of the intern's file with llama.cpp and, read by transformers in float32, with that, for 1, 4 and 16
  questions in flight. Runs alternate, each ratio is of two neighbours, and medians over the repeats are given with the
  smallest and the largest;
- mentor and intern with llama.cpp, one after the other and both at once, the same work for both: how much of the
  tokens per second of the first is left in the second.

Every run asks other questions, so that no cache helps. Use a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from lm_eval_tandem.engines import Engine, Prompt, Role, Sampling, registry
from lm_eval_tandem.event_loop import EventLoopThread
from lm_eval_tandem.machine import cores

IN_FLIGHT, WINDOW = (1, 4, 16), 1024
QUESTION = (
    "Run {number}. A gardener plants {a} rows of {b} tulips each, and a storm breaks {c} of them. Half of those that "
    "are left are sold at {d} cents apiece. How much money does that bring? Think step by step, and explain each step."
)


def load(file: Path, backend: str, batch_size: int) -> Engine:
    """An engine for a GGUF file: "llamacpp", or "hf", for which the weights become float32."""
    if backend == "hf":
        arguments = {"gguf_file": file.name, "dtype": "float32", "device": "cpu", "batch_size": batch_size}
        return registry.load(Role(str(file.parent), "hf", arguments, file.name))
    arguments = {"batch_size": batch_size, "max_length": WINDOW}
    return registry.load(Role(str(file), "llamacpp", arguments, file.name))


class Clock:
    """Times engines on questions that no run has asked before."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self._asked, self._loop = tokens, 0, EventLoopThread()

    def prompts(self, engine: Engine, n: int) -> list[Prompt]:
        """The next n questions."""
        found = []
        for _ in range(n):
            k = self._asked = self._asked + 1
            text = QUESTION.format(number=k, a=3 + k % 17, b=11 + k % 23, c=1 + k % 7, d=20 + k % 31)
            found.append(Prompt(engine.render((("user", text),))))
        return found

    def rate(self, *work: tuple[Engine, int]) -> float:
        """Generated tokens per second of some engines that work at once, each on a number of questions."""
        calls = [(engine, prompt) for engine, n in work for prompt in self.prompts(engine, n)]

        async def all_of_them() -> int:
            done = await asyncio.gather(*(engine.generate(p, Sampling(max_tokens=self.tokens)) for engine, p in calls))
            return sum(one.new_tokens for one in done)

        started = time.perf_counter()
        total = self._loop.run(all_of_them())
        return total / (time.perf_counter() - started)


def spread(values: Sequence[float], digits: int = 1) -> str:
    """The median, and the smallest and the largest value."""
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def beside_transformers(file: Path, clock: Clock, repeats: int) -> list[list[str]]:
    """The lines of the first table."""
    engines = {backend: load(file, backend, max(IN_FLIGHT)) for backend in ("llamacpp", "hf")}
    lines = []
    for n in IN_FLIGHT:
        rates: dict[str, list[float]] = {backend: [] for backend in engines}
        for _ in range(repeats):
            for backend, engine in engines.items():
                rates[backend].append(clock.rate((engine, n)))
        ratios = [ours / theirs for ours, theirs in zip(*rates.values(), strict=True)]
        lines.append([str(n), *(spread(values) for values in rates.values()), spread(ratios)])
    for engine in engines.values():
        engine.close()
    return lines


def both_roles(mentor: Path, intern: Path, clock: Clock, repeats: int) -> list[list[str]]:
    """The lines of the second table."""
    engines = [load(file, "llamacpp", 4) for file in (mentor, intern)]
    parts: dict[str, list[float]] = {"mentor": [], "intern": [], "both": [], "share": []}
    for _ in range(repeats):
        alone = [clock.rate((engine, 4)) for engine in engines]
        # How many questions each gets in the same time, so that both are busy to the end.
        counts = [max(4, round(4 * rate / min(alone))) for rate in alone]
        both = clock.rate(*zip(engines, counts, strict=True))
        one_after_the_other = sum(counts) / sum(n / rate for n, rate in zip(counts, alone, strict=True))
        for name, value in zip(parts, (*alone, both, both / one_after_the_other), strict=True):
            parts[name].append(value)
    for engine in engines:
        engine.close()
    return [[spread(values, 2 if name == "share" else 1) for name, values in parts.items()]]


def markdown(columns: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(line)} |\n" for line in (columns, ["---:"] * len(columns), *lines))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables, and write them where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("mentor", type=Path)
    parser.add_argument("intern", type=Path)
    parser.add_argument("--tokens", type=int, default=48, help="tokens of each answer")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    clock = Clock(given.tokens)
    first = markdown(
        ("in flight", "llama.cpp, tokens/s", "transformers, tokens/s", "ratio"),
        beside_transformers(given.intern, clock, given.repeats),
    )
    second = markdown(
        ("mentor, tokens/s", "intern, tokens/s", "both at once, tokens/s", "of one after the other"),
        both_roles(given.mentor, given.intern, clock, given.repeats),
    )
    text = f"{given.intern.name}, {cores()} cores, {given.tokens} tokens an answer:\n\n{first}\n"
    text += f"{given.mentor.name} and {given.intern.name}, 4 questions in flight and more:\n\n{second}"
    print(text, end="")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
