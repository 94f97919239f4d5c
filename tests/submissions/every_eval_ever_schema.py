"""What Every Eval Ever requires of its two kinds of files (schema 0.3.0), stated once more for the tests.

The board's own validator needs Python 3.12 and other versions of our libraries, so it runs only where it is installed.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

TEXT, NUMBER, WHOLE, TRUTH = str, (int, float), int, bool
NOTHING = type(None)
TEXTS = {"*": TEXT}
"""A mapping of any names to text."""

MODEL = {
    "name!": TEXT,
    "id!": TEXT,
    "developer!": TEXT,
    "inference_platform": TEXT,
    "inference_engine": {"name": TEXT, "version": TEXT},
    "additional_details!": {"deployment_type!": TEXT, "model_availability!": TEXT, "*": TEXT},
}
RESULT = {
    "evaluation_result_id": TEXT,
    "evaluation_name!": TEXT,
    "source_data!": {
        "dataset_name!": TEXT,
        "source_type!": TEXT,
        "hf_repo": TEXT,
        "hf_split": TEXT,
        "samples_number": WHOLE,
        "sample_ids": [TEXT],
        "additional_details": TEXTS,
    },
    "metric_config!": {
        "evaluation_description": TEXT,
        "metric_id": TEXT,
        "metric_name": TEXT,
        "metric_kind": TEXT,
        "metric_unit": TEXT,
        "lower_is_better!": TRUTH,
        "score_type": TEXT,
        "min_score": (int, float, str),
        "max_score": (int, float, str),
        "additional_details": TEXTS,
    },
    "score_details!": {
        "score!": NUMBER,
        "details": TEXTS,
        "uncertainty": {
            "standard_error": {"value!": NUMBER, "method": TEXT},
            "confidence_interval": {
                "lower!": NUMBER,
                "upper!": NUMBER,
                "confidence_level": NUMBER,
                "method": TEXT,
            },
            "num_samples": WHOLE,
            "num_bootstrap_samples": WHOLE,
        },
    },
    "generation_config": {
        "generation_args": {
            "temperature": NUMBER,
            "top_p": NUMBER,
            "top_k": NUMBER,
            "max_tokens": WHOLE,
            "prompt_template": TEXT,
            "execution_command": TEXT,
        },
        "additional_details": TEXTS,
    },
}
RESULTS = {
    "schema_version!": TEXT,
    "evaluation_id!": TEXT,
    "evaluation_timestamp": TEXT,
    "retrieved_timestamp!": TEXT,
    "source_metadata!": {
        "source_name": TEXT,
        "source_type!": TEXT,
        "source_organization_name!": TEXT,
        "evaluator_relationship!": TEXT,
        "additional_details": TEXTS,
    },
    "eval_library!": {"name!": TEXT, "version!": TEXT, "additional_details": TEXTS},
    "model_info!": MODEL,
    "evaluation_results!": [RESULT],
    "detailed_evaluation_results": {
        "format!": TEXT,
        "file_path!": TEXT,
        "hash_algorithm": TEXT,
        "checksum": TEXT,
        "total_rows": WHOLE,
    },
}
SAMPLE = {
    "schema_version!": TEXT,
    "evaluation_id!": TEXT,
    "model_id!": TEXT,
    "evaluation_name!": TEXT,
    "evaluation_result_id": TEXT,
    "sample_id!": TEXT,
    "sample_hash": (str, NOTHING),
    "interaction_type!": TEXT,
    "input!": {"raw!": TEXT, "formatted": (str, NOTHING), "reference!": [TEXT], "choices": (list, NOTHING)},
    "output!": {"raw!": [TEXT], "reasoning_trace": (list, NOTHING)},
    "messages": NOTHING,
    "answer_attribution!": [
        {
            "turn_idx!": WHOLE,
            "source!": TEXT,
            "extracted_value!": TEXT,
            "extraction_method!": TEXT,
            "is_terminal!": TRUTH,
        }
    ],
    "evaluation!": {"score!": NUMBER, "is_correct!": TRUTH},
    "token_usage": (
        NOTHING,
        {
            "input_tokens!": WHOLE,
            "output_tokens!": WHOLE,
            "total_tokens!": WHOLE,
            "input_tokens_cache_read": WHOLE,
        },
    ),
    "performance": (
        NOTHING,
        {"latency_ms": NUMBER, "generation_time_ms": NUMBER, "additional_details": TEXTS},
    ),
    "error": NOTHING,
    "metadata": TEXTS,
}
WORDS = {
    "source_type": {"evaluation_run", "hf_dataset", "other"},
    "evaluator_relationship": {"first_party", "third_party", "collaborative", "other"},
    "deployment_type": {"self_deployed", "externally_managed", "unknown"},
    "model_availability": {"open_weights", "closed_weights", "unknown"},
    "score_type": {"continuous"},
    "interaction_type": {"single_turn"},
}
UUID4 = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
COMPONENT = r"(?!data/)[^<>:\"\\|?*/\x00-\x1f]*[^<>:\"\\|?*/\x00-\x1f. ]"
PLACE = re.compile(rf"data/({COMPONENT})/({COMPONENT})/({COMPONENT})/{UUID4}(\.json|_samples\.jsonl)")


def faults(value: Any, expected: Any, where: str = "") -> Iterator[str]:
    """Return what is wrong with a value."""
    if isinstance(expected, tuple) and any(isinstance(one, dict) for one in expected):
        if value is not None:
            yield from faults(value, next(one for one in expected if isinstance(one, dict)), where)
    elif isinstance(expected, dict):
        if not isinstance(value, dict):
            yield f"{where} is no object"
            return
        known = {name.rstrip("!"): inner for name, inner in expected.items()}
        for name in expected:
            if name.endswith("!") and name[:-1] not in value:
                yield f"{where}.{name[:-1]} is missing"
        for name, inner in value.items():
            if name not in known and "*" not in known:
                yield f"{where}.{name} is no field"
            else:
                yield from faults(inner, known.get(name, known.get("*")), f"{where}.{name}")
            if name in WORDS and inner not in WORDS[name]:
                yield f"{where}.{name} is {inner}"
    elif isinstance(expected, list):
        if not isinstance(value, list):
            yield f"{where} is no list"
            return
        for place, inner in enumerate(value):
            yield from faults(inner, expected[0], f"{where}[{place}]")
    elif not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        yield f"{where} is {value!r}"
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{where} is not finite"


def bound(value: float | str) -> float:
    """Return a bound as a number."""
    return float(value)


def check(folder: Path) -> dict[Path, tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Check all files below an output folder, and return results and samples by results file."""
    found: dict[Path, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    assert files
    for file in files:
        assert PLACE.fullmatch(file.relative_to(folder).as_posix()), file
        if file.suffix == ".json":
            found[file] = json.loads(file.read_text()), []
    with_samples = [results for results, _ in found.values() if "detailed_evaluation_results" in results]
    assert len(files) == len(found) + len(with_samples), "each results file of a task has its samples"
    for file, (results, samples) in found.items():
        assert not list(faults(results, RESULTS)), file
        is_group = all(
            "aggregation" in result["metric_config"]["additional_details"] for result in results["evaluation_results"]
        )
        assert is_group == ("detailed_evaluation_results" not in results)
        if is_group:
            check_relations(results, samples)
            continue
        detailed = results["detailed_evaluation_results"]
        companion = folder / detailed["file_path"]
        assert companion == file.with_name(f"{file.stem}_samples.jsonl")
        content = companion.read_bytes()
        assert hashlib.sha256(content).hexdigest() == detailed["checksum"]
        lines = content.decode().splitlines()  # as the board splits them, at any kind of line break
        assert len(lines) == detailed["total_rows"] > 0
        samples += map(json.loads, lines)
        for sample in samples:
            assert not list(faults(sample, SAMPLE)), file
        check_relations(results, samples)
    return found


def check_relations(results: Mapping[str, Any], samples: list[dict[str, Any]]) -> None:
    """Check what two fields have to do with each other."""
    info = results["model_info"]
    assert info["id"].count("/") == 1
    by_id = {result["evaluation_result_id"]: result for result in results["evaluation_results"]}
    assert len(by_id) == len(results["evaluation_results"])
    for result in by_id.values():
        config, score = result["metric_config"], result["score_details"]
        assert ("score_type" in config) == ("min_score" in config) == ("max_score" in config)
        if "score_type" in config:
            low, high = bound(config["min_score"]), bound(config["max_score"])
            assert low <= score["score"] <= high, result
        interval = score["uncertainty"].get("confidence_interval")
        if interval:
            rounding = 1e-9 * abs(score["score"]) + 1e-15
            assert interval["lower"] - rounding <= score["score"] <= interval["upper"] + rounding
        assert (result["source_data"]["source_type"] == "hf_dataset") == ("hf_repo" in result["source_data"])
    for sample in samples:
        assert sample["evaluation_id"] == results["evaluation_id"]
        assert sample["model_id"] == info["id"]
        assert sample["evaluation_name"] == by_id[sample["evaluation_result_id"]]["evaluation_name"]
        asked = {"raw": sample["input"]["raw"], "reference": sample["input"]["reference"]}
        text = json.dumps(asked, sort_keys=True, separators=(",", ":"))
        expected = hashlib.sha256(text.encode()).hexdigest() if asked["raw"] else None
        assert sample["sample_hash"] == expected
        usage = sample["token_usage"]
        if usage:
            assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
