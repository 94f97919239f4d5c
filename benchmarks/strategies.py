"""Try numbers of the strategies that have some on training questions, and choose one for each.

    python benchmarks/strategies.py [--questions N] [--store FILE] [--output results/bench/strategies.md]
    python benchmarks/strategies.py --models MODELS [--work FOLDER] [--threads N] [--store FILE] [--output FILE]

Prints a table of every candidate: accuracy on the first training questions, Eq. 12 and the whole bill per question. Of
each strategy the candidate with the highest accuracy is chosen, of equals the one with the smaller bill.

The bundled pair is tried on its mathematics, and `make results` runs what is chosen, which the Makefile names, on the
test questions. With --models the GGUF files of `benchmarks/real.py` in that folder are tried on GSM8K's training
questions, which the task reads where it always does ($TANDEM_DATA or the hub); --work is where that program has laid
what transformers needs. What is chosen is written beside the table, as a JSON file, from which it runs it on test
questions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import real
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_tandem import _paths
from lm_eval_tandem.harness.answering import AnsweringLM
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.machine import cores

Candidate = tuple[str, dict[str, Any]]
"""The name of a model of the harness, and the arguments that tell the candidate from others."""
MODELS: Mapping[str, type[AnsweringLM]] = {"tandem": TandemLM, "ensemble": EnsembleLM}


@dataclass(frozen=True)
class Trial:
    """What is tried on which questions.

    Attributes
    ----------
    models, how
        The models, and how they answer, as the table says it.
    task, questions
        The training task, and how many of its first questions.
    candidates
        Those of each strategy.
    common
        Arguments of all of them.
    setting
        Where the models' files are; None where they are no files.
    unit, tflops
        The unit of cost in the table, in TFLOPs.
    asked
        More arguments of `lm_eval.simple_evaluate`.
    """

    models: str
    how: str
    task: str
    questions: int
    candidates: Mapping[str, Sequence[Candidate]]
    common: Mapping[str, Any]
    unit: str
    tflops: float
    setting: real.Setting | None = None
    asked: Mapping[str, Any] = field(default_factory=dict)

    def arguments(self, candidate: Candidate) -> dict[str, Any]:
        """The model arguments of a candidate."""
        given = candidate[1] if self.setting is None else self.setting.arguments(candidate[1])
        return {**self.common, **given}


def bundled() -> Trial:
    """Every strategy that has numbers on the bundled pair, whose answers have about 80 tokens and no blank lines."""
    end, segments = ")", (5, 10, 20)

    def tandem(*values: float, **given: Any) -> list[Candidate]:
        return [("tandem", {**given, "policy": f"{given['policy']}:{n}"}) for n in values]

    def ensemble(**given: Any) -> Candidate:
        return "ensemble", given

    return Trial(
        models="the bundled pair",
        how=f"greedy, float32 on a CPU; steps end with `{end}`",
        task="tandem_pair_math_train",
        questions=300,
        candidates={
            "handoff": tandem(10, 30, 50, policy="handoff"),
            "outline": tandem(10, 30, 50, policy="outline"),
            "steps": tandem(0.1, 0.5, 1, policy="steps", step_end=end),
            "verify": tandem(1, 5, 9, policy="verify", step_end=end),
            "random (model)": [ensemble(selection="random")],
            "self_assessment": [ensemble(selection="self_assessment")],
            "vote": [ensemble(aggregation="vote")],
            "best_of": [ensemble(aggregation="best_of", scorer=f"logprob:{role}") for role in ("mentor", "intern")],
            "loop": [ensemble(aggregation="loop", segment_tokens=n) for n in segments],
            "random (segment)": [ensemble(aggregation="random", segment_tokens=n) for n in segments],
            "reward_based": [
                ensemble(aggregation="reward_based", segment_tokens=n, scorer=f"logprob:{role}")
                for n in segments
                for role in ("mentor", "intern")
            ],
            "average": [ensemble(aggregation="average")],
            "distribution": [ensemble(aggregation="distribution", weights=weights) for weights in ("3:1", "9:1")],
            "gac": [ensemble(aggregation="gac", threshold=threshold) for threshold in (0.5, 0.9, 0.99)],
        },
        common={"batch_size": 64, "dtype": "float32", "device": "cpu"},
        unit="MFLOPs",
        tflops=1e-6,
    )


def of_real_models(setting: real.Setting) -> Trial:
    """Every strategy on the first pair of `benchmarks/real.py`; its third model votes with the two.

    `handoff:N` is what a stage of N tokens is there. `zscore` and what decides token by token run on transformers. The
    intern scores, since llama.cpp reads the log-probabilities of a given text no faster than it writes: the mentor
    would take thrice as long.
    """
    first, second = real.PAIRS
    files = (real.MENTOR, first.intern, second.intern)
    segments = (32, 128)

    def tandem(policy: str, *values: float) -> list[Candidate]:
        return [("tandem", {"mentor": real.MENTOR, "intern": first.intern, "policy": f"{policy}:{n}"}) for n in values]

    def ensemble(count: int = 2, **given: Any) -> Candidate:
        return "ensemble", {"models": ";".join(files[:count]), **given}

    def in_transformers(**given: Any) -> Candidate:
        return "ensemble", {**real.read_by_both(first), **given}

    return Trial(
        models=f"{real.MENTOR} and {first.intern}",
        how=f"greedy, at most {real.ANSWER_TOKENS} tokens, steps end with a blank line; llama.cpp, and transformers in "
        f"{setting.dtype} for zscore, average, distribution and gac",
        task="tandem_gsm8k_train",
        questions=20,
        candidates={
            "outline": tandem("outline", 80, 160),
            "steps": tandem("steps", 0.5, 1, 2),
            "verify": tandem("verify", 5, 8),
            "random (model)": [ensemble(selection="random")],
            "self_assessment": [ensemble(selection="self_assessment")],
            "zscore": [in_transformers(selection="zscore", count=1, reference=str(real.REFERENCE))],
            "vote": [ensemble(3, aggregation="vote")],
            "best_of": [ensemble(aggregation="best_of", scorer=f"logprob:{first.intern}")],
            "loop": [ensemble(aggregation="loop", segment_tokens=n) for n in segments],
            "random (segment)": [ensemble(aggregation="random", segment_tokens=n) for n in segments],
            "reward_based": [
                ensemble(aggregation="reward_based", segment_tokens=segments[-1], scorer=f"logprob:{first.intern}")
            ],
            "average": [in_transformers(aggregation="average")],
            "distribution": [
                in_transformers(aggregation="distribution", weights=weights) for weights in ("3:1", "9:1")
            ],
            "gac": [in_transformers(aggregation="gac", threshold=threshold) for threshold in (0.5, 0.9)],
        },
        common={"batch_size": real.BATCH},
        setting=setting,
        unit="TFLOPs",
        tflops=1.0,
        asked={"apply_chat_template": True, "gen_kwargs": f"max_gen_toks={real.ANSWER_TOKENS}"},
    )


@dataclass(frozen=True)
class Tried:
    """What a candidate reached on the training questions.

    Attributes
    ----------
    strategy, name
        The strategy, and the candidate as records call it.
    candidate
        What was tried.
    accuracy
        From 0 to 1.
    cost, bill
        TFLOPs per question, by Eq. 12 and of every token.
    """

    strategy: str
    name: str
    candidate: Candidate
    accuracy: float
    cost: float
    bill: float


def try_out(strategy: str, candidate: Candidate, trial: Trial, store: Path) -> Tried:
    """Run one candidate on the training questions."""
    lm = MODELS[candidate[0]](**trial.arguments(candidate), store=store)
    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    limit = trial.questions
    try:
        results = simple_evaluate(
            model=lm, tasks=[trial.task], task_manager=manager, limit=limit, bootstrap_iters=0, **trial.asked
        )
        assert results is not None
        totals = lm.totals()
        accuracy = float(results["results"][trial.task]["acc,none"])
        name, costs = str(lm.description["policy"]), (totals["tflops"], totals["bill_tflops"])
        return Tried(strategy, name, candidate, accuracy, *costs)
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


def table(tried: Sequence[Tried], trial: Trial) -> str:
    """The candidates as Markdown, those that are chosen in bold."""
    best = chosen(tried).values()
    lines = [
        f"# Strategies on training questions of {trial.models}",
        "",
        f"The first {trial.questions:,} questions of {trial.task}, {trial.how}. In bold",
        "what is chosen of each strategy. Nothing here is said of other models, and no test question was asked.",
        "",
        f"| strategy | accuracy % | Eq. 12, {trial.unit} | whole bill, {trial.unit} |",
        "|---|---|---|---|",
    ]
    digits = 1 if trial.tflops < 1 else 3
    for one in tried:
        bold = "**" if one in best else ""
        costs = " | ".join(f"{cost / trial.tflops:.{digits}f}" for cost in (one.cost, one.bill))
        lines.append(f"| {bold}{one.name}{bold} | {100 * one.accuracy:.1f} | {costs} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument(
        "--models", type=Path, help="folder with the GGUF files; the bundled pair where it is not given"
    )
    parser.add_argument("--work", type=Path, default=Path("build/real"))
    parser.add_argument("--threads", type=int, default=cores())
    real.add_dtype(parser)
    parser.add_argument("--questions", type=int, help="instead of the trial's own number")
    parser.add_argument("--store", type=Path, default=Path("build/strategies.sqlite"))
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    given.store.parent.mkdir(parents=True, exist_ok=True)
    trial = bundled()
    if given.models is not None:
        trial = of_real_models(real.Setting(given.models, given.work, given.work, given.threads, given.dtype))
    trial = replace(trial, questions=given.questions or trial.questions)
    tried = []
    for strategy, candidates in trial.candidates.items():
        for candidate in candidates:
            tried.append(try_out(strategy, candidate, trial, given.store))
            print(tried[-1], flush=True)
    text = table(tried, trial)
    print(text)
    if given.output is not None:
        given.output.write_text(text, encoding="utf-8")
    if given.output is not None and given.models is not None:
        best = [asdict(one) for one in chosen(tried).values()]
        given.output.with_suffix(".json").write_text(json.dumps(best, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
