"""Collecting what a classifier is fitted on: the harness run once per stage, the mentor's text shared.

Labels are the grades that the task itself gives to the intern's answer under the insights of each stage. Questions are
joined by task and document id. A killed collection goes on from its store.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from lm_eval_tandem import _paths, ledger
from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.engines import ScoringView, registry
from lm_eval_tandem.engines.drafts import PROMPT_TAIL
from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.grading.math import answer
from lm_eval_tandem.grading.math.normalise import normalise
from lm_eval_tandem.judge.features import FEATURE_NAMES, SCHEMA
from lm_eval_tandem.ledger import Record
from lm_eval_tandem.training.dataset import Collected, together

if TYPE_CHECKING:
    from lm_eval_tandem.harness.model import TandemLM

FORMAT = "tandem-collected/1"
FILE = "collected.parquet"
STORE = "store.sqlite"


PILOT = 16
"""Questions a task that are run first, to say what all will cost."""


@dataclass
class Row:
    """One question at one stage."""

    task: str
    doc_id: int
    stage: int
    judged: bool
    """False where the mentor had ended before: the cascade does not judge such a stage again."""
    correct: float
    agrees: float | None
    """Whether the intern's final answer is the mentor's own; None where that was not, or cannot be, found out."""
    features: list[float]
    parts: list[float]
    mentor_tokens: int
    intern_tokens: int
    truncated: bool
    answer_logprob: list[float]
    answer_entropy: list[float]
    """Of the first tokens of the intern's answer, natural logarithms."""
    answer_ids: list[int] | None
    prompt_end: list[int] | None
    """Those tokens, and the last of the prompt; None where the intern's engine reads no drafts."""
    hidden: Any = None
    """The intern's hidden state at the prompt's last token, float32 (D,), and below the prompt's tokens; or None."""
    prompt_ids: list[int] | None = None


@dataclass
class Run:
    """What the harness needs for one pass over the tasks, and how grades and final answers are found in its samples."""

    lm: TandemLM
    tasks: list[str]
    manager: Any
    metric: str | None
    arguments: dict[str, Any]

    def over(self, policy: str, limit: float | None) -> tuple[list[Record], dict[str, Any]]:
        """One policy over the tasks: its records, and the harness's results."""
        from lm_eval import simple_evaluate

        self.lm.use(policy)
        given = {**self.arguments, "limit": limit}
        found = simple_evaluate(model=self.lm, tasks=self.tasks, task_manager=self.manager, bootstrap_iters=0, **given)
        assert found is not None
        return self.lm.records, found

    def policies(self, mentor: bool) -> list[str]:
        """Every stage, and the mentor alone where its answers are wanted."""
        return [f"stage:{stage}" for stage in range(len(self.lm.settings.efforts) + 1)] + ["mentor"] * mentor

    def rows(self, limit: float | None, mentor: bool) -> list[Row]:
        """Everything about so many questions a task."""
        own: dict[tuple[str, int], str] = {}
        if mentor:
            own = answers(self.over("mentor", limit)[1]["samples"])
        rows: list[Row] = []
        for stage, policy in enumerate(self.policies(False)):
            records, results = self.over(policy, limit)
            first = {task: config["metric_list"][0]["metric"] for task, config in results["configs"].items()}
            metrics = {task: self.metric or first[task] for task in first}
            rows += joined(records, results["samples"], stage, metrics, own)
        return rows


def collect(arguments: dict[str, Any], tasks: Sequence[str], output: Path, include: Sequence[str], **run: Any) -> Path:
    """Run every stage over the tasks and write one Parquet file into the folder `output`; returns its path.

    A killed run goes on from the folder's store. What all will cost is printed after the first questions.

    arguments: as `--model_args`, without policy, store and ledger. include: folders with more task files.
    run: limit, apply_chat_template, system_instruction, num_fewshot, gen_kwargs, metric (the grade to learn;
        by default the task's first), mentor (False: without the mentor's own answers, which `--labels mentor` needs),
        hidden (also the intern's hidden states and the prompts' tokens, for `--inputs hidden` and `lora`).
    """
    from lm_eval.tasks import TaskManager

    from lm_eval_tandem.harness.model import TandemLM

    for name in ("policy", "store", "ledger", "record_features"):
        if name in arguments:
            raise ArgumentError(f"collect sets {name} itself; leave {name}={arguments[name]} out of --model_args.")
    metric, mentor, limit = run.pop("metric", None), run.pop("mentor", True), run.pop("limit", None)
    hidden = run.pop("hidden", False)
    if hidden:
        backend = str(arguments.get("intern_backend", arguments.get("backend", "hf")))
        registry.check_view(ScoringView(hidden=True), backend, "collect --hidden")
    folders = [str(_paths.task_configs()), *include]
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    output.mkdir(parents=True, exist_ok=True)
    lm = TandemLM(**arguments, policy="stage:1", store=output / STORE, record_features=True)
    if hidden:
        lm.record_hidden()
    passes = Run(lm, list(tasks), manager, metric, run)
    estimate(passes, limit, mentor)
    rows = passes.rows(limit, mentor)
    description = {**lm.description, "tasks": list(tasks), "format": FORMAT, "schema": SCHEMA, "policy": "collect"}
    if hidden and lm.settings.intern is not None:  # how it is loaded again to be finetuned
        loaded = lm.settings.intern.arguments
        kept = {name: value for name, value in loaded.items() if name not in ("batch_size", "max_batch_size", "device")}
        description["intern"] = {**description["intern"], "arguments": kept}
    lm.close()
    return write(output / FILE, rows, description)


def estimate(run: Run, limit: float | None, mentor: bool) -> None:
    """Print what collecting will cost, from the first questions of each task; nothing for hardly more than those."""
    if limit is not None and 1 <= limit <= PILOT:
        return
    began, asked, total, tokens = time.perf_counter(), 0, 0, Tokens()
    for policy in run.policies(mentor):
        records, results = run.over(policy, PILOT)
        counts = results["n-samples"].values()
        asked = sum(count["effective"] for count in counts)
        total = sum(int(_limited(count["original"], limit)) for count in counts)
        for record in ledger.unique(records):
            written = (
                0 if policy.startswith("stage") and policy != run.policies(False)[-1] else record.tokens.mentor_new
            )
            tokens += Tokens(mentor_new=written, intern_new=record.tokens.intern_new)
    share, seconds = total / max(1, asked), time.perf_counter() - began
    whole = Tokens(mentor_new=round(share * tokens.mentor_new), intern_new=round(share * tokens.intern_new))
    mentor_size, intern_size = (getattr(engine, "parameters", None) for engine in (run.lm._mentor, run.lm._intern))
    flops = f", {tflops(whole, mentor_size, intern_size, 0):.3g} TFLOPs" if mentor_size and intern_size else ""
    print(
        f"collect: {total:,} questions at {len(run.policies(False))} stages{' and the mentor alone' * mentor}: about "
        f"{whole.mentor_new:,} mentor and {whole.intern_new:,} intern tokens{flops}, "
        f"{share * seconds / 60:,.1f} minutes or less at the speed of the first {asked}; what {STORE} holds is not "
        "made again.",
        file=sys.stderr,
        flush=True,
    )


def _limited(questions: int, limit: float | None) -> float:
    if limit is None:
        return questions
    return math.ceil(questions * limit) if limit < 1 else min(questions, limit)


def answers(samples: dict[str, list[dict[str, Any]]]) -> dict[tuple[str, int], str]:
    """Each question's final answer, where its response has one, by task and document id."""
    found = {}
    for task, logged in samples.items():
        for sample in logged:
            final = answer.extract(str(sample["resps"][0][0]))
            if final is not None:
                found[task, sample["doc_id"]] = final
    return found


def joined(
    records: Sequence[Record],
    samples: dict[str, list[dict[str, Any]]],
    stage: int,
    metrics: dict[str, str],
    own: dict[tuple[str, int], str] | None = None,
) -> list[Row]:
    """The records of one stage with the grade (`metrics[task]`) that the task gave, by task and document id.

    own: the mentor's own final answers. A question to which it has none has no agreement either.
    """
    grades: dict[tuple[str, int], float] = {}
    for task, logged in samples.items():
        for sample in logged:
            metric = metrics[task]
            if metric not in sample:
                raise ArgumentError(f"metric={metric} is none of {task}'s; use one of {', '.join(sample['metrics'])}.")
            grades[task, sample["doc_id"]] = float(sample[metric])
    given, rows = answers(samples), []
    for record in ledger.unique(records):
        look, name = record.stages[-1], (record.task, record.doc_id)
        assert look.features is not None
        assert look.answer_logprob is not None
        assert look.answer_entropy is not None
        agrees = None
        if own and name in own:
            agrees = float(name in given and normalise(own[name]) == normalise(given[name]))
        rows.append(
            Row(
                task=record.task,
                doc_id=record.doc_id,
                stage=stage,
                judged=not record.mentor_ended_before,
                correct=grades[name],
                agrees=agrees,
                features=look.features,
                parts=look.parts or [],
                mentor_tokens=record.tokens.mentor_new,
                intern_tokens=record.tokens.intern_new,
                truncated=record.finish_reason == "length",
                answer_logprob=look.answer_logprob,
                answer_entropy=look.answer_entropy,
                answer_ids=look.answer_ids,
                prompt_end=look.prompt_end,
                hidden=look.hidden,
                prompt_ids=look.prompt_ids,
            )
        )
    return rows


def write(path: Path, rows: Sequence[Row], description: dict[str, Any]) -> Path:
    """Write the rows as Parquet, atomically; what ran stands in the file's metadata under `tandem`."""
    import pyarrow
    import pyarrow.parquet

    single = pyarrow.list_(pyarrow.float32())
    kinds = {"agrees": pyarrow.float64(), "answer_logprob": single, "answer_entropy": single, "parts": single}
    kinds |= dict.fromkeys(("answer_ids", "prompt_end"), pyarrow.list_(pyarrow.int32()))
    kinds |= {"hidden": single, "prompt_ids": pyarrow.list_(pyarrow.int32())}
    left_out = {name for name in ("hidden", "prompt_ids") if all(getattr(row, name) is None for row in rows)}
    columns = {
        name: pyarrow.array([getattr(row, name) for row in rows], kinds.get(name))
        for name in Row.__annotations__
        if name not in left_out
    }
    table = pyarrow.table(columns).replace_schema_metadata({"tandem": json.dumps(description)})
    unfinished = path.with_name(path.name + ".unfinished")
    pyarrow.parquet.write_table(table, unfinished, compression="zstd")
    unfinished.replace(path)
    return path


def read(*paths: Path) -> tuple[Collected, dict[str, Any]]:
    """What `collect` wrote, as fitting takes it, and the description of the run; several collections of one pair.

    Raises
    ------
    ClassifierError
        A file is missing, none of ours, of another feature schema, lacks stages, or holds what another pair, or the
        same pair otherwise prompted, did.
    """
    found = [_read(path) for path in paths]
    _data, description = found[0]
    for path, (_, other) in zip(paths, found, strict=True):
        for what in ("mentor", "intern", "efforts", "insights", "guidance"):
            mine, theirs = (
                one[what]["model"] if what in ("mentor", "intern") else one[what] for one in (description, other)
            )
            if mine != theirs:
                raise ClassifierError(
                    f"{path} was collected with {what} {theirs}, but {paths[0]} with {mine}; "
                    "fit on collections of one pair and one set of efforts."
                )
    tasks = list(dict.fromkeys(task for _, other in found for task in other["tasks"]))
    return together([one for one, _ in found]), {**description, "tasks": tasks}


def _read(path: Path) -> tuple[Collected, dict[str, Any]]:
    import pyarrow.parquet

    file = path / FILE if path.is_dir() else path
    try:
        table = pyarrow.parquet.read_table(file)
        description = json.loads((table.schema.metadata or {})[b"tandem"])
        efforts, sizes = description["efforts"], [description[role]["parameters"] for role in ("mentor", "intern")]
        arrays = {name: table.column(name) for name in ("hidden", "prompt_ids") if name in table.column_names}
        rows = {**table.drop_columns(list(arrays)).to_pydict(), **arrays}
        schema = description.get("schema")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ClassifierError(
            f"{file} is nothing that `lm-eval-tandem collect` wrote ({reason}); collect first."
        ) from error
    if schema != SCHEMA:
        raise ClassifierError(
            f"{file} holds features of the schema {schema}, but this version reads {SCHEMA}; collect again."
        )
    if not {"task", "doc_id", "stage", "judged", "correct", "features", "mentor_tokens", "intern_tokens"} <= set(rows):
        raise ClassifierError(f"{file} lacks columns that `lm-eval-tandem collect` writes; collect again.")
    return _collected(rows, len(efforts) + 1, sizes), description


def _collected(rows: dict[str, list[Any]], stages: int, parameters: Sequence[int | None]) -> Collected:
    """The columns of the file by question and stage; NaN where a stage is missing."""
    place: dict[tuple[str, int], int] = {}
    for name in zip(rows["task"], rows["doc_id"], strict=True):
        place.setdefault(name, len(place))
    question = np.array([place[name] for name in zip(rows["task"], rows["doc_id"], strict=True)], dtype=int)
    at = question, np.asarray(rows["stage"], dtype=int)
    shape = len(place), stages

    def column(name: str, width: int | None = None, kind: Any = np.float64, after: float = np.nan) -> Any:
        if name not in rows or any(value is None for value in rows[name]):
            return None
        values = np.full(shape if width is None else (*shape, width), after, dtype=kind)
        if width is None:
            values[at] = rows[name]
            return values
        for q, t, entries in zip(*at, rows[name], strict=True):
            values[q, t, : len(entries)] = entries
        return values

    longest = max(map(len, rows.get("answer_entropy", [])), default=0)
    mentor, intern = column("mentor_tokens"), column("intern_tokens")
    known = [1 if size is None else size for size in parameters]
    judged = np.ones(shape, dtype=bool)
    judged[at] = rows["judged"]
    return Collected(
        ids=[f"{task}/{doc_id}" for task, doc_id in place],
        features=column("features", len(FEATURE_NAMES)),
        correct=column("correct"),
        cost=tflops_of(mentor, intern, known),
        fallback_cost=tflops_of(mentor[:, -1:], intern, known),
        judged=judged,
        logprob=column("answer_logprob", longest, np.float32) if longest else None,
        entropy=column("answer_entropy", longest, np.float32) if longest else None,
        answer_tokens=np.nan_to_num(intern, nan=-1).astype(np.int64),
        token_cost=float(tflops_of(0, 1, known)),
        agrees=column("agrees"),
        tasks=[task for task, _ in place],
        parts=column("parts", len(rows["parts"][0])) if rows.get("parts") and rows["parts"][0] else None,
        answer_ids=column("answer_ids", longest, np.int32, -1) if longest else None,
        prompt_ends=column("prompt_end", PROMPT_TAIL, np.int32, -1),
        hidden=hidden_of(rows.get("hidden"), at, shape),
        prompts=prompts_of(rows.get("prompt_ids"), at, shape),
    )


def hidden_of(column: Any, at: tuple[Any, Any], shape: tuple[int, int]) -> Any:
    """Hidden states of a column of the file, float32 (Q, T, D), NaN where a stage is missing; None without one."""
    if column is None or column.null_count:
        return None
    states = column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    found = np.full((*shape, states.shape[1]), np.nan, dtype=np.float32)
    found[at] = states
    return found


def prompts_of(column: Any, at: tuple[Any, Any], shape: tuple[int, int]) -> Any:
    """Tokens of prompts of a column of the file, (Q, T) of int32 arrays; None without one."""
    if column is None or column.null_count:
        return None
    found = np.empty(shape, dtype=object)
    for q, t, tokens in zip(*at, column, strict=True):
        found[q, t] = tokens.values.to_numpy(zero_copy_only=False)
    return found


def tflops_of(mentor_tokens: Any, intern_tokens: Any, parameters: Sequence[int]) -> Any:
    """Eq. 12 for so many tokens of each role, as numbers or arrays."""
    return tflops(Tokens(mentor_new=mentor_tokens, intern_new=intern_tokens), parameters[0], parameters[1])
