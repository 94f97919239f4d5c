"""An ensemble behind the server, from a configuration as `lm-eval-tandem run` takes it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server is tested with: pip install .[server]")

from bundled import COMMON, instances
from lm_eval_tandem.harness.ensemble_model import EnsembleLM
from lm_eval_tandem.pair import problems
from server.serving import EASY, Served, error_of, serving

ROWS = [str(row["question"]) for row in problems.rows("math", "test", 4)]
ARGUMENTS = {**COMMON, "aggregation": "loop", "segment_tokens": 8}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    config = {
        "model": "ensemble",
        "model_args": ARGUMENTS,
        "gen_kwargs": {"max_gen_toks": 40},
        "system_instruction": ROWS[1],
    }
    file = tmp_path_factory.mktemp("config") / "config.yaml"
    file.write_text(json.dumps(config))
    with serving(["--config", str(file)]) as found:
        yield found


def test_an_ensemble_answers_as_in_the_harness(server: Served) -> None:
    lm = EnsembleLM(**ARGUMENTS)
    expected = lm.generate_until(instances(4, max_gen_toks=40), disable_tqdm=True)
    records = {record.doc_id: record for record in lm.records}
    lm.close()
    status, reply, headers = server.ask("POST", "/v1/completions", {"model": "ensemble", "prompt": ROWS})
    assert status == 200
    assert [choice["text"] for choice in reply["choices"]] == expected
    for number, told in enumerate(reply["usage"]["tandem"]["answers"]):
        assert "tokens" not in told, "an ensemble has no mentor's and intern's tokens"
        assert told["spent"]["mentor"]["new"] == records[number].spent["mentor"].new
        assert [part["writer"] for part in told["segments"]] == [one.writer for one in records[number].segments]
    assert reply["usage"]["completion_tokens"] == 4 * 40
    assert not any("mentor_tokens" in answer for answer in server.line_of(headers["X-Request-Id"])["answers"])
    chunks = server.stream("/v1/completions", model="ensemble", prompt=ROWS[0])
    assert "".join(choice["text"] for chunk in chunks for choice in chunk["choices"]) == expected[0]


def test_it_has_one_name_and_no_log_probabilities(server: Served) -> None:
    assert [model["id"] for model in server.ask("GET", "/v1/models")[1]["data"]] == ["ensemble"]
    status, reply, _ = server.ask("POST", "/v1/completions", {"model": "tandem", "prompt": "x"})
    assert (status, error_of(reply)["code"]) == (404, "model_not_found")
    status, reply, _ = server.ask("POST", "/v1/completions", {"model": "ensemble", "prompt": "x", "logprobs": 0})
    assert status == 400
    assert "no log-probabilities" in error_of(reply)["message"]


def test_the_configuration_s_system_instruction_opens_chats(server: Served) -> None:
    """The pair's template writes texts one after the other, so a chat with it is asked as this plain text."""
    chat = server.chat(EASY, "ensemble")["choices"][0]["message"]["content"]
    plain = [server.complete(text, "ensemble")["choices"][0]["text"] for text in (ROWS[1] + EASY, EASY)]
    assert chat == plain[0] != plain[1]


def test_metrics_name_the_models_of_an_ensemble(server: Served) -> None:
    before = server.metric("tandem_tokens_total", model="mentor", kind="generated")
    told = server.complete(EASY, "ensemble")["usage"]["tandem"]
    assert (
        server.metric("tandem_tokens_total", model="mentor", kind="generated") - before
        == told["spent"]["mentor"]["new"]
    )
    assert server.metric("tandem_answers_total", policy="ensemble") >= 1


def test_tokens_of_models_that_decode_together_are_counted() -> None:
    with serving(["--model", "ensemble", "--model_args", "aggregation=average"]) as together:
        reply = together.complete(ROWS[0], "ensemble", max_tokens=20)
        size = reply["usage"]["prompt_tokens"]
        assert together.metric("tandem_computed_tokens_total", model="mentor+intern", kind="read") == size
        # the first token comes with the prompt
        assert together.metric("tandem_computed_tokens_total", model="mentor+intern", kind="generated") >= 19
        assert together.metric("tandem_computed_tokens_total", model="mentor", kind="generated") == 0


def test_it_has_no_intern_to_fall_back_to(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from lm_eval_tandem.cli import main

    with pytest.raises(SystemExit, match="1"):
        main(
            [
                "serve",
                "--port",
                "0",
                "--model",
                "ensemble",
                "--model_args",
                "aggregation=loop",
                "--intern-if-mentor-fails",
            ]
        )
    assert "leave it out" in capsys.readouterr().err


def test_what_a_run_warns_of_at_its_end_is_logged_once() -> None:
    """The bundled models have learned no reply to the question whether they can solve something."""
    with serving(["--model", "ensemble", "--model_args", "selection=self_assessment"]) as asked:
        for _ in range(2):
            asked.complete(EASY, "ensemble", max_tokens=4)
        assert asked.process.complained().count("no model gives Yes and No together a probability of 0.01") == 1
