"""From collected questions to a classifier, its thresholds and a report (paper, section 3.1). No engine runs here.

`fit_sufficiency` is the whole of it, in named steps. Its parts: `recipes` (the options), `labels` (checks),
`choose_inputs`, `cross_fitting` (scores out of fold), `thresholds` and `fit_report`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import has_fit_parameter

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import input_schemas
from lm_eval_tandem.judge.probe import Probe
from lm_eval_tandem.judge.registry import MODELS, Estimator
from lm_eval_tandem.judge.splits import validation_rows
from lm_eval_tandem.training import fit_report
from lm_eval_tandem.training.choose_inputs import Choice, InputChoice
from lm_eval_tandem.training.cross_fitting import FOLDS, fit_by_question, out_of_fold
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.labels import checked_labels, with_mentor_labels
from lm_eval_tandem.training.outcomes import Outcomes
from lm_eval_tandem.training.policy_comparison import CASCADE, judged_outcomes, own_thresholds
from lm_eval_tandem.training.recipes import HIDDEN_INPUTS, INPUTS, LABELS, RECIPES, Recipe
from lm_eval_tandem.training.thresholds import parse_objective

Floats = NDArray[np.float64]
Labels = NDArray[np.int64]

HELD_OUT = 0.3
"""Share of the questions that the paper's recipe, and every fit on a finetuned intern, keeps out of the fit."""


@dataclass(frozen=True)
class Fitted:
    """A fitted classifier with its thresholds.

    Parameters
    ----------
    estimator
        The classifier.
    thresholds
        Of the cascade, one per stage, stage 0 first.
    policy_thresholds
        Of the other policies with a judge, by name: for each those that serve the same objective best.
    report
        How well both do out of sample (see `fit_sufficiency`).
    schema
        The schema of the input vectors.
    probe
        The probe that they were made with; None for none.
    scores
        float64 (Q, T): of the questions fitted on, each by a classifier that had not seen the question; NaN for those
        without one (all but the 30 % held out, where the recipe holds some out).
    """

    estimator: Estimator
    thresholds: tuple[float, ...]
    policy_thresholds: dict[str, tuple[float, ...]]
    report: dict[str, Any]
    schema: str
    probe: Probe | None
    scores: Floats


class Finetune(Protocol):
    """What finetunes the intern (`lora.Finetuning`)."""

    def __call__(
        self, prompts: NDArray[np.object_], labels: Labels, held_out: NDArray[np.bool_], seed: int
    ) -> NDArray[np.float32]:
        """Hidden states of all prompts, float32 (Q, T, D), after learning from the questions not held out."""
        ...


class _OutOfSample:
    """Classifiers and scores out of sample of the same questions, by the inputs and the probe; each is fitted once."""

    def __init__(self, data: Collected, labels: Labels, make: Callable[[], Any], holds_out: bool, seed: int) -> None:
        self.data, self.labels, self.make, self.holds_out, self.seed = data, labels, make, holds_out, seed
        self._fitted: dict[Choice, tuple[Estimator, Floats]] = {}

    def schema(self, inputs: str) -> str:
        """The schema of some inputs."""
        if inputs in HIDDEN_INPUTS:
            return input_schemas.hidden(self.data.hidden_states().shape[2], inputs == "lora")
        return INPUTS[inputs]

    def fit(self, choice: Choice) -> tuple[Estimator, Floats]:
        """A fitted classifier, and scores (Q, T) of questions that it, or one like it, has not seen; else NaN."""
        if choice not in self._fitted:
            vectors = self.data.inputs(self.schema(choice[0]), choice[1])
            self._fitted[choice] = _fit_out_of_sample(
                self.make, vectors, self.labels, self.data.to_fit, self.holds_out, self.seed
            )
        return self._fitted[choice]

    def outcomes(self, choice: Choice) -> tuple[NDArray[np.bool_], dict[str, Outcomes]]:
        """The questions that have scores, as a mask (Q,), and their outcomes under each policy with a judge."""
        scores = self.fit(choice)[1]
        scored = np.asarray(~np.isnan(scores[:, 0]), dtype=np.bool_)
        data = self.data.subset(scored)
        lengths = data.probe_lengths(choice[1])
        return scored, judged_outcomes(data, data.outcomes_with_probes(scores[scored], lengths), lengths)


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

    Parameters
    ----------
    data
        Collected questions, at least 20.
    recipe
        "paper": the 18 statistics and the paper's MLP (64-32, dropout 0.3, Adam 1e-4, up to 3 epochs) on 70 % of the
        questions; thresholds on the other 30 %. The paper searches them on the training set; here they see no score of
        a question that the classifier was fitted on (though those 30 % do choose the epoch). "default": statistics, a
        probe of the answer, or both, whichever serves best, with a length and an entropy limit from `PROBES`; logistic
        regression; thresholds on out-of-fold scores of all questions (5 folds by question), on a grid that is finer
        near 1; then one fit on all questions.
    objective
        What thresholds are chosen for; see `choose_thresholds`.
    seed
        Of splits, initial weights, dropout and batch order.
    inputs
        "statistics", "probe" or "statistics+probe" (None: the recipe chooses); "hidden", the intern's last hidden
        state; or "lora", the same after `finetune` has trained the intern. A finetuned intern has seen its training
        questions, so thresholds are then chosen on 30 % as in the paper's recipe.
    model
        "mlp", "boosting" or "logistic"; None for the recipe's, and for hidden states "mlp".
    labels
        "truth" (the task's grades) or "mentor" (agreement with the mentor's own answer; no grade is used).
    finetune
        Trains the intern, for inputs="lora".

    Returns
    -------
    Fitted
        Its report holds plain JSON values, measured on out-of-sample scores, costs in the unit of `data`:

        - recipe, inputs, model, labels, probe, objective, cost_unit, seed, questions, questions_out_of_sample,
          thresholds, policy_thresholds;
        - stages: per stage share_correct, precision, recall and f1 (of scores above 0.5), auc (None if all answers are
          alike), and share_answered (of the questions, from that stage);
        - cascade: accuracy and mean cost with the thresholds. accuracy_cross_fitted and cost_cross_fitted are the same
          with inputs, probe and thresholds chosen for each fifth of the questions on the other four, which is free of
          the optimism of choosing and measuring on the same questions (None if four fifths cannot be fitted on, or
          cannot meet the objective).;
        - fixed: accuracy and mean cost of always answering from each stage; always_high: the last of those;
        - calibration: brier, ece and bins (see `fit_report.calibration`).

    Raises
    ------
    ClassifierError
        An option is unknown, questions or what the inputs need are missing, all labels are equal, or no thresholds
        reach the objective.

    Warnings
    --------
    The report is of the questions that the thresholds were chosen on. Final figures come from other questions.
    """
    chosen = _checked_recipe(recipe)
    model = model or ("mlp" if inputs in HIDDEN_INPUTS else chosen.model)
    _check_options(inputs, model, labels, objective)
    if labels == "mentor":
        data = with_mentor_labels(data)
    truth = checked_labels(data)
    if inputs == "lora":
        data = _finetuned(data, truth, finetune, seed)
    holds_out = chosen.holds_out or inputs == "lora"
    fits = _OutOfSample(data, truth, _constructor(model, chosen, seed), holds_out, seed)
    allowed = (inputs,) if inputs else chosen.inputs_for(data.measures_prompts)
    choosing = InputChoice(data, truth, allowed, objective, seed)
    choice = choosing.best(np.ones(len(truth), dtype=np.bool_))
    estimator, scores = fits.fit(choice)
    scored, of_policies = fits.outcomes(choice)
    outcomes, choose = of_policies[CASCADE], partial(chosen.choose, objective=objective)
    thresholds = choose(outcomes)
    others = own_thresholds(of_policies, choose, thresholds)

    def judge_without(held_out: NDArray[np.bool_]) -> Outcomes:
        rest = np.ones(len(truth), dtype=np.bool_)
        rest[np.flatnonzero(scored)[held_out]] = False
        return fits.outcomes(choosing.best(rest, must_reach=False))[1][CASCADE]

    probe, judged = choice[1], data.to_fit[scored]
    report = {
        "recipe": recipe,
        "inputs": choice[0],
        "model": model,
        "labels": labels,
        "probe": None if probe is None else probe.to_json(),
        "objective": objective,
        "cost_unit": data.cost_unit,
        "seed": seed,
        "questions": len(data.ids),
        "questions_out_of_sample": int(scored.sum()),
        "thresholds": list(thresholds),
        "policy_thresholds": {name: list(values) for name, values in others.items()},
        **fit_report.performance(outcomes, truth[scored], thresholds, data.cost[scored]),
        "calibration": fit_report.calibration(outcomes.scores[judged], truth[scored][judged]),
    }
    report["cascade"] |= fit_report.cross_fitted(outcomes, choose, seed, None if choosing.is_fixed else judge_without)
    return Fitted(estimator, thresholds, others, report, fits.schema(choice[0]), probe, scores)


def _checked_recipe(name: str) -> Recipe:
    if name not in RECIPES:
        raise ClassifierError(f"The recipe {name!r} is unknown; give one of {', '.join(RECIPES)}.")
    return RECIPES[name]


def _check_options(inputs: str | None, model: str, labels: str, objective: str) -> None:
    known = (*INPUTS, *HIDDEN_INPUTS)
    for name, value, allowed in (("inputs", inputs, known), ("model", model, MODELS), ("labels", labels, LABELS)):
        if value is not None and value not in allowed:
            raise ClassifierError(f"{name}={value} is not known; give one of {', '.join(allowed)}.")
    parse_objective(objective)


def _finetuned(data: Collected, truth: Labels, finetune: Finetune | None, seed: int) -> Collected:
    """The data with the hidden states of an intern that has learned from the questions not held out."""
    if finetune is None:
        raise ClassifierError("inputs=lora needs what finetunes the intern; fit with `lm-eval-tandem fit`.")
    return replace(data, hidden=finetune(data.prompt_tokens(), truth, _held_out(truth, seed)[:, 0], seed))


def _constructor(model: str, recipe: Recipe, seed: int) -> Callable[[], Any]:
    """Makes new classifiers of one kind, with the recipe's parameters."""
    kind: Any = MODELS[model]
    return partial(kind, **recipe.parameters.get(model, {}), **({} if model == "logistic" else {"seed": seed}))


def _held_out(labels: Labels, seed: int) -> NDArray[np.bool_]:
    """The questions kept out of the fit, bool (Q, T), the same for all stages of a question."""
    groups = np.repeat(np.arange(len(labels)), labels.shape[1])
    return validation_rows(labels.ravel(), groups, HELD_OUT, seed).reshape(labels.shape)


def _fit_out_of_sample(
    make: Callable[[], Any],
    vectors: Floats,
    labels: Labels,
    fitted_on: NDArray[np.bool_],
    holds_out: bool,
    seed: int,
) -> tuple[Estimator, Floats]:
    """See `_OutOfSample.fit`."""
    rows, row_labels, groups = vectors[fitted_on], labels[fitted_on], np.nonzero(fitted_on)[0]
    if not holds_out:
        fitted = fit_by_question(make(), rows, row_labels, groups)
        return fitted, out_of_fold(make, vectors, labels, FOLDS, seed, fitted_on)
    of_questions = _held_out(labels, seed)
    held_out = of_questions[fitted_on]
    estimator = make()
    if has_fit_parameter(estimator, "held_out"):  # The MLP validates its epochs on them.
        estimator.fit(rows, row_labels, held_out=held_out)
    else:
        fit_by_question(estimator, rows[~held_out], row_labels[~held_out], groups[~held_out])
    scores = np.full(labels.shape, np.nan)
    scores[of_questions] = estimator.predict_proba(vectors[of_questions])[:, 1]
    return estimator, scores
