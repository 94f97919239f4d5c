"""Costs of collected questions: a size or a price that is not known never enters one, and every figure has its unit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lm_eval_tandem import cli
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.judge import artefact
from lm_eval_tandem.judge.features import SCHEMA
from lm_eval_tandem.training.collected_file import FORMAT, NAME, read, write
from lm_eval_tandem.training.rows import Row

PRICES = {
    "mentor": {"input": 2.0, "cached": 0.5, "output": 8.0},
    "intern": {"input": 0.4, "cached": 0.1, "output": 1.6},
}
BY_COST = "cost@accuracy>=always_high-0.05"


def collection(
    folder: Path,
    sizes: tuple[int | None, int | None] = (None, None),
    prices: dict[str, Any] | None = None,
    task: str = "train",
    questions: int = 60,
) -> Path:
    """Questions at three stages, of models whose sizes or prices are known or not."""
    random, rows = np.random.default_rng(0), []
    for doc in range(questions):
        ease = random.normal()
        for stage in range(3):
            right = ease + 0.8 * stage > 0.3
            features = [*random.normal(2.0 * right, 1, size=17).tolist(), float(stage)]
            dollars = None if prices is None else (100 + 8.0 * 10 * stage + 1.6 * 12) / 1e6
            rows.append(
                Row(
                    task, doc, stage, True, float(right), None, features, [], 10 * stage, 12, False, [], [], None, None,
                    dollars=dollars,
                )
            )  # fmt: skip
    roles = {
        role: {"model": role, "parameters": size, **({"prices": prices[role]} if prices and role in prices else {})}
        for role, size in zip(("mentor", "intern"), sizes, strict=True)
    }
    description = {"format": FORMAT, "schema": SCHEMA, "efforts": [10, 20], "insights": "cutoff", "guidance": "guided"}
    folder.mkdir()
    write(folder / NAME, rows, {**description, **roles, "tasks": [task], "version": "1"})
    return folder


def fit(folder: Path, *options: str) -> None:
    cli.main(["fit", str(folder), "--output", str(folder / "judge"), "--inputs", "statistics", *options])


@pytest.mark.parametrize("sizes", [(None, 100), (1000, None), (None, None)])
@pytest.mark.parametrize("objective", [BY_COST, "accuracy@cost<=3"])
def test_an_objective_of_costs_is_refused_where_a_size_is_not_known(
    tmp_path: Path, sizes: tuple[int | None, int | None], objective: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = collection(tmp_path / "c", sizes)
    unknown = [role for role, size in zip(("mentor", "intern"), sizes, strict=True) if size is None]
    with pytest.raises(SystemExit, match="1"):
        fit(folder, "--objective", objective)
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert objective in message
    assert all(f"{role}_parameters=N" in message for role in unknown)
    assert sum("_parameters=N" in word for word in message.split()) == len(unknown)
    assert "--cost tokens" in message
    assert not (folder / "judge").exists()


@pytest.mark.parametrize(
    ("sizes", "options", "unit", "stages"),
    [
        ((1000, 100), [], "TFLOPs", [12 * 2e-10, 2e-12 * (1000 * 10 + 100 * 22), 2e-12 * (1000 * 20 + 100 * 32)]),
        ((None, 100), [], "tokens", [12.0, 22.0, 32.0]),
        ((1000, 100), ["--cost", "tokens"], "tokens", [12.0, 22.0, 32.0]),
        ((None, 100), ["--cost", "tokens", "--objective", "accuracy@cost<=30"], "tokens", [12.0, 22.0, 32.0]),
    ],
)
def test_the_unit_of_the_costs_is_named_wherever_they_are(
    tmp_path: Path,
    sizes: tuple[int | None, int | None],
    options: list[str],
    unit: str,
    stages: list[float],
    capsys: pytest.CaptureFixture[str],
) -> None:
    folder = collection(tmp_path / "c", sizes)
    fit(folder, *options)
    printed = json.loads(capsys.readouterr().out.splitlines()[0])
    fitted_on = artefact.load(folder / "judge").config["fitted_on"]
    assert printed["cost_unit"] == fitted_on["cost_unit"] == fitted_on["report"]["cost_unit"] == unit
    assert f" {unit}" in (folder / "judge" / "README.md").read_text(encoding="utf-8").split("Out of sample")[1]
    assert [fixed["cost"] for fixed in fitted_on["report"]["fixed"]] == pytest.approx(stages)
    points = folder / "points.json"
    given = [str(folder), "--classifier", str(folder / "judge"), "--output", str(points), *options]
    cli.main(["thresholds", *given])
    assert f"{unit} a question" in capsys.readouterr().out.splitlines()[0]
    assert {point["cost_unit"] for point in json.loads(points.read_text())} == {unit}


def test_prices_of_both_models_give_costs_in_dollars(tmp_path: Path) -> None:
    folder = collection(tmp_path / "c", prices=PRICES)
    data, _ = read(folder, objective=BY_COST)
    assert data.cost_unit == "dollars"
    np.testing.assert_allclose(data.cost[0], [119.2e-6, 199.2e-6, 279.2e-6])
    np.testing.assert_allclose(data.fallback_cost[0], 279.2e-6)  # the mentor has written to the end
    assert data.token_cost == pytest.approx(1.6e-6)
    with pytest.raises(ClassifierError, match=r"would be in TFLOPs.*--cost dollars"):
        read(folder, objective="accuracy@cost<=1e-4")
    assert read(folder, cost="dollars", objective="accuracy@cost<=1e-4")[0].cost_unit == "dollars"


def test_one_price_alone_is_no_cost(tmp_path: Path) -> None:
    folder = collection(tmp_path / "c", prices={"mentor": PRICES["mentor"]})
    assert read(folder)[0].cost_unit == "tokens"
    with pytest.raises(ClassifierError, match="without intern_price_input, intern_price_output; collect again"):
        read(folder, cost="dollars")
    with pytest.raises(ClassifierError, match="Costs in TFLOPs, which --cost tflops needs, are not known"):
        read(folder, cost="tflops")
    with pytest.raises(ClassifierError, match="give one of tflops, dollars, tokens"):
        read(folder, cost="seconds")


def test_what_one_collection_does_not_know_another_may(tmp_path: Path) -> None:
    one = collection(tmp_path / "a", (None, 100))
    other = collection(tmp_path / "b", (1000, 100), task="more")
    data, _ = read(one, other, objective=BY_COST)
    assert data.cost_unit == "TFLOPs"
    np.testing.assert_allclose(data.cost[0], data.cost[60])
    contrary = collection(tmp_path / "c", (2000, 100), task="most")
    with pytest.raises(ClassifierError, match="give its parameters as 1000 and as 2000"):
        read(one, other, contrary)


def test_a_file_of_an_earlier_version_is_read_as_before() -> None:
    file = Path(__file__).parents[2] / "results" / "pair" / NAME
    if not file.exists():
        pytest.skip("the tests were copied without results/")
    data, description = read(file, objective="accuracy@cost<=1e-4")
    assert data.cost_unit == "TFLOPs"
    mentor, intern = (description[role]["parameters"] for role in ("mentor", "intern"))
    tokens = np.round((data.cost[:, 0] / (2e-12 * intern)), 6)
    np.testing.assert_array_equal(tokens, data.answer_tokens[:, 0])
    assert mentor > intern > 0
