"""Runs on disk as the harness and the ledger write them, of a world in which everything about each answer is known."""

from __future__ import annotations

import json
import lzma
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lm_eval_tandem import ledger_file
from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.ledger import MENTOR_FINISHED, Judgement, Record
from lm_eval_tandem.reports.sources import ledgers, reading
from lm_eval_tandem.reports.sources.runs import Run

EFFORTS = (10, 20)
PARAMETERS = {"mentor": 4_000_000_000, "intern": 1_000_000_000}
STAMP = "2026-01-01T00-00-00.000000"


@dataclass
class World:
    """Q questions at the stages of `EFFORTS`, and the decisions of a cascade on them.

    right: (Q, 3), whether the intern's answer is right at each stage. scores: (Q, 3), the judge's. finished: questions
    whose answer the mentor, which has begun it, has finished at the last stage.
    """

    right: np.ndarray
    scores: np.ndarray
    thresholds: tuple[float, ...] = (0.5, 0.5, 0.5)
    mentor_right: float = 1.0
    task: str = "t"
    subjects: Sequence[str] | None = None
    models: dict[str, str] = field(default_factory=lambda: {"mentor": "lab/large", "intern": "lab/small"})
    pair: str = "large+small"
    dollars: float | None = None
    judge: dict[str, Any] = field(default_factory=lambda: {"tasks": ["t_train"], "sha256": "0"})
    recipe: str = "default"
    finished: Sequence[int] = ()

    @classmethod
    def random(cls, questions: int, seed: int = 0, **more: Any) -> World:
        """Return questions of random difficulty, and a judge whose scores depend on it."""
        rng = np.random.default_rng(seed)
        hard = rng.random(questions)
        right = hard[:, None] < np.array([0.4, 0.7, 0.95]) + rng.normal(0, 0.05, (questions, 3))
        scores = 1 / (1 + np.exp(-4 * (right - 0.5) - rng.normal(0, 1, right.shape)))
        return cls(right.astype(float), scores, **more)

    def stage_of(self, question: int) -> int:
        """Return the stage at which the cascade answers a question."""
        for stage, score in enumerate(self.scores[question]):
            if score > self.thresholds[stage]:
                return stage
        if question in self.finished:
            return len(EFFORTS)
        return int(np.argmax(self.scores[question]))

    def about(self, policy: str, classifier: str = "judge") -> dict[str, Any]:
        """Return the description that the run records about itself."""
        roles = {"intern": ("intern",), "mentor": ("mentor",)}.get(policy, ("mentor", "intern"))
        description: dict[str, Any] = {
            "run": f"tandem-{self.pair}-{policy.replace(':', '-')}",
            "version": "0",
            "pair": self.pair,
            "policy": policy,
            "efforts": list(EFFORTS),
            "insights": "cutoff",
            "guidance": "guided",
            "seed": 42,
        }
        if policy == "cascade":
            description |= {"classifier": classifier, "recipe": self.recipe, "thresholds": list(self.thresholds)}
            description["judge"] = self.judge
        for role in roles:
            description[role] = {
                "model": self.models[role],
                "parameters": PARAMETERS[role],
                "engine": "hf",
                "dtype": "bfloat16",
            }
        return description

    def record(self, policy: str, question: int) -> tuple[Record, float]:
        """Return the record of a question under a policy, and its grade."""
        stage = {"intern": 0, "mentor": -1}.get(policy, 0)
        if policy.startswith("stage:"):
            stage = int(policy[6:])
        if policy == "cascade":
            stage = self.stage_of(question)
        ends = question in self.finished and stage == len(EFFORTS)
        written = 100 if stage == -1 else (EFFORTS[stage - 1] if stage else 0)
        if policy == "cascade" and max(self.scores[question] - self.thresholds) <= 0:
            written = EFFORTS[-1]  # no stage passed: the mentor wrote everything
        tokens = Tokens(mentor_new=written, intern_new=0 if stage == -1 or ends else 50)
        judgements = []
        if policy == "cascade":
            judgements = [
                Judgement(s, float(self.scores[question, s]), self.thresholds[s], (0, *EFFORTS)[s], 30, 0.01)
                for s in range(3 if max(self.scores[question] - self.thresholds) <= 0 else stage + 1)
                if not (ends and s == stage)
            ]
        elif policy != "mentor":
            values = [0.0] * 18
            values[7] = 2.0 - self.right[question, stage] + 0.01 * question
            judgements = [Judgement(stage, None, None, written, 30, 0.01, values)]
        parameters = (PARAMETERS["mentor"], 0 if policy == "mentor" else PARAMETERS["intern"])
        record = Record(
            task=self.task,
            doc_id=question,
            repeat=0,
            policy=policy,
            stage=stage,
            reason=MENTOR_FINISHED if ends else "fixed",
            finish_reason="stop",
            mentor_finish_reason=None,
            mentor_stages=max(stage, 0),
            tokens=tokens,
            tflops=tflops(tokens, *parameters, read=(EFFORTS[-2] if policy == "cascade" else 0) if ends else None),
            bill=1.0,
            judge_seconds=0.01,
            generate_seconds=1.0,
            stages=judgements,
            dollars=self.dollars,
        )
        return record, self.mentor_right if stage == -1 else float(self.right[question, stage])

    def write(
        self,
        folder: Path,
        policy: str,
        packed: bool = False,
        with_ledger: bool = True,
        arguments: Any = None,
        **more: Any,
    ) -> Path:
        """Write the files of a run below the folder, as the harness does, and return the results file."""
        about = self.about(policy, **more)
        made = [self.record(policy, question) for question in range(len(self.right))]
        place = folder / f"{about['run']}-{about.get('classifier', '')}-{self.task}"
        place.mkdir(parents=True, exist_ok=True)
        given = arguments or {"policy": policy, **self.models}
        results = {
            "config": {"model_args": given, "tandem": {**about, "totals": {}}, "batch_size": "4"},
            "configs": {self.task: {"metric_list": [{"metric": "acc"}]}},
            "git_hash": "abc",
        }
        file = place / f"results_{STAMP}.json"
        file.write_text(json.dumps(results))
        lines = []
        for record, grade in made:
            document = {"subject": self.subjects[record.doc_id]} if self.subjects else {"q": "?"}
            line = {"doc_id": record.doc_id, "doc": document, "acc": grade, "metrics": ["acc"], "filter": "none"}
            lines.append(json.dumps({**line, **record.metrics}))
        text = "\n".join(reversed(lines)) + "\n"
        samples = place / f"samples_{self.task}_{STAMP}.jsonl"
        if packed:
            samples.with_name(samples.name + ".xz").write_bytes(lzma.compress(text.encode()))
        else:
            samples.write_text(text)
        if with_ledger:
            ledger_file.write(place / "ledger.jsonl", [record for record, _ in made], about)
        return file


POLICIES = ("intern", "stage:1", "stage:2", "mentor", "cascade")


def read(folders: Sequence[Path], metric: str | None = None, by: str | None = None) -> list[Run]:
    """Return the runs below the folders with their records, as a report reads them."""
    return ledgers.join(reading.read(folders, metric, by).runs, folders)
