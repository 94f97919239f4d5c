"""`benchmarks/local_seconds.py`: a line for each policy, with the bundled pair as GGUF files."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import _paths, pair

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # its own folder is where a program finds its imports
local_seconds = pytest.importorskip("local_seconds", reason="the tests were copied without benchmarks/")
pytestmark = NEEDS_LLAMACPP


def lines_of(file: Path) -> list[list[str]]:
    """The cells of each line of a Markdown table below its head."""
    return [line.strip("| \n").split(" | ") for line in file.read_text().splitlines() if line.startswith("| ")][2:]


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The first arguments: the bundled pair, as GGUF files under the names of the real models."""
    from engines.llamacpp import to_gguf

    monkeypatch.setattr(local_seconds, "TASK", "tandem_pair_math_train")
    monkeypatch.setattr(local_seconds.real, "WINDOW", 512)
    monkeypatch.setattr(local_seconds.real, "ANSWER_TOKENS", 8)
    names = (local_seconds.real.MENTOR, local_seconds.real.PAIRS[0].intern)
    files = [to_gguf.save(one, tmp_path / name) for one, name in zip((pair.MENTOR, pair.INTERN), names, strict=True)]
    return [*map(str, files), str(_paths.classifiers() / "pair")]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[int]]]:
    """Who was asked which questions, by policy or aggregation."""
    found: list[tuple[str, list[int]]] = []
    plain = local_seconds.ask

    def ask(candidate: Any, numbers: list[int]) -> Any:
        found.append((candidate[1].get("policy") or candidate[1]["aggregation"], numbers))
        return plain(candidate, numbers)

    monkeypatch.setattr(local_seconds, "ask", ask)
    return found


def test_every_round_asks_other_questions_under_every_policy(
    models: list[str], asked: list[tuple[str, list[int]]], tmp_path: Path
) -> None:
    local_seconds.main([*models, "--rounds", "2", "--questions", "2", "--output", str(tmp_path / "t.md")])
    numbers = [[120, 121], [122, 123]]
    assert asked == [(policy, some) for some in numbers for policy in local_seconds.POLICIES]
    lines = lines_of(tmp_path / "t.md")
    assert [line[0] for line in lines] == list(local_seconds.POLICIES)
    assert lines[0][2] == "1.00 [1.00, 1.00]"
    for _, _, ratio, eq12, bill in lines:
        assert float(ratio.split()[0]) > 0
        assert float(bill) >= float(eq12) > 0


def test_what_was_chosen_is_measured_too_and_nothing_twice(
    models: list[str], asked: list[tuple[str, list[int]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_seconds.real, "COMPARED", ("intern", "mentor"))
    work = tmp_path / "work"
    for folder, file in zip((pair.MENTOR, pair.INTERN), models, strict=False):
        unpacked = work / "transformers" / Path(file).stem
        unpacked.parent.mkdir(parents=True, exist_ok=True)
        unpacked.symlink_to(folder)
    own = {"models": ";".join(Path(file).name for file in models[:2])}
    chosen = [
        {"name": "ensemble:loop", "candidate": ["ensemble", {**own, "aggregation": "loop", "segment_tokens": 4}]},
        {"name": "ensemble:average", "candidate": ["ensemble", {**own, "backend": "hf", "aggregation": "average"}]},
    ]
    (tmp_path / "strategies.json").write_text(json.dumps(chosen))
    command = [*models, "--questions", "2", "--strategies", str(tmp_path / "strategies.json"), "--work", str(work)]
    command += ["--dtype", "float32"]
    command += ["--log", str(tmp_path / "log.jsonl"), "--output", str(tmp_path / "t.md")]
    local_seconds.main([*command, "--rounds", "1"])
    first = ["mentor", "intern", "loop", "average"]
    assert asked == [(name, [120, 121]) for name in first]
    assert [line[0] for line in lines_of(tmp_path / "t.md")] == ["mentor", "intern", *(one["name"] for one in chosen)]
    before = (tmp_path / "log.jsonl").read_text()
    local_seconds.main([*command, "--rounds", "2"])
    assert asked[len(first) :] == [(name, [122, 123]) for name in first]
    assert (tmp_path / "log.jsonl").read_text().startswith(before)
