"""`benchmarks/local_seconds.py`: a line for each policy, with the bundled pair as GGUF files."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from engines.llamacpp.local import NEEDS_LLAMACPP
from lm_eval_tandem import _paths, pair

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # its own folder is where a program finds its imports
local_seconds = pytest.importorskip("local_seconds", reason="the tests were copied without benchmarks/")
pytestmark = NEEDS_LLAMACPP


def test_every_round_asks_other_questions_under_every_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engines.llamacpp import to_gguf

    monkeypatch.setattr(local_seconds, "TASK", "tandem_pair_math_train")
    monkeypatch.setattr(local_seconds.real, "WINDOW", 512)
    monkeypatch.setattr(local_seconds.real, "ANSWER_TOKENS", 8)
    asked = []
    plain = local_seconds.ask
    monkeypatch.setattr(local_seconds, "ask", lambda *given: asked.append((given[0], given[2])) or plain(*given))
    files = [to_gguf.save(folder, tmp_path / f"{folder.name}.gguf") for folder in (pair.MENTOR, pair.INTERN)]
    models = [*map(str, files), str(_paths.classifiers() / "pair")]
    local_seconds.main([*models, "--rounds", "2", "--questions", "2", "--output", str(tmp_path / "t.md")])
    numbers = [[120, 121], [122, 123]]
    assert asked == [(policy, some) for some in numbers for policy in local_seconds.POLICIES]
    table = (tmp_path / "t.md").read_text()
    lines = [line.strip("| \n").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines[2:]] == list(local_seconds.POLICIES)
    assert lines[2][2] == "1.00 [1.00, 1.00]"
    for _, _, ratio, eq12, bill in lines[2:]:
        assert float(ratio.split()[0]) > 0
        assert float(bill) >= float(eq12) > 0
