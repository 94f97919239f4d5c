"""One record per question: what was judged, who wrote what, what it cost. JSON lines, and the totals of a run."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lm_eval_tandem.accounting import Tokens

FORMAT = "tandem-ledger/1"


@dataclass
class Judgement:
    """One look of the judge. `score` and `threshold` are None where nothing was judged, only recorded."""

    stage: int
    score: float | None
    threshold: float | None
    mentor_tokens: int
    """Mentor tokens written up to this stage, in total."""
    prompt_tokens: int
    seconds: float
    features: list[float] | None = None
    answer_logprob: list[float] | None = None
    answer_entropy: list[float] | None = None
    """Of the first tokens of the intern's answer at this stage, for fitting a judge that probes it."""
    answer_ids: list[int] | None = None
    """Those tokens, where the intern's engine reads drafts: what a refused probe costs depends on them."""
    prompt_end: list[int] | None = None
    """With them the last tokens of the prompt (`engines.drafts.PROMPT_TAIL`), -1 before its beginning."""
    parts: list[float] | None = None
    """Statistics of question and insights apart (`sufficiency.features.parts`), for ablations."""
    probe_tokens: int = 0
    """Tokens of the answer as it was begun for this look, those read as a draft included."""
    hidden: Any = None
    """The hidden state at the prompt's last token, float32 (D,), for `collect`; a ledger on disk leaves it out."""
    prompt_ids: list[int] | None = None
    """The prompt's tokens, where its hidden state was asked for; left out as well."""


@dataclass
class Record:
    """Everything that happened to one question. Seconds are wall clock and overlap between questions."""

    task: str
    doc_id: int
    repeat: int
    policy: str
    stage: int
    """The stage answered from: 0 = no mentor; -1 = the mentor answered."""
    reason: str
    """Why there: "sufficient", "best of all" (no stage passed), "fixed", "alone", "forced" (budget), "escalated"."""
    finish_reason: str
    mentor_finish_reason: str | None
    mentor_stages: int
    """Stages at which the mentor wrote; fewer than `stage` where it had ended before."""
    tokens: Tokens
    tflops: float | None
    """Eq. 12; None, as `bill`, where a model's number of parameters is not known."""
    bill: float | None
    judge_seconds: float
    generate_seconds: float
    stages: list[Judgement] = field(default_factory=list)
    dollars: float | None = None
    """What servers took for it; None without prices."""
    refused_tokens: int = 0
    """Tokens that the intern wrote for the judge and that are not in the answer; part of `tokens.intern_new`."""

    @property
    def mentor_ended_before(self) -> bool:
        """The insights of this stage are those of an earlier one: the mentor had already ended."""
        return self.mentor_stages < self.stage

    @property
    def key(self) -> tuple[str, int, int]:
        """What makes a record unique within a run."""
        return self.task, self.doc_id, self.repeat

    @property
    def metrics(self) -> dict[str, float]:
        """What a task shows beside its score: what is known of it."""
        figures = {
            "length": float(self.tokens.length),
            "mentor_tokens": float(self.tokens.mentor_new),
            "tflops": self.tflops,
            "dollars": self.dollars,
            "stage": float(self.stage),
            "truncated": float(self.finish_reason == "length"),
        }
        return {name: figure for name, figure in figures.items() if figure is not None}


def unique(records: Iterable[Record]) -> list[Record]:
    """One record per question: lm-eval repeats requests where ranks have uneven numbers of them."""
    return list({record.key: record for record in records}.values())


def write(path: Path, records: Iterable[Record], run: dict[str, Any]) -> None:
    """Write the ledger of a run atomically: a header line that describes the run, then one line per question."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"format": FORMAT, **run}) + "\n")
        for record in sorted(unique(records), key=lambda record: record.key):
            file.write(json.dumps(shortened(asdict(record))) + "\n")
    unfinished.replace(path)


def shortened(record: dict[str, Any]) -> dict[str, Any]:
    """A record with measured numbers to seven digits, what float32 has, and seconds to a millionth: half the size."""
    times = {name: round(value, 6) for name, value in record.items() if name.endswith("seconds")}
    looks = []
    for whole in record["stages"]:
        look = {name: value for name, value in whole.items() if name not in ("hidden", "prompt_ids")}
        lists = {
            name: [float(f"{value:.7g}") for value in values]
            for name, values in look.items()
            if isinstance(values, list) and name not in ("answer_ids", "prompt_end")
        }
        looks.append({**look, "seconds": round(look["seconds"], 6), **lists})
    return {**record, **times, "stages": looks}


def totals(records: Iterable[Record]) -> dict[str, Any]:
    """What a run did in all: questions, mean length and cost, stage shares, truncation, the judge's share of time.

    Means are per question, None where a question's figure is not known.
    """
    counted = unique(records)
    if not counted:
        return {"questions": 0}
    n = len(counted)
    tokens = sum((record.tokens for record in counted), Tokens())
    judge = sum(record.judge_seconds for record in counted)
    stages = Counter(record.stage for record in counted)
    return {
        "questions": n,
        "length": tokens.length / n,
        "tflops": mean([record.tflops for record in counted]),
        "bill_tflops": mean([record.bill for record in counted]),
        "dollars_per_1000": mean([record.dollars for record in counted], 1000),
        "tokens": asdict(tokens),
        "stage_share": {str(stage): stages[stage] / n for stage in sorted(stages)},
        "truncated": sum(record.finish_reason == "length" for record in counted) / n,
        "refused_tokens": sum(record.refused_tokens for record in counted) / n,
        "judge_seconds": judge,
        "generate_seconds": sum(record.generate_seconds for record in counted),
    }


def mean(figures: Sequence[float | None], per: int = 1) -> float | None:
    """The mean of figures, times `per`; None where one of them is not known."""
    known = [figure for figure in figures if figure is not None]
    return per * math.fsum(known) / len(figures) if len(known) == len(figures) else None
