"""`benchmarks/local_speed.py`: its tables, with the bundled pair as GGUF files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import pair
from lm_eval_tandem.engines import Engine, Role, registry

local_speed = pytest.importorskip("benchmarks.local_speed", reason="the tests were copied without benchmarks/")
pytestmark = NEEDS_LLAMACPP


def test_both_tables_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers cannot read the pair's tokenizer from a GGUF file, so it gets the pair's folder."""
    from engines.llamacpp import to_gguf

    files = [to_gguf.save(folder, tmp_path / f"{folder.name}.gguf") for folder in (pair.MENTOR, pair.INTERN)]
    plain = local_speed.load

    def load(file: Path, backend: str, batch_size: int) -> Engine:
        arguments: dict[str, Any] = {"batch_size": batch_size, "device": "cpu"}
        if backend == "hf":
            return registry.load(Role(str(pair.INTERN), "hf", arguments, "intern"))
        monkeypatch.setattr(local_speed, "WINDOW", 512)
        return plain(file, backend, batch_size)

    monkeypatch.setattr(local_speed, "load", load)
    local_speed.main([*map(str, files), "--tokens", "4", "--repeats", "2", "--output", str(tmp_path / "t.md")])
    lines = [line.split(" | ") for line in (tmp_path / "t.md").read_text().splitlines() if line.startswith("| ")]
    assert [line[0].strip("| ") for line in lines if line[0].strip("| ").isdigit()] == ["1", "4", "16"]
    for line in lines[2:5]:
        ours, theirs = (float(cell.split()[0]) for cell in line[1:3])
        assert ours > 0
        assert theirs > 0
    assert 0.1 < float(lines[-1][-1].split()[0]) < 10


def test_no_question_is_asked_twice() -> None:
    class Plain:
        def render(self, messages: tuple[tuple[str, str], ...]) -> str:
            return messages[0][1]

    clock = local_speed.Clock(4)
    asked = [prompt.text for prompt in (*clock.prompts(Plain(), 30), *clock.prompts(Plain(), 30))]
    assert len(set(asked)) == 60
