"""Several classifiers for one pair: which cascade is the main one, and how the others compare with it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lm_eval_tandem.reports.intervals import difference, ratio
from lm_eval_tandem.reports.report import report
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.grouping import group
from lm_eval_tandem.reports.table import Number, Report, Table
from reports.world import World, read

GIVEN = {"policy": "cascade", "classifier": "runs/judge"}
PROBE = {"tasks": ["t_train"], "schema": "probe-13+stage/1", "sha256": "p"}


def worlds(questions: int = 60) -> dict[str, World]:
    """The same questions under several classifiers; the one that ships with the pair is the best."""
    own = World.random(questions, judge=PROBE)
    rng = np.random.default_rng(5)
    uninformed = replace(own, scores=rng.random(own.scores.shape), thresholds=(0.6, 0.6, 0.6))
    return {
        "pair": own,
        "hidden": replace(uninformed, judge={"tasks": ["t_train"], "schema": "hidden-64/1"}),
        "paper": replace(uninformed, judge={"tasks": ["t_train"], "schema": "statistics-18/1"}, recipe="paper"),
        "all": replace(own, judge={**PROBE, "tasks": ["t_train", "u_train"]}, thresholds=(0.4, 0.5, 0.5)),
        "t_train": replace(own, judge={**PROBE, "per": "task"}, thresholds=(0.45, 0.5, 0.5)),
    }


def written(folder: Path, names: list[str], shipped: str | None = "pair") -> Comparison:
    for name, world in worlds().items():
        if name in names:
            given = None if name == shipped else GIVEN
            world.write(folder, "cascade", classifier=name, arguments=given)
    for policy in ("intern", "stage:1", "stage:2", "mentor"):
        worlds()["pair"].write(folder, policy)
    (comparison,) = group(read([folder]))
    return comparison


def table(made: Report, name: str) -> Table:
    return next(table for table in made.tables if table.name == name)


def test_the_main_cascade_has_the_shipped_classifier_or_else_the_default_recipe_s(tmp_path: Path) -> None:
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
        comparison = written(tmp_path / str(number), names, shipped)
        assert comparison.cascade is not None, names
        assert comparison.cascade.description["classifier"] == main, names


def test_the_main_cascade_is_compared_with_each_other_one_on_the_same_questions(tmp_path: Path) -> None:
    comparison = written(tmp_path, list(worlds()))
    made = report([tmp_path])
    shown = table(made, "inputs-t-large-small")
    by_label = {str(row[0]): dict(zip(shown.columns, row, strict=True)) for row in shown.rows}
    assert comparison.cascade is not None
    for run in comparison.cascades:
        cells = by_label[comparison.label(run)]
        points = cells["cascade (pair): accuracy difference (points)"]
        share = cells["cascade (pair): cost in % of this classifier's"]
        if run is comparison.cascade:
            assert points == share == ""
            continue
        assert isinstance(points, Number)
        assert isinstance(share, Number)
        assert points.value == pytest.approx(100 * (comparison.cascade.grades.mean() - run.grades.mean()))
        assert points.interval == pytest.approx([100 * x for x in difference(comparison.cascade.grades, run.grades)])
        costs = comparison.cascade.measures["tflops"], run.measures["tflops"]
        assert share.value == pytest.approx(100 * costs[0].mean() / costs[1].mean())
        assert share.interval == pytest.approx([100 * x for x in ratio(*costs)])
    ((_, facts),) = made.headlines
    assert any("of the cost with the paper's recipe (accuracy " in words for _, words in facts)


def test_further_classifiers_appear_only_in_tables_about_classifiers(tmp_path: Path) -> None:
    written(tmp_path, list(worlds()))
    made = report([tmp_path])
    assert [str(row[0]) for row in table(made, "pairs-t").rows][2:] == ["large + small"]
    columns = table(made, "failures-t-large-small").columns
    assert [name.split(":")[0] for name in columns[1::2]] == ["cascade (pair)", "cascade (paper)"]
    gap = table(made, "unified-t-large-small")
    assert [str(row[0]) for row in gap.rows] == ["all"]
    share = dict(zip(gap.columns, gap.rows[0], strict=True))["unified: cost in % of per subject"]
    assert isinstance(share, Number)
    assert share.interval is not None
    assert share.interval[0] <= share.value
    assert gap.caption == "Unified: cascade (all). Per subject: cascade (t_train)."
    assert not any(table.name.startswith("transfer") for table in made.tables), "all were fitted on the domain"


def test_the_table_of_dollars_names_the_prices(tmp_path: Path) -> None:
    world = World.random(20, dollars=0.001)
    file = world.write(tmp_path, "stage:1")
    priced = '"prices": {"input": 2.0, "cached": 0.5, "output": 8.0}, "engine"'
    file.write_text(file.read_text().replace('"engine"', priced, 1))
    caption = table(report([tmp_path]), "dollars-t-large-small").caption
    assert caption == "Dollars per million tokens: mentor 2 (input), 0.5 (cached), 8 (output)."
