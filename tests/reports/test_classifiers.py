"""Several classifiers for one pair: which cascade is the pair's own, and how the others compare with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm_eval_tandem.reports.intervals import difference, ratio
from lm_eval_tandem.reports.report import report
from lm_eval_tandem.reports.sources.pairing import studies
from lm_eval_tandem.reports.sources.study import Study
from lm_eval_tandem.reports.table import Number, Report, Table
from reports.world import World, read

GIVEN = {"policy": "cascade", "classifier": "runs/judge"}
PROBE = {"tasks": ["t_train"], "schema": "probe-13+stage/1", "sha256": "p"}


def worlds(questions: int = 60) -> dict[str, World]:
    """The same questions under judges of one thing or another; the pair's own sees most."""
    own = World.random(questions, judge=PROBE)
    rng = np.random.default_rng(5)
    blind = replace(own, scores=rng.random(own.scores.shape), thresholds=(0.6, 0.6, 0.6))
    return {
        "pair": own,
        "hidden": replace(blind, judge={"tasks": ["t_train"], "schema": "hidden-64/1"}),
        "paper": replace(blind, judge={"tasks": ["t_train"], "schema": "statistics-18/1"}, recipe="paper"),
        "all": replace(own, judge={**PROBE, "tasks": ["t_train", "u_train"]}, thresholds=(0.4, 0.5, 0.5)),
        "t_train": replace(own, judge={**PROBE, "per": "task"}, thresholds=(0.45, 0.5, 0.5)),
    }


def written(folder: Path, names: list[str], shipped: str | None = "pair") -> Study:
    for name, world in worlds().items():
        if name in names:
            given = None if name == shipped else GIVEN
            world.write(folder, "cascade", classifier=name, arguments=given)
    for policy in ("intern", "stage:1", "stage:2", "mentor"):
        worlds()["pair"].write(folder, policy)
    (found,) = studies(read([folder]))
    return found


def table(made: Report, name: str) -> Table:
    return next(table for table in made.tables if table.name == name)


def test_the_main_cascade_is_the_pair_s_own_and_else_the_default_recipe_s_own_choice(tmp_path: Path) -> None:
    everyone = list(worlds())
    for number, (names, shipped, main) in enumerate(
        [
            (everyone, "pair", "pair"),
            (everyone, None, "pair"),
            ([name for name in everyone if name != "pair"], None, "all"),
            (["hidden", "paper", "t_train"], None, "hidden"),
            (["paper", "t_train"], None, "t_train"),
        ]
    ):
        study = written(tmp_path / str(number), names, shipped)
        assert study.cascade is not None and study.cascade.about["classifier"] == main, names


def test_the_main_cascade_is_compared_with_each_other_one_in_pairs_of_answers(tmp_path: Path) -> None:
    study = written(tmp_path, list(worlds()))
    made = report([tmp_path])
    shown = table(made, "inputs-t-large-small")
    by_label = {str(row[0]): dict(zip(shown.columns, row, strict=True)) for row in shown.rows}
    assert study.cascade is not None
    for run in study.cascades:
        points, share = (
            by_label[study.label(run)][f"cascade (pair): {what}"] for what in ("points above it", "cost in % of it")
        )
        if run is study.cascade:
            assert points == share == ""
            continue
        assert isinstance(points, Number)
        assert isinstance(share, Number)
        assert points.value == pytest.approx(100 * (study.cascade.score.mean() - run.score.mean()))
        assert points.interval == pytest.approx([100 * x for x in difference(study.cascade.score, run.score)])
        costs = study.cascade.columns["tflops"], run.columns["tflops"]
        assert share.value == pytest.approx(100 * costs[0].mean() / costs[1].mean())
        assert share.interval == pytest.approx([100 * x for x in ratio(*costs)])
    ((_, facts),) = made.headlines
    assert any("of the cost with the paper's recipe, at " in words for _, words in facts)


def test_classifiers_do_not_fill_tables_of_other_things(tmp_path: Path) -> None:
    written(tmp_path, list(worlds()))
    made = report([tmp_path])
    assert [str(row[0]) for row in table(made, "pairs-t").rows][2:] == ["large + small"]
    columns = table(made, "failures-t-large-small").columns
    assert [name.split(":")[0] for name in columns[1::2]] == ["cascade (pair)", "cascade (paper)"]
    gap = table(made, "unified-t-large-small")
    assert [str(row[0]) for row in gap.rows] == ["all"]
    share = dict(zip(gap.columns, gap.rows[0], strict=True))["unified: cost in % of it"]
    assert isinstance(share, Number)
    assert share.interval is not None
    assert share.interval[0] <= share.value
    assert gap.caption == "Unified: cascade (all). Per subject: cascade (t_train)."
    assert not any(table.name.startswith("transfer") for table in made.tables), "all classifiers know the domain"


def test_dollars_say_at_which_prices(tmp_path: Path) -> None:
    world = World.random(20, dollars=0.001)
    file = world.write(tmp_path, "stage:1")
    priced = '"prices": {"input": 2.0, "cached": 0.5, "output": 8.0}, "engine"'
    file.write_text(file.read_text().replace('"engine"', priced, 1))
    caption = table(report([tmp_path]), "dollars-t-large-small").caption
    assert caption == "Dollars per million tokens: mentor 2 (input), 0.5 (cached), 8 (output)."
