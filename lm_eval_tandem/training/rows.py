"""One row per question and stage: the judge's measurements of a run, joined with the grades that the task gave.

The rows of stage 0 also hold what each of the policies reached that were collected beside the stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm_eval_tandem import ledger
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.grading.math import answer
from lm_eval_tandem.grading.math.normalise import normalise
from lm_eval_tandem.ledger import Record

QuestionId = tuple[str, int]
"""The task and the document id."""
Samples = Mapping[str, Sequence[Mapping[str, Any]]]
"""The harness's logged samples, by task."""


@dataclass
class Row:
    """One question at one stage; its fields are the columns of the collected file."""

    task: str
    doc_id: int
    stage: int
    judged: bool
    """False if the mentor had ended at an earlier stage: the cascade does not judge the same insight again."""
    correct: float
    """The grade of the intern's answer, from 0 to 1."""
    agrees: float | None
    """Whether the intern's final answer is the mentor's own; None if that was not collected, or there is none."""
    features: list[float]
    """The 18 statistics of the intern's prompt."""
    parts: list[float]
    """Statistics of question and insights apart (`judge.features.segment_statistics`)."""
    mentor_tokens: int
    intern_tokens: int
    truncated: bool
    """Whether the answer ended at its token limit."""
    answer_logprob: list[float]
    answer_entropy: list[float]
    """Of the first tokens of the intern's answer, natural logarithms."""
    answer_ids: list[int] | None
    prompt_end: list[int] | None
    """Those tokens, and the last ones of the prompt; None if the intern's engine accepts no drafts."""
    hidden: Any = None
    """The intern's hidden state at the prompt's last token, float32 (D,); None if it was not collected."""
    prompt_ids: list[int] | None = None
    """The prompt's tokens; None as for `hidden`."""
    dollars: float | None = None
    """What the question cost when it was answered from this stage; None without prices."""
    alone: list[dict[str, Any]] | None = None
    """What the policies beside the stages reached, at stage 0 (`entries_of_policy`), the mentor alone being one."""
    insight: str | None = None
    """What the intern read of the mentor; "" at stage 0."""
    answer: str | None = None
    """What the intern answered."""
    target: str | None = None
    """The task's own answer."""
    finished: bool = False
    """True if the mentor, which began the answer itself, had finished it: the cascade ends here, and judges nothing."""


def final_answers(samples: Samples) -> dict[QuestionId, str]:
    """The final answer that each response states; questions whose response states none are left out."""
    result = {}
    for task, logged in samples.items():
        for sample in logged:
            final = answer.extract(str(sample["resps"][0][0]))
            if final is not None:
                result[task, sample["doc_id"]] = final
    return result


def rows_of_stage(
    records: Sequence[Record],
    samples: Samples,
    stage: int,
    metrics: Mapping[str, str],
    mentor_answers: Mapping[QuestionId, str] | None = None,
    alone: Mapping[QuestionId, list[dict[str, Any]]] | None = None,
) -> list[Row]:
    """The rows of one stage, joined by task and document id.

    Parameters
    ----------
    records, samples
        What a run of `policy=stage:N` recorded, and what the harness logged of it.
    stage
        N.
    metrics
        The name of the grade to learn, by task.
    mentor_answers
        The mentor's own final answers. Where it has none, `Row.agrees` is None.
    alone
        What other policies reached (`entries_of_policy`); None for none.

    Raises
    ------
    ArgumentError
        A task does not have the metric.
    """
    grades = _grades(samples, metrics)
    intern_answers, rows = final_answers(samples), []
    logged = {(task, sample["doc_id"]): sample for task, of_task in samples.items() for sample in of_task}
    for record in ledger.unique(records):
        judgement, question = record.stages[-1], (record.task, record.doc_id)
        assert judgement.features is not None
        assert judgement.answer_logprob is not None
        assert judgement.answer_entropy is not None
        agrees = None
        if mentor_answers and question in mentor_answers:
            same = question in intern_answers and (
                normalise(mentor_answers[question]) == normalise(intern_answers[question])
            )
            agrees = float(same)
        rows.append(
            Row(
                task=record.task,
                doc_id=record.doc_id,
                stage=stage,
                judged=not (record.mentor_ended_before or record.mentor_finished),
                correct=grades[question],
                agrees=agrees,
                features=judgement.features,
                parts=judgement.parts or [],
                mentor_tokens=record.tokens.mentor_new,
                intern_tokens=record.tokens.intern_new,
                truncated=record.truncated,
                answer_logprob=judgement.answer_logprob,
                answer_entropy=judgement.answer_entropy,
                answer_ids=judgement.answer_ids,
                prompt_end=judgement.prompt_end,
                hidden=judgement.hidden,
                prompt_ids=judgement.prompt_ids,
                dollars=record.dollars,
                alone=None if alone is None else alone.get(question),
                insight=judgement.insight,
                answer=str(logged[question]["resps"][0][0]),
                target=str(logged[question]["target"]),
                finished=record.mentor_finished,
            )
        )
    return rows


def entries_of_policy(
    policy: str, records: Sequence[Record], samples: Samples, metrics: Mapping[str, str]
) -> dict[QuestionId, dict[str, Any]]:
    """What a policy reached that was collected beside the stages: an entry of `Row.alone` for each question."""
    grades = _grades(samples, metrics)
    return {
        (record.task, record.doc_id): {
            "policy": policy,
            "correct": grades[record.task, record.doc_id],
            "tokens": record.tokens.mentor_new,
            "intern_tokens": record.tokens.intern_new,
            "tflops": record.tflops,
            "dollars": record.dollars,
        }
        for record in ledger.unique(records)
    }


def _grades(samples: Samples, metrics: Mapping[str, str]) -> dict[QuestionId, float]:
    grades: dict[QuestionId, float] = {}
    for task, logged in samples.items():
        metric = metrics[task]
        for sample in logged:
            if metric not in sample:
                raise ArgumentError(f"metric={metric} is none of {task}'s; use one of {', '.join(sample['metrics'])}.")
            grades[task, sample["doc_id"]] = float(sample[metric])
    return grades
