"""Seconds and bill of a question: the cascade beside the mentor alone, with GGUF models on this machine.

    python benchmarks/local_seconds.py MENTOR.gguf INTERN.gguf CLASSIFIER [--rounds 3] [--questions 8] [--output FILE]

In each round every policy answers the same training questions of GSM8K (which the task reads where it always does), of
those that `benchmarks/real.py` has not collected, with models that were loaded for it and no store. Seconds are from
the first call to the last answer, with all questions in flight. Ratios are to the mentor's seconds in the same round;
medians over the rounds are given with the smallest and the largest. Use a machine with nothing else to do.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import real
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from local_speed import markdown, spread

from lm_eval_tandem import _paths
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.machine import cores

POLICIES = ("mentor", "intern", "stage:1", "cascade")
TASK = "tandem_gsm8k_train"


def ask(policy: str, given: dict[str, Any], numbers: list[int]) -> dict[str, Any]:
    """The totals of a policy on some questions."""
    judged = {} if policy == "cascade" else {"classifier": None}
    lm = TandemLM(**{**given, **judged}, policy=policy, batch_size=len(numbers))
    try:
        simple_evaluate(
            model=lm,
            tasks=[TASK],
            task_manager=TaskManager(include_path=str(_paths.task_configs()), include_defaults=False),
            samples={TASK: numbers},
            bootstrap_iters=0,
            apply_chat_template=True,
            gen_kwargs=f"max_gen_toks={real.ANSWER_TOKENS}",
        )
        return lm.totals()
    finally:
        lm.close()


def table(rounds: Sequence[dict[str, dict[str, Any]]], questions: int) -> str:
    """A line for each policy: seconds a question, their ratio to the mentor's, Eq. 12 and the whole bill."""
    lines = []
    for policy in POLICIES:
        seconds = [one[policy]["wall_seconds"] for one in rounds]
        ratios = [one[policy]["wall_seconds"] / one["mentor"]["wall_seconds"] for one in rounds]
        costs = [sum(one[policy][name] for one in rounds) / len(rounds) for name in ("tflops", "bill_tflops")]
        cells = [spread([one / questions for one in seconds]), spread(ratios, 2), *(f"{cost:.3g}" for cost in costs)]
        lines.append([policy, *cells])
    columns = ("answered by", "seconds a question", "of the mentor's", "Eq. 12, TFLOPs", "whole bill, TFLOPs")
    return markdown(columns, lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("mentor", type=Path)
    parser.add_argument("intern", type=Path)
    parser.add_argument("classifier", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--questions", type=int, default=8, help="of a round")
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    models = {"mentor": given.mentor, "intern": given.intern, "guidance": real.GUIDANCE, "efforts": real.EFFORTS}
    common = {**models, "max_length": real.WINDOW, "classifier": given.classifier}
    rounds = []
    for number in range(given.rounds):
        first = real.TRAINING_QUESTIONS + number * given.questions
        numbers = list(range(first, first + given.questions))
        rounds.append({policy: ask(policy, common, numbers) for policy in POLICIES})
    text = (
        f"{given.mentor.name} and {given.intern.name}, {cores()} cores, {given.rounds} rounds of {given.questions} "
        f"training questions of GSM8K, all in flight:\n\n{table(rounds, given.questions)}"
    )
    print(text, end="")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
