"""The ledger of a run: one record per question with its judgements and its cost.

The field names of `Record` and `Judgement` are the keys of its file (`ledger_file.py`), so they are part of its format.
`totals` sums a run up for the harness's results.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lm_eval_tandem.accounting import Spent, Tokens

MENTOR_FINISHED = "mentor finished"
"""The reason of a record whose answer the mentor, which had begun it, has also finished (`guidance=handoff`)."""

STEP_BY_STEP = "step by step"
"""The reason of a record whose answer both models wrote by turns."""


@dataclass
class Judgement:
    """One judgement of a stage, or, without score and threshold, what was recorded of a stage and decided nothing.

    Parameters
    ----------
    stage
        The stage t that was judged; 0 is the question alone.
    score
        s_t in [0, 1]; None if the stage was not judged.
    threshold
        tau_t; None as for `score`.
    mentor_tokens
        Mentor tokens up to this stage, in total.
    prompt_tokens
        Tokens of the intern's prompt.
    seconds
        Wall-clock time of the intern's pass over the prompt and of the classifier.
    features
        The judge's input vector, with record_features; None without.
    answer_logprob, answer_entropy
        Natural logarithms, of the first tokens of the intern's answer, for fitting a judge with a probe.
    answer_ids
        Those tokens, if the intern's engine accepts drafts: the cost of a refused probe depends on them.
    prompt_end
        The last tokens of the prompt (`engines.drafts.PROMPT_TAIL`), -1 before its start; recorded with `answer_ids`.
    parts
        Statistics of question and insights apart (`judge.features.segment_statistics`), for ablations.
    probe_tokens
        Tokens of the partial answer that the judge read, accepted draft tokens included.
    hidden
        The hidden state at the prompt's last token, float32 (D,), for `collect`; never written to disk.
    prompt_ids
        The prompt's tokens, recorded with `hidden`; never written to disk.
    insight
        What the mentor has written up to this stage, as the intern reads it, with record_insights; None, and not in
        the file, without.
    """

    stage: int
    score: float | None
    threshold: float | None
    mentor_tokens: int
    prompt_tokens: int
    seconds: float
    features: list[float] | None = None
    answer_logprob: list[float] | None = None
    answer_entropy: list[float] | None = None
    answer_ids: list[int] | None = None
    prompt_end: list[int] | None = None
    parts: list[float] | None = None
    probe_tokens: int = 0
    hidden: Any = None
    prompt_ids: list[int] | None = None
    insight: str | None = None


@dataclass
class Segment:
    """A part of an answer that one model wrote; in their order they are the answer, but for what a stop string cuts.

    Parameters
    ----------
    writer
        "mentor" or "intern"; in an ensemble a name, or, joined with "+", those that chose each token together.
    tokens
        The writer's tokens; of several, those of their common vocabulary.
    characters
        Length of its text.
    score
        By what the writer was chosen: the entropy in nats of `steps:X`, the rating of `verify:N`, in an ensemble a
        scorer's score; None for nothing.
    """

    writer: str
    tokens: int
    characters: int
    score: float | None = None


@dataclass
class Record:
    """Everything that happened to one question.

    Parameters
    ----------
    task, doc_id, repeat
        The harness's task, the document's number in it, and the number of the repetition.
    policy
        The policy, as in `--model_args`.
    stage
        The stage that the question was answered from: 0 without the mentor or in an ensemble, -1 by the mentor itself.
    reason
        Why from there: "sufficient" (its score passed), "best of all" (no stage passed), "fixed" (the policy's stage),
        "alone" (one model), "forced" (the budget was used up), "escalated" (no stage passed, and the mentor
        answered), or "mentor finished" (of the answer that it had begun nothing was left to the intern). Ensembles have
        reasons of their own (`ensembles`).
    finish_reason
        How the answer ended: "stop" or "length".
    mentor_finish_reason
        How the insight ended; None without one.
    mentor_stages
        The number of stages at which the mentor wrote: 0 without insights, less than `stage` if it had ended before.
    tokens
        The token counts of mentor and intern; all 0 in an ensemble.
    tflops
        The paper's cost, Eq. 12; None if a model's number of parameters is not known.
    bill
        TFLOPs of every token; None as for `tflops`.
    judge_seconds, generate_seconds
        Wall-clock time of judging and of generation. Times of different questions overlap.
    stages
        The judgements, in order.
    dollars
        What the question cost in dollars; None without prices.
    refused_tokens
        Tokens that were generated and are not in the answer: of the intern, for probes or in dropped steps, part of
        `tokens.intern_new`; in an ensemble those of responses and segments that were not taken. Of tokens that models
        choose together none is refused.
    segments
        Who wrote which part of the answer, where several models may have.
    spent
        What each model of an ensemble did, by its name; empty in a tandem.
    selected
        In an ensemble the models that were selected for the question, in their order.
    selection_scores
        What every model of an ensemble was selected by, by its name: z of `zscore`, the assessment of
        `self_assessment` less its usual mean; empty for other selections.
    response_scores
        Where one of several responses was taken by a scorer: the score of each, by its writer's name; None for a text
        in which there is nothing to rate. Of segments only the chosen ones' scores are kept (`segments`).
    cached
        Prompt tokens that were in a prefix cache, and so are in no other count: by "mentor", "intern" and "judge", in
        an ensemble by the models' names; empty where they were not counted, as in ledgers of older versions.
    answer_sha256
        `ledger_checksums.of_answer` of the text that was returned; "" where nobody noted it, as in ledgers of older
        versions.
    """

    task: str
    doc_id: int
    repeat: int
    policy: str
    stage: int
    reason: str
    finish_reason: str
    mentor_finish_reason: str | None
    mentor_stages: int
    tokens: Tokens
    tflops: float | None
    bill: float | None
    judge_seconds: float
    generate_seconds: float
    stages: list[Judgement] = field(default_factory=list)
    dollars: float | None = None
    refused_tokens: int = 0
    segments: list[Segment] = field(default_factory=list)
    spent: dict[str, Spent] = field(default_factory=dict)
    selected: list[str] = field(default_factory=list)
    selection_scores: dict[str, float] = field(default_factory=dict)
    response_scores: dict[str, float | None] = field(default_factory=dict)
    cached: dict[str, int] = field(default_factory=dict)
    answer_sha256: str = ""

    @property
    def length(self) -> int:
        """The tokens that all models generated: the paper's inference length."""
        return self.tokens.length + sum(spent.new for spent in self.spent.values())

    @property
    def mentor_ended_before(self) -> bool:
        """Whether the mentor had ended before this stage, whose insight is therefore that of an earlier one."""
        return self.mentor_stages < self.stage

    @property
    def mentor_finished(self) -> bool:
        """Whether nothing was left to the intern of an answer that the mentor had begun."""
        return self.reason == MENTOR_FINISHED

    @property
    def key(self) -> tuple[str, int, int]:
        """Task, document and repetition, which identify a record within a run."""
        return self.task, self.doc_id, self.repeat

    @property
    def truncated(self) -> bool:
        """Whether the answer was cut at the longest that was allowed."""
        return self.finish_reason == "length"

    @property
    def metrics(self) -> dict[str, float]:
        """The figures that a task reports beside its score; those that are not known are left out."""
        in_tandem = not self.spent
        figures = {
            "length": float(self.length),
            "mentor_tokens": float(self.tokens.mentor_new) if in_tandem else None,
            "tflops": self.tflops,
            "dollars": self.dollars,
            "stage": float(self.stage) if in_tandem else None,
            "truncated": float(self.truncated),
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


def unique(records: Iterable[Record]) -> list[Record]:
    """One record per question; lm-eval repeats requests to give all ranks the same number of them."""
    return list({record.key: record for record in records}.values())


def totals(records: Iterable[Record]) -> dict[str, Any]:
    """The sums and means of a run.

    Parameters
    ----------
    records
        Of the run; repeated questions count once.

    Returns
    -------
    dict
        The number of questions; means per question (length, tflops, bill_tflops, refused_tokens, and dollars per 1,000
        questions), None where a question's figure is not known; shares of questions (stage_share, truncated); and sums
        (tokens, judge_seconds, generate_seconds).
    """
    counted = unique(records)
    if not counted:
        return {"questions": 0}
    n = len(counted)
    tokens = sum((record.tokens for record in counted), Tokens())
    judge = sum(record.judge_seconds for record in counted)
    stages = Counter(record.stage for record in counted if not record.spent)
    models: dict[str, Spent] = {}
    for record in counted:
        for name, spent in record.spent.items():
            models[name] = models.get(name, Spent()) + spent
    return {
        "questions": n,
        "length": sum(record.length for record in counted) / n,
        "tflops": mean([record.tflops for record in counted]),
        "bill_tflops": mean([record.bill for record in counted]),
        "dollars_per_1000": mean([record.dollars for record in counted], 1000),
        "tokens": asdict(tokens),
        **({"models": {name: asdict(spent) for name, spent in models.items()}} if models else {}),
        "stage_share": {str(stage): stages[stage] / n for stage in sorted(stages)},
        "truncated": sum(record.truncated for record in counted) / n,
        "refused_tokens": sum(record.refused_tokens for record in counted) / n,
        "judge_seconds": judge,
        "generate_seconds": sum(record.generate_seconds for record in counted),
    }


def mean(figures: Sequence[float | None], per: int = 1) -> float | None:
    """The mean of figures, times `per`; None if one of them is not known."""
    known = [figure for figure in figures if figure is not None]
    return per * math.fsum(known) / len(figures) if len(known) == len(figures) else None
