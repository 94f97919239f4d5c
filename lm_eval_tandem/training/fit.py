"""From collected questions to a classifier, thresholds and an honest report (paper, section 3.1). No engine in here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_fscore_support, roc_auc_score

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.judge.features import FEATURE_NAMES
from lm_eval_tandem.judge.probe import MAX_PROBE_TOKENS, Probe
from lm_eval_tandem.judge.registry import MODELS, Estimator
from lm_eval_tandem.judge.splits import stratified_order, validation_rows
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.thresholds import GRID, Outcomes, centred, choose, out_of_fold, parse_objective, simulate

__all__ = ["RECIPES", "Collected", "Fitted", "fit_sufficiency"]

Floats = NDArray[np.float64]

FINE_GRID = (*GRID, 0.96, 0.97, 0.98, 0.985, 0.99, 0.993, 0.995, 0.997, 0.998, 0.999)
"""The paper's grid, finer where a confident classifier's scores lie."""


@dataclass(frozen=True)
class Recipe:
    """How a classifier is made: what it is shown, its kind, and the values its thresholds may take."""

    inputs: tuple[str, ...]
    """Those to choose from."""
    model: str
    grid: tuple[float, ...]
    parameters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Per kind of classifier; what is not named keeps its default."""


_OWN_MLP = {"dropout": 0.1, "lr": 3e-3, "epochs": 150, "patience": 25, "batch_size": 128, "log_features": True}
_PAPERS_MLP = {"hidden": (64, 32), "dropout": 0.3, "lr": 1e-4, "epochs": 3, "patience": 1}

INPUTS = {"statistics": input_schemas.STATISTICS, "probe": input_schemas.PROBE, "statistics+probe": input_schemas.BOTH}
"""What a classifier may be shown: the prompt's statistics, the answer begun, or both."""
HIDDEN_INPUTS = ("hidden", "lora")
"""What it may be shown besides, where it was collected: the intern's hidden state, as it is or finetuned for this."""
RECIPES: dict[str, Recipe] = {
    "paper": Recipe(("statistics",), "mlp", GRID, {"mlp": _PAPERS_MLP}),
    "default": Recipe(tuple(INPUTS), "logistic", FINE_GRID, {"mlp": _OWN_MLP}),
}
LABELS = ("truth", "mentor")
PROBES = tuple(Probe(tokens, limit) for tokens in (32, 128, MAX_PROBE_TOKENS) for limit in (0.7, 1.0, 2.0, np.inf))
"""The probes that fitting chooses from."""
PROBE_GRID = (0.05, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 0.98, 0.99, 0.995, 0.998)
"""Thresholds that probes are compared at: wide enough to tell them apart, and quick."""
MARGIN = 0.01
"""By what share of cost, or accuracy, further inputs have to be better than fewer."""
PROBED_QUESTIONS = 2000
"""Questions on which the probe is chosen; more change nothing that could be told apart."""
BINS = 10
MIN_QUESTIONS = 20
FOLDS = 5


@dataclass(frozen=True)
class Fitted:
    """A classifier with its thresholds and what is known of it.

    scores: float64 (Q, T) of the questions fitted on, each by a classifier that had not seen the question; NaN for
        questions that have none (the paper's recipe keeps 30 % apart).
    """

    estimator: Estimator
    thresholds: tuple[float, ...]
    report: dict[str, Any]
    schema: str
    probe: Probe | None
    scores: Floats


class Finetune(Protocol):
    """What finetunes the intern (`lora.Finetuning`)."""

    def __call__(
        self, prompts: NDArray[np.object_], labels: NDArray[np.int64], held_out: NDArray[np.bool_], seed: int
    ) -> NDArray[np.float32]:
        """Hidden states of all prompts, float32 (Q, T, D), after learning from questions not held out."""
        ...


def fit_sufficiency(
    data: Collected,
    recipe: str = "default",
    objective: str = "accuracy",
    seed: int = 42,
    *,
    inputs: str | None = None,
    model: str | None = None,
    labels: str = "truth",
    finetune: Finetune | None = None,
) -> Fitted:
    """Fit a classifier, choose its thresholds out of sample, and report how well both do there.

    recipe:
        "paper": 18 statistics and the paper's MLP (64-32, dropout 0.3, Adam 1e-4, up to 3 epochs) on 70 % of the
            questions; thresholds on the other 30 %. The paper searches them on the training set; here they never see a
            score of a question the classifier was fitted on (that part does choose the epoch).
        "default": the statistics, a probe of the answer, or both, whichever serves best, with a length and a largest
            entropy chosen from `PROBES`; logistic regression; thresholds on out-of-fold scores of all questions
            (5 folds by question), on a grid that is finer near 1; then one fit on all questions.
    objective: see `choose`.
    seed: of splits, weights, dropout and batch order.
    inputs: one of `INPUTS`, by default the recipe's; or "hidden", the intern's last hidden state, or "lora", the same
        after `finetune` has taught the intern. The finetuned one has seen its questions, so "lora" has thresholds on
        30 % as the paper's recipe.
    model: "mlp", "boosting" or "logistic"; by default the recipe's, and for hidden states "mlp".
    labels: "truth" (the task's grades) or "mentor" (agreement with the mentor's own answer: no truth is looked at).

    The report holds plain JSON values, measured on out-of-sample scores, costs in the unit of `data`: recipe, inputs,
    model, labels, objective, seed, questions, questions_out_of_sample, thresholds; `stages`: per stage share_correct,
    precision, recall, f1 (score above 0.5), auc (None where all answers are alike) and share_answered (of questions,
    from that stage); `calibration`: brier (mean squared error), ece (mean gap between score and share of right
    answers over ten bins) and bins (from, to, count, mean_score, share_correct);
    `cascade`: accuracy and mean cost of the thresholds; the same cross-fitted, i.e. chosen on four fifths of the
        questions and applied to the rest, which is free of the optimism of choosing and measuring on the same questions
        (None where the objective cannot be met on four fifths);
    `fixed`: accuracy and mean cost of always stopping at each stage; `always_high`: the last of those.

    Raises ClassifierError for an unknown recipe, inputs, model, labels or objective, fewer than 20 questions, missing
    stages or inputs, labels of one class only, and targets that no thresholds reach.
    """
    chosen = RECIPES.get(recipe)
    if chosen is None:
        raise ClassifierError(f"The recipe {recipe!r} is unknown; give one of {', '.join(RECIPES)}.")
    model = model or ("mlp" if inputs in HIDDEN_INPUTS else chosen.model)
    known = (*INPUTS, *HIDDEN_INPUTS)
    for name, value, allowed in (("inputs", inputs, known), ("model", model, MODELS), ("labels", labels, LABELS)):
        if value is not None and value not in allowed:
            raise ClassifierError(f"{name}={value} is not known; give one of {', '.join(allowed)}.")
    parse_objective(objective)
    if labels == "mentor":
        data = _agreeing(data)
    truth = _checked(data)
    made: Any = MODELS[model]
    make = partial(made, **chosen.parameters.get(model, {}), **({} if model == "logistic" else {"seed": seed}))
    held_out = recipe == "paper" or inputs == "lora"
    schema, probe = "", None
    if inputs == "lora":
        if finetune is None:
            raise ClassifierError("inputs=lora needs what finetunes the intern; fit with `lm-eval-tandem fit`.")
        data = replace(data, hidden=finetune(data.tokens(), truth, _held_out(truth, seed)[:, 0], seed))
    if inputs in HIDDEN_INPUTS:
        schema = input_schemas.hidden(data.hidden_states().shape[2], inputs == "lora")
    else:
        inputs, probe = choose_inputs(data, truth, (inputs,) if inputs else chosen.inputs, objective, seed)
        schema = INPUTS[inputs]
    vectors = data.inputs(schema, probe)
    estimator, scores = _fitted(make, vectors, truth, held_out, seed)
    kept = ~np.isnan(scores[:, 0])
    outcomes = data.part(kept).outcomes(scores[kept], probe)
    thresholds = choose(outcomes, objective, chosen.grid)
    if recipe != "paper":
        thresholds = centred(outcomes, thresholds, chosen.grid)
    report = {
        "recipe": recipe,
        "inputs": inputs,
        "model": model,
        "labels": labels,
        "probe": None if probe is None else probe.to_json(),
        "objective": objective,
        "seed": seed,
        "questions": len(data.ids),
        "questions_out_of_sample": int(kept.sum()),
        "thresholds": list(thresholds),
        **_report(outcomes, truth[kept], thresholds, data.cost[kept]),
        "calibration": calibration(outcomes.scores, truth[kept]),
    }
    report["cascade"] |= cross_fitted(outcomes, objective, chosen.grid, seed)
    return Fitted(estimator, thresholds, report, schema, probe, scores)


def _held_out(labels: NDArray[np.int64], seed: int) -> NDArray[np.bool_]:
    """The 30 % of the questions that are not fitted on, bool (Q, T)."""
    groups = np.repeat(np.arange(len(labels)), labels.shape[1])
    return validation_rows(labels.ravel(), groups, 0.3, seed).reshape(labels.shape)


def _fitted(
    make: Callable[[], Any], vectors: Floats, labels: NDArray[np.int64], keeps_apart: bool, seed: int
) -> tuple[Estimator, Floats]:
    """An estimator and the scores (Q, T) of questions that it, or its like, has not seen (NaN for others)."""
    questions, stages = labels.shape
    groups = np.repeat(np.arange(questions), stages)
    rows = vectors.reshape(-1, vectors.shape[2])
    if not keeps_apart:
        return _fit(make(), rows, labels.ravel(), groups), out_of_fold(make, vectors, labels, FOLDS, seed)
    held_out = _held_out(labels, seed).ravel()
    estimator = make()
    if hasattr(estimator, "epochs"):  # the MLP keeps the same 30 % apart by itself, to choose its epoch
        estimator.fit(rows, labels.ravel(), groups)
    else:
        _fit(estimator, rows[~held_out], labels.ravel()[~held_out], groups[~held_out])
    scores = np.full(labels.shape, np.nan)
    scores[held_out.reshape(labels.shape)] = estimator.predict_proba(rows[held_out])[:, 1]
    return estimator, scores


def _fit(estimator: Any, rows: Floats, labels: NDArray[np.int64], groups: NDArray[np.int64]) -> Any:
    from sklearn.utils.validation import has_fit_parameter

    return estimator.fit(rows, labels, **({"groups": groups} if has_fit_parameter(estimator, "groups") else {}))


def choose_inputs(
    data: Collected, labels: NDArray[np.int64], allowed: Sequence[str], objective: str, seed: int
) -> tuple[str, Probe | None]:
    """The inputs, and the probe of `PROBES`, under which the objective comes out best, by a logistic regression.

    Scores are out of fold. Inputs named later have to be better by `MARGIN`: a probe alone saves the pass over the
    prompt. Probes that differ only beyond the longest answer, or in a limit that no entropy exceeds, tie; the shorter
    one with the lower limit, being cheaper where answers are longer, is taken.
    """
    if tuple(allowed) == ("statistics",):
        return "statistics", None
    few = np.sort(stratified_order(labels.sum(axis=1), seed)[:: -(-len(labels) // PROBED_QUESTIONS)])
    data, labels = data.part(few), labels[few]
    by_accuracy = parse_objective(objective)[0].startswith("accuracy")
    best: tuple[tuple[float, float], tuple[str, Probe | None]] | None = None
    refusal: ClassifierError | None = None
    for inputs in allowed:
        bar = None if best is None else (best[0][0] - MARGIN * abs(best[0][0]), best[0][1])
        for probe in (None,) if inputs == "statistics" else PROBES:
            scores = out_of_fold(LogisticJudge, data.inputs(INPUTS[inputs], probe), labels, FOLDS, seed)
            outcomes = data.outcomes(scores, probe)
            try:
                _, correct, cost = simulate(outcomes, choose(outcomes, objective, PROBE_GRID))
            except ClassifierError as error:
                refusal = error
                continue
            accuracy = round(-float(correct.mean()), 9)
            price = float(np.float32(cost.mean()))
            value = (accuracy, price) if by_accuracy else (price, accuracy)
            if (bar is None or value < bar) and (best is None or value < best[0]):
                best = value, (inputs, probe)
    if best is None:
        assert refusal is not None
        raise refusal
    return best[1]


def _agreeing(data: Collected) -> Collected:
    """The data with agreement in the place of grades."""
    if data.agrees is None or not np.isfinite(np.asarray(data.agrees, dtype=np.float64)).all():
        raise ClassifierError(
            "--labels mentor needs the mentor's own answer to every question, with a final answer to compare, which "
            "was not collected; collect without --no_mentor, or fit with --labels truth."
        )
    return replace(data, correct=data.agrees)


def _checked(data: Collected) -> NDArray[np.int64]:
    """The labels (Q, T) of data that can be fitted on."""
    questions = len(data.ids)
    if questions < MIN_QUESTIONS:
        raise ClassifierError(
            f"{questions} question(s) were collected, but fitting needs at least {MIN_QUESTIONS}; collect more of them."
        )
    if len(set(data.ids)) != questions:
        twice = next(name for name in data.ids if data.ids.count(name) > 1)
        raise ClassifierError(f"The question {twice!r} was collected twice; keep one record per question.")
    shape = np.shape(data.correct)
    if (
        len(shape) != 2
        or shape[0] != questions
        or shape[1] < 2
        or np.shape(data.features) != (*shape, len(FEATURE_NAMES))
    ):
        raise ClassifierError(
            f"{questions} questions came with features of shape {np.shape(data.features)} and grades of shape {shape}; "
            f"collect (questions, stages, {len(FEATURE_NAMES)}) and (questions, stages), stage 0 and at least one more."
        )
    for name in ("features", "correct", "cost", "fallback_cost"):
        values = np.asarray(getattr(data, name), dtype=np.float64)
        if values.shape[:2] != shape:
            raise ClassifierError(
                f"`{name}` has shape {values.shape}, but the grades have {shape}; collect all stages."
            )
        missing = np.count_nonzero(~np.isfinite(values.reshape(*shape, -1)), axis=2) > 0
        if missing.any():
            question, stage = np.argwhere(missing)[0]
            lacking = int(np.count_nonzero(missing.any(axis=1)))
            raise ClassifierError(
                f"Question {data.ids[question]!r} has no finite `{name}` at stage {stage} ({lacking} question(s) "
                "lack one); collect every stage of every question, or leave those questions out."
            )
    labels = (np.asarray(data.correct, dtype=np.float64) >= 0.5).astype(np.int64)
    if labels.min() == labels.max():
        raise ClassifierError(
            f"All {labels.size} answers are {'right' if labels.max() else 'wrong'}, so there is nothing to tell apart; "
            f"collect {'harder' if labels.max() else 'easier'} questions."
        )
    return labels


def _report(
    outcomes: Outcomes, labels: NDArray[np.int64], thresholds: Sequence[float], fixed_cost: Floats
) -> dict[str, Any]:
    """Per-stage metrics, and accuracy and mean cost of the cascade and of every fixed stage (which probes nothing)."""
    answered, correct, cost = simulate(outcomes, thresholds)
    stages, fixed = [], []
    for stage in range(labels.shape[1]):
        truth, scores = labels[:, stage], outcomes.scores[:, stage]
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, scores > 0.5, average="binary", zero_division=0.0
        )
        stages.append(
            {
                "stage": stage,
                "share_correct": float(truth.mean()),
                "precision": float(precision),
                "recall": float(recall),
                "f1": float(f1),
                "auc": float(roc_auc_score(truth, scores)) if truth.min() != truth.max() else None,
                "share_answered": float((answered == stage).mean()),
            }
        )
        fixed.append({"stage": stage, **_means(outcomes.correct[:, stage], fixed_cost[:, stage])})
    return {"stages": stages, "cascade": _means(correct, cost), "fixed": fixed, "always_high": dict(fixed[-1])}


def _means(correct: Floats, cost: Floats) -> dict[str, Any]:
    return {"accuracy": float(correct.mean()), "cost": float(cost.mean())}


def calibration(scores: Floats, labels: NDArray[np.int64]) -> dict[str, Any]:
    """How far scores can be taken for probabilities, over all questions and stages: brier, ece and bins."""
    given, right = scores.ravel(), labels.ravel()
    place = np.minimum((given * BINS).astype(int), BINS - 1)
    bins, gap = [], 0.0
    for number in range(BINS):
        inside = place == number
        if inside.any():
            mean, share = float(given[inside].mean()), float(right[inside].mean())
            gap += abs(mean - share) * float(inside.mean())
            bounds = {"from": number / BINS, "to": (number + 1) / BINS}
            bins.append({**bounds, "count": int(inside.sum()), "mean_score": mean, "share_correct": share})
    return {"brier": float(((given - right) ** 2).mean()), "ece": gap, "bins": bins}


def cross_fitted(outcomes: Outcomes, objective: str, grid: Sequence[float], seed: int) -> dict[str, float | None]:
    """Accuracy and mean cost of thresholds that were each time chosen on the other folds' questions."""
    try:
        correct, cost = per_question(outcomes, objective, grid, seed)
    except ClassifierError:
        return {"accuracy_cross_fitted": None, "cost_cross_fitted": None}
    return {"accuracy_cross_fitted": float(correct.mean()), "cost_cross_fitted": float(cost.mean())}


def per_question(outcomes: Outcomes, objective: str, grid: Sequence[float], seed: int) -> tuple[Floats, Floats]:
    """Grade and cost of each question, (Q,), under thresholds chosen on the other folds' questions."""
    questions = len(outcomes.scores)
    fold = np.empty(questions, dtype=np.int64)
    fold[stratified_order(outcomes.correct.sum(axis=1), seed)] = np.arange(questions) % FOLDS
    correct, cost = np.empty(questions), np.empty(questions)
    for held_out in range(FOLDS):
        rest, test = (_part(outcomes, fold != held_out), fold == held_out)
        chosen = centred(rest, choose(rest, objective, grid), grid)
        _, correct[test], cost[test] = simulate(_part(outcomes, test), chosen)
    return correct, cost


def _part(outcomes: Outcomes, rows: NDArray[np.bool_]) -> Outcomes:
    return Outcomes(outcomes.scores[rows], outcomes.correct[rows], outcomes.cost[rows], outcomes.fallback_cost[rows])
