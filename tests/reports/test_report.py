"""The report: its numbers against a world that is known, every table of the paper or a sentence on what is missing."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import shlex
import shutil
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_tandem import cli
from lm_eval_tandem.accounting import Tokens, tflops
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.reports.formats import html, latex, markdown, spreadsheet, svg
from lm_eval_tandem.reports.intervals import ratio
from lm_eval_tandem.reports.report import SECTIONS, report, write
from lm_eval_tandem.reports.sections import accuracy
from lm_eval_tandem.reports.sections.routing import outcome_counts
from lm_eval_tandem.reports.sources import runs
from lm_eval_tandem.reports.sources.comparison import Comparison
from lm_eval_tandem.reports.sources.grouping import group
from lm_eval_tandem.reports.sources.missing import command
from lm_eval_tandem.reports.table import Missing, Number, Report, Table
from reports.world import EFFORTS, PARAMETERS, POLICIES, World, read

ABOUT_OTHERS = ("same-questions", "other-models")
"""Sections that are left out where there are no other models, and all were asked alike."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every policy of one pair on 80 questions of two subjects."""
    base = tmp_path_factory.mktemp("runs")
    world = World.random(80, subjects=["a", "b"] * 40, dollars=0.001)
    for policy in POLICIES:
        world.write(base, policy)
    return base


@pytest.fixture(scope="module")
def made(folder: Path) -> Report:
    return report([folder], "Title")


def tables(made: Report) -> dict[str, Table]:
    return {table.name: table for table in made.tables}


def missing(made: Report) -> dict[str, list[Missing]]:
    found = {s.name: [part for part in s.parts if isinstance(part, Missing)] for s in made.sections}
    return {name: parts for name, parts in found.items() if parts}


def row(table: Table, label: str) -> dict[str, object]:
    return next(dict(zip(table.columns, cells, strict=True)) for cells in table.rows if cells[0] == label)


def value(cell: object) -> float:
    assert isinstance(cell, Number)
    return cell.value


def the_comparison(folder: Path) -> Comparison:
    (comparison,) = group(read([folder]))
    return comparison


def test_each_policy_has_its_accuracy_length_and_cost(made: Report, folder: Path) -> None:
    world = World.random(80)
    shown = tables(made)["policies-t-large-small"]
    assert [cells[0] for cells in shown.rows] == [*POLICIES, "oracle (not a policy)"]
    for policy, stage in (("intern", 0), ("stage:1", 1), ("stage:2", 2)):
        cells = row(shown, policy)
        assert value(cells["accuracy %"]) == pytest.approx(100 * world.right[:, stage].mean())
        assert value(cells["length (tokens)"]) == 50 + (0, *EFFORTS)[stage]
        tokens = Tokens(mentor_new=(0, *EFFORTS)[stage], intern_new=50)
        assert value(cells["cost (GFLOPs)"]) == pytest.approx(
            1000 * tflops(tokens, PARAMETERS["mentor"], PARAMETERS["intern"])
        )
    taken = [world.stage_of(q) for q in range(80)]
    right = np.mean([world.right[q, stage] for q, stage in enumerate(taken)])
    cascade = row(shown, "cascade")
    assert value(cascade["accuracy %"]) == pytest.approx(100 * right)
    high = row(shown, "stage:2")
    ratio = value(cascade["cost (GFLOPs)"]) / value(high["cost (GFLOPs)"])
    assert value(cascade["cost / always-high %"]) == pytest.approx(100 * ratio)


def test_the_whole_bill_stands_beside_the_cost_and_is_compared_in_the_same_way(folder: Path, tmp_path: Path) -> None:
    def dearer(line: dict[str, Any], question: int) -> dict[str, Any]:
        return line | {"bill": line["tflops"] * (3 if line["policy"] == "cascade" else 1.5) + 0.001 * question}

    shutil.copytree(folder, tmp_path / "runs")
    for file in (tmp_path / "runs").rglob("*.jsonl"):
        head, *lines = file.read_text().splitlines()
        if json.loads(head).get("format") == "tandem-ledger/1":
            changed = [json.dumps(dearer(json.loads(line), place)) for place, line in enumerate(lines)]
            file.write_text("\n".join([head, *changed]) + "\n")
    made = report([tmp_path / "runs"], "Title")
    comparison = the_comparison(tmp_path / "runs")
    of = {run.policy: run for run in comparison.runs}
    shown, against = (tables(made)[f"{name}-t-large-small"] for name in ("policies", "compared"))
    place = shown.columns.index("cost / mentor %")
    assert shown.columns[place + 1] == "whole bill / mentor %"
    bills = {policy: run.measures["bill"] for policy, run in of.items()}
    for policy in POLICIES:
        cell = row(shown, policy)["whole bill / mentor %"]
        if policy == "mentor":
            assert cell == ""
            continue
        assert value(cell) == pytest.approx(100 * bills[policy].mean() / bills["mentor"].mean())
        assert isinstance(cell, Number)
        assert cell.interval == pytest.approx([100 * end for end in ratio(bills[policy], bills["mentor"])])
        if policy != "cascade":
            cell = row(against, policy)["cascade: whole bill in % of this policy's"]
            assert value(cell) == pytest.approx(100 * bills["cascade"].mean() / bills[policy].mean())
            assert isinstance(cell, Number)
            assert cell.interval == pytest.approx([100 * end for end in ratio(bills["cascade"], bills[policy])])
            assert value(cell) != pytest.approx(value(row(against, policy)["cascade: cost in % of this policy's"]))
    ((_, results),) = made.headlines
    whole = row(shown, "cascade")["whole bill / mentor %"]
    assert isinstance(whole, Number)
    assert f"of the cost of the mentor and {whole.text} % of its whole bill (accuracy " in results[1][1]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_oracle_and_failure_cases_are_those_of_a_plain_search(seed: int) -> None:
    import tempfile

    world = World.random(20, seed=seed)
    with tempfile.TemporaryDirectory() as name:
        for policy in ("intern", "stage:1", "stage:2", "cascade"):
            world.write(Path(name), policy, with_ledger=False)
        comparison = the_comparison(Path(name))
    counts = {"correct": 0, "premature stop": 0, "late stop": 0, "unsolvable at every stage": 0}
    first = later_than_needed = 0
    solved, spent = [], []
    for q in range(20):
        taken, right = world.stage_of(q), [bool(grade) for grade in world.right[q]]
        if right[taken]:
            counts["correct"] += 1
            later_than_needed += any(right[:taken])
            first += not any(right[:taken])
        elif any(right[taken + 1 :]):
            counts["premature stop"] += 1
        elif any(right):
            counts["late stop"] += 1
        else:
            counts["unsolvable at every stage"] += 1
        best = right.index(True) if any(right) else 0
        solved.append(any(right))
        spent.append((0, *EFFORTS)[best])
    assert comparison.cascade is not None
    assert comparison.oracle is not None
    outcomes = outcome_counts(comparison, comparison.cascade)
    assert {name: outcomes[name] for name in counts} == counts
    assert [n for name, n in outcomes.items() if name.startswith(" ")] == [first, later_than_needed]
    assert comparison.oracle.grades.tolist() == solved
    assert comparison.oracle.measures["mentor_tokens"].tolist() == spent


def test_the_gap_closed_is_0_for_always_high_and_1_for_the_oracle(folder: Path) -> None:
    comparison = the_comparison(folder)
    assert comparison.always_high is not None
    assert comparison.oracle is not None
    assert comparison.cascade is not None
    assert comparison.gap_closed(comparison.always_high) == (0, (0, 0))
    share, ends = comparison.gap_closed(comparison.oracle) or (0, (0, 0))
    assert share == pytest.approx(1)
    assert ends == pytest.approx((1, 1))
    share, (low, high) = comparison.gap_closed(comparison.cascade) or (0, (0, 0))
    assert low < share < high


def test_subjects_are_columns_and_their_mean_is_the_whole(made: Report) -> None:
    shown = tables(made)["subjects-t-large-small"]
    assert shown.columns == ("policy", "figure", "a", "b", "all")
    for cells in shown.rows:
        numbers = [value(cell) for cell in cells[2:]]
        assert (numbers[0] + numbers[1]) / 2 == pytest.approx(numbers[2])


def test_the_judge_is_measured_on_the_questions_that_it_judged(made: Report) -> None:
    world = World.random(80)
    shown = tables(made)["judge-t-large-small"]
    assert "Only questions that reached a stage" in shown.caption
    came = [q for q in range(80) if all(world.scores[q, s] <= 0.5 for s in range(1))]
    truth, passed = world.right[came, 1] > 0, world.scores[came, 1] > 0.5
    cells = row(shown, "1: ≤ 10 mentor tokens")
    assert cells["questions"] == str(len(came))
    assert value(cells["precision"]) == pytest.approx((truth & passed).sum() / passed.sum())
    assert value(cells["recall"]) == pytest.approx((truth & passed).sum() / truth.sum())


def test_stage_shares_dollars_transfer_and_entropy_are_reported(made: Report) -> None:
    shown = tables(made)
    stages = [World.random(80).stage_of(q) for q in range(80)]
    shares = row(shown["stages-t-large-small"], "cascade")
    assert value(shares["intern alone"]) == pytest.approx(100 * np.mean(np.array(stages) == 0))
    assert value(row(shown["dollars-t-large-small"], "cascade")["all: $ per 1,000"]) == pytest.approx(1.0)
    assert "transfer" in missing(made), "the classifier was fitted on this very domain"
    entropy = shown["entropy-t-large-small"]
    assert [cells[1] for cells in entropy.rows] == ["correct", "wrong"] * 3


def test_a_domain_that_the_classifier_was_not_fitted_on_is_a_transfer(tmp_path: Path) -> None:
    world = World.random(30, task="u")
    for policy in POLICIES:
        world.write(tmp_path, policy)
    shown = tables(report([tmp_path]))["transfer-u-large-small"]
    assert shown.caption == "The classifier was fitted on t_train."
    right = int(sum(world.right[q, world.stage_of(q)] for q in range(30)))
    assert row(shown, "cascade")["correct / questions"] == f"{right} / 30"


def test_one_classifier_is_compared_with_one_per_subject(tmp_path: Path) -> None:
    subjects = ["a", "b"] * 20
    world = World.random(40, subjects=subjects, judge={"tasks": ["t_train", "u_train"], "sha256": "0"})
    for policy in POLICIES:
        world.write(tmp_path, policy)
    other = World(world.right, world.scores, (0.9, 0.9, 0.9), subjects=subjects, judge={"tasks": ["t_train"]})
    other.write(tmp_path, "cascade", classifier="each")
    shown = tables(report([tmp_path]))
    labels = [cells[0] for cells in shown["inputs-t-large-small"].rows]
    assert labels == ["intern", "mentor", "cascade (each)", "cascade (judge)"]
    gap = row(shown["unified-t-large-small"], "all")["unified minus per subject (points)"]
    assert isinstance(gap, Number)
    assert gap.signed


def test_classifiers_with_other_inputs_are_rows_that_name_their_inputs(tmp_path: Path) -> None:
    world = World.random(40)
    for policy in POLICIES:
        world.write(tmp_path, policy)
    for name, schema in (("a-hidden", "hidden-64/1"), ("a-lora", "hidden-lora-64/1")):
        judge = {"tasks": ["t_train"], "sha256": name, "schema": schema, "model": "mlp", "labels": "truth"}
        World(world.right, world.scores, (0.9, 0.9, 0.9), judge=judge).write(tmp_path, "cascade", classifier=name)
    made = report([tmp_path])
    shown = tables(made)["inputs-t-large-small"]
    assert row(shown, "cascade (a-hidden)")["inputs"] == "hidden-64/1"
    assert row(shown, "cascade (a-lora)")["inputs"] == "hidden-lora-64/1"
    compared = "cascade (judge): accuracy difference (points)"
    assert compared in shown.columns, "the others are compared with the default recipe's"
    assert "inputs" not in missing(made)


def test_two_pairs_on_one_task_are_in_one_table(tmp_path: Path) -> None:
    for seed, (mentor, intern) in enumerate(itertools.product(("lab/large", "lab/giant"), ("lab/small",))):
        world = World.random(30, seed, models={"mentor": mentor, "intern": intern}, pair=f"{mentor[4:]}+small")
        for policy in POLICIES:
            world.write(tmp_path, policy)
    shown = tables(report([tmp_path]))["pairs-t"]
    labels = [str(cells[0]) for cells in shown.rows]
    assert [label.split(" (")[0] for label in labels[:3]] == ["small alone", "giant alone", "large alone"]
    assert labels[3:] == ["giant + small", "large + small"]
    assert "pairs" not in missing(report([tmp_path]))


def test_a_missing_table_names_the_runs_it_needs_and_their_commands(tmp_path: Path) -> None:
    given = {"policy": "intern", "mentor": "/data/m/large", "intern": "/data/m/small", "store": "s.sqlite"}
    World.random(10).write(tmp_path, "intern", with_ledger=False, arguments=given)
    made = report([tmp_path])
    gaps = missing(made)
    assert {
        "compared",
        "stages",
        "failures",
        "judge",
        "entropy",
        "dollars",
        "inputs",
        "unified",
        "importance",
        "latency",
    } <= set(gaps)
    (failures,) = gaps["failures"]
    assert failures.reason == "The table of failure cases needs the runs cascade, stage:1, stage:2 of t, small."
    assert failures.command.splitlines()[1] == (
        "lm_eval --model tandem --model_args policy=stage:1,mentor=…/large,intern=…/small,store=s.sqlite,"
        "ledger=RUNS/ledger-t-small-stage-1.jsonl --tasks t --batch_size 4 --include_path FOLDER --log_samples "
        "--output_path RUNS"
    )
    for text in (markdown.render(made), html.render(made), latex.render(made)):
        assert "/data/m" not in text
        assert str(tmp_path) not in text


def test_other_models_are_rows_after_the_policies(tmp_path: Path) -> None:
    world = World.random(10)
    for policy in ("intern", "cascade"):
        world.write(tmp_path, policy)
    file = world.write(tmp_path / "other", "mentor", with_ledger=False, arguments={"pretrained": "x"})
    results = json.loads(file.read_text())
    del results["config"]["tandem"]
    file.write_text(json.dumps(results))
    samples = next(file.parent.glob("samples_*"))
    lines = [{k: v for k, v in json.loads(line).items() if k not in runs.MEASURES} for line in samples.open()]
    samples.write_text("\n".join(map(json.dumps, lines)))
    shown = tables(report([tmp_path]))["policies-t-large-small"]
    assert [str(cells[0]) for cells in shown.rows][-1] == file.parent.name


def test_latencies_come_from_a_benchmark_s_file(folder: Path, tmp_path: Path) -> None:
    benchmark = {
        "format": "tandem-latency/1",
        "task": "t",
        "engine": "e 1",
        "concurrency": 1,
        "runs": [
            {"policy": "mentor", "seconds": [2.0, 4.0]},
            {"policy": "cascade", "seconds": [1.0, 2.0], "judge_seconds": [0.1, 0.2], "wall": 2.5},
        ],
    }
    (tmp_path / "latency.json").write_text(json.dumps(benchmark))
    World.random(4).write(tmp_path, "intern")
    shown = tables(report([tmp_path]))["latency-1-t"]
    cells = row(shown, "cascade")
    assert value(cells["times as fast as the mentor"]) == 2
    assert value(cells["judging, % of the time"]) == pytest.approx(10)
    assert value(cells["whole run / questions (s)"]) == 1.25
    benchmark["runs"][0]["seconds"] = [1.0]  # type: ignore[index]
    (tmp_path / "latency.json").write_text(json.dumps(benchmark))
    with pytest.raises(Exception, match="the seconds of the same questions"):
        report([tmp_path])


# --- formats


def test_a_report_made_twice_is_the_same_to_the_byte(folder: Path, tmp_path: Path) -> None:
    first = write(report([folder]), tmp_path / "a")
    again = write(report([folder]), tmp_path / "b")
    assert [f.read_bytes() for f in first] == [f.read_bytes() for f in again]


def test_the_page_needs_nothing_but_itself(made: Report) -> None:
    text = html.render(made)
    outside = [
        *re.findall(r"""(?:src|href|action)\s*=\s*(?!["']?(?:#|data:,))[^\s>]+""", text),
        *re.findall(r"url\(|@import", text),
    ]
    assert outside == []
    assert "<script" not in text
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {"http://www.w3.org/2000/svg"}


class Tags(HTMLParser):
    """Checks that every element is closed in order, and gathers ids and links."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.ids += [attributes["id"] or ""] if "id" in attributes else []
        self.links += [attributes["href"] or ""] if tag == "a" else []
        if tag not in ("meta", "link", "path", "rect", "circle", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("rect", "circle"):
            assert self.open.pop() == tag


def test_the_page_is_well_formed_and_its_links_lead_somewhere(made: Report) -> None:
    tags = Tags()
    tags.feed(html.render(made))
    assert tags.open == []
    assert len(set(tags.ids)) == len(tags.ids)
    assert {link.removeprefix("#") for link in tags.links} <= set(tags.ids)


def test_every_figure_is_well_formed_with_finite_coordinates(made: Report) -> None:
    assert {figure.name.split("-t-")[0] for figure in made.figures} == {"trade-off", "guidance", "entropy"}
    for figure in made.figures:
        ElementTree.fromstring(figure.svg)
        assert "nan" not in figure.svg
        assert "inf" not in figure.svg.replace("infinite", "")


def test_the_style_sheet_defines_every_class_of_the_figures(made: Report) -> None:
    used = {
        name for figure in made.figures for names in re.findall('class="(.*?)"', figure.svg) for name in names.split()
    }
    assert used
    assert used <= set(re.findall(r"\.([a-z][\w-]*)", svg.style()))


def test_seconds_are_explained_and_wall_time_is_given_where_nothing_came_from_a_store(tmp_path: Path) -> None:
    """Runs at 1.01 s of calls per question; one took half its calls from a store, and one is of an older version."""
    world = World.random(40)
    did = {
        "intern": {"wall_seconds": 5.0, "questions": 40},
        "mentor": {"wall_seconds": 12.0, "questions": 60, "found_in_store": 0},
        "stage:1": {"wall_seconds": 8.0, "questions": 40, "found_in_store": 20},
        "stage:2": {"questions": 40},
    }
    for policy, totals in did.items():
        file = world.write(tmp_path, policy)
        content = json.loads(file.read_text())
        content["config"]["tandem"]["totals"] = totals
        file.write_text(json.dumps(content))
    shown = tables(report([tmp_path]))["policies-t-large-small"]
    wall = {policy: row(shown, policy)["wall seconds"] for policy in did}
    assert {policy: cell.value for policy, cell in wall.items() if isinstance(cell, Number)} == {
        "intern": 0.125,
        "mentor": 0.2,
    }
    assert (wall["stage:1"], wall["stage:2"], row(shown, "oracle (not a policy)")["wall seconds"]) == ("", "", "")
    for policy in did:
        assert value(row(shown, policy)["call seconds (summed)"]) == pytest.approx(1.01)
    assert "Call seconds are " in shown.caption
    assert "Wall seconds are " in shown.caption
    for policy in ("intern", "mentor"):
        file = world.write(tmp_path, policy)  # without totals again
    shown = tables(report([tmp_path]))["policies-t-large-small"]
    assert "wall seconds" not in shown.columns
    assert "Wall seconds" not in shown.caption


def test_only_known_sections_have_names_and_each_has_one(made: Report) -> None:
    names = [spec.name for spec in SECTIONS]
    assert [section.name for section in made.sections] == [name for name in names if name not in ABOUT_OTHERS]
    assert len(set(names)) == len(names)


def test_a_column_added_to_the_policies_table_is_in_every_format(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    added = accuracy.Column("stage reached", ("stage",), lambda comparison, run: Number(run.measures["stage"].mean()))
    monkeypatch.setattr(accuracy, "POLICY_COLUMNS", (*accuracy.POLICY_COLUMNS, added))
    made = report([folder])
    shown = tables(made)["policies-t-large-small"]
    assert shown.columns[-1] == "stage reached"
    assert value(row(shown, "stage:2")["stage reached"]) == 2
    for render in (markdown.render, html.render, latex.render):
        assert "stage reached" in render(made)


def test_csv_holds_the_numbers_unrounded_with_their_intervals(made: Report) -> None:
    shown = tables(made)["policies-t-large-small"]
    lines = list(csv.DictReader(io.StringIO(spreadsheet.render(shown))))
    first = shown.rows[0][1]
    assert isinstance(first, Number)
    assert first.interval is not None
    assert float(lines[0]["accuracy %"]) == pytest.approx(first.value, rel=1e-7)
    assert float(lines[0]["accuracy %, low"]) == pytest.approx(first.interval[0], rel=1e-7)


def test_latex_has_one_table_each_with_as_many_cells_as_columns(made: Report) -> None:
    text = latex.render(made)
    assert text.count(r"\toprule") == len(made.tables) == len(set(re.findall(r"\\label\{(.*?)\}", text)))
    for table in made.tables:
        lines = latex.table_lines(table)
        for line in lines[lines.index(r"\midrule") + 1 : lines.index(r"\bottomrule")]:
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.columns) - 1
    assert not re.search(r"(?m)(?<!\\)[#_]|(?<!\\)%(?!$)", re.sub(r"(?m)^%.*$|\\label\{.*?\}", "", text))
    assert len(re.findall(r"(?<!\\)\{", text)) == len(re.findall(r"(?<!\\)\}", text))


def test_markdown_rows_have_as_many_cells_as_their_heading(made: Report) -> None:
    text = markdown.render(made)
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


@pytest.mark.parametrize("suffix", [".md", ".tex", ".html"])
def test_the_ending_of_the_output_chooses_a_single_format(folder: Path, tmp_path: Path, suffix: str) -> None:
    cli.main(["report", str(folder), "--title", "Mine", "--output", str(tmp_path / f"r{suffix}")])
    assert "Mine" in (tmp_path / f"r{suffix}").read_text()


def test_only_chooses_sections(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["report", str(folder), "--only", "policies,stages"])
    headings = [line for line in capsys.readouterr().out.splitlines() if line.startswith("## ")]
    assert len(headings) == 3
    assert headings[0] == "## Accuracy, length and cost by policy"


@pytest.mark.parametrize(
    "arguments",
    [["nowhere"], ["{folder}", "--by", "none"], ["{folder}", "--output", "r.docx"], ["{folder}", "--only", "all"]],
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_1(
    folder: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["report", *[argument.format(folder=folder) for argument in arguments]])
    message = capsys.readouterr().err.strip()
    assert ended.value.code == 1
    assert message.startswith("lm-eval-tandem: error: ")
    assert "\n" not in message


def test_a_report_loads_neither_torch_nor_the_harness(folder: Path) -> None:
    import subprocess

    code = (
        "import sys; from lm_eval_tandem.reports.report import report; from pathlib import Path; "
        f"report([Path({str(folder)!r})]); print([m for m in ('torch', 'lm_eval', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# --- labels in figures


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(60, 400), st.floats(40, 260)), min_size=1, max_size=9, unique=True))
def test_labels_stay_within_the_drawing(points: list[tuple[float, float]]) -> None:
    from lm_eval_tandem.reports.formats.label_placement import LETTER_WIDTH, place_labels

    labels = [f"policy:{i}" for i in range(len(points))]
    for position, label in zip(place_labels(points, labels, (46, 4, 440, 288)), labels, strict=True):
        width = LETTER_WIDTH * len(label)
        left = position.x - {"start": 0, "middle": width / 2, "end": width}[position.anchor]
        assert -width <= left <= 440
        assert 0 <= position.y <= 340


# --- the judge's features and scores


def test_permuting_a_feature_loses_auc_only_if_the_feature_matters() -> None:
    from sklearn.linear_model import LogisticRegression

    from lm_eval_tandem.reports.sections.importance import permutation_losses

    rng = np.random.default_rng(0)
    features = rng.normal(size=(300, 2, 3))
    right = (features[:, :, 1] + 0.3 * rng.normal(size=(300, 2)) > 0).astype(float)
    estimator = LogisticRegression().fit(features.reshape(-1, 3), right.ravel())
    losses, area = permutation_losses(estimator, features, right)
    assert area > 0.95
    assert losses[1].min() > 0.3
    assert np.abs(losses[[0, 2]]).max() < 0.05
    assert np.array_equal(permutation_losses(estimator, features, right)[0], losses)


def test_the_judge_is_measured_on_every_question_where_fixed_stages_recorded_scores(tmp_path: Path) -> None:
    world = World.random(40)
    for policy in POLICIES:
        file = world.write(tmp_path, policy)
        if policy not in ("intern", "stage:1", "stage:2"):
            continue
        stage = {"intern": 0, "stage:1": 1, "stage:2": 2}[policy]
        ledger = file.with_name("ledger.jsonl")
        head, *lines = ledger.read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            record["stages"][0]["score"] = world.scores[record["doc_id"], stage]
        ledger.write_text("\n".join([head, *map(json.dumps, records)]))
    shown = tables(report([tmp_path]))["judge-t-large-small"]
    assert [str(cells[1]) for cells in shown.rows] == ["40", "40", "40", ""]
    truth, passed = world.right[:, 0] > 0, world.scores[:, 0] > 0.5
    assert value(row(shown, "0: question alone")["recall"]) == pytest.approx((truth & passed).sum() / truth.sum())


def test_delong_s_interval_is_close_to_the_bootstrap_s() -> None:
    from lm_eval_tandem.reports.intervals import auc, auc_interval

    rng = np.random.default_rng(3)
    truth = (rng.random(400) < 0.6).astype(float)
    scores = truth + rng.normal(0, 1, 400)
    low, high = auc_interval(truth, scores)
    drawn = [rng.integers(0, 400, 400) for _ in range(1000)]
    areas = [auc(truth[rows], scores[rows]) or 0.5 for rows in drawn]
    assert (low, high) == pytest.approx(tuple(np.quantile(areas, (0.025, 0.975))), abs=0.01)


def test_one_classifier_per_task_of_a_group_makes_one_cascade(tmp_path: Path) -> None:
    grouped = {"group_subtasks": {"m": ["m_a", "m_b"]}}
    for seed, task in enumerate(("m_a", "m_b")):
        world = World.random(10, seed, task=task, judge={"tasks": ["m_a_train", "m_b_train"], "sha256": "0"})
        own = World(
            world.right, world.scores, (0.9,) * 3, task=task, judge={"tasks": [f"{task}_train"], "sha256": task}
        )
        files = [world.write(tmp_path, policy) for policy in POLICIES]
        files.append(own.write(tmp_path, "cascade", classifier=task))
        for file in files:
            file.write_text(json.dumps({**json.loads(file.read_text()), **grouped}))
    shown = tables(report([tmp_path]))
    assert [cells[0] for cells in shown["unified-m-large-small"].rows] == ["a", "b", "all"]
    labels = [cells[0] for cells in shown["inputs-m-large-small"].rows]
    assert labels == ["intern", "mentor", "cascade (judge)", "cascade (one per task)"]


def recorded(folder: Path, world: World) -> Comparison:
    """The world's comparison with the scores of every question in the ledgers of the fixed stages."""
    for policy in POLICIES:
        file = world.write(folder, policy)
        stage = {"intern": 0, "stage:1": 1, "stage:2": 2}.get(policy)
        if stage is None:
            continue
        ledger = file.with_name("ledger.jsonl")
        head, *lines = ledger.read_text().splitlines()
        records = [json.loads(line) for line in lines]
        for record in records:
            record["stages"][0]["score"] = world.scores[record["doc_id"], stage]
        ledger.write_text("\n".join([head, *map(json.dumps, records)]))
    return the_comparison(folder)


@pytest.mark.parametrize("finished", [(), range(0, 60, 3)])
def test_the_sweep_at_the_run_s_thresholds_is_the_run(tmp_path: Path, finished: Sequence[int]) -> None:
    from lm_eval_tandem.reports.sections.threshold_sweep import outcomes_at_every_stage, sweep
    from lm_eval_tandem.training.thresholds import simulate

    comparison = recorded(tmp_path, World.random(60, finished=finished))
    outcomes = outcomes_at_every_stage(comparison, None)
    assert outcomes is not None
    assert comparison.cascade is not None
    stage, right, cost = simulate(outcomes, [0.5] * 3)
    assert stage.tolist() == comparison.cascade.measures["stage"].astype(int).tolist()
    assert right.tolist() == comparison.cascade.grades.tolist()
    assert cost == pytest.approx(comparison.cascade.measures["tflops"])
    points = sweep(comparison, None)
    assert points == sorted(points)
    assert len(points) > 10
    cheapest, dearest = points[0], points[-1]
    assert cheapest[0] == pytest.approx(comparison.stages[0].measures["tflops"].mean())
    assert dearest[0] >= comparison.cascade.measures["tflops"].mean()


def test_unified_classifiers_of_single_tasks_are_not_one_classifier_per_task(tmp_path: Path) -> None:
    """Two runs of one classifier for all tasks, each cut short after another task, are two runs that lack a task."""
    grouped = {"group_subtasks": {"m": ["m_a", "m_b"]}}
    for seed, task in enumerate(("m_a", "m_b")):
        both = {"tasks": ["m_a_train", "m_b_train"], "sha256": task}
        world = World.random(10, seed, task=task, judge=both)
        for file in (world.write(tmp_path, "intern"), world.write(tmp_path, "cascade", classifier=f"all-{task}")):
            file.write_text(json.dumps({**json.loads(file.read_text()), **grouped}))
    with pytest.raises(ArgumentError, match="answered different questions"):
        report([tmp_path])


def test_two_classifiers_for_one_task_are_not_joined_over_the_other(tmp_path: Path) -> None:
    """A question must not be counted twice."""
    grouped = {"group_subtasks": {"m": ["m_a", "m_b"]}}
    for seed, (task, thresholds) in enumerate((("m_a", 0.5), ("m_a", 0.9), ("m_b", 0.5))):
        world = World.random(10, seed % 2, task=task, thresholds=(thresholds,) * 3)
        world.judge = {"tasks": [f"{task}_train"], "sha256": f"{task}{thresholds}"}
        file = world.write(tmp_path, "cascade", classifier=f"{task}-{thresholds}")
        file.write_text(json.dumps({**json.loads(file.read_text()), **grouped}))
    assert all(len(run.questions) == 10 for run in read([tmp_path]))


def test_models_of_one_name_keep_rows_of_their_own(tmp_path: Path) -> None:
    for seed, lab in enumerate(("one", "two")):
        world = World.random(30, seed, models={"mentor": "lab/large", "intern": f"{lab}/small"}, pair=f"large+{lab}")
        for policy in POLICIES:
            world.write(tmp_path, policy)
    shown = tables(report([tmp_path]))
    names = [cells[0] for cells in shown["pairs-t"].rows]
    assert "one/small alone (1B)" in names
    assert "two/small alone (1B)" in names
    assert {"large + one/small", "large + two/small"} <= set(names)
    assert len(set(names)) == len(names)
    sizes = {cells[0] for cells in shown["sizes-t"].rows}
    assert {"one/small (1B)", "two/small (1B)", "large (4B)"} == sizes


def test_runs_that_are_there_but_recorded_too_little_are_to_be_repeated(tmp_path: Path) -> None:
    """Not "needs the runs  of": no run is missing."""
    world = World.random(10)
    for policy in POLICIES:
        world.write(tmp_path, policy)
    for ledger in tmp_path.rglob("ledger.jsonl"):
        head, *lines = ledger.read_text().splitlines()
        bare = [{**json.loads(line), "stages": []} for line in lines]
        ledger.write_text("\n".join([head, *map(json.dumps, bare)]))
    parts = [part for section in report([tmp_path]).sections for part in section.parts if isinstance(part, Missing)]
    reasons = [part.reason for part in parts]
    assert not [reason for reason in reasons if "the runs  of" in reason]
    (found,) = [part for part in parts if part.reason.startswith("Entropy by sufficiency")]
    assert "have not recorded; repeat each with ledger=FILE and record_features=True" in found.reason
    assert found.command.count("lm_eval --model tandem") == 3


def test_no_command_for_a_missing_run_names_an_argument_twice(tmp_path: Path) -> None:
    prices = {"mentor_price_input": 2, "mentor_price_cached": 1, "mentor_price_output": 8}
    world = World.random(10)
    for policy in ("intern", "cascade"):
        world.write(tmp_path, policy, with_ledger=False, arguments={"policy": policy, **world.models, **prices})
    gaps = missing(report([tmp_path]))
    typed = [line for parts in gaps.values() for part in parts for line in (part.command or "").splitlines()]
    runs_named = [line for line in typed if line.startswith("lm_eval ")]
    assert len(runs_named) > 5
    for line in runs_named:
        words = shlex.split(line)
        names = [pair.partition("=")[0] for pair in words[words.index("--model_args") + 1].split(",")]
        assert len(names) == len(set(names)), line
        assert "ledger" in names, "without it a report of a task that is not the package's has no costs"
        assert words[words.index("--include_path") + 1] == "FOLDER"
    (other_pair,) = (part.command or "" for part in gaps["pairs"] if "second pair" in part.reason)
    assert "--model_args policy=cascade,mentor=OTHER,intern=OTHER,mentor_price_input=2," in other_pair
    (dollars,) = (part.command or "" for part in gaps["dollars"])
    assert "mentor_price_input=2,mentor_price_cached=1,mentor_price_output=8,intern_price_input=P," in dollars


def test_a_comparison_without_costs_names_none(tmp_path: Path) -> None:
    """Runs of a task that is not the package's have no costs without ledgers."""
    world = World.random(10)
    for policy in ("intern", "cascade"):
        world.write(tmp_path, policy, with_ledger=False)
    for samples in tmp_path.rglob("samples_*"):
        lines = [json.loads(line) for line in samples.read_text().splitlines()]
        samples.write_text("\n".join(json.dumps({k: v for k, v in line.items() if k != "tflops"}) for line in lines))
    (table,) = (table for name, table in tables(report([tmp_path])).items() if name.startswith("compared"))
    assert table.caption.startswith("cascade reaches 90.0 [59.6, 98.2] %. Differences are"), table.caption


def test_a_command_for_a_missing_run_can_be_typed(tmp_path: Path) -> None:
    """Values with commas, and objects, need model arguments in JSON."""
    world = World.random(10)
    extra = {"mentor_extra_body": {"top_k": [1, 2]}, **world.models}
    world.write(tmp_path, "intern", arguments={"policy": "intern", **extra})
    (comparison,) = group(read([tmp_path]))
    words = shlex.split(command(comparison, "cascade"))
    given = json.loads(words[words.index("--model_args") + 1])
    assert given["mentor_extra_body"] == extra["mentor_extra_body"]
    assert given["policy"] == "cascade"
