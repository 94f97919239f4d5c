"""Every policy from one collection: each is what a live run of it does, and the advice follows from the figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute
import pyarrow.parquet
import pytest
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager

from lm_eval_tandem import _paths
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.judge import artefact
from lm_eval_tandem.training.collect import collect
from lm_eval_tandem.training.collected_file import read
from lm_eval_tandem.training.outcomes import Outcomes
from lm_eval_tandem.training.policy_comparison import (
    PolicyOutcome,
    advice,
    best_policy,
    fixed_policies,
    judged_outcomes,
    judged_policies,
)
from lm_eval_tandem.training.thresholds import Objective, parse_objective
from lm_eval_tandem.training.tradeoff import format_points, thresholds, with_intervals

OTHERS = ["budget_forcing:60", "handoff:20", "steps:0.3", "verify:5"]
QUESTIONS, TASK = 16, "tandem_pair_math_train"
COMMON = {"dtype": "float32", "device": "cpu", "batch_size": 16}
LIMITS = (0.999, 0.99, 0.999, 0.999)
CLASSIFIER = _paths.classifiers() / "pair"


@pytest.fixture(scope="module")
def collected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect(COMMON, [TASK], tmp_path_factory.mktemp("c"), [], limit=QUESTIONS, policies=OTHERS).parent


HANDOFF = {"guidance": "handoff", "efforts": "8:60:100"}
"""The mentor's answers here have about 100 tokens, so that it finishes some of them itself."""


@pytest.fixture(scope="module")
def handed_off(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect({**COMMON, **HANDOFF}, [TASK], tmp_path_factory.mktemp("h"), [], limit=QUESTIONS).parent


def policies_of(collected: Path, limits: tuple[float, ...]) -> dict[str, PolicyOutcome]:
    """Every policy, with the scores that the classifier gives in a live run, under fixed thresholds."""
    data, _ = read(collected)
    judge = artefact.load(CLASSIFIER, stages=4)
    vectors = data.inputs(judge.schema, judge.probe)
    scores = judge.estimator.predict_proba(vectors.reshape(-1, vectors.shape[2]))[:, 1].reshape(vectors.shape[:2])
    outcomes, lengths = data.outcomes(scores, judge.probe), data.probe_lengths(judge.probe)

    def fixed(outcomes: Outcomes, must_reach: bool = True) -> tuple[float, ...]:
        stages = outcomes.scores.shape[1]  # two of llm_cascade, one more of escalate
        return {2: (limits[0], 0.0), 4: limits, 5: (*limits, 0.0)}[stages]

    judged = judged_policies(judged_outcomes(data, outcomes, lengths), fixed)
    return {policy.name: policy for policy in [*fixed_policies(data, data.correct), *judged]}


@pytest.mark.parametrize("policy", ["intern", "stage:2", "mentor", *OTHERS, "cascade", "llm_cascade", "escalate"])
def test_a_policy_computed_from_a_collection_is_what_a_run_of_it_does(collected: Path, policy: str) -> None:
    check_against_a_run(policy, collected, {}, LIMITS)


@pytest.mark.parametrize("policy", ["stage:3", "cascade", "llm_cascade", "escalate"])
def test_so_it_is_where_the_mentor_begins_the_answer(handed_off: Path, policy: str) -> None:
    data, _ = read(handed_off)
    assert data.finished is not None
    assert 0 < data.finished[:, -1].sum() < QUESTIONS
    check_against_a_run(policy, handed_off, HANDOFF, (0.999, 0.9999, 0.99999, 0.999))


def test_questions_that_are_read_together_keep_what_the_mentor_finished(handed_off: Path, tmp_path: Path) -> None:
    """One of the two collections has no question that the mentor finished."""
    data, _ = read(handed_off)
    assert data.finished is not None
    table = pyarrow.parquet.read_table(handed_off / "collected.parquet")
    ended = {row["doc_id"] for row in table.to_pylist() if row["finished"]}
    unfinished = sorted(set(range(QUESTIONS)) - ended)
    part = table.filter(pyarrow.compute.is_in(table["doc_id"], pyarrow.array(unfinished)))
    pyarrow.parquet.write_table(part, tmp_path / "collected.parquet")
    both, _ = read(handed_off, tmp_path)
    assert both.finished is not None
    assert both.begun_cost is not None
    assert both.finished.sum() == data.finished.sum()
    assert len(both.begun_cost) == len(both.ids) == QUESTIONS + len(unfinished)


def check_against_a_run(policy: str, collected: Path, setting: dict[str, str], thresholds: tuple[float, ...]) -> None:
    """Grades and costs of every question are those of a run of the policy."""
    limits = {"thresholds": ":".join(map(str, thresholds))} if "cade" in policy or policy == "escalate" else {}
    lm = TandemLM(**COMMON, **setting, policy=policy, store=str(collected / "store.sqlite"), **limits)
    manager = TaskManager(include_path=str(_paths.task_configs()), include_defaults=False)
    results = simple_evaluate(lm, tasks=[TASK], task_manager=manager, limit=QUESTIONS, bootstrap_iters=0)
    grades = {sample["doc_id"]: sample["acc"] for sample in results["samples"][TASK]}
    lm.close()
    by_question = {record.doc_id: record for record in lm.records}
    found = policies_of(collected, thresholds)[policy]
    np.testing.assert_array_equal(found.correct, [grades[doc] for doc in range(QUESTIONS)])
    np.testing.assert_allclose(found.cost, [by_question[doc].tflops for doc in range(QUESTIONS)], rtol=1e-9)
    if limits:
        stages = {record.stage for record in lm.records}
        assert len(stages) > 1, "thresholds at which nothing is decided show nothing"


def test_a_run_takes_the_thresholds_that_were_chosen_for_its_policy(tmp_path: Path) -> None:
    judge = artefact.load(CLASSIFIER)
    own = (0.99, 0.98, 0.97, 0.96)
    artefact.save(
        tmp_path / "judge",
        judge.estimator,
        judge.thresholds,
        policy_thresholds={"escalate": own},
        pair=judge.pair,
        fitted_on=judge.config["fitted_on"],
        recipe=judge.recipe,
        card="",
        schema=judge.schema,
        probe=judge.probe,
    )
    for policy, given, expected in (
        ("escalate", {}, own),
        ("llm_cascade", {}, judge.thresholds),
        ("escalate", {"thresholds": "0.1:0.2:0.3:0.4"}, (0.1, 0.2, 0.3, 0.4)),
    ):
        lm = TandemLM(**COMMON, **given, policy=policy, classifier=str(tmp_path / "judge"))
        assert lm.judge is not None
        assert tuple(lm.judge.thresholds) == tuple(lm.description["thresholds"]) == expected
        lm.close()


def test_thresholds_compare_all_policies_and_give_one_piece_of_advice(collected: Path) -> None:
    points, sentence = thresholds([collected], CLASSIFIER, "cost@accuracy>=always_high-0.1", points=4)
    names = [point.name for point in points if point.name != "frontier"]
    assert names == [
        *("chosen", "intern", "stage:1", "stage:2", "stage:3", "mentor", *OTHERS),
        *("cascade", "llm_cascade", "escalate"),
    ]
    assert len(format_points(points).splitlines()) == len(points) + 1
    named = sentence.removeprefix("Use policy=").split(":")[0].split()[0]
    assert named in {name.split(":")[0] for name in names[1:]}
    assert "against the mentor alone" in sentence
    bare, _ = thresholds([collected], None, "accuracy")
    assert [point.name for point in bare] == names[1:10]


def test_agreement_with_the_mentor_says_nothing_of_the_mentor(collected: Path) -> None:
    points, sentence = thresholds([collected], CLASSIFIER, "accuracy", points=4, labels="mentor")
    assert not {"mentor", "escalate", "budget_forcing:60"} & {point.name for point in points}
    assert "mentor alone" not in sentence


def test_a_collection_without_the_mentors_answers_compares_the_rest(collected: Path, tmp_path: Path) -> None:
    stored = tmp_path / "store.sqlite"
    stored.write_bytes((collected / "store.sqlite").read_bytes())
    collect(COMMON, [TASK], tmp_path, [], limit=QUESTIONS, mentor=False)
    points, sentence = thresholds([tmp_path], None, "accuracy")
    assert [point.name for point in points] == ["intern", "stage:1", "stage:2", "stage:3"]
    assert "mentor alone" not in sentence
    with pytest.raises(ClassifierError, match="--labels mentor needs the mentor's own answers"):
        thresholds([tmp_path], CLASSIFIER, "accuracy", labels="mentor")


def outcome(name: str, right: int, cost: float, questions: int = 100) -> PolicyOutcome:
    return PolicyOutcome(name, (np.arange(questions) < right).astype(float), np.full(questions, cost))


MADE = [outcome("intern", 60, 1), outcome("stage:1", 71, 2), outcome("stage:2", 70, 3), outcome("cascade", 71, 2.5)]


@pytest.mark.parametrize(
    ("objective", "name"),
    [
        ("accuracy", "stage:1"),  # as accurate as the cascade, and cheaper
        ("accuracy@cost<=1.5", "intern"),
        ("accuracy@cost<=0.5", "intern"),  # nothing is as cheap; it lacks least
        ("cost@accuracy>=always_high", "stage:1"),
        ("cost@accuracy>=always_high-0.1", "intern"),
    ],
)
def test_the_best_policy_serves_the_objective(objective: str, name: str) -> None:
    assert best_policy(MADE, parse_objective(objective)).name == name
    mentor = outcome("mentor", 90, 9)
    if objective == "accuracy":
        assert best_policy([*MADE, mentor], parse_objective(objective)).name == "mentor"


def test_the_advice_has_intervals_and_names_what_is_cheaper_and_not_worse() -> None:
    goal = Objective("accuracy", 0.0)
    sentence = advice([*MADE[:1], outcome("stage:1", 70, 1.5), outcome("cascade", 72, 2)], goal, "TFLOPs")
    assert sentence.startswith("Use policy=cascade: 72.0 % [63.0, 80.0] of these 100 questions right at 2 TFLOPs")
    assert "against the intern alone +12.0 points [+6.0, +19.0] at 2.00 of its cost." in sentence
    assert sentence.endswith(
        "policy=stage:1, at 0.75 of that cost, is not shown to be worse: -2.0 points [-5.0, +0.0]."
    )
    clear = advice([outcome("intern", 20, 1), outcome("mentor", 90, 9)], goal, "dollars")
    assert "not shown" not in clear
    assert "Use policy=mentor: " in clear
    alone = advice([outcome("intern", 90, 1), outcome("mentor", 80, 9)], goal, "tokens")
    assert alone.startswith("Use policy=intern: ")
    assert "against the mentor alone +10.0 points" in alone


def test_the_advice_claims_no_certainty_where_all_questions_are_alike() -> None:
    goal = Objective("accuracy", 0.0)
    same = advice([outcome("intern", 10, 1, 10), outcome("mentor", 10, 9, 10)], goal, "TFLOPs")
    assert same.startswith("Use policy=intern: 100.0 % [69.2, 100.0] of these 10 questions")
    assert "against the mentor alone +0.0 points [-30.8, +30.8]" in same
    opposite = advice([outcome("intern", 0, 1, 10), outcome("mentor", 10, 9, 10)], goal, "TFLOPs")
    assert "against the intern alone +100.0 points [+38.3, +100.0]" in opposite
    (point,) = with_intervals([("intern", None, np.ones(10), np.arange(10.0))], "TFLOPs")
    assert point.accuracy == pytest.approx((1, 0.025**0.1, 1))
    assert point.cost[1] < 4.5 < point.cost[2]


@pytest.mark.parametrize(
    ("policies", "sentence"),
    [
        ("budget_forcing:many", "policy=budget_forcing:many cannot work: N of budget_forcing:N has to be"),
        ("steps:0.5,stage:1", "--policies stage:1 is collected anyway"),
        ("cascade", "--policies cascade is what a classifier is fitted for"),
    ],
)
def test_what_cannot_be_collected_beside_the_stages_is_refused(
    policies: str, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from lm_eval_tandem.cli import main

    with pytest.raises(SystemExit, match="1"):
        main(["collect", "--tasks", TASK, "--output", "never", "--policies", policies])
    assert sentence in capsys.readouterr().err
    assert not Path("never").exists()
