"""Runs of other models joined with tandem's question by question: the same documents, whatever each run had besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from lm_eval_tandem.reports.sources.runs import QuestionId, Run


@dataclass(frozen=True, eq=False)
class Joined:
    """A run on the questions that it has in common with the runs it is compared with.

    Attributes
    ----------
    run
        The run, with the K common questions alone, in the order of the others.
    places
        Int (K,): which of the others' questions these are, rising.
    answered
        Number of questions that the run answered.
    exchanged
        Number of questions under whose number the run has another document.
    """

    run: Run
    places: NDArray[np.int64]
    answered: int
    exchanged: int = 0


def join(run: Run, base: Run) -> Joined:
    """Return the run on the questions that it has in common with another one.

    A question is the same if task and document are. The document is known by its checksum where both runs have it, and
    by its number otherwise. Where the numbers of a task have moved, a document that either run has once is found by its
    checksum.
    """
    number_of = {question: i for i, question in enumerate(run.questions)}
    by_document = places_of_documents(run)
    base_documents = places_of_documents(base)
    places: list[int] = []
    own: list[int] = []
    exchanged = 0
    for place, (question, document) in enumerate(zip(base.questions, base.documents, strict=True)):
        i = number_of.get(question)
        if i is not None and document and run.documents[i] and run.documents[i] != document:
            exchanged += 1
            i = None
        if i is None and (question[0], document) in base_documents:
            i = by_document.get((question[0], document))
        if i is not None:
            places.append(place)
            own.append(i)
    return Joined(
        restricted(run, own, [base.questions[place] for place in places]),
        np.array(places, int),
        len(run.questions),
        exchanged,
    )


def places_of_documents(run: Run) -> dict[tuple[str, str], int]:
    """Return the place of each document of a run by task and checksum, of those that it has once."""
    keys = [(task, document) for (task, _), document in zip(run.questions, run.documents, strict=True)]
    often = Counter(keys)
    return {key: place for place, key in enumerate(keys) if key[1] and often[key] == 1}


def restricted(run: Run, places: Sequence[int], questions: Sequence[QuestionId] | None = None) -> Run:
    """Return the run with some of its questions, in the order of `places`; `questions` is what they are called then."""
    rows = np.array(places, int)
    return replace(
        run,
        questions=tuple(questions if questions is not None else (run.questions[i] for i in places)),
        subjects=tuple(run.subjects[i] for i in places),
        grades=run.grades[rows],
        measures={name: values[rows] for name, values in run.measures.items()},
        records=tuple(run.records[i] for i in places) if run.records else (),
        documents=tuple(run.documents[i] for i in places),
        prompts=tuple(run.prompts[i] for i in places),
    )
