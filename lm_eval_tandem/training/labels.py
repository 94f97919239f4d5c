"""The labels of collected questions, and what keeps a collection from being fitted on."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge.features import FEATURE_NAMES
from lm_eval_tandem.training.dataset import Collected

log = logging.getLogger(__name__)

MIN_QUESTIONS = 20


def answered_by_mentor(data: Collected) -> Collected:
    """The questions to which the mentor's own answer states a final value, with which alone one can agree.

    Raises
    ------
    ClassifierError
        The mentor's answers were not collected, or none states a value.
    """
    stated = np.zeros(len(data.ids), dtype=np.bool_)
    if data.agrees is not None:
        stated = np.asarray(np.isfinite(data.agrees).all(axis=1), dtype=np.bool_)
    if not stated.any():
        raise ClassifierError(
            "--labels mentor needs the mentor's own answers, with final values to compare, which were not collected; "
            "collect again without --no_mentor (what the store holds is not generated again), or use --labels truth."
        )
    if not stated.all():
        log.warning(
            "%d of %d questions are left out, because the mentor's own answer states no final value to agree with.",
            len(stated) - int(stated.sum()),
            len(stated),
        )
    return data.subset(stated)


def with_mentor_labels(data: Collected) -> Collected:
    """The questions that `answered_by_mentor` leaves, with agreement with its answer in the place of grades."""
    answered = answered_by_mentor(data)
    assert answered.agrees is not None
    others = {
        name: (np.ones_like(grades), cost) for name, (grades, cost) in answered.others.items() if name == "mentor"
    }
    return replace(answered, correct=answered.agrees, others=others)


def checked_labels(data: Collected) -> NDArray[np.int64]:
    """The labels of data that can be fitted on.

    Returns
    -------
    NDArray[numpy.int64]
        Shape (Q, T): 1 for a grade of 0.5 or more, else 0.

    Raises
    ------
    ClassifierError
        There are too few questions, some twice or incomplete, or all labels are equal.
    """
    _check_questions(data)
    check_values(data)
    labels = (np.asarray(data.correct, dtype=np.float64) >= 0.5).astype(np.int64)
    if labels.min() == labels.max():
        raise ClassifierError(
            f"All {labels.size} answers are {'right' if labels.max() else 'wrong'}, so there is nothing to tell apart; "
            f"collect {'harder' if labels.max() else 'easier'} questions."
        )
    return labels


def _check_questions(data: Collected) -> None:
    """Check the number of questions, that none is there twice, and the shapes of features and grades."""
    questions = len(data.ids)
    if questions < MIN_QUESTIONS:
        raise ClassifierError(
            f"{questions} question(s) were collected, but fitting needs at least {MIN_QUESTIONS}; collect more of them."
        )
    if len(set(data.ids)) != questions:
        twice = next(name for name in data.ids if data.ids.count(name) > 1)
        raise ClassifierError(f"The question {twice!r} was collected twice; keep one record per question.")
    shape = np.shape(data.correct)
    two_stages = len(shape) == 2 and shape[0] == questions and shape[1] >= 2
    if not two_stages or np.shape(data.features) not in ((*shape, len(FEATURE_NAMES)), (*shape, 1)):
        raise ClassifierError(
            f"{questions} questions came with features of shape {np.shape(data.features)} and grades of shape {shape}; "
            f"collect (questions, stages, {len(FEATURE_NAMES)}) and (questions, stages), stage 0 and at least one more."
        )


def check_values(data: Collected) -> None:
    """Check that every stage of every question has finite features, grades and costs, and hidden states if any have.

    Raises
    ------
    ClassifierError
        One lacks them.
    """
    shape = np.shape(data.correct)
    for name in ("features", "correct", "cost", "fallback_cost", "hidden"):
        if getattr(data, name) is None:
            continue
        values = np.asarray(getattr(data, name))
        if values.shape[:2] != shape:
            raise ClassifierError(
                f"`{name}` has shape {values.shape}, but the grades have {shape}; collect all stages."
            )
        missing = np.count_nonzero(~np.isfinite(values.reshape(*shape, -1)), axis=2) > 0
        if missing.any():
            question, stage = np.argwhere(missing)[0]
            incomplete = int(np.count_nonzero(missing.any(axis=1)))
            raise ClassifierError(
                f"Question {data.ids[question]!r} has no finite `{name}` at stage {stage} ({incomplete} question(s) "
                "lack one); collect every stage of every question."
            )
