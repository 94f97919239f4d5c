"""Ablation of the judge: what each idea for a better judge gains, on the same questions, folds, costs and objective.

    python benchmarks/ablation.py build/collected --transfer build/collected_code --output results/ablation/README.md

Reads what `lm-eval-tandem collect` wrote and prints a Markdown table, or writes it to `--output`: for every variant of
the judge its AUC, and the accuracy and cost that the cascade reaches with it. All of it is cross-validated on the
collected training questions. `--transfer` adds columns for the questions of another task, judged by a classifier that
was fitted on the training questions, at thresholds chosen there. `make ablation` runs it on the bundled pair.
"""

from __future__ import annotations

import argparse
import math
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
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS, PROBE_FEATURE_NAMES, Probe
from lm_eval_tandem.judge.splits import stratified_order
from lm_eval_tandem.training.choose_inputs import InputChoice
from lm_eval_tandem.training.collected_file import read
from lm_eval_tandem.training.cross_fitting import FOLDS, cross_fitted_outcomes, out_of_fold
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.labels import checked_labels
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.recipes import INPUTS, RECIPES, Recipe
from lm_eval_tandem.training.thresholds import best_index, parse_objective

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]
MakeEstimator = Callable[[], Any]
"""Makes an unfitted scikit-learn classifier."""

QUESTIONS = 2000
"""Number of questions to use, unless the command says otherwise."""
FIXED_PROBE = Probe(MAX_PROBE_TOKENS, 0.7)
"""The probe of variants that do not vary it."""
UNREACHED = "no thresholds meet the objective"
"""The note of a variant that the objective is out of reach for."""
SKIP_BELOW = 0.3
"""A stage is skipped without a probe if the estimated probability that it is sufficient is at most this."""
ANSWER_VALUES = np.logspace(-1, 4, 60)
"""Values of a correct answer that the expected-value rule tries, in costs of always-high."""


@dataclass(frozen=True)
class Variant:
    """A judge to evaluate.

    Attributes
    ----------
    name
        Its row in the table.
    make
        Makes its classifier.
    inputs
        Returns the classifier's inputs, float64 (Q, T, F), of collected questions.
    probe
        The probe that its inputs come from; None without one.
    recipe
        How its thresholds are chosen.
    """

    name: str
    make: MakeEstimator
    inputs: Callable[[Collected], Floats]
    probe: Probe | None = None
    recipe: Recipe = RECIPES["default"]


@dataclass(frozen=True)
class Point:
    """What the cascade reaches: accuracy in [0, 1], and cost as a share of always-high's."""

    accuracy: float
    cost: float


@dataclass(frozen=True)
class Result:
    """The evaluation of a variant.

    Attributes
    ----------
    name
        Its row in the table.
    auc
        Mean AUC over those stages that have correct and wrong answers; NaN for rules that change no score.
    in_domain
        Cross-validated point; None if no thresholds meet the objective.
    transfer
        Point on the questions of the other task; None without such questions.
    note
        A remark for the last column.
    """

    name: str
    auc: float
    in_domain: Point | None
    transfer: Point | None
    note: str = ""


# Variants: what the classifier is given, and which classifier


def variants(data: Collected) -> Iterator[Variant]:
    """Yield every variant that the collected data allow; those with a probe need the entropies of answers."""
    boosting: MakeEstimator = BoostingJudge
    long_mlp, paper_mlp = (
        partial(SufficiencyClassifier, **RECIPES[recipe].parameters["mlp"]) for recipe in ("default", "paper")
    )
    yield Variant("18 statistics, the paper's MLP and grid", paper_mlp, statistics, recipe=RECIPES["paper"])
    yield Variant("18 statistics, MLP trained to convergence", long_mlp, statistics)
    yield Variant("18 statistics, logistic regression", LogisticJudge, statistics)
    yield Variant("18 statistics, boosting", boosting, statistics)
    yield Variant("+ change since the previous stage", boosting, with_change)
    if data.parts is not None:
        by_part, by_position = slice(0, 28), slice(28, 36)
        yield Variant("+ question and insights separately", boosting, lambda d: with_columns(d, d.parts, by_part))
        yield Variant("+ means by position", boosting, lambda d: with_columns(d, d.parts, by_position))
    if data.entropy is None:
        return
    for tokens in (1, 8, 16, 32):
        yield with_probe(f"+ probe of {tokens} token{'s' * (tokens > 1)}", boosting, Probe(tokens))
    yield with_probe("+ probe of the whole answer", boosting, Probe(MAX_PROBE_TOKENS))
    for limit in (0.7, 1.0, 2.0):
        probe = Probe(MAX_PROBE_TOKENS, limit)
        yield with_probe(f"+ probe up to a token of more than {limit:g} nats", boosting, probe)
    yield with_probe("+ probe up to 0.7 nats, logistic regression", LogisticJudge, FIXED_PROBE)
    yield with_probe("+ probe up to 0.7 nats, MLP trained to convergence", long_mlp, FIXED_PROBE)
    yield Variant("probe and stage only, boosting", boosting, probe_only, FIXED_PROBE)
    yield Variant("probe and stage only, logistic regression", LogisticJudge, probe_only, FIXED_PROBE)
    yield Variant("18 statistics, probe, and the previous stage's probe", boosting, with_previous_probe, FIXED_PROBE)


def with_probe(name: str, make: MakeEstimator, probe: Probe) -> Variant:
    """Return the variant with the 18 statistics and a probe."""
    return Variant(name, make, lambda data: data.inputs(input_schemas.BOTH, probe), probe)


def statistics(data: Collected) -> Floats:
    """Return the 18 statistics of the prompt."""
    return data.features


def with_columns(data: Collected, more: Floats | None, columns: slice) -> Floats:
    """Return the 18 statistics with some columns of another array (Q, T, F)."""
    assert more is not None
    return np.concatenate([data.features, more[:, :, columns]], axis=2)


def with_change(data: Collected) -> Floats:
    """Return the 18 statistics with their differences to the previous stage, 0 at stage 0."""
    change = np.diff(data.features, axis=1, prepend=data.features[:, :1])
    return np.concatenate([data.features, change], axis=2)


def probe_only(data: Collected) -> Floats:
    """Return the probe's statistics and the stage."""
    return data.inputs(input_schemas.PROBE, FIXED_PROBE)


def with_previous_probe(data: Collected) -> Floats:
    """Return the 18 statistics, the probe, the previous stage's probe (0 at stage 0) and the difference of both."""
    probed = data.probe_all(FIXED_PROBE)[0]
    previous = np.concatenate([np.zeros_like(probed[:, :1]), probed[:, :-1]], axis=1)
    return np.concatenate([data.features, probed, previous, probed - previous], axis=2)


# Evaluation


def ablation(
    collected: Sequence[Path], transfer: Sequence[Path], objective: str, questions: int = QUESTIONS, seed: int = 42
) -> tuple[list[Result], int]:
    """Evaluate every variant, the default recipe, and two other stopping rules on the default recipe's scores.

    Parameters
    ----------
    collected
        Folders of collected training questions, all of one pair.
    transfer
        Folders of collected questions of another task; may be empty.
    objective
        What thresholds are chosen for, as in `lm-eval-tandem fit`.
    questions
        Largest number of training questions to use; they are thinned out evenly over their difficulty.
    seed
        Seed of folds and of thinning.

    Returns
    -------
    tuple of list of Result, int
        The rows of the table, and the number of training questions used.

    Raises
    ------
    ClassifierError
        The collected questions cannot be read or fitted on.
    """
    data, _ = read(*collected, objective=objective)
    labels = checked_labels(data)
    by_difficulty = stratified_order(labels.sum(axis=1), seed)
    even = np.linspace(0, len(labels) - 1, min(questions, len(labels))).round().astype(int)
    rows = np.sort(by_difficulty[even])
    data, labels = data.subset(rows), labels[rows]
    other = read(*transfer, objective=objective)[0] if transfer else None
    results = [evaluate(variant, data, labels, other, objective, seed) for variant in variants(data)]
    if data.entropy is not None:
        results += of_default_recipe(data, labels, other, objective, seed)
    return results, len(labels)


def of_default_recipe(
    data: Collected, labels: Labels, other: Collected | None, objective: str, seed: int
) -> list[Result]:
    """Evaluate the judge that `lm-eval-tandem fit` makes of these questions, and other stopping rules on its scores."""
    choosing = InputChoice(data, labels, RECIPES["default"].inputs, objective, seed)
    try:
        inputs, probe = choosing.best(np.ones(len(labels), dtype=np.bool_))
    except ClassifierError:
        return [Result("the default recipe", math.nan, None, None, UNREACHED)]
    limits = "" if probe is None else f" of {probe.tokens} tokens or {probe.max_entropy:g} nats"
    name = f"the default recipe: {inputs}{limits}, logistic regression"
    default = Variant(name, LogisticJudge, lambda given: given.inputs(INPUTS[inputs], probe), probe)
    results = [evaluate(default, data, labels, other, objective, seed)]
    scores = out_of_fold(LogisticJudge, default.inputs(data), labels, FOLDS, seed)
    results.append(stop_by_expected_value(data, data.outcomes(scores, probe), objective))
    if probe is not None:
        results.append(skip_unpromising_probes(data, labels, scores, probe, objective, seed))
    return results


def evaluate(
    variant: Variant, data: Collected, labels: Labels, other: Collected | None, objective: str, seed: int
) -> Result:
    """Cross-validate a variant, and apply it to the questions of another task if there are any."""
    inputs = variant.inputs(data)
    scores = out_of_fold(variant.make, inputs, labels, FOLDS, seed)
    outcomes = data.outcomes(scores, variant.probe)
    auc = mean_auc(labels, scores)
    choose = partial(variant.recipe.choose, objective=objective)
    try:
        grades, cost = cross_fitted_outcomes(outcomes, choose, seed)
        thresholds = choose(outcomes)
    except ClassifierError:
        return Result(variant.name, auc, None, None, UNREACHED)
    transfer = None
    if other is not None:
        fitted = variant.make().fit(inputs.reshape(-1, inputs.shape[2]), labels.ravel())
        other_inputs = variant.inputs(other)
        positive = fitted.predict_proba(other_inputs.reshape(-1, other_inputs.shape[2]))[:, 1]
        other_outcomes = other.outcomes(positive.reshape(other_inputs.shape[:2]), variant.probe)
        _, *simulated = simulate(other_outcomes, thresholds)
        transfer = point(other, *simulated)
    return Result(variant.name, auc, point(data, grades, cost), transfer)


def point(data: Collected, grades: Floats, cost: Floats) -> Point:
    """Return the mean of grades (Q,) and of costs (Q,), the latter relative to always-high."""
    return Point(float(grades.mean()), float(cost.mean() / data.cost[:, -1].mean()))


def mean_auc(labels: Labels, scores: Floats) -> float:
    """Return the mean AUC over stages, from labels and scores (Q, T); NaN if no stage has both labels."""
    areas = [roc_auc_score(y, s) for y, s in zip(labels.T, scores.T, strict=True) if y.min() != y.max()]
    return float(np.mean(areas)) if areas else float("nan")


# Other rules than one threshold per stage


def stop_by_expected_value(data: Collected, outcomes: Outcomes, objective: str) -> Result:
    """Evaluate stopping where answering now is worth more than what is expected of the next stage.

    The only free number is what a correct answer is worth; the one that serves the objective best is reported. It is
    chosen on the questions that it is evaluated on.
    """
    always_high = data.cost[:, -1].mean()
    grades, costs = [], []
    for value in ANSWER_VALUES * always_high:
        stages = expected_value_stages(outcomes, value)
        taken = np.arange(len(stages)), stages
        grades.append(np.asarray(outcomes.correct)[taken])
        costs.append(outcomes.cost[taken])
    accuracy, cost = np.mean(grades, axis=1), np.mean(costs, axis=1)
    best, lack = best_index(parse_objective(objective), accuracy, cost, float(outcomes.correct[:, -1].mean()))
    reached = None if lack > 0 else point(data, grades[best], costs[best])
    note = "in sample: one number (the value of an answer) instead of one threshold per stage"
    if reached is None:
        note = "no value of an answer meets the objective"
    return Result("the default recipe, stopping by expected value", math.nan, reached, None, note)


def expected_value_stages(outcomes: Outcomes, answer_value: float) -> NDArray[np.intp]:
    """Return the stage at which each question stops, (Q,), if a correct answer is worth `answer_value`.

    The value of the next stage given the score at this one is an isotonic regression, from the last stage backwards.
    """
    n_stages = outcomes.scores.shape[1]
    step_costs = np.diff(outcomes.cost, axis=1).mean(axis=0)
    value = answer_value * outcomes.scores[:, -1]
    stops = np.ones(outcomes.scores.shape, dtype=bool)
    for stage in range(n_stages - 2, -1, -1):
        scores = outcomes.scores[:, stage]
        regression = IsotonicRegression(out_of_bounds="clip").fit(scores, value)
        value_of_continuing = regression.predict(scores) - step_costs[stage]
        stops[:, stage] = answer_value * scores >= value_of_continuing
        value = np.maximum(answer_value * scores, value_of_continuing)
    return stops.argmax(axis=1)


def skip_unpromising_probes(
    data: Collected, labels: Labels, scores: Floats, probe: Probe, objective: str, seed: int
) -> Result:
    """Evaluate skipping a stage without a probe where the last probe leaves it little chance to be sufficient."""
    probed = last_probe_chances(data, labels, probe, seed) > SKIP_BELOW
    lengths = data.probe_all(probe)[1].astype(np.int64) * probed
    outcomes = data.outcomes_with_probes(np.where(probed, scores, 0.0), lengths)
    note = f"a stage is skipped if the last probe leaves it a chance of {SKIP_BELOW:g} or less"
    try:
        grades, cost = cross_fitted_outcomes(outcomes, partial(RECIPES["default"].choose, objective=objective), seed)
        reached = point(data, grades, cost)
    except ClassifierError:
        reached, note = None, UNREACHED
    return Result("the default recipe, unpromising stages skipped", math.nan, reached, None, note)


def last_probe_chances(data: Collected, labels: Labels, probe: Probe, seed: int) -> Floats:
    """Return the estimated chance that each stage is sufficient before it is probed, (Q, T); 1 at stage 0.

    A second classifier estimates it from the stage's statistics and the last probe that was made, which depends on the
    stages that were skipped before.
    """
    probed = data.probe_all(probe)[0]
    questions, stages = labels.shape
    pairs = [(stage, last) for stage in range(1, stages) for last in range(stage)]
    inputs = [
        np.concatenate([data.features[:, stage], probed[:, last], np.full((questions, 1), float(last))], axis=1)
        for stage, last in pairs
    ]
    targets = np.stack([labels[:, stage] for stage, _ in pairs], axis=1)
    estimates = out_of_fold(BoostingJudge, np.stack(inputs, axis=1), targets, FOLDS, seed)
    chances, last_probed = np.ones(labels.shape), np.zeros(questions, dtype=int)
    for stage in range(1, stages):
        chances[:, stage] = np.select(
            [last_probed == last for last in range(stage)],
            [estimates[:, pairs.index((stage, last))] for last in range(stage)],
        )
        last_probed = np.where(chances[:, stage] > SKIP_BELOW, stage, last_probed)
    return chances


# Output and command line


def markdown(results: Sequence[Result], objective: str, questions: int, title: str) -> str:
    """Return the Markdown page."""
    lines = [
        f"# {title}",
        "",
        f"{questions} training questions, {FOLDS} folds by question, objective `{objective}`. Accuracy and cost (in "
        "% of always-high's, refused probes included) are cross-validated: thresholds were chosen on the questions of "
        "the other folds. Transfer is to the questions of another task, with the classifier fitted and the thresholds "
        f"chosen on the training questions. A probe adds {len(PROBE_FEATURE_NAMES)} statistics of the "
        "answer's first tokens.",
        "",
        "| judge | mean AUC | accuracy % | cost % | transfer accuracy % | transfer cost % | |",
        "|---|---|---|---|---|---|---|",
    ]
    for result in results:
        cells = [result.name, "" if math.isnan(result.auc) else f"{result.auc:.4f}"]
        for reached in (result.in_domain, result.transfer):
            cells += ["", ""] if reached is None else [f"{100 * reached.accuracy:.2f}", f"{100 * reached.cost:.1f}"]
        lines.append("| " + " | ".join([*cells, result.note]) + " |")
    return "\n".join(lines) + "\n"


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    parser = argparse.ArgumentParser(description="what each idea for the judge gains, on collected training questions")
    parser.add_argument("collected", type=Path, nargs="+", help="folders that collect wrote, all of one pair")
    parser.add_argument(
        "--transfer", type=Path, action="append", default=[], help="collected questions of another task"
    )
    parser.add_argument("--objective", default="cost@accuracy>=always_high-0.0015", help=OBJECTIVE)
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="largest number of questions to use")
    parser.add_argument("--title", default="What each idea for the judge gains")
    parser.add_argument("--output", type=Path, default=None, help="Markdown file (default: print)")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; a `TandemError` ends it with its sentence and exit code 1."""
    given = parser().parse_args(arguments)
    try:
        results, used = ablation(given.collected, given.transfer, given.objective, given.questions)
    except TandemError as error:
        sys.exit(f"ablation: error: {error}")
    text = markdown(results, given.objective, used, given.title)
    if given.output is None:
        print(text, end="")
    else:
        given.output.parent.mkdir(parents=True, exist_ok=True)
        given.output.write_text(text, encoding="utf-8")
        print(f"ablation: {given.output}")


if __name__ == "__main__":
    main()
