"""What `lm-eval-tandem run --output` replaces: answers of the same run to the same questions, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bundled import COMMON
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.harness.own_questions import run
from lm_eval_tandem.pair import problems

ROWS = [{"question": row["question"], "answer": str(row["answer"])} for row in problems.rows("math", "test", 3)]
CONFIG: dict[str, Any] = {"model_args": {**COMMON, "policy": "stage:1"}, "gen_kwargs": {"max_gen_toks": 40}}


class Answers:
    """A folder with a configuration, questions, and the file of their answers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.output = folder, folder / "out.jsonl"

    def run(self, config: dict[str, Any] = CONFIG, rows: list[dict[str, Any]] = ROWS, limit: int | None = None) -> int:
        """The number of rows that were answered."""
        questions, settings = self.folder / "in.jsonl", self.folder / "config.yaml"
        questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
        settings.write_text(json.dumps(config))
        return run(settings, questions, self.output, limit)[0]


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path)


def changed(**arguments: Any) -> dict[str, Any]:
    return CONFIG | {"model_args": CONFIG["model_args"] | arguments}


def test_the_same_run_goes_on_in_its_file(answers: Answers) -> None:
    answers.output.touch()
    assert answers.run(limit=1) == 1
    assert answers.run() == 3
    whole = answers.output.read_text()
    for config in (changed(batch_size=2), CONFIG | {"batch_size": 1, "tasks": ["gsm8k"]}, changed(mentor="pair")):
        assert answers.run(config) == 3
        assert [json.loads(line)["answer"] for line in answers.output.read_text().splitlines()] == [
            json.loads(line)["answer"] for line in whole.splitlines()
        ]
    more = [*ROWS, {"question": "1 + 1 ="}]
    assert answers.run(rows=more) == 4


def test_a_file_with_nothing_but_errors_is_replaced_by_its_own_run(answers: Answers) -> None:
    rows = [{"question": "1 + " * 2000, "id": 1}]
    for _ in range(2):
        assert answers.run(rows=rows) == 0
    assert "error" in json.loads(answers.output.read_text())


def test_rows_name_their_models(answers: Answers) -> None:
    answers.run(limit=1)
    record = json.loads(answers.output.read_text())["tandem"]
    assert record["models"] == {"mentor": "pair/mentor", "intern": "pair/intern"}


@pytest.mark.parametrize(
    "content",
    [
        "my notes\n",
        "[" * 100_000,
        json.dumps(ROWS[0]) + "\n",
        json.dumps({"question": "mine", "error": "of mine"}) + "\n",
        json.dumps({**ROWS[0], "error": "IndexError"}) + "\n",
        "\xff\xfe",
    ],
)
def test_any_other_file_stays(answers: Answers, content: str, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse_to_load(monkeypatch)
    answers.output.write_text(content, encoding="latin-1")
    with pytest.raises(ArgumentError, match=r"out\.jsonl holds .*would be lost.* give another file, or move"):
        answers.run()
    assert answers.output.read_text(encoding="latin-1") == content


@pytest.mark.parametrize(
    ("config", "rows", "words"),
    [
        (changed(policy="intern"), ROWS, "it had policy=stage:1, and this run has policy=intern"),
        (changed(seed=5), ROWS, "other model_args, gen_kwargs"),
        (changed(efforts="5:9:12"), ROWS, "other model_args, gen_kwargs"),
        (changed(intern_revision="main"), ROWS, "other model_args, gen_kwargs"),
        (CONFIG | {"gen_kwargs": {"max_gen_toks": 41}}, ROWS, "other model_args, gen_kwargs"),
        (CONFIG, [{"question": "1 + 1 ="}], "line 1.* that --input does not hold"),
        (CONFIG, [ROWS[0] | {"answer": "5"}, *ROWS[1:]], "line 1.* that --input does not hold"),
    ],
)
def test_answers_of_another_run_stay(
    answers: Answers, config: dict[str, Any], rows: list[dict[str, Any]], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers.run()
    before = answers.output.read_text()
    refuse_to_load(monkeypatch)
    with pytest.raises(ArgumentError, match=words):
        answers.run(config, rows)
    assert answers.output.read_text() == before


def test_answers_of_other_models_stay(answers: Answers, monkeypatch: pytest.MonkeyPatch) -> None:
    answers.run({"model": "ensemble", "model_args": {**COMMON, "aggregation": "vote"}, "gen_kwargs": {}}, limit=1)
    rows = json.loads(answers.output.read_text())
    assert answers.run({"model": "ensemble", "model_args": {**COMMON, "aggregation": "vote"}}, limit=1) == 1
    del rows["tandem"]["settings"]
    rows["tandem"] |= {"policy": "stage:1", "models": {"mentor": "org/large", "intern": "pair/intern"}}
    answers.output.write_text(json.dumps(rows) + "\n")
    refuse_to_load(monkeypatch)
    with pytest.raises(ArgumentError, match="the models org/large and pair/intern, and this run has pair/mentor and"):
        answers.run()


def test_what_an_older_version_wrote_is_compared_by_its_record(answers: Answers) -> None:
    """Its rows name neither models nor a checksum of the settings."""
    answers.run(limit=1)
    row = json.loads(answers.output.read_text())
    del row["tandem"]["models"], row["tandem"]["settings"]
    answers.output.write_text(json.dumps(row) + "\n")
    with pytest.raises(ArgumentError, match="it had policy=stage:1, and this run has policy=mentor"):
        answers.run(changed(policy="mentor"))
    assert answers.run() == 3


def refuse_to_load(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(TandemLM, "__init__", loaded)
