"""How many training questions a judge needs: fitted on some of a collection, measured on the rest of it.

    python benchmarks/learning_curve.py COLLECTED [--sizes 50,100,150] [--repeats 20] [--labels truth,mentor]
        [--strengths 0.01,0.1,1] [--objective accuracy] [--output FILE]

For each number of questions, kind of labels and strength C of the logistic regression (a smaller one is held back
more), a judge is fitted on so many questions drawn at random, with inputs, probe and thresholds chosen on them alone,
and measured on all others, `repeats` times with other draws. Markdown with medians and the ends of the middle 80 %:

- AUC of its scores against the task's grades, whichever labels it was fitted on;
- expected calibration error, against the same;
- accuracy and cost of its cascade, beside those of the best single stage, which is chosen on the same training part.

Use training questions: nothing here may see a test question.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from tqdm import tqdm

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.training import collected_file, fit_report
from lm_eval_tandem.training.choose_inputs import InputChoice
from lm_eval_tandem.training.cross_fitting import FOLDS, out_of_fold
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.labels import answered_by_mentor, with_mentor_labels
from lm_eval_tandem.training.outcomes import simulate
from lm_eval_tandem.training.recipes import INPUTS, RECIPES

COLUMNS = (
    "questions",
    "labels",
    "C",
    "AUC",
    "calibration error",
    "accuracy − best stage, points",
    "cost / best stage's",
)
SEED = 0


@dataclass(frozen=True)
class Measured:
    """One judge on questions that it has not seen; the fields are the table's columns from AUC on."""

    auc: float
    calibration: float
    points: float
    cost: float


def measure(data: Collected, rows: NDArray[np.bool_], labels: str, strength: float, objective: str) -> Measured:
    """Fit on the questions of a mask (Q,), and measure on the others.

    Raises
    ------
    ClassifierError
        The questions of the mask cannot be fitted on, as where all answers are alike.
    """
    train, test = data.subset(rows), data.subset(~rows)
    learned = with_mentor_labels(train) if labels == "mentor" else train
    truth = (np.asarray(learned.correct) >= 0.5).astype(np.int64)
    recipe, make = RECIPES["default"], partial(LogisticJudge, C=strength)
    allowed = recipe.inputs_for(data.measures_prompts)
    inputs, probe = InputChoice(learned, truth, allowed, objective, SEED).best(np.ones(len(truth), dtype=bool))
    vectors = learned.inputs(INPUTS[inputs], probe)
    to_fit, to_judge = learned.to_fit, test.to_fit
    scores = out_of_fold(make, vectors, truth, FOLDS, SEED, to_fit)
    thresholds = recipe.choose(learned.outcomes(scores, probe), objective)
    judge = make().fit(vectors[to_fit], truth[to_fit])
    unseen = test.inputs(INPUTS[inputs], probe)
    judged = judge.predict_proba(unseen.reshape(-1, unseen.shape[2]))[:, 1].reshape(unseen.shape[:2])
    right = (np.asarray(test.correct) >= 0.5).astype(np.int64)
    _, correct, cost = simulate(test.outcomes(judged, probe), thresholds)
    best = int(np.argmax(np.asarray(train.correct).mean(axis=0)))
    return Measured(
        auc=float(roc_auc_score(right[to_judge], judged[to_judge])),
        calibration=float(fit_report.calibration(judged[to_judge], right[to_judge])["ece"]),
        points=100 * float(correct.mean() - test.correct[:, best].mean()),
        cost=float(cost.mean() / test.cost[:, best].mean()),
    )


def draws(questions: int, size: int, repeats: int) -> list[NDArray[np.bool_]]:
    """Masks (Q,) of `size` questions each, the same in every call."""
    masks = []
    for repeat in range(repeats):
        mask = np.zeros(questions, dtype=np.bool_)
        mask[np.random.default_rng([SEED, size, repeat]).permutation(questions)[:size]] = True
        masks.append(mask)
    return masks


def spread(values: Sequence[float], digits: int) -> str:
    """The median, and the ends of the middle 80 %."""
    low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def table(
    data: Collected,
    sizes: Sequence[int],
    repeats: int,
    labels: Sequence[str],
    strengths: Sequence[float],
    objective: str,
) -> str:
    """The table, in Markdown.

    Raises
    ------
    ClassifierError
        A size leaves too few questions to measure on, or no draw of a size can be fitted on.
    """
    if "mentor" in labels:
        data = answered_by_mentor(data)
    questions = len(data.ids)
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    cells = [(size, kind, strength) for size in sizes for kind in labels for strength in strengths]
    for size, kind, strength in tqdm(cells, desc="learning curve"):
        if size > questions - 20:
            raise ClassifierError(
                f"--sizes {size} leaves {questions - size} of {questions} questions; leave 20 or more."
            )
        found, reason = [], ""
        for mask in draws(questions, size, repeats):
            try:
                found.append(measure(data, mask, kind, strength, objective))
            except ClassifierError as error:
                reason = str(error)
        if not found:
            raise ClassifierError(f"no {size} questions could be fitted on: {reason}")
        values = [[getattr(one, name) for one in found] for name in Measured.__annotations__]
        name = str(size) if len(found) == repeats else f"{size} ({len(found)} of {repeats} draws)"
        lines.append([name, kind, f"{strength:g}", *map(spread, values, (3, 3, 1, 2))])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("collected", type=Path)
    parser.add_argument("--sizes", default="50,100,150")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--labels", default="truth,mentor")
    parser.add_argument("--strengths", default="0.01,0.1,1")
    parser.add_argument("--objective", default="accuracy")
    parser.add_argument("--output", type=Path, help="Markdown file")
    given = parser.parse_args(arguments)
    data, _ = collected_file.read(given.collected, objective=given.objective)
    sizes, strengths = map(int, given.sizes.split(",")), map(float, given.strengths.split(","))
    text = table(data, list(sizes), given.repeats, given.labels.split(","), list(strengths), given.objective)
    print(text, end="")
    if given.output:
        given.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
