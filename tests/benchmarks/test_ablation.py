"""The ablation's command line: a row per variant of the judge, on training questions and on those of another task."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.judge.features import SCHEMA
from lm_eval_tandem.training.collected_file import FORMAT, NAME, read, write
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.rows import Row

ablation = pytest.importorskip("benchmarks.ablation", reason="the tests were copied without benchmarks/")


def collected(folder: Path, task: str, questions: int, seed: int) -> Path:
    """Collected questions at three stages; the intern's entropy is low where its answer is correct."""
    rng = np.random.default_rng(seed)
    rows = []
    for question in range(questions):
        ease = rng.normal()
        for stage in range(3):
            correct = ease + 0.8 * stage > 0.3
            entropy = rng.exponential(0.02 if correct else 0.6, 12)
            rows.append(
                Row(
                    task=task,
                    doc_id=question,
                    stage=stage,
                    judged=True,
                    correct=float(correct),
                    agrees=None,
                    features=[*rng.normal(size=17).tolist(), float(stage)],
                    parts=[],
                    mentor_tokens=10 * stage,
                    intern_tokens=12,
                    truncated=False,
                    answer_logprob=(-entropy).tolist(),
                    answer_entropy=entropy.tolist(),
                    answer_ids=None,
                    prompt_end=None,
                )
            )
    models = {"mentor": {"model": "large", "parameters": 1000}, "intern": {"model": "small", "parameters": 100}}
    description = {"format": FORMAT, "schema": SCHEMA, "efforts": [10, 20], "insights": "cutoff", "guidance": "guided"}
    folder.mkdir()
    write(folder / NAME, rows, {**description, **models, "tasks": [task], "version": "1"})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Questions of the training task, and of another one."""
    base = tmp_path_factory.mktemp("collected")
    return collected(base / "train", "train", 50, seed=0), collected(base / "other", "other", 20, seed=1)


@pytest.fixture
def two_variants(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only variants that are fitted in an instant, one without a probe and one with it; boosting takes longer."""

    def variants(data: Collected) -> Iterator[object]:
        yield ablation.Variant("statistics", LogisticJudge, ablation.statistics)
        yield ablation.Variant("probe", LogisticJudge, ablation.probe_only, ablation.FIXED_PROBE)

    monkeypatch.setattr(ablation, "variants", variants)
    monkeypatch.setattr(ablation, "BoostingJudge", LogisticJudge)


def rows_of(page: str) -> dict[str, list[str]]:
    """The cells of each row by its first one."""
    lines = re.findall(r"^\| (.*?) \|(.*)\|$", page, flags=re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in lines}


@pytest.mark.usefixtures("two_variants")
def test_the_command_writes_auc_accuracy_and_cost_of_every_variant(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train, other = map(str, folders)
    output = tmp_path / "new" / "table.md"
    options = ["--objective", "cost@accuracy>=always_high-0.1", "--title", "Mine", "--output", str(output)]
    ablation.main([train, "--transfer", other, *options])
    assert capsys.readouterr().out == f"ablation: {output}\n"
    page = output.read_text(encoding="utf-8")
    assert page.startswith("# Mine\n")
    rows = rows_of(page)
    auc, accuracy, cost, transfer_accuracy, transfer_cost = map(float, rows["probe"][:5])
    assert auc > 0.9, "entropies tell correct answers apart"
    assert auc > float(rows["statistics"][0]), "and random statistics do not"
    assert 60 <= accuracy <= 100
    assert 60 <= transfer_accuracy <= 100
    assert 0 < cost < 100, "the cascade costs less than always-high"
    assert 0 < transfer_cost < 100
    default, expected_value, skipping = list(rows)[-3:]
    assert re.fullmatch(
        r"the default recipe: (statistics\+)?probe of \d+ tokens or .* nats, logistic regression", default
    )
    assert (expected_value, skipping) == (
        "the default recipe, stopping by expected value",
        "the default recipe, unpromising stages skipped",
    )
    expected_value, skipping = rows[expected_value], rows[skipping]
    assert expected_value[0] == skipping[0] == "", "other stopping rules change no score"
    assert "in sample" in expected_value[-1]
    assert 0 < float(skipping[2]) < 100


@pytest.mark.usefixtures("two_variants")
def test_without_an_output_the_table_is_printed_and_fewer_questions_can_be_used(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ablation.main([str(folders[0]), "--questions", "30", "--objective", "accuracy"])
    page = capsys.readouterr().out
    assert "\n30 training questions, " in page
    assert rows_of(page)["probe"][3:5] == ["", ""], "no other task was given"


@pytest.mark.usefixtures("two_variants")
def test_no_more_questions_are_named_than_there_are(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ablation.main([str(folders[0]), "--questions", "70", "--objective", "accuracy"])
    assert "\n50 training questions, " in capsys.readouterr().out


@pytest.mark.usefixtures("two_variants")
def test_every_row_is_of_the_objective_that_fit_takes(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A limit of costs is no margin of accuracy: stopping by expected value keeps to it as well."""
    data, _ = read(folders[0])
    always_high = data.cost[:, -1].mean()
    limit = 0.6 * always_high
    ablation.main([str(folders[0]), "--objective", f"accuracy@cost<={limit:.6g}"])
    rows = rows_of(capsys.readouterr().out)
    expected_value = rows["the default recipe, stopping by expected value"]
    assert 0 < float(expected_value[2]) <= 60.1


@pytest.mark.usefixtures("two_variants")
def test_an_objective_out_of_reach_leaves_the_other_figures_in_the_table(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    ablation.main([str(folders[0]), "--objective", "accuracy@cost<=1e-30"])
    rows = rows_of(capsys.readouterr().out)
    assert float(rows["probe"][0]) > 0.9
    assert rows["probe"][1:] == ["", "", "", "", "no thresholds meet the objective"]
    assert rows["the default recipe"][-1] == "no thresholds meet the objective"


@pytest.mark.usefixtures("two_variants")
def test_a_row_that_alone_cannot_reach_the_objective_says_so(folders: tuple[Path, Path]) -> None:
    """Skipped stages are not answered from, so an accuracy that the others reach may be out of reach for them."""
    data, _ = read(folders[0])
    labels = np.asarray(data.correct).astype(np.int64)
    probe = ablation.Probe(8)
    result = ablation.skip_unpromising_probes(data, labels, np.zeros(labels.shape), probe, "accuracy@cost<=1e-30", 42)
    assert result.in_domain is None
    assert result.note == "no thresholds meet the objective"


def test_a_folder_without_collected_questions_ends_the_command_with_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^ablation: error: .*\.$") as ended:
        ablation.main([str(tmp_path)])
    assert "\n" not in str(ended.value)


def test_every_variant_has_a_name_of_its_own_and_inputs_of_the_collected_shape(folders: tuple[Path, Path]) -> None:
    data, _ = read(folders[0])
    variants = [variant for variant in ablation.variants(data) if "question and insights" not in variant.name]
    assert len({variant.name for variant in variants}) == len(variants) > 10
    for variant in variants:
        if variant.name != "+ means by position":  # needs statistics by part, which were not collected here
            assert variant.inputs(data).shape[:2] == (50, 3)
