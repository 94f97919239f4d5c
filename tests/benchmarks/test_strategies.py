"""`benchmarks/strategies.py`: what is tried can be run, and which of it is chosen."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lm_eval_tandem.engines import registry
from lm_eval_tandem.ensembles.reference_file import Reference, write_reference
from lm_eval_tandem.harness.ensemble_settings import read_ensemble
from lm_eval_tandem.harness.settings import read_settings

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))  # its own folder is where a program finds its imports
strategies = pytest.importorskip("strategies", reason="the tests were copied without benchmarks/")


def test_every_candidate_has_arguments_that_are_accepted(tmp_path: Path) -> None:
    real = strategies.real
    setting = real.Setting(tmp_path, tmp_path / "work", tmp_path, 2)
    for name in (real.MENTOR, *(pair.intern for pair in real.PAIRS)):
        (tmp_path / name).touch()
        setting.unpacked(name).mkdir(parents=True)
    usual = {
        str(setting.unpacked(name)): Reference(2.0, 1.0, 0.5, 0.1, 9) for name in (real.MENTOR, real.PAIRS[0].intern)
    }
    write_reference(setting.work / real.REFERENCE, usual, {})
    for trial in (strategies.bundled(), strategies.of_real_models(setting)):
        assert trial.task.endswith("_train")
        policies = set()
        for candidates in trial.candidates.values():
            for candidate in candidates:
                given = trial.arguments(candidate)
                if candidate[0] == "tandem":
                    policies.add(str(read_settings(given, registry.arguments).policy))
                else:
                    policies.add(read_ensemble(given, registry.arguments).policy)
        assert len(policies) == sum(map(len, trial.candidates.values()))


def test_the_most_accurate_candidate_is_chosen_and_of_equals_the_cheapest() -> None:
    tried = [
        strategies.Tried("outline", "outline:80", ("tandem", {"policy": "outline:80"}), 0.50, 0.4, 0.6),
        strategies.Tried("outline", "outline:160", ("tandem", {"policy": "outline:160"}), 0.55, 0.5, 0.9),
        strategies.Tried("steps", "steps:1", ("tandem", {"policy": "steps:1"}), 0.40, 0.3, 0.5),
        strategies.Tried("steps", "steps:2", ("tandem", {"policy": "steps:2"}), 0.40, 0.3, 0.4),
    ]
    assert [one.name for one in strategies.chosen(tried).values()] == ["outline:160", "steps:2"]
    lines = strategies.table(tried, strategies.bundled()).splitlines()
    assert [line for line in lines if "**" in line] == [
        "| **outline:160** | 55.0 | 500000.0 | 900000.0 |",
        "| **steps:2** | 40.0 | 300000.0 | 400000.0 |",
    ]
