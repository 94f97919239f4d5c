"""`lm-eval-tandem run`: answers to own questions in their places, with their costs; what cannot work is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from bundled import COMMON, instances
from lm_eval_tandem.cli import main
from lm_eval_tandem.harness import own_questions
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems

QUESTIONS = [str(row["question"]) for row in problems.rows("math", "test", 5)]
SETTINGS = {"model_args": {**COMMON, "policy": "cascade"}, "gen_kwargs": {"max_gen_toks": 90}, "tasks": ["gsm8k"]}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
)


def run(folder: Path, rows: list[Any], config: dict[str, Any] | None = None, *more: str) -> list[dict[str, Any]]:
    """The lines of the output; the command ends as `main` does."""
    (folder / "config.yaml").write_text(json.dumps(SETTINGS if config is None else config))
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "in.jsonl").write_text("\n".join(lines) + "\n")
    files = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    main(["run", str(folder / "config.yaml"), *files, *more])
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().splitlines()]


def test_rows_of_every_shape_come_back_in_their_places(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shapes = [
        {"prompt": QUESTIONS[0], "id": "a"},
        {"question": QUESTIONS[1], "answer": "what a data set says"},
        {"instruction": QUESTIONS[2], "input": ""},
        {"messages": [{"role": "user", "content": QUESTIONS[3]}]},
        {"prompt": QUESTIONS[4]},
    ]
    rows = run(tmp_path, shapes)
    printed = capsys.readouterr()
    assert "answered: 5 of 5" in printed.out
    assert "tasks of" in printed.err
    lm = TandemLM(**SETTINGS["model_args"])
    expected = lm.generate_until(instances(5), disable_tqdm=True)
    records = {record.doc_id: record for record in lm.records}
    lm.close()
    assert [row["answer"] for row in rows] == expected
    assert rows[0]["id"] == "a"
    for number, row in enumerate(rows):
        assert row["tandem"]["stage"] == records[number].stage
        assert row["tandem"]["tflops"] == pytest.approx(records[number].tflops)
        assert row["tandem"]["tokens"]["mentor_new"] == records[number].tokens.mentor_new
    again = run(tmp_path, [row | {"error": "of an earlier run"} for row in rows])
    assert [row | {"tandem": 0} for row in again] == [row | {"tandem": 0} for row in rows]


def test_a_run_goes_on_from_what_is_stored(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in QUESTIONS]
    first = run(tmp_path, rows, None, "--limit", "2")
    assert len(first) == 2
    assert (tmp_path / "out.jsonl.sqlite").is_file()
    whole = run(tmp_path, rows)
    assert [row["answer"] for row in whole[:2]] == [row["answer"] for row in first]
    assert len(whole) == 5


def test_a_question_that_fails_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, [{"prompt": QUESTIONS[0]}, {"prompt": "1 + " * 2000}, {"prompt": QUESTIONS[1]}])
    assert "1 question(s) failed" in capsys.readouterr().err
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert ["answer" in row for row in rows] == [True, False, True]
    assert "does not fit into the window" in rows[1]["error"]


def test_conversations_are_rendered_and_both_writers_named(tmp_path: Path) -> None:
    models = {role: str(tiny.save(tmp_path / role, "llama", seed)) for seed, role in enumerate(["mentor", "intern"])}
    for folder in models.values():
        (Path(folder) / "chat_template.jinja").write_text(TEMPLATE)
    config = {
        "model_args": {**COMMON, **models, "policy": "handoff:5"},
        "apply_chat_template": True,
        "system_instruction": "Be brief.",
        "gen_kwargs": "max_gen_toks=12",
    }
    turns = [("user", "One?"), ("assistant", "Two."), ("user", "Three?")]
    (row,) = run(tmp_path, [{"messages": [{"role": role, "content": text} for role, text in turns]}], config)
    mentor, intern = row["tandem"]["segments"]
    assert (mentor["writer"], mentor["tokens"], intern["writer"]) == ("mentor", 5, "intern")
    assert mentor["characters"] + intern["characters"] == len(row["answer"])


@pytest.mark.parametrize(
    ("rows", "config", "more", "sentence"),
    [
        (["no JSON"], None, (), "line 1 holds no question"),
        ([{"prompt": "a"}, {"text": "b"}], None, (), "line 2 holds no question; give an object with messages"),
        ([{"messages": [{"role": "user"}]}], None, (), "line 1 holds no question"),
        ([""], None, (), "holds no questions"),
        ([{"prompt": "a"}], {"tasks": []}, (), "has no model_args"),
        ([{"prompt": "a"}], {"model": "hf", "model_args": {"x": 1}}, (), "is for model: hf"),
        ([{"prompt": "a"}], None, ("--limit", "0"), "--limit 0 selects no questions"),
        ([{"prompt": "a"}], SETTINGS | {"system_instruction": "Be brief."}, (), "add apply_chat_template: true"),
    ],
)
def test_what_cannot_work_is_refused_before_a_model_is_loaded(
    tmp_path: Path,
    rows: list[Any],
    config: dict[str, Any] | None,
    more: tuple[str, ...],
    sentence: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def loaded(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(TandemLM, "__init__", loaded)
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, rows, config, *more)
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_neither_the_input_nor_a_folder_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    with pytest.raises(own_questions.ArgumentError, match="is the input"):
        own_questions.check_output(file, file)
    for output in (tmp_path, tmp_path / "nowhere" / "out.jsonl"):
        with pytest.raises(own_questions.ArgumentError, match="cannot be written"):
            own_questions.check_output(output, file)


@pytest.mark.parametrize(
    ("method", "parameters", "longest"),
    [
        ("loop", {"max_new_tokens_per_round": 4}, 12),
        ("progressive", {"outline_max_tokens": 8}, 12),  # which counts the outline
    ],
)
def test_a_file_of_the_authors_toolkit_runs_as_it_is(
    tmp_path: Path, method: str, parameters: dict[str, int], longest: int
) -> None:
    config = {
        "server": {"host": "127.0.0.1", "port": 8000},
        "model_specs": [{"path": "pair/mentor", "engine": "hf", "device": "cpu"}, {"path": "pair/intern"}],
        "ensemble": {
            "output_aggregation_method": method,
            "output_aggregation_params": parameters,
            "generation": {"max_tokens": longest, "temperature": 0.0, "stop_strings": []},
        },
        "batch_size": 2,
    }
    for row in run(tmp_path, [{"prompt": text} for text in QUESTIONS[:2]], config):
        assert row["answer"]
        if method == "loop":
            segments = [(segment["writer"], segment["tokens"]) for segment in row["tandem"]["segments"]]
            assert segments == [("mentor", 4), ("intern", 4), ("mentor", 4)]
        else:
            assert row["tandem"]["policy"] == "outline:8"
            assert (row["tandem"]["tokens"]["mentor_new"], row["tandem"]["tokens"]["intern_new"]) == (8, 4)
