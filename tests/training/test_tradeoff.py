"""From collected files to artefacts and trade-offs: what is read, what is refused, and what is never used."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lm_eval_tandem.errors import ArgumentError, ClassifierError
from lm_eval_tandem.judge import artefact
from lm_eval_tandem.judge.features import SCHEMA
from lm_eval_tandem.training.collected_file import FORMAT, NAME, read, write
from lm_eval_tandem.training.dataset import Collected
from lm_eval_tandem.training.fit_folder import fit
from lm_eval_tandem.training.outcomes import Outcomes, simulate
from lm_eval_tandem.training.recipes import RECIPES
from lm_eval_tandem.training.rows import Row
from lm_eval_tandem.training.thresholds import centre_thresholds, choose_thresholds
from lm_eval_tandem.training.tradeoff import format_points, out_of_sample, thresholds, tradeoff

OBJECTIVE = "cost@accuracy>=always_high-0.05"


def description(mentor: str = "large", tasks: tuple[str, ...] = ("train",), **changes: Any) -> dict[str, Any]:
    roles = {"mentor": {"model": mentor, "parameters": 1000}, "intern": {"model": "small", "parameters": 100}}
    described = {"format": FORMAT, "schema": SCHEMA, "efforts": [10, 20], "insights": "cutoff", "guidance": "guided"}
    return {**described, **roles, "tasks": list(tasks), "version": "1", **changes}


def rows(questions: int = 60, task: str = "train", seed: int = 0) -> list[Row]:
    random, made = np.random.default_rng(seed), []
    for doc in range(questions):
        ease = random.normal()
        for stage in range(3):
            right = ease + 0.8 * stage > 0.3
            entropy = random.exponential(0.02 if right else 0.6, 12)
            features = [*random.normal(size=17).tolist(), float(stage)]
            tokens = 12 + int(random.integers(5))
            made.append(
                Row(
                    task, doc, stage, True, float(right), float(right), features, [], 10 * stage, tokens, False,
                    (-entropy).tolist(), entropy.tolist(), None, None,
                )
            )  # fmt: skip
    return made


def saved(folder: Path, made: list[Row] | None = None, **described: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write(folder / NAME, rows() if made is None else made, description(**described))
    return folder


def outcomes_of(data: Collected, folder: Path) -> Outcomes:
    """The outcomes of collected questions under a classifier."""
    kept, scores, judge = out_of_sample(data, folder)
    return kept.outcomes(scores, judge.probe)


def test_collected_questions_come_back_by_question_and_stage(tmp_path: Path) -> None:
    made = rows(30)
    data, described = read(saved(tmp_path / "c", made[::-1]))
    assert data.features.shape == (30, 3, 18)
    assert described["tasks"] == ["train"]
    row = made[3 * 7 + 2]
    q = data.ids.index("train/7")
    assert data.features[q, 2].tolist() == row.features
    assert data.correct[q, 2] == row.correct
    np.testing.assert_allclose(data.cost[q, 2], 2e-12 * (1000 * 20 + 100 * (20 + row.intern_tokens)))
    assert data.entropy is not None
    assert data.agrees is not None
    assert data.token_cost == pytest.approx(2e-10)
    np.testing.assert_allclose(data.entropy[q, 2], row.answer_entropy, rtol=1e-6)


def test_the_order_in_which_questions_finished_changes_no_byte(tmp_path: Path) -> None:
    made = [*rows(30, "b"), *rows(30, "a", 1)]
    shuffled = [made[i] for i in np.random.default_rng(0).permutation(len(made))]
    one, other = (saved(tmp_path / name, given, tasks=("a", "b")) for name, given in (("x", made), ("y", shuffled)))
    assert (one / NAME).read_bytes() == (other / NAME).read_bytes()
    assert read(other)[0].ids == [f"{task}/{doc}" for task in "ab" for doc in range(30)]


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("column", ["features", "answer_entropy", "answer_logprob", "hidden"])
def test_a_number_that_is_not_finite_is_named_in_one_sentence(tmp_path: Path, column: str, value: float) -> None:
    made = rows(30)
    for row in made:
        row.hidden = np.ones(4, dtype=np.float32)
    broken = made[3 * 7 + 2]
    if column == "hidden":
        broken.hidden[1] = value
    else:
        setattr(broken, column, [value, *getattr(broken, column)[1:]])
    folder = saved(tmp_path / "c", made)
    inputs = "hidden" if column == "hidden" else None
    with pytest.raises(ClassifierError, match="no finite") as refusal:
        fit([folder], tmp_path / "judge", inputs=inputs)
    assert all(words in str(refusal.value) for words in (f"`{column}`", "'train/7'", "stage 2"))
    assert "\n" not in str(refusal.value)


def test_thresholds_refuse_a_question_that_lacks_a_stage(tmp_path: Path) -> None:
    fit([saved(tmp_path / "a")], tmp_path / "judge", inputs="statistics")
    other = rows(30, "other")
    del other[10]
    with pytest.raises(ClassifierError, match="'other/3' has no finite `features` at stage 1"):
        thresholds([saved(tmp_path / "b", other, tasks=("other",))], tmp_path / "judge", "accuracy")
    with pytest.raises(ClassifierError, match="holds stage 2, but its efforts make 2 stages"):
        read(saved(tmp_path / "c", efforts=[10]))


def test_collections_of_several_tasks_are_fitted_together_or_one_by_one(tmp_path: Path) -> None:
    both = [saved(tmp_path / name, rows(40, name, seed), tasks=(name,)) for seed, name in enumerate(("a", "b"))]
    [(folder, report)] = fit(both, tmp_path / "all", objective=OBJECTIVE)
    assert report["questions"] == 80
    assert artefact.load(folder).config["fitted_on"]["tasks"] == ["a", "b"]
    made = fit(both, tmp_path / "each", per="task", objective=OBJECTIVE)
    assert [path.name for path, _ in made] == ["a", "b"]
    assert {report["questions"] for _, report in made} == {40}
    assert artefact.load(tmp_path / "each" / "b").config["fitted_on"]["per"] == "task"
    with pytest.raises(ArgumentError, match="--per subject is not known"):
        fit(both, tmp_path / "x", per="subject")


def spoilt(change: Callable[[dict[str, Any], list[Row]], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        described, made = description(), rows()
        change(described, made)
        folder.mkdir()
        write(folder / NAME, made, described)
        return folder

    return make


def plain_file(folder: Path) -> Path:
    folder.mkdir()
    (folder / NAME).write_text("no parquet")
    return folder


def foreign_parquet(folder: Path) -> Path:
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"a": [1]}), folder / NAME)
    return folder


WRONG: dict[str, tuple[Callable[[Path], Path], str]] = {
    "no folder": (lambda folder: folder / "nowhere", "nowhere does not exist; name a folder that"),
    "no parquet": (plain_file, "nothing that `lm-eval-tandem collect` wrote"),
    "another parquet": (foreign_parquet, "nothing that `lm-eval-tandem collect` wrote"),
    "another schema": (spoilt(lambda d, r: d.update(schema="statistics-99/1")), "schema statistics-99/1"),
    "a missing stage": (spoilt(lambda d, r: r.pop(7)), "no finite `features` at stage 1"),
    "one class": (
        spoilt(lambda d, r: [setattr(row, "correct", 1.0) for row in r] and None),
        "All 180 answers are right",
    ),
    "ten questions": (spoilt(lambda d, r: r.__delitem__(slice(30, None))), r"10 question\(s\) were collected"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_fitted_on_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    make, words = WRONG[case]
    with pytest.raises(ClassifierError, match=words) as refusal:
        fit([make(tmp_path / "c")], tmp_path / "out")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


def test_mixed_pairs_and_efforts_are_refused(tmp_path: Path) -> None:
    first = saved(tmp_path / "a")
    with pytest.raises(ClassifierError, match=r"collected with mentor larger, but .* with large"):
        fit([first, saved(tmp_path / "b", mentor="larger")], tmp_path / "out")
    with pytest.raises(ClassifierError, match=r"collected with efforts \[10, 30\]"):
        fit([first, saved(tmp_path / "c", efforts=[10, 30])], tmp_path / "out")
    chats = saved(tmp_path / "d", apply_chat_template=True)
    with pytest.raises(ClassifierError, match=r"collected with apply_chat_template False, but .* with True"):
        fit([chats, saved(tmp_path / "e", apply_chat_template=False)], tmp_path / "out")
    fit([first], tmp_path / "out", objective=OBJECTIVE)
    assert "apply_chat_template" not in artefact.load(tmp_path / "out").config["fitted_on"]
    fit([chats], tmp_path / "chats", objective=OBJECTIVE)
    assert artefact.load(tmp_path / "chats").config["fitted_on"]["apply_chat_template"] is True
    with pytest.raises(
        ClassifierError, match=r"was fitted on the pair large and small, .* collected with larger and small;"
    ):
        thresholds([tmp_path / "b"], tmp_path / "out", OBJECTIVE)


def test_other_paths_to_the_same_models_are_the_same_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "large").mkdir()
    first = saved(tmp_path / "a", mentor="./large")
    second = saved(tmp_path / "b", rows(50, "other", 5), tasks=("other",), mentor="large")
    fit([first, second], tmp_path / "out", objective=OBJECTIVE)
    third = saved(tmp_path / "c", rows(50, "third", 6), tasks=("third",), mentor=str(tmp_path / "large"))
    assert thresholds([third], tmp_path / "out", OBJECTIVE)[0]


def test_thresholds_judge_no_question_by_a_classifier_that_has_seen_it(tmp_path: Path) -> None:
    seen, unseen = saved(tmp_path / "a"), saved(tmp_path / "b", rows(50, "other", 5), tasks=("other",))
    [(folder, report)] = fit([seen], tmp_path / "out", objective=OBJECTIVE)
    outcomes = outcomes_of(read(seen)[0], folder)
    np.testing.assert_array_equal(outcomes.scores, artefact.load_out_of_fold(folder)["scores"])
    _, right, cost = simulate(outcomes, report["thresholds"])
    assert (right.mean(), cost.mean()) == pytest.approx((report["cascade"]["accuracy"], report["cascade"]["cost"]))
    judge, (data, _) = artefact.load(folder), read(unseen)
    outcomes = outcomes_of(data, folder)
    vectors = data.inputs(judge.schema, judge.probe)
    assert outcomes.scores[3, 1] == pytest.approx(judge.score(vectors[3, 1]))
    points, _ = thresholds([seen, unseen], folder, OBJECTIVE, points=5)
    assert [point.name for point in points if point.name != "frontier"] == [
        *("chosen", "intern", "stage:1", "stage:2", "cascade", "llm_cascade"),
    ]
    assert all(point.accuracy[1] <= point.accuracy[0] <= point.accuracy[2] for point in points)
    assert len(format_points(points).splitlines()) == len(points) + 1
    assert json.dumps([point.as_dict() for point in points])
    (folder / artefact.OUT_OF_FOLD).unlink()
    with pytest.raises(ClassifierError, match="holds no out-of-fold scores"):
        thresholds([seen], folder, OBJECTIVE)


def made_outcomes(questions: int, stages: int, seed: int) -> Outcomes:
    random = np.random.default_rng(seed)
    scores = random.random((questions, stages))
    cost = np.cumsum(random.random((questions, stages)), axis=1)
    return Outcomes(scores, random.random((questions, stages)) < scores, cost, cost + 1)


def test_the_trade_off_of_ten_thousand_questions_takes_seconds() -> None:
    outcomes = made_outcomes(10_000, 4, 0)
    began = time.process_time()
    points = tradeoff(outcomes, (), "cost@accuracy>=always_high-0.01", RECIPES["default"])
    assert time.process_time() - began < 10
    frontier = [point for point in points if point.name == "frontier"]
    assert [p.cost[0] for p in frontier] == sorted(p.cost[0] for p in frontier)
    assert [p.accuracy[0] for p in frontier] == sorted(p.accuracy[0] for p in frontier)


@pytest.mark.parametrize("stages", [5, 9])
def test_more_combinations_than_can_be_compared_have_a_trade_off_too(stages: int) -> None:
    outcomes = made_outcomes(100, stages, 0)
    points = tradeoff(outcomes, (), "accuracy", RECIPES["default"], points=5)
    frontier = [point for point in points if point.name == "frontier"]
    assert 2 <= len(frontier) <= 5
    for before, after in pairwise(frontier):
        assert before.cost[0] < after.cost[0]
        assert before.accuracy[0] < after.accuracy[0]
    chosen = next(point for point in points if point.name == "chosen")
    assert chosen.accuracy[0] == pytest.approx(frontier[-1].accuracy[0])


@settings(deadline=None, max_examples=40)
@given(st.integers(2, 30), st.integers(2, 4), st.integers(0, 10**6))
def test_centring_changes_no_decision_on_its_own_questions(questions: int, stages: int, seed: int) -> None:
    outcomes = made_outcomes(questions, stages, seed)
    chosen = choose_thresholds(outcomes, "accuracy")
    for before, after in zip(
        simulate(outcomes, chosen), simulate(outcomes, centre_thresholds(outcomes, chosen)), strict=True
    ):
        np.testing.assert_array_equal(before, after)


def test_grades_of_other_questions_reach_neither_classifier_nor_thresholds(tmp_path: Path) -> None:
    """Test labels, permuted or not, lie in another file: the artefact is the same to the byte."""
    seen = saved(tmp_path / "a")
    fit([seen], tmp_path / "one", objective=OBJECTIVE)
    test = rows(50, "test", 9)
    order = np.random.default_rng(0).permutation(len(test))
    permuted = [dataclasses.replace(row, correct=test[i].correct) for row, i in zip(test, order, strict=True)]
    decided = []
    for name, made in (("t", test), ("p", permuted)):
        data, _ = read(saved(tmp_path / name, made, tasks=("test",)))
        outcomes = outcomes_of(data, tmp_path / "one")
        decided.append(simulate(outcomes, artefact.load(tmp_path / "one").thresholds)[0])
    np.testing.assert_array_equal(*decided)
    fit([seen], tmp_path / "two", objective=OBJECTIVE)
    for file in ("model.safetensors", "out_of_fold.safetensors", "config.json"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
