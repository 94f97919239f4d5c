"""Try numbers of the strategies that have some on training questions of the bundled pair, and choose one for each.

    python benchmarks/strategies.py [--questions 300] [--output results/bench/strategies.md]

Prints a table of every candidate: accuracy on the first training questions of mathematics, Eq. 12 and the whole bill
per question. Of each strategy the candidate with the highest accuracy is chosen, of equals the one with the smaller
bill. `make results` runs those, which the Makefile names, on the test questions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_tandem import _paths
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.model import TandemLM

TASK = "tandem_pair_math_train"
STEP_END = ")"
"""Ends a step of the pair's answers, which hold no blank lines."""
SEGMENTS = (5, 10, 20)
"""Tokens of a segment; the pair's answers have about 80."""
TANDEM = {
    "handoff": [{"policy": f"handoff:{n}"} for n in (10, 30, 50)],
    "outline": [{"policy": f"outline:{n}"} for n in (10, 30, 50)],
    "steps": [{"policy": f"steps:{n}", "step_end": STEP_END} for n in (0.1, 0.5, 1)],
    "verify": [{"policy": f"verify:{n}", "step_end": STEP_END} for n in (1, 5, 9)],
}
ENSEMBLES: dict[str, list[dict[str, Any]]] = {
    "random (model)": [{"selection": "random"}],
    "self_assessment": [{"selection": "self_assessment"}],
    "vote": [{"aggregation": "vote"}],
    "best_of": [{"aggregation": "best_of", "scorer": f"logprob:{role}"} for role in ("mentor", "intern")],
    "loop": [{"aggregation": "loop", "segment_tokens": n} for n in SEGMENTS],
    "random (segment)": [{"aggregation": "random", "segment_tokens": n} for n in SEGMENTS],
    "reward_based": [
        {"aggregation": "reward_based", "segment_tokens": n, "scorer": f"logprob:{role}"}
        for n in SEGMENTS
        for role in ("mentor", "intern")
    ],
    "average": [{"aggregation": "average"}],
    "distribution": [{"aggregation": "distribution", "weights": weights} for weights in ("3:1", "9:1")],
    "gac": [{"aggregation": "gac", "threshold": threshold} for threshold in (0.5, 0.9, 0.99)],
}


@dataclass(frozen=True)
class Tried:
    """What a candidate reached on the training questions.

    Attributes
    ----------
    strategy, name
        The strategy, and the candidate as records call it.
    accuracy
        From 0 to 1.
    mflops, bill
        MFLOPs per question, by Eq. 12 and of every token.
    """

    strategy: str
    name: str
    accuracy: float
    mflops: float
    bill: float


def try_out(strategy: str, model: type[AnsweringLM], given: dict[str, Any], questions: int, store: Path) -> Tried:
    """Run one candidate on the training questions."""
    lm = model(**given, store=store, batch_size=64, dtype="float32", device="cpu")
    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    try:
        results = simple_evaluate(model=lm, tasks=[TASK], task_manager=manager, limit=questions, bootstrap_iters=0)
        assert results is not None
        totals = lm.totals()
        accuracy = float(results["results"][TASK]["acc,none"])
        name = str(lm.description["policy"])
        return Tried(strategy, name, accuracy, 1e6 * totals["tflops"], 1e6 * totals["bill_tflops"])
    finally:
        lm.close()


def chosen(tried: Sequence[Tried]) -> dict[str, Tried]:
    """Of each strategy the candidate with the highest accuracy, of equals the one with the smaller bill."""
    best: dict[str, Tried] = {}
    for one in tried:
        before = best.get(one.strategy)
        if before is None or (one.accuracy, -one.bill) > (before.accuracy, -before.bill):
            best[one.strategy] = one
    return best


def table(tried: Sequence[Tried], questions: int) -> str:
    """The candidates as Markdown, those that are chosen in bold."""
    best = set(chosen(tried).values())
    lines = [
        "# Strategies on training questions of the bundled pair",
        "",
        f"The first {questions:,} questions of {TASK}, greedy, float32 on a CPU; steps end with `{STEP_END}`. In bold",
        "what is chosen of each strategy. Nothing here is said of other models, and no test question was asked.",
        "",
        "| strategy | accuracy % | Eq. 12, MFLOPs | whole bill, MFLOPs |",
        "|---|---|---|---|",
    ]
    for one in tried:
        bold = "**" if one in best else ""
        lines.append(f"| {bold}{one.name}{bold} | {100 * one.accuracy:.1f} | {one.mflops:.1f} | {one.bill:.1f} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--store", type=Path, default=Path("build/strategies.sqlite"))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    given.store.parent.mkdir(parents=True, exist_ok=True)
    tried = []
    for model, strategies in ((TandemLM, TANDEM), (EnsembleLM, ENSEMBLES)):
        for strategy, candidates in strategies.items():
            for candidate in candidates:
                tried.append(try_out(strategy, model, candidate, given.questions, given.store))
                print(tried[-1], flush=True)
    text = table(tried, given.questions)
    print(text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
