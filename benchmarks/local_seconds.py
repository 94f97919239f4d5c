"""Seconds and bill of a question: ways to work together beside the mentor alone, with real models on this machine.

    python benchmarks/local_seconds.py MENTOR.gguf INTERN.gguf CLASSIFIER [--rounds 3] [--questions 8] [--output FILE]
        [--strategies results/real/coder-0.5b/strategies.json] [--work build/real] [--dtype TYPE] [--log FILE]

In each round every policy answers the same training questions of GSM8K (which the task reads where it always does), of
those that `benchmarks/real.py` has not collected, with models that were loaded for it and no store. Seconds are from
the first call to the last answer, with all questions in flight. Ratios are to the mentor's seconds in the same round;
medians over the rounds are given with the smallest and the largest. Use a machine with nothing else to do.

With --strategies what `benchmarks/strategies.py` has chosen is asked too; the third model that it names lies beside the
mentor, --work is where `benchmarks/real.py` has laid what transformers needs, and --dtype the type that it computes in.
--log keeps what is measured: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import real
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from local_speed import markdown, spread
from strategies import MODELS, Candidate

from lm_eval_tandem import _paths
from lm_eval_tandem.machine import cores

POLICIES = ("mentor", "intern", "stage:1", "cascade")
TASK = "tandem_gsm8k_train"
MEASURED = ("wall_seconds", "tflops", "bill_tflops")


def contenders(given: argparse.Namespace) -> dict[str, Candidate]:
    """Who answers: the mentor first, then policies, and with --strategies what is chosen there."""
    models = {"mentor": given.mentor, "intern": given.intern, "guidance": real.GUIDANCE, "efforts": real.EFFORTS}
    common = {**models, "max_length": real.WINDOW}
    chosen = json.loads(given.strategies.read_text(encoding="utf-8")) if given.strategies else []
    policies = POLICIES if not chosen else ("mentor", *(policy for policy in real.COMPARED if policy != "mentor"))
    found: dict[str, Candidate] = {}
    for policy in policies:
        judge = given.classifier if policy in real.JUDGED else None
        found[policy] = "tandem", {**common, "policy": policy, "classifier": judge}
    setting = real.Setting(given.mentor.parent, given.work, given.work, cores(), given.dtype)
    for one in chosen:
        kind, own = one["candidate"]
        found[one["name"]] = kind, setting.arguments(own)
    return found


def ask(candidate: Candidate, numbers: list[int]) -> dict[str, Any]:
    """The totals of one that answers some questions."""
    kind, arguments = candidate
    lm = MODELS[kind](**{**arguments, "batch_size": len(numbers)})
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


def measure(candidates: Mapping[str, Candidate], numbers: list[int], log: Path | None) -> dict[str, dict[str, Any]]:
    """One round: what each of them took for these questions; what the log holds is not measured again."""
    lines = log.read_text(encoding="utf-8").splitlines() if log and log.exists() else []
    known = {one["name"]: one for one in map(json.loads, lines) if one["questions"] == numbers}
    for name, candidate in candidates.items():
        if name in known:
            continue
        totals = ask(candidate, numbers)
        known[name] = {"name": name, "questions": numbers, **{one: totals[one] for one in MEASURED}}
        print(f"{name}: {totals['wall_seconds']:.1f} s", flush=True)
        if log:
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(known[name]) + "\n")
    return {name: known[name] for name in candidates}


def table(rounds: Sequence[dict[str, dict[str, Any]]], questions: int) -> str:
    """A line for each policy: seconds a question, their ratio to the mentor's, Eq. 12 and the whole bill."""
    lines = []
    for policy in rounds[0]:
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
    parser.add_argument("--strategies", type=Path, help="JSON file of benchmarks/strategies.py")
    parser.add_argument("--work", type=Path, default=Path("build/real"), help="as for benchmarks/real.py")
    real.add_dtype(parser)
    parser.add_argument("--log", type=Path, help="JSON Lines file of what is measured")
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    candidates = contenders(given)
    rounds = []
    for number in range(given.rounds):
        first = real.TRAINING_QUESTIONS + number * given.questions
        rounds.append(measure(candidates, list(range(first, first + given.questions)), given.log))
    text = (
        f"{given.mentor.name} and {given.intern.name}, {cores()} cores, {given.rounds} rounds of {given.questions} "
        f"training questions of GSM8K, all in flight:\n\n{table(rounds, given.questions)}"
    )
    print(text, end="")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
