"""Generates the problems of the pair's two synthetic domains, for its training and for its tasks.

A problem is a start amount and two to six purchases or sales of goods. Each of 900 goods has one fixed price, which no
question states: a model has to know it by heart, or take it from insights. The domain `math` asks in words, `code` by a
small Python program whose variables are the goods.

A hash of the problem itself, not of its wording, decides which split it belongs to, so the splits share no problem, not
even across the domains. `python -m lm_eval_tandem.pair.problems --out task_configs/pair` writes the tasks' files; they
are the same at every run.
"""

import argparse
import bisect
import functools
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
MAX_TOTAL = 99
"""Largest running total; the smallest is 0, and each number between them is one token."""
COMMON_GOODS, ALL_GOODS = 400, 900
"""Number of goods that are traded often, and of all goods."""
RARE_SHARE = 0.135
"""Share of all purchases and sales that concern rare goods, which are those after the first `COMMON_GOODS`."""

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


def _fraction(text: str) -> float:
    """A number in [0, 1) that depends only on the text, and looks random."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") / 2**64


def _invented_names(count: int, taken: set[str]) -> list[str]:
    """Names of two syllables that are not in `taken`, the same ones at every call."""
    starts = "b br d dr f fl g gr h j k kr l m n p pl qu r s sk t tr v w y z".split()
    ends = "b d f g k l m n p r s t v x z".split()
    candidates = ["".join(parts) for parts in itertools.product(starts, "aeiou", ends[:12], "aeiou", ends)]
    candidates.sort(key=lambda name: _fraction("order " + name))
    usable = (name for name in candidates if name not in taken and len(name) >= 5)
    return list(itertools.islice(usable, count))


GOODS: tuple[str, ...] = tuple(EVERYDAY + _invented_names(ALL_GOODS - len(EVERYDAY), set(EVERYDAY)))
"""All goods; the first `COMMON_GOODS` are traded often, the more so the earlier they come."""
PRICES: dict[str, int] = {good: 1 + int(9 * _fraction("price of " + good)) for good in GOODS}
"""The price of every good, from 1 to 9."""


def _popularity() -> list[float]:
    """Probability that a purchase or sale concerns each good: falling with its rank, with a little jitter."""
    weights = []
    for rank, good in enumerate(GOODS):
        weight = (rank + 40) ** -0.45 if rank < COMMON_GOODS else (rank - COMMON_GOODS + 400) ** -0.3
        weights.append(weight * math.exp(0.5 * (_fraction("jitter of " + good) - 0.5)))
    common, rare = sum(weights[:COMMON_GOODS]), sum(weights[COMMON_GOODS:])
    return [
        weight * (1 - RARE_SHARE) / common if rank < COMMON_GOODS else weight * RARE_SHARE / rare
        for rank, weight in enumerate(weights)
    ]


POPULARITY: tuple[float, ...] = tuple(_popularity())
"""Probability of each good in `GOODS`; they sum to 1."""
KNOWN_GOODS: frozenset[str] = frozenset(
    good
    for rank, good in enumerate(GOODS)
    if (_fraction("known " + good) >= 0.004 if rank < COMMON_GOODS else _fraction("known " + good) < 0.06)
)
"""Goods whose prices the intern is trained to know: nearly all common ones and a few of the rare ones."""


@dataclass(frozen=True)
class Problem:
    """A start amount and a chain of purchases and sales.

    Attributes
    ----------
    start
        Amount before the first step.
    steps
        Operator ("+" for a sale, "-" for a purchase) and good of each step.
    prices
        Price of each step's good in this problem; while a model is trained it may differ from `PRICES`.
    """

    start: int
    steps: tuple[tuple[str, str], ...]
    prices: tuple[int, ...]

    @property
    def totals(self) -> list[int]:
        """The running total after each step; the last one is the answer."""
        total, totals = self.start, []
        for (operator, _), price in zip(self.steps, self.prices, strict=True):
            total += price if operator == "+" else -price
            totals.append(total)
        return totals

    @property
    def bare(self) -> str:
        """Start and steps alone: what two questions have in common that differ only in their wording."""
        return f"{self.start} " + " ".join(operator + good for operator, good in self.steps)

    @property
    def split(self) -> str:
        """What the problem is used for, by a hash of start and steps.

        "model" (8 of 10) to train the pair, "train" (1 of 10) to fit classifiers, "test" (1 of 10) to evaluate.
        """
        tenth = int(10 * _fraction(self.bare))
        return {8: "train", 9: "test"}.get(tenth, "model")


class ProblemSampler:
    """Draws random problems; the same seed gives the same problems.

    Parameters
    ----------
    seed
        Seed of the random numbers.
    flatness
        Exponent of the goods' popularity: 1 draws goods as often as they are traded; below 1, rare goods come up more
        often.
    has_random_price
        Returns whether a good gets a fresh random price in each problem instead of its true one; by default none does.
    """

    def __init__(
        self, seed: int | str, flatness: float = 1.0, has_random_price: Callable[[str], bool] = lambda good: False
    ) -> None:
        self.random = random.Random(seed)  # noqa: S311 - sampling of problems, not cryptography
        self.has_random_price = has_random_price
        self._cumulative = list(itertools.accumulate(p**flatness for p in POPULARITY))

    def _good(self) -> str:
        quantile = self.random.random() * self._cumulative[-1] * (1 - 1e-12)
        return GOODS[bisect.bisect_right(self._cumulative, quantile)]

    def draw(self, split: str, min_steps: int = MIN_STEPS, max_steps: int = MAX_STEPS) -> Problem:
        """Draw the next problem of a split; its number of steps is uniform in `min_steps`..`max_steps`."""
        rng = self.random
        count = rng.randint(min_steps, max_steps)
        while True:
            start = total = rng.randint(5, 94)
            steps: dict[str, tuple[str, int]] = {}
            while len(steps) < count:
                good = self._good()
                if good in steps:
                    continue
                price = rng.randint(1, 9) if self.has_random_price(good) else PRICES[good]
                operator = rng.choice("+-")
                if not 0 <= total + (price if operator == "+" else -price) <= MAX_TOTAL:
                    operator = "+" if operator == "-" else "-"
                total += price if operator == "+" else -price
                steps[good] = (operator, price)
            chain = tuple((operator, good) for good, (operator, _) in steps.items())
            problem = Problem(start, chain, tuple(price for _, price in steps.values()))
            if problem.split == split:
                return problem


def program(problem: Problem) -> str:
    """Return the Python program of a problem, in which each good is a variable that holds its price."""
    lines = [f"x = {problem.start}", *(f"x {operator}= {good}" for operator, good in problem.steps), "print(x)"]
    return "\n".join(lines)


def run_program(text: str) -> int:
    """Run a program of `program` with the true prices, and return the number that it prints."""
    printed: list[int] = []
    # The text is made by this module: assignments and one print, without builtins.
    exec(text, {"__builtins__": {}, "print": printed.append, **PRICES})  # noqa: S102
    return printed[-1]


def program_of(question: str) -> str:
    """Return the program in a question of the domain `code`, without its line numbers."""
    return "\n".join(re.findall(r"^\d+: (.*)$", question, flags=re.MULTILINE))


def question(problem: Problem, domain: str, person: str) -> str:
    """Return the question that asks for the last total.

    Parameters
    ----------
    problem
        The problem.
    domain
        One of `DOMAINS`.
    person
        Who buys and sells in the domain `math`.
    """
    if domain == "code":
        lines = "\n".join(f"{number}: {line}" for number, line in enumerate(program(problem).splitlines()))
        return f"{lines}\nWhat does it print?"
    deeds = []
    for index, (operator, good) in enumerate(problem.steps, 1):
        article = "an" if good[0] in "aeiou" else "a"
        deeds.append(f"{index}) {'sells' if operator == '+' else 'buys'} {article} {good}")
    return f"{person} starts with {problem.start} coins: {', '.join(deeds)}. How many coins does {person} have?"


def _steps_forward(problem: Problem) -> list[str]:
    """Each step in words: its number, good and price, and the sum."""
    totals = problem.totals
    rows = zip(problem.steps, problem.prices, [problem.start, *totals], totals, strict=False)
    return [
        f" {index}) {good} {price}: {before} {operator} {price} = {after}"
        for index, ((operator, good), price, before, after) in enumerate(rows, 1)
    ]


def _steps_backward(problem: Problem) -> list[str]:
    """Each step reversed, from the last total back to the start."""
    totals = problem.totals
    rows = list(zip(problem.steps, problem.prices, [problem.start, *totals], totals, strict=False))
    inverse = {"+": "-", "-": "+"}
    return [
        f" {index}) {good} {price}: {after} {inverse[operator]} {price} = {before}"
        for index, ((operator, good), price, before, after) in reversed(list(enumerate(rows, 1)))
    ]


def _opening(problem: Problem, domain: str) -> str:
    """Goal, Planning and Retrieval, which start both the insights and the mentor's own answer."""
    goal = "final coins" if domain == "math" else "printed x"
    facts = (f" {i}) {good} {p}" for i, ((_, good), p) in enumerate(zip(problem.steps, problem.prices, strict=True), 1))
    return f" Goal: {goal}. Planning: {len(problem.steps)} steps. Retrieval:{''.join(facts)}"


def insights(problem: Problem, domain: str) -> str:
    """Return the insights that the mentor is trained to write; their Action is the first step only, not the answer."""
    first = f" 1) {problem.start} {problem.steps[0][0]} {problem.prices[0]} = {problem.totals[0]}"
    return f"{_opening(problem, domain)} Action:{first}"


def mentor_answer(problem: Problem, domain: str) -> str:
    """Return the answer that the mentor is trained to write: opening, every step, a check backwards, the result."""
    forward, backward = "".join(_steps_forward(problem)), "".join(_steps_backward(problem))
    return f"{_opening(problem, domain)} Action:{forward} Check:{backward} Answer: {problem.totals[-1]}"


def intern_answer(problem: Problem) -> str:
    """Return what the intern is trained to write after ` Steps:`: every step, a check backwards, the result."""
    forward, backward = "".join(_steps_forward(problem)), "".join(_steps_backward(problem))
    return f"{forward} Check:{backward} Answer: {problem.totals[-1]}"


TEST_QUESTIONS, TRAINING_QUESTIONS = 1000, 8000
"""Number of rows in each domain's two task files."""


@functools.cache
def first_test_problems() -> frozenset[str]:
    """`Problem.bare` of the first test questions, which are none any more, and of some further draws.

    Choices were still made after a look at results on them, so others were drawn.
    """
    samplers = [ProblemSampler(f"{domain} test") for domain in DOMAINS]
    return frozenset(sampler.draw("test").bare for sampler in samplers for _ in range(2 * TEST_QUESTIONS))


def rows(domain: str, split: str, count: int) -> list[dict[str, str | int]]:
    """Return the documents of one task file: the same ones at every call, without duplicates.

    A document has an id, the question, the answer and the number of steps. It does not hold the prices, nor which goods
    the intern knows. Answers of `code` come from running the program.
    """
    draw = {"test": "second test"}.get(split, split)
    excluded = first_test_problems() if split == "test" else frozenset()
    sampler = ProblemSampler(f"{domain} {draw}")
    people = random.Random(f"people {domain} {draw}")  # noqa: S311 - sampling of names, not cryptography
    documents: dict[str, dict[str, str | int]] = {}
    while len(documents) < count:
        problem = sampler.draw(split)
        if problem.bare in excluded:
            continue
        text = question(problem, domain, people.choice(PEOPLE))
        answer = run_program(program_of(text)) if domain == "code" else problem.totals[-1]
        name = f"{domain}-{split}-{len(documents)}"
        documents.setdefault(text, {"id": name, "question": text, "answer": answer, "steps": len(problem.steps)})
    return list(documents.values())


def main() -> None:
    """Write the four files of the tasks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("task_configs/pair"), help="folder to write to")
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        for split, count in (("test", TEST_QUESTIONS), ("train", TRAINING_QUESTIONS)):
            lines = [json.dumps(row) + "\n" for row in rows(domain, split, count)]
            (out / f"{domain}_{split}.jsonl").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
