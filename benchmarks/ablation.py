"""What each idea for a better judge gives: the same questions, folds, costs and objective, one idea at a time.

    python benchmarks/ablation.py build/collected --transfer build/collected_code --output results/ablation/README.md

Everything is out of fold on collected training questions. Other questions, given as `transfer`, are judged by a
classifier fitted on the training questions, at thresholds chosen there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from lm_eval_tandem.cli import OBJECTIVE
from lm_eval_tandem.errors import ClassifierError, TandemError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.estimators import BoostingJudge, LogisticJudge
from lm_eval_tandem.judge.mlp import SufficiencyClassifier
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS, PROBE_NAMES, Probe
from lm_eval_tandem.judge.splits import stratified_order
from lm_eval_tandem.training.collect import read
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit import FINE_GRID, FOLDS, RECIPES, per_question
from lm_eval_tandem.training.thresholds import GRID, Outcomes, centred, choose, out_of_fold, simulate

Floats = NDArray[np.float64]
Make = Callable[[], Any]

QUESTIONS = 2000
DEFAULT = Probe(MAX_PROBE_TOKENS, 0.7)
SKIP_BELOW = 0.3
"""Scores before a probe up to which the stage is passed over without one."""
WEIGHTS = np.logspace(-1, 4, 60)
"""What an answer is worth, in costs of always-high, for the expected-value rule."""


@dataclass(frozen=True)
class Idea:
    """A judge to try: its inputs (Q, T, F), its kind, and its probe."""

    name: str
    make: Make
    inputs: Callable[[Collected], Floats]
    probe: Probe | None = None
    grid: tuple[float, ...] = FINE_GRID


@dataclass(frozen=True)
class Result:
    """Mean AUC over the stages that have one; accuracy and cost (in shares of always-high) out of sample."""

    name: str
    auc: float
    here: tuple[float, float] | None
    there: tuple[float, float] | None
    note: str = ""


def ideas(data: Collected) -> Iterator[Idea]:
    """Every idea that the collected columns allow."""
    boosting: Make = BoostingJudge
    own, papers = (partial(SufficiencyClassifier, **RECIPES[name].parameters["mlp"]) for name in ("default", "paper"))
    yield Idea("18 statistics, the paper's MLP, its grid", papers, _statistics, grid=GRID)
    yield Idea("18 statistics, MLP trained to the end", own, _statistics)
    yield Idea("18 statistics, logistic regression", LogisticJudge, _statistics)
    yield Idea("18 statistics, boosting", boosting, _statistics)
    yield Idea("+ change since the stage before", boosting, _with_change)
    if data.parts is not None:
        yield Idea("+ question and insights apart", boosting, lambda d: _with(d, d.parts, slice(0, 28)))
        yield Idea("+ means by position", boosting, lambda d: _with(d, d.parts, slice(28, 36)))
    if data.entropy is None:
        return
    for tokens in (1, 8, 16, 32):
        yield _probing(f"+ probe of {tokens} token{'s' * (tokens > 1)}", boosting, Probe(tokens))
    yield _probing("+ probe of the whole answer", boosting, Probe(MAX_PROBE_TOKENS))
    for limit in (0.7, 1.0, 2.0):
        yield _probing(f"+ probe until a token of more than {limit:g} nats", boosting, Probe(MAX_PROBE_TOKENS, limit))
    yield _probing("the same, logistic regression", LogisticJudge, DEFAULT)
    yield _probing("the same, MLP trained to the end", own, DEFAULT)
    yield Idea("the probe and the stage alone, boosting", boosting, _probe_alone, DEFAULT)
    yield Idea("the probe and the stage alone, logistic regression", LogisticJudge, _probe_alone, DEFAULT)
    yield Idea("18 statistics, probe, and the probes of the stages before", boosting, _with_earlier, DEFAULT)


def _probing(name: str, make: Make, probe: Probe) -> Idea:
    return Idea(name, make, lambda data: data.inputs(input_schemas.BOTH, probe), probe)


def _statistics(data: Collected) -> Floats:
    return data.features


def _with(data: Collected, more: Floats | None, columns: slice) -> Floats:
    assert more is not None
    return np.concatenate([data.features, more[:, :, columns]], axis=2)


def _with_change(data: Collected) -> Floats:
    change = np.diff(data.features, axis=1, prepend=data.features[:, :1])
    return np.concatenate([data.features, change], axis=2)


def _probe_alone(data: Collected) -> Floats:
    return data.inputs(input_schemas.PROBE, DEFAULT)


def _with_earlier(data: Collected) -> Floats:
    said = data.probed(DEFAULT)[0]
    before = np.concatenate([np.zeros_like(said[:, :1]), said[:, :-1]], axis=1)
    return np.concatenate([data.features, said, before, said - before], axis=2)


def ablation(
    paths: Sequence[Path], transfer: Sequence[Path], objective: str, questions: int = QUESTIONS, seed: int = 42
) -> list[Result]:
    """One result an idea, and two more for other rules on the default's scores. Raises ClassifierError."""
    data, _ = read(*paths)
    labels = (np.asarray(data.correct, dtype=np.float64) >= 0.5).astype(np.int64)
    few = np.sort(stratified_order(labels.sum(axis=1), seed)[:: max(1, len(labels) // questions)][:questions])
    data, labels = data.part(few), labels[few]
    other = read(*transfer)[0] if transfer else None
    results = [_tried(idea, data, labels, other, objective, seed) for idea in ideas(data)]
    if data.entropy is not None:
        scores = out_of_fold(BoostingJudge, data.inputs(input_schemas.BOTH, DEFAULT), labels, FOLDS, seed)
        results.append(_by_expected_value(data, data.outcomes(scores, DEFAULT), objective))
        results.append(_by_skipping(data, labels, scores, objective, seed))
    return results


def _tried(
    idea: Idea, data: Collected, labels: NDArray[np.int64], other: Collected | None, objective: str, seed: int
) -> Result:
    vectors = idea.inputs(data)
    scores = out_of_fold(idea.make, vectors, labels, FOLDS, seed)
    outcomes = data.outcomes(scores, idea.probe)
    area = _auc(labels, scores)
    try:
        right, spent = per_question(outcomes, objective, idea.grid, seed)
        limits = centred(outcomes, choose(outcomes, objective, idea.grid), idea.grid)
    except ClassifierError:
        return Result(idea.name, area, None, None, "no thresholds reach the objective")
    there = None
    if other is not None:
        fitted = idea.make().fit(vectors.reshape(-1, vectors.shape[2]), labels.ravel())
        theirs = idea.inputs(other)
        judged = fitted.predict_proba(theirs.reshape(-1, theirs.shape[2]))[:, 1].reshape(theirs.shape[:2])
        _, *found = simulate(other.outcomes(judged, idea.probe), limits)
        there = _shares(other, *found)
    return Result(idea.name, area, _shares(data, right, spent), there)


def _shares(data: Collected, right: Floats, spent: Floats) -> tuple[float, float]:
    return float(right.mean()), float(spent.mean() / data.cost[:, -1].mean())


def _auc(labels: NDArray[np.int64], scores: Floats) -> float:
    areas = [roc_auc_score(y, s) for y, s in zip(labels.T, scores.T, strict=True) if y.min() != y.max()]
    return float(np.mean(areas)) if areas else float("nan")


def _by_expected_value(data: Collected, outcomes: Outcomes, objective: str) -> Result:
    """Stop where an answer now is worth more than the value of going on, less what going on costs.

    The value of the next stage given the score at this one is an isotonic regression, from the last stage backwards;
    what an answer is worth is the one free number, and is set so that the objective is met at the lowest cost.
    """
    high, stages = data.cost[:, -1].mean(), outcomes.scores.shape[1]
    steps = np.diff(outcomes.cost, axis=1).mean(axis=0)
    target, best = data.correct[:, -1].mean() - float(objective.partition("-")[2] or 0), None
    for weight in WEIGHTS * high:
        value, stops = weight * outcomes.scores[:, -1], np.ones(outcomes.scores.shape, dtype=bool)
        for stage in range(stages - 2, -1, -1):
            expected = IsotonicRegression(out_of_bounds="clip").fit(outcomes.scores[:, stage], value)
            on = expected.predict(outcomes.scores[:, stage]) - steps[stage]
            stops[:, stage] = weight * outcomes.scores[:, stage] >= on
            value = np.maximum(weight * outcomes.scores[:, stage], on)
        at = np.arange(len(stops)), stops.argmax(axis=1)
        found = _shares(data, np.asarray(outcomes.correct)[at], outcomes.cost[at])
        if found[0] >= target - 1e-9 and (best is None or found[1] < best[1]):
            best = found
    note = "in sample: thresholds by expected value, one number instead of one a stage"
    return Result("the default's scores, stop by expected value", float("nan"), best, None, note)


def _by_skipping(data: Collected, labels: NDArray[np.int64], scores: Floats, objective: str, seed: int) -> Result:
    """A second classifier, before a stage's probe, from the last probe that was made: without hope no probe."""
    said, length = data.probed(DEFAULT)
    questions, stages = labels.shape
    pairs = [(stage, last) for stage in range(1, stages) for last in range(stage)]
    rows = np.stack(
        [
            np.concatenate([data.features[:, t], said[:, last], np.full((questions, 1), float(last))], axis=1)
            for t, last in pairs
        ],
        axis=1,
    )
    hopes = out_of_fold(BoostingJudge, rows, np.stack([labels[:, t] for t, _ in pairs], axis=1), FOLDS, seed)
    made, last = np.ones(labels.shape, dtype=bool), np.zeros(questions, dtype=int)
    for stage in range(1, stages):
        hope = np.select(
            [last == before for before in range(stage)],
            [hopes[:, pairs.index((stage, before))] for before in range(stage)],
        )
        made[:, stage] = hope > SKIP_BELOW
        last = np.where(made[:, stage], stage, last)
    costs = data.costs(length.astype(np.int64) * made)
    outcomes = Outcomes(np.where(made, scores, 0.0), np.asarray(data.correct, dtype=np.float64), *costs)
    found = per_question(outcomes, objective, FINE_GRID, seed)
    note = f"a stage is passed over where the last probe leaves a chance of {SKIP_BELOW:g} or less"
    return Result("the default, no probe without hope", float("nan"), _shares(data, *found), None, note)


def markdown(results: Sequence[Result], objective: str, questions: int, title: str) -> str:
    """The table; accuracies and costs of thresholds chosen on other folds' questions."""
    lines = [
        f"# {title}",
        "",
        f"{questions} training questions, {FOLDS} folds by question, objective `{objective}`. Accuracy and cost (in "
        "% of always-high, refused probes included) are of thresholds that were chosen on the other folds' questions. "
        "The last two columns of figures hold other questions, judged by what was fitted and chosen on these. A probe "
        f"says {len(PROBE_NAMES)} numbers.",
        "",
        "| judge | mean AUC | accuracy % | cost % | transfer accuracy % | transfer cost % | |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [result.name, "" if np.isnan(result.auc) else f"{result.auc:.4f}"]
        for pair in (result.here, result.there):
            cells += ["", ""] if pair is None else [f"{100 * pair[0]:.2f}", f"{100 * pair[1]:.1f}"]
        lines.append("| " + " | ".join([*cells, result.note]) + " |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description="what each idea for the judge gives, on collected training questions")
    made.add_argument("collected", type=Path, nargs="+", help="folders that collect wrote, all of one pair")
    made.add_argument("--transfer", type=Path, action="append", default=[], help="collected questions of another task")
    made.add_argument("--objective", default="cost@accuracy>=always_high-0.0015", help=OBJECTIVE)
    made.add_argument("--questions", type=int, default=QUESTIONS, help="so many of the questions")
    made.add_argument("--title", default="What each idea for the judge gives")
    made.add_argument("--output", type=Path, default=None, help="Markdown file (default: print)")
    return made


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a `TandemError` ends it with its sentence and exit code 1."""
    given = parser().parse_args(arguments)
    try:
        results = ablation(given.collected, given.transfer, given.objective, given.questions)
    except TandemError as error:
        sys.exit(f"ablation: error: {error}")
    text = markdown(results, given.objective, given.questions, given.title)
    if given.output is None:
        print(text, end="")
    else:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text, encoding="utf-8")
        print(f"ablation: {given.output}")


if __name__ == "__main__":
    main()
