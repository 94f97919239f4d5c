"""The pair's two synthetic domains: goods with prices to know by heart, and chains of purchases to work out.

A problem is a start and two to six buys or sales of goods, each with one fixed price. `math` tells it as a story,
`code` as a small Python program in which the goods are variables. Which split a problem belongs to is decided by a hash
of the problem itself, not of its wording, so the splits are disjoint by construction, across the domains as well.

`python -m lm_eval_tandem.pair.problems --out task_configs/pair` writes the files for the harness.
"""

import argparse
import bisect
import hashlib
import itertools
import json
import math
import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

DOMAINS = ("math", "code")
MIN_STEPS, MAX_STEPS = 2, 6
LARGEST = 99  # every running total is a number of 0..99, one token each
HEAD, GOODS_IN_ALL = 400, 900
TAIL_SHARE = 0.135  # how much of all purchases falls on the rare goods, those past the head

PEOPLE = "Ada Ben Cora Dan Eva Finn Gina Hugo Iris Jan Kira Leo Mira Nora Omar Pia".split()

EVERYDAY = """
apple bread candle lantern kettle basket blanket bottle bowl broom brush bucket button cabbage cake carpet carrot
chair cheese cherry clock cloak coat comb cookie cork cradle cream crown cup curtain dagger desk dish doll door drum
egg fan feather fence fiddle flag flask flour flute fork fountain frame garlic gate ginger glass globe glove goblet
grape guitar hammer hammock handle harp hat helmet herb honey hook horn inkwell iron jacket jar jewel jug kite knife
ladder lamp leaf leash leek lemon lens letter lettuce lid lily linen lock loom lute magnet mallet mango map marble
mask mat mattress melon milk mirror mitten mop mug mushroom mustard nail napkin necklace needle nest net notebook nut
oar oil olive onion orange organ oven paddle paint pan paper parasol parsley peach pear pearl pebble pen pencil pepper
piano pickle pie pillow pin pipe pitcher plate plough plum pot potato pouch powder pudding pump pumpkin puppet purse
puzzle quill quilt radish raft rake raisin rattle razor ribbon rice ring robe rocket rope rose rug ruler sack saddle
salt sandal sash saucer sausage saw scale scarf scissor scroll seed shawl shell shield ship shirt shoe shovel sickle
sieve silk skirt sled slipper soap sock sofa soup spade spice spinach sponge spoon spring stamp statue stew stone
stool stove straw string sugar suitcase sword syrup table tablet tea teapot tent thimble thread ticket tile timber
toast tomato torch towel toy tray tricycle trumpet trunk tub tulip turnip umbrella urn vase veil velvet vest vinegar
violin wagon walnut wardrobe watch wax wheel whistle wick wig window wool wreath yarn yoke zither anchor anvil arrow
axe badge bag ball banjo banner barrel basil bean bed beet bell belt bench bicycle biscuit bonnet book boot bow box
bracelet brick bridle bugle buckle
""".split()


def _share(text: str) -> float:
    """A fixed number in [0, 1) that depends on nothing but the text."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _invented(count: int, taken: set[str]) -> list[str]:
    """Names of two syllables that are no words, always the same ones."""
    starts = "b br d dr f fl g gr h j k kr l m n p pl qu r s sk t tr v w y z".split()
    ends = "b d f g k l m n p r s t v x z".split()
    every = ["".join(parts) for parts in itertools.product(starts, "aeiou", ends[:12], "aeiou", ends)]
    every.sort(key=lambda name: _share("order " + name))
    fresh = (name for name in every if name not in taken and len(name) >= 5)
    return list(itertools.islice(fresh, count))


GOODS: tuple[str, ...] = tuple(EVERYDAY + _invented(GOODS_IN_ALL - len(EVERYDAY), set(EVERYDAY)))
PRICES: dict[str, int] = {good: 1 + int(9 * _share("price of " + good)) for good in GOODS}


def _popularity() -> list[float]:
    """How often each good is traded: a falling head, a rare tail, and a little jitter."""
    rough = []
    for rank, good in enumerate(GOODS):
        weight = (rank + 40) ** -0.45 if rank < HEAD else (rank - HEAD + 400) ** -0.3
        rough.append(weight * math.exp(0.5 * (_share("jitter of " + good) - 0.5)))
    head, tail = sum(rough[:HEAD]), sum(rough[HEAD:])
    return [w * (1 - TAIL_SHARE) / head if r < HEAD else w * TAIL_SHARE / tail for r, w in enumerate(rough)]


POPULARITY: tuple[float, ...] = tuple(_popularity())
# What the intern is taught by heart: the head and a few of the tail, but for a few of the head.
KNOWN: frozenset[str] = frozenset(
    good
    for rank, good in enumerate(GOODS)
    if (_share("known " + good) >= 0.004 if rank < HEAD else _share("known " + good) < 0.06)
)


@dataclass(frozen=True)
class Problem:
    """A start, the steps as (operator, good), and the prices that hold in this problem."""

    start: int
    steps: tuple[tuple[str, str], ...]
    prices: tuple[int, ...]

    @property
    def totals(self) -> list[int]:
        """The running total after every step."""
        total, totals = self.start, []
        for (operator, _), price in zip(self.steps, self.prices, strict=True):
            total += price if operator == "+" else -price
            totals.append(total)
        return totals

    @property
    def split(self) -> str:
        """`model` (the pair's own training), `train` (the classifier's) or `test`, by hash of the bare problem."""
        canonical = f"{self.start} " + " ".join(operator + good for operator, good in self.steps)
        tenth = int(10 * _share(canonical))
        return {8: "train", 9: "test"}.get(tenth, "model")


class Source:
    """Draws problems. `flatness` below 1 evens the popularity out; `unsure` goods get a fresh price in each problem."""

    def __init__(
        self, seed: int | str, flatness: float = 1.0, unsure: Callable[[str], bool] = lambda good: False
    ) -> None:
        self.random = random.Random(seed)
        self.unsure = unsure
        self._sums = list(itertools.accumulate(p**flatness for p in POPULARITY))

    def _good(self) -> str:
        return GOODS[bisect.bisect_right(self._sums, self.random.random() * self._sums[-1] * (1 - 1e-12))]

    def problem(self, split: str, fewest: int = MIN_STEPS, most: int = MAX_STEPS) -> Problem:
        """The next problem of a split, its number of steps drawn evenly."""
        draw = self.random
        count = draw.randint(fewest, most)
        while True:
            start = total = draw.randint(5, 94)
            steps: dict[str, tuple[str, int]] = {}
            while len(steps) < count:
                good = self._good()
                if good in steps:
                    continue
                price = draw.randint(1, 9) if self.unsure(good) else PRICES[good]
                operator = draw.choice("+-")
                if not 0 <= total + (price if operator == "+" else -price) <= LARGEST:
                    operator = "+" if operator == "-" else "-"
                total += price if operator == "+" else -price
                steps[good] = (operator, price)
            chain = tuple((operator, good) for good, (operator, _) in steps.items())
            problem = Problem(start, chain, tuple(price for _, price in steps.values()))
            if problem.split == split:
                return problem


def program(problem: Problem) -> str:
    """The Python program of a problem; the goods are variables that hold their prices."""
    lines = [f"x = {problem.start}", *(f"x {operator}= {good}" for operator, good in problem.steps), "print(x)"]
    return "\n".join(lines)


def run_program(text: str) -> int:
    """What a program prints, by running it with the true prices."""
    printed: list[int] = []
    exec(text, {"__builtins__": {}, "print": printed.append, **PRICES})
    return printed[-1]


def program_of(question: str) -> str:
    """The program inside a code question, without its line numbers."""
    return "\n".join(re.findall(r"^\d+: (.*)$", question, flags=re.MULTILINE))


def question(problem: Problem, domain: str, person: str) -> str:
    """The words in which a domain asks for the last total."""
    if domain == "code":
        lines = "\n".join(f"{number}: {line}" for number, line in enumerate(program(problem).splitlines()))
        return f"{lines}\nWhat does it print?"
    deeds = []
    for index, (operator, good) in enumerate(problem.steps, 1):
        article = "an" if good[0] in "aeiou" else "a"
        deeds.append(f"{index}) {'sells' if operator == '+' else 'buys'} {article} {good}")
    return f"{person} starts with {problem.start} coins: {', '.join(deeds)}. How many coins does {person} have?"


def _worked(problem: Problem) -> list[str]:
    """Every step written out: which good, its price, the sum."""
    totals = problem.totals
    rows = zip(problem.steps, problem.prices, [problem.start, *totals], totals, strict=False)
    return [
        f" {index}) {good} {price}: {before} {operator} {price} = {after}"
        for index, ((operator, good), price, before, after) in enumerate(rows, 1)
    ]


def _undone(problem: Problem) -> list[str]:
    """Every step taken back, from the result to the start."""
    totals = problem.totals
    rows = list(zip(problem.steps, problem.prices, [problem.start, *totals], totals, strict=False))
    back = {"+": "-", "-": "+"}
    return [
        f" {index}) {good} {price}: {after} {back[operator]} {price} = {before}"
        for index, ((operator, good), price, before, after) in reversed(list(enumerate(rows, 1)))
    ]


def _opening(problem: Problem, domain: str) -> str:
    """Goal, Planning and Retrieval, the same in insights and in the mentor's own answer."""
    goal = "final coins" if domain == "math" else "printed x"
    facts = (f" {i}) {good} {p}" for i, ((_, good), p) in enumerate(zip(problem.steps, problem.prices, strict=True), 1))
    return f" Goal: {goal}. Planning: {len(problem.steps)} steps. Retrieval:{''.join(facts)}"


def insights(problem: Problem, domain: str) -> str:
    """What the mentor tells the intern; Action is the first step worked out, never the end."""
    first = f" 1) {problem.start} {problem.steps[0][0]} {problem.prices[0]} = {problem.totals[0]}"
    return f"{_opening(problem, domain)} Action:{first}"


def mentor_answer(problem: Problem, domain: str) -> str:
    """The mentor's own full answer: every step, a check backwards, the result."""
    worked, undone = "".join(_worked(problem)), "".join(_undone(problem))
    return f"{_opening(problem, domain)} Action:{worked} Check:{undone} Answer: {problem.totals[-1]}"


def intern_answer(problem: Problem) -> str:
    """The intern's answer, from the words after ` Steps:`: every step, a check backwards, the result."""
    worked, undone = "".join(_worked(problem)), "".join(_undone(problem))
    return f"{worked} Check:{undone} Answer: {problem.totals[-1]}"


def rows(domain: str, split: str, count: int) -> list[dict[str, str | int]]:
    """The documents of one file: no prices in them, and no word on who knows what."""
    source, people = Source(f"{domain} {split}"), random.Random(f"people {domain} {split}")
    documents: dict[str, dict[str, str | int]] = {}
    while len(documents) < count:
        problem = source.problem(split)
        text = question(problem, domain, people.choice(PEOPLE))
        answer = run_program(program_of(text)) if domain == "code" else problem.totals[-1]
        name = f"{domain}-{split}-{len(documents)}"
        documents.setdefault(text, {"id": name, "question": text, "answer": answer, "steps": len(problem.steps)})
    return list(documents.values())


def main() -> None:
    """Write the four files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("task_configs/pair"))
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for split, count in (("test", 1000), ("train", 8000)):
            lines = [json.dumps(row) + "\n" for row in rows(domain, split, count)]
            (out / f"{domain}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
