"""`lm-eval-tandem run`: answers to own questions in their places, with their costs; what cannot work is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import tiny
from bundled import COMMON, instances
from lm_eval_tandem.cli import main
from lm_eval_tandem.harness import answers_file, question_rows
from lm_eval_tandem.harness.model import TandemLM
from lm_eval_tandem.pair import problems

QUESTIONS = [str(row["question"]) for row in problems.rows("math", "test", 5)]
SETTINGS = {"model_args": {**COMMON, "policy": "cascade"}, "gen_kwargs": {"max_gen_toks": 90}, "tasks": ["gsm8k"]}
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<go>{% endif %}"
)


def run(
    folder: Path, rows: list[Any], config: dict[str, Any] | None = None, *more: str, fails: bool = False
) -> list[dict[str, Any]]:
    """The rows of the output; the command ends as `main` does, unless `fails` says that some question fails."""
    (folder / "config.yaml").write_text(json.dumps(SETTINGS if config is None else config))
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    (folder / "in.jsonl").write_bytes(("\n".join(lines) + "\n").encode())
    files = ["--input", str(folder / "in.jsonl"), "--output", str(folder / "out.jsonl")]
    if fails:
        with pytest.raises(SystemExit, match="1"):
            main(["run", str(folder / "config.yaml"), *files, *more])
    else:
        main(["run", str(folder / "config.yaml"), *files, *more])
    return [json.loads(line) for line in (folder / "out.jsonl").read_text().rstrip("\n").split("\n")]


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
    assert rows[1]["input_answer"] == "what a data set says"
    for number, row in enumerate(rows):
        assert row["tandem"]["stage"] == records[number].stage
        assert row["tandem"]["tflops"] == pytest.approx(records[number].tflops)
        assert row["tandem"]["tokens"]["mentor_new"] == records[number].tokens.mentor_new


def test_every_field_of_the_input_comes_back(tmp_path: Path) -> None:
    mine = {"answer": "#### 2", "tandem": [1], "error": None, "segments": "s", "id": 7, "text": "a\u2028b\x85c"}
    rows = run(tmp_path, [{"question": QUESTIONS[0]} | mine, {"question": "1 + " * 2000} | mine], fails=True)
    names = ("answer", "tandem", "error")
    expected = {f"input_{name}" if name in names else name: value for name, value in mine.items()}
    for row, added in zip(rows, ({"answer", "tandem"}, {"error"}), strict=True):
        assert {name: row[name] for name in row if name != "question" and name not in added} == expected
        assert added <= row.keys()
    assert rows[0]["answer"] != "#### 2"


def test_a_run_goes_on_from_what_is_stored(tmp_path: Path) -> None:
    rows = [{"prompt": text} for text in QUESTIONS]
    first = run(tmp_path, rows, None, "--limit", "2")
    assert len(first) == 2
    assert (tmp_path / "out.jsonl.sqlite").is_file()
    whole = run(tmp_path, rows)
    assert [row["answer"] for row in whole[:2]] == [row["answer"] for row in first]
    assert len(whole) == 5


def test_a_question_that_fails_leaves_the_others_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"prompt": QUESTIONS[0]}, "", {"prompt": "1 + " * 2000, "id": "b"}, {"prompt": QUESTIONS[1]}]
    rows = run(tmp_path, asked, fails=True)
    assert "1 question(s) failed" in capsys.readouterr().err
    assert ["answer" in row for row in rows] == [True, False, True]
    assert rows[1]["error"].startswith("line 3 (id b) does not fit into the window of ")
    again = run(tmp_path, asked, fails=True)
    assert [row.get("answer") for row in again] == [row.get("answer") for row in rows]


def test_a_conversation_that_no_template_accepts_fails_alone(tmp_path: Path) -> None:
    models = {role: str(tiny.save(tmp_path / role, "llama", seed)) for seed, role in enumerate(["mentor", "intern"])}
    strict = "{% if messages[0].role != 'user' %}{{ raise_exception('no') }}{% endif %}" + TEMPLATE
    for folder in models.values():
        (Path(folder) / "chat_template.jinja").write_text(strict)
    config = {
        "model_args": {**COMMON, **models, "policy": "handoff:5"},
        "apply_chat_template": True,
        "gen_kwargs": {"max_gen_toks": 12},
    }
    wrong = {"messages": [{"role": "tool", "content": "Two."}, {"role": "user", "content": "One?"}]}
    rows = run(tmp_path, [wrong, {"prompt": "One?"}], config, fails=True)
    assert "does not accept a conversation of the turns tool, user" in rows[0]["error"]
    assert "answer" in rows[1]


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


def test_a_model_without_a_chat_template_is_said_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    models = {role: str(tiny.save(tmp_path / role, "llama", seed)) for seed, role in enumerate(["mentor", "intern"])}
    Path(models["mentor"], "chat_template.jinja").unlink()
    config = {"model_args": {**COMMON, **models, "policy": "handoff:5"}, "apply_chat_template": True}
    with pytest.raises(SystemExit, match="1"):
        run(tmp_path, [{"prompt": "One?"}, {"prompt": "Two?"}], config)
    assert capsys.readouterr().err.count("has no chat template; leave out apply_chat_template, or name a model") == 1
    assert not (tmp_path / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("rows", "config", "more", "sentence"),
    [
        (["no JSON"], None, (), "in.jsonl: line 1 is not JSON (Expecting value at character 1); give"),
        ([{"prompt": "a"}, {"text": "b"}], None, (), "line 2 has none of messages, prompt, question and instruction"),
        ([{"messages": [{"role": "user"}]}], None, (), "line 1 has messages of which number 1 lacks role or content"),
        ([{"messages": [{"role": "user", "content": " "}]}], None, (), "line 1 has messages without any text"),
        ([{"messages": "a"}], None, (), "line 1 has messages that are no list"),
        (["[1]"], None, (), "line 1 holds no object"),
        (['{"prompt": "a", "x": NaN}'], None, (), "line 1 cannot be read as JSON (NaN is no number of JSON)"),
        (['{"prompt": "a'], None, (), "line 1 is not JSON (Unterminated string starting at character 12)"),
        (["[" * 100_000], None, (), "line 1 cannot be read as JSON"),
        ([{"question": 5}], None, (), "line 1 has a question that is no text"),
        ([{"instruction": "a", "input": 5}], None, (), "line 1 has an instruction that is no text"),
        ([{"prompt": ""}], None, (), "line 1 has prompt without any text"),
        ([{"prompt": " \n "}], None, (), "line 1 has prompt without any text"),
        (['{"prompt": "a", "id": "\\ud800"}'], None, (), "line 1 holds half of a character"),
        (
            [{"prompt": "a"}, "x", "", "y", {"prompt": ""}, {"prompt": "b"}, "z"],
            None,
            (),
            "4 of 6 lines hold no question: line 2 is not JSON (Expecting value at character 1), line 4 is not JSON "
            "(Expecting value at character 1), line 5 has prompt without any text, and 1 more; give",
        ),
        (
            [{"prompt": "a", "answer": "1"}, {"prompt": "b", "input_answer": "2"}],
            None,
            (),
            "line 1 holds answer, which comes back as input_answer, and line 2 holds input_answer itself; rename one",
        ),
        ([""], None, (), "holds no questions"),
        ([{"prompt": "a"}], {"tasks": []}, (), "has no model_args"),
        ([{"prompt": "a"}], {"model": "hf", "model_args": {"x": 1}}, (), "is for model: hf"),
        ([{"prompt": "a"}], None, ("--limit", "0"), "--limit 0 selects no questions"),
        (
            [{"prompt": "a", "id": 9}],
            SETTINGS | {"system_instruction": "Be brief."},
            (),
            "line 1 (id 9) has 2 turns, the system_instruction among them, and several turns need",
        ),
        ([{"prompt": "a"}], SETTINGS | {"gen_kwargs": {"max_gen_tok": 9}}, (), "max_gen_tok are not known"),
        ([{"prompt": "a"}], SETTINGS | {"gen_kwarg": {}}, (), "gen_kwarg is not known (did you mean gen_kwargs?)"),
        ([{"prompt": "a"}], SETTINGS | {"batchsize": 2}, (), "batchsize is not known (did you mean batch_size?)"),
        (
            [{"prompt": "a"}],
            SETTINGS | {"polcy": "intern", "max_gen_tok": 9},
            (),
            "did you mean policy in model_args or max_gen_toks in gen_kwargs?",
        ),
        ([{"prompt": "a"}], SETTINGS | {"qqqq": 1}, (), "qqqq is not known; use model, model_args"),
        ([{"prompt": "a"}], SETTINGS | {"seed": 3}, (), "seed has no effect here: it is of tasks"),
        ([{"prompt": "a"}], SETTINGS | {"limit": 3}, (), "give --limit to run"),
        (
            [{"prompt": "a"}],
            {"model_specs": [], "batchsize": 2},
            (),
            "batchsize is not known; did you mean batch_size?",
        ),
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


def test_a_byte_order_mark_is_no_part_of_the_first_question(tmp_path: Path) -> None:
    marked, plain = tmp_path / "marked.jsonl", tmp_path / "plain.jsonl"
    text = json.dumps({"prompt": QUESTIONS[0]}) + "\r\n"
    marked.write_bytes(b"\xef\xbb\xbf" + text.encode())
    plain.write_bytes(text.encode())
    assert question_rows.read_rows(marked) == question_rows.read_rows(plain)
    marked.write_bytes(text.encode("utf-16"))
    with pytest.raises(question_rows.ArgumentError, match=r"marked\.jsonl cannot be read .* in UTF-8\.$"):
        question_rows.read_rows(marked)


def test_the_first_shape_that_is_not_null_is_asked() -> None:
    (turn,) = question_rows.conversation_of({"messages": None, "prompt": None, "question": "a", "instruction": "b"})
    assert turn == {"role": "user", "content": "a"}


def test_neither_the_input_nor_a_folder_is_written_over(tmp_path: Path) -> None:
    file = tmp_path / "in.jsonl"
    with pytest.raises(answers_file.ArgumentError, match="is the input"):
        answers_file.check_output(file, file)
    for output in (tmp_path, tmp_path / "nowhere" / "out.jsonl", Path("/dev/null")):
        with pytest.raises(answers_file.ArgumentError, match="cannot be written"):
            answers_file.check_output(output, file)
    with pytest.raises(answers_file.ArgumentError, match="is also the run's store or ledger"):
        answers_file.check_output(tmp_path / "a", file, (None, tmp_path / "a"))


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


@pytest.mark.parametrize("policy", ["handoff:20", "cascade", "mentor"])
def test_an_end_of_steps_is_refused_where_a_run_has_no_steps(
    policy: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As by lm_eval --model tandem."""
    config = {"model_args": {**COMMON, "policy": policy, "step_end": "."}}
    with pytest.raises(FileNotFoundError):  # no output
        run(tmp_path, [{"prompt": "One?"}], config, fails=True)
    assert f"step_end has no effect with policy={policy}; it is for steps:N" in capsys.readouterr().err


def test_models_for_chats_are_not_asked_in_plain_text_without_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny.save(tmp_path / "Tiny-Instruct", "llama", 0)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    models = {"mentor": str(folder), "intern": str(folder)}
    config = {"model_args": {**COMMON, **models, "policy": "intern"}, "gen_kwargs": {"max_gen_toks": 4}}
    run(tmp_path, [{"prompt": "One?"}], config)
    (sentence,) = [record.message for record in caplog.records if "plain text" in record.message]
    assert sentence.startswith(f"{folder}: ")
    caplog.clear()
    run(tmp_path / "Tiny-Instruct", [{"prompt": "One?"}], config | {"apply_chat_template": True})
    assert not [record for record in caplog.records if "plain text" in record.message]
