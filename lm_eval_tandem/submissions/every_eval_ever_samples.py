"""The file of samples of Every Eval Ever: one row per question and metric.

Field names are those of `instance_level_eval.schema.json`, version 0.3.0. Tokens, times and costs are the ledger's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from lm_eval_tandem.digits import without_last_bits
from lm_eval_tandem.reports.sources import harness_files
from lm_eval_tandem.submissions.every_eval_ever_results import all_scores, evaluation_name, result_id
from lm_eval_tandem.submissions.metrics import metric
from lm_eval_tandem.submissions.models import Identity, slug
from lm_eval_tandem.submissions.redaction import Redaction, short
from lm_eval_tandem.submissions.scores import Score
from lm_eval_tandem.submissions.task_results import TaskResults

JSON = Mapping[str, Any]
CHOICES = ("multiple_choice", "multiple_choice_gpt2")
"""Types of tasks whose answer is the choice of the highest probability."""
SUBJECTS = ("subject", "type", "category", "level")
"""Fields of a document that say what kind of question it is."""
WORDS = ("reason", "finish_reason", "mentor_finish_reason")
"""Fields of a ledger's record that are words, and go out as they are."""
CHOSEN_BY = ("selection_scores", "response_scores")
"""Fields of a ledger's record that say by what numbers an ensemble chose."""


def rows(
    task: TaskResults, model: Identity, evaluation_id: str, grade_alone: bool, redaction: Redaction
) -> Iterator[dict[str, Any]]:
    """Return the rows of a task, question by question.

    Parameters
    ----------
    task
        The task.
    model, evaluation_id
        The model's identity and the id of the file of results.
    grade_alone
        Whether only the grade has rows, instead of every metric that a question has a value of.
    redaction
        Goes over every text.
    """
    question_of = question_reader(task.config.get("doc_to_text"))
    scores = [score for score in all_scores(task) if score.values is not None]
    if grade_alone:
        scores = [score for score in scores if score.metric == task.run.metric]
    by_filter = {name: [score for score in scores if score.filter == name] for name in task.samples}
    orphans = [score for score in scores if score.filter not in by_filter]  # costs, of samples of another filter
    first = next(iter(task.samples))
    by_filter[first] = [*by_filter[first], *orphans]
    for place in range(len(task.run.questions)):
        for name, measured in by_filter.items():
            if not measured:
                continue
            shared = redaction(shared_fields(task, name, place, question_of))
            shared["sample_hash"] = sample_hash(shared["input"])
            for score in measured:
                yield {
                    "schema_version": "0.3.0",
                    "evaluation_id": evaluation_id,
                    "model_id": model.id,
                    "evaluation_name": evaluation_name(task.name, score),
                    "evaluation_result_id": result_id(task.name, score),
                    **shared,
                    "evaluation": evaluation(task, score, place),
                }


def shared_fields(
    task: TaskResults, name: str, place: int, question_of: Callable[[JSON], str | None]
) -> dict[str, Any]:
    """Return what the rows of one question have in common, whatever the metric."""
    sample = task.samples[name][place]
    records = task.records[place] if task.records else ()
    prompt = harness_files.first_prompt(sample)
    document = sample.get("doc")
    question = question_of(document) if isinstance(document, dict) else None
    raw = question if question is not None else prompt or ""
    answers, chosen = answers_of(sample, task.config), extracted(sample)
    answer = answers[0] if answers else ""
    return {
        "sample_id": str(sample["doc_id"]),
        "interaction_type": "single_turn",
        "input": {
            "raw": raw,
            "formatted": prompt if prompt != raw else None,
            "reference": references(sample),
            "choices": choices_of(sample, task.config),
        },
        "output": {"raw": answers, "reasoning_trace": None},
        "messages": None,
        "answer_attribution": [
            {
                "turn_idx": 0,
                "source": "output.raw",
                "extracted_value": answer if chosen is None else chosen,
                "extraction_method": name if name != "none" else "none" if chosen in (None, answer) else "task",
                "is_terminal": True,
            }
        ],
        "token_usage": token_usage(records),
        "performance": performance(records),
        "error": None,
        "metadata": metadata(task, place, sample, name, records),
    }


def question_reader(template: Any) -> Callable[[JSON], str | None]:
    """Return what reads the question from a document by a task's `doc_to_text`; it returns None where it cannot.

    That is the question as the task asks it, without examples before it.
    """
    if not isinstance(template, str) or template.lstrip().startswith("def "):
        return lambda document: None
    try:
        compiled = SandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(template)
    except TemplateError:  # it uses filters of the harness
        compiled = None

    def read(document: JSON) -> str | None:
        if template in document:  # the name of a field
            return str(document[template])
        try:
            return None if compiled is None else compiled.render(**document)
        except (TemplateError, TypeError):
            return None

    return read


def sample_hash(asked: JSON) -> str | None:
    """Return the board's hash of a question and its references; None where the samples have no questions."""
    if not asked["raw"]:
        return None
    content = {"raw": asked["raw"], "reference": asked["reference"]}
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def references(sample: JSON) -> list[str]:
    """Return the right answers of a sample; [] if it does not have them."""
    target = sample.get("target")
    if target is None:
        return []
    return [str(one) for one in target] if isinstance(target, list) else [str(target)]


def requests_of(sample: JSON) -> list[JSON]:
    """Return the requests that were made for a sample, in their order."""
    requests = sample.get("arguments") or {}
    return [requests[name] for name in sorted(requests, key=lambda name: int(name.rpartition("_")[2]))]


def choices_of(sample: JSON, config: JSON) -> list[str] | None:
    """Return the choices of a multiple-choice question; None for any other."""
    if config.get("output_type") not in CHOICES:
        return None
    choices = [str(request["arg_1"]).strip() for request in requests_of(sample) if "arg_1" in request]
    return choices or None


def answers_of(sample: JSON, config: JSON) -> list[str]:
    """Return the answers to a question: the texts, one per repeat, or the choice of the highest probability."""
    responses = [one for part in sample.get("resps") or [] for one in (part if isinstance(part, list) else [part])]
    if config.get("output_type") in CHOICES:
        logprobs = [float(one[0]) for one in responses if isinstance(one, list) and one]
        choices = choices_of(sample, config)
        if not logprobs:
            return []
        best = logprobs.index(max(logprobs))
        return [choices[best] if choices and best < len(choices) else str(best)]
    return [one if isinstance(one, str) else json.dumps(one) for one in responses]


def extracted(sample: JSON) -> str | None:
    """Return what a filter made of the first answer; None if the sample does not have it, or it is no text."""
    filtered = sample.get("filtered_resps")
    while isinstance(filtered, list) and filtered:
        filtered = filtered[0]
    return filtered if isinstance(filtered, str) else None


def evaluation(task: TaskResults, score: Score, place: int) -> dict[str, Any]:
    """Return the value of a metric, and whether the answer is correct: by this metric if it grades, or by the grade."""
    assert score.values is not None
    value = float(score.values[place])
    grades = metric(score.metric).kind in ("accuracy", "exact_match", "pass_rate") and score.higher_is_better
    correct = bool(without_last_bits(value) >= 0.5) if grades else bool(task.run.correct[place])
    return {"score": value, "is_correct": correct}


def token_usage(records: Sequence[JSON]) -> dict[str, int] | None:
    """Return the tokens of a question's calls, of all models together; None without a ledger.

    Input tokens are the prompt tokens that were read. What a prefix cache had is no part of them and has a field of its
    own, which ledgers of older versions did not count.
    """
    if not records:
        return None
    read = generated = 0
    for record in records:
        tokens = record["tokens"]
        read += sum(tokens.get(name, 0) for name in ("mentor_prefill", "intern_prefill", "judge_prefill"))
        generated += tokens["mentor_new"] + tokens["intern_new"]
        for spent in (record.get("spent") or {}).values():
            read += spent["prefill"] + spent["judged"]
            generated += spent["new"]
    found = {"input_tokens": read, "output_tokens": generated, "total_tokens": read + generated}
    if all(record.get("cached") for record in records):
        found["input_tokens_cache_read"] = sum(sum(record["cached"].values()) for record in records)
    return found


def performance(records: Sequence[JSON]) -> dict[str, Any] | None:
    """Return the wall-clock time of a question's calls, waiting for others of a batch included; None if not known."""
    if not records:
        return None
    judging, generating = (
        1000 * sum(record[name] for record in records) for name in ("judge_seconds", "generate_seconds")
    )
    return {
        "latency_ms": judging + generating,
        "generation_time_ms": generating,
        "additional_details": {"judge_ms": repr(judging)},
    }


def metadata(task: TaskResults, place: int, sample: JSON, name: str, records: Sequence[JSON]) -> dict[str, str]:
    """Return what else is known of a question: its kind, its costs, and how it came to its answer."""
    document = sample.get("doc")
    document = document if isinstance(document, dict) else {}
    found = {"filter": name, **{key: str(document[key]) for key in SUBJECTS if document.get(key) is not None}}
    found |= {measure: repr(float(values[place])) for measure, values in task.run.measures.items()}
    if not records:
        return found
    for key in WORDS:
        if any(record.get(key) for record in records):
            found[key] = ",".join(short(record.get(key) or "") or "" for record in records)
    counts: dict[str, float] = {}
    for record in records:
        for key, count in {**record["tokens"], "refused_tokens": record.get("refused_tokens", 0)}.items():
            counts[key] = counts.get(key, 0) + count
        for model, count in (record.get("cached") or {}).items():
            key = f"{slug(short(model) or 'model')}_cached"
            counts[key] = counts.get(key, 0) + count
        for model, spent in (record.get("spent") or {}).items():
            name_of_model = slug(short(model) or "model")
            for key, count in spent.items():
                counts[f"{name_of_model}_{key}"] = counts.get(f"{name_of_model}_{key}", 0) + (count or 0)
    found |= {key: repr(count) for key, count in counts.items()}
    scores = [
        [one["score"] for one in record.get("stages") or [] if one.get("score") is not None] for record in records
    ]
    if any(scores):
        found["judge_scores"] = ",".join(":".join(f"{score:.7g}" for score in of_repeat) for of_repeat in scores)
    for key in CHOSEN_BY:
        numbers = [
            ",".join(f"{short(model)}:{score}" for model, score in (record.get(key) or {}).items())
            for record in records
        ]
        if any(numbers):
            found[key] = " | ".join(numbers)
    writers = [
        ",".join(f"{short(one['writer'])}:{one['tokens']}" for one in record.get("segments") or [])
        for record in records
    ]
    if any(writers):
        found["segments"] = " | ".join(writers)
    return found
