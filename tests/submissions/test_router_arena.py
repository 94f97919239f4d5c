"""Files for RouterArena, from a run of the bundled pair over 50 prompts of its format."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("math_verify", reason="the extra lm-eval-tandem[math] is not installed")

from command_line import results, samples
from lm_eval_tandem import _paths, cli
from lm_eval_tandem.errors import ArgumentError
from lm_eval_tandem.harness import task_data
from lm_eval_tandem.ledger_checksums import checksums, of_answer
from lm_eval_tandem.pair import problems
from lm_eval_tandem.submissions.router_arena_score import robustness, score
from tasks.in_process import lm_eval

PRICES = {"mentor": (2.0, 8.0), "intern": (0.4, 1.6)}
NAMES = {"mentor": "large/model", "intern": "small/model"}
PROMPTS = 50


@dataclass
class World:
    """The folders of a run on prompts, of one on rephrased prompts, and the board's own file of prompts."""

    prompts: Path
    rephrased: Path
    board: Path
    rows: list[dict[str, Any]]


def arguments(ledger: Path, store: Path, **more: Any) -> str:
    prices = {
        f"{role}_price_{kind}": price
        for role, pair in PRICES.items()
        for kind, price in zip(("input", "output"), pair, strict=True)
    }
    given = {"dtype": "float32", "device": "cpu", **prices, "ledger": ledger, "store": store, **more}
    return ",".join(f"{name}={value}" for name, value in given.items())


def run(task: str, folder: Path, store: Path, **more: Any) -> Path:
    """Answer a task with the bundled pair, through lm-eval's own command line."""
    lm_eval(
        *("run", "--model", "tandem", "--model_args", arguments(folder / "ledger.jsonl", store, **more)),
        *("--tasks", task, "--include_path", str(_paths.task_configs()), "--batch_size", "16"),
        *("--gen_kwargs", "max_gen_toks=200", "--output_path", str(folder), "--log_samples"),
    )
    return folder


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store") / "store.sqlite"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the local files of the tasks, which TANDEM_DATA names; some of the answers are wrong."""
    folder = tmp_path_factory.mktemp("data")
    asked = problems.rows("math", "test", PROMPTS + 10)
    rows = [
        {"global index": f"GSM8K_{i}", "prompt_formatted": row["question"], "answer": str(row["answer"] + (i % 9 == 4))}
        for i, row in enumerate(asked[:PROMPTS])
    ]
    save(folder / "tandem_router_arena.jsonl", rows)
    save(folder / "tandem_router_arena_full.jsonl", [without_answer(row) for row in rows])
    others = [
        {"global index": f"GSM8K_{i}", "prompt_formatted": row["question"]} for i, row in enumerate(asked[PROMPTS:])
    ]
    save(folder / "tandem_router_arena_robustness.jsonl", others)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(task_data.VARIABLE, str(folder))
        yield folder


def without_answer(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "answer"}


def save(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def world(data: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("arena")
    rows = [json.loads(line) for line in (data / "tandem_router_arena.jsonl").read_text().splitlines()]
    board = folder / "router_data_10.json"
    board.write_text(json.dumps([without_answer(row) for row in rows]))
    return World(
        run("tandem_router_arena", folder / "prompts", store),
        run("tandem_router_arena_robustness", folder / "rephrased", store),
        board,
        rows,
    )


def submit(*given: str | Path) -> None:
    names = [part for role, name in NAMES.items() for part in ("--name", f"{role}={name}")]
    cli.main(["submit", "router_arena", *map(str, given), *names, "--router", "tandem"])


def exported(folder: Path, name: str = "tandem") -> list[dict[str, Any]]:
    return list(json.loads((folder / "router_inference" / "predictions" / f"{name}.json").read_text()))


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()[1:]]


def total(rows: Sequence[dict[str, Any]], name: str) -> int:
    return sum(row["generated_result"]["token_usage"][name] for row in rows)


def test_every_number_is_that_of_harness_and_ledger(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(world.prompts, world.rephrased, "--output", tmp_path)
    printed, rows = capsys.readouterr().out, exported(tmp_path)
    figures = json.loads((tmp_path / "score.json").read_text())
    harness = results(world.prompts)
    scores, totals = harness["results"]["tandem_router_arena"], harness["config"]["tandem"]["totals"]
    assert 0 < scores["acc,none"] < 1
    assert scores["ungraded,none"] == 0
    assert figures["accuracy"] == pytest.approx(scores["acc,none"], rel=1e-12)
    assert figures["dollars_per_1000"] == pytest.approx(1000 * scores["dollars,none"], rel=1e-9)
    assert figures["dollars_per_1000"] == pytest.approx(totals["dollars_per_1000"], rel=1e-9)
    assert figures["score"] == pytest.approx(score(scores["acc,none"], totals["dollars_per_1000"]), rel=1e-9)
    tokens = totals["tokens"]
    assert total(rows, "output_tokens") == tokens["mentor_new"] + tokens["intern_new"] + tokens["mentor_unused"]
    read = tokens["mentor_prefill"] + tokens["intern_prefill"] + tokens["judge_prefill"]
    assert total(rows, "input_tokens") == read
    assert total(rows, "total_tokens") == total(rows, "input_tokens") + total(rows, "output_tokens")
    assert [row["prompt"] for row in rows] == [row["prompt_formatted"] for row in world.rows]
    for row, sample, record in zip(rows, samples(world.prompts), records(world.prompts), strict=True):
        assert row["global index"] == sample["doc"]["global index"]
        assert row["generated_result"]["generated_answer"] == sample["resps"][0][0]
        assert (row["cost"], row["accuracy"]) == (record["dollars"], sample["acc"])
        assert row["prediction"] == NAMES["intern"]
        own = row["generated_result"]["usage_by_model"]
        assert set(own) == {NAMES["intern"], *([NAMES["mentor"]] if record["stage"] else [])}
        assert own[NAMES["intern"]]["output_tokens"] == record["tokens"]["intern_new"]
    assert len(exported(tmp_path, "tandem-robustness")) == 10
    assert figures["robustness"] == 1
    assert f"score {figures['score']:.4f}" in printed


def test_the_costs_of_the_boards_evaluator_are_told(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for prediction in ("answering", "dearest"):
        folder = tmp_path / prediction
        submit(world.prompts, "--output", folder, "--prediction", prediction)
        printed, rows = capsys.readouterr().out, exported(folder)
        prices = {NAMES[role]: pair for role, pair in PRICES.items()}
        dollars = sum(
            row["generated_result"]["token_usage"]["input_tokens"] * prices[row["prediction"]][0]
            + row["generated_result"]["token_usage"]["output_tokens"] * prices[row["prediction"]][1]
            for row in rows
        )
        figures = json.loads((folder / "score.json").read_text())
        found[prediction] = figures["recomputed_by_the_evaluator"]["dollars_per_1000"]
        assert found[prediction] == pytest.approx(dollars / 1e6 / len(rows) * 1000)
        assert ("less than every call on the bill" in printed) == (found[prediction] < figures["dollars_per_1000"])
        assert {row["prediction"] for row in rows} == set(prices) if prediction == "dearest" else {NAMES["intern"]}
    assert found["answering"] < found["dearest"]


def test_a_row_names_the_model_whose_answer_is_returned(data: Path, store: Path, tmp_path: Path) -> None:
    """Under `escalate` questions that no stage passes are answered by the mentor."""
    folder = run("tandem_router_arena", tmp_path / "runs", store, policy="escalate", thresholds="1:0.9:1:1")
    submit(folder, "--output", tmp_path / "out")
    told = [row["prediction"] for row in exported(tmp_path / "out")]
    expected = [NAMES["mentor" if record["stage"] == -1 else "intern"] for record in records(folder)]
    assert told == expected
    assert len(set(told)) == 2


def test_prompts_without_answers_have_no_accuracy(
    data: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run("tandem_router_arena_full", tmp_path / "runs", store, policy="intern")
    submit(folder, "--output", tmp_path / "out")
    figures = json.loads((tmp_path / "out" / "score.json").read_text())
    assert (figures["accuracy"], figures["score"]) == (None, None)
    assert {row["accuracy"] for row in exported(tmp_path / "out")} == {None}
    assert "the board's to find out" in capsys.readouterr().out
    assert figures["dollars_per_1000"] > 0


def copied(world: World, folder: Path) -> Path:
    return Path(shutil.copytree(world.prompts, folder / "copy"))


def change(file: Path, edit: Callable[[dict[str, Any]], None], line: int = 5) -> None:
    """Edit one line of a JSON-lines file."""
    lines = file.read_text().splitlines()
    row = json.loads(lines[line])
    edit(row)
    lines[line] = json.dumps(row)
    file.write_text("\n".join(lines) + "\n")


def cheaper(record: dict[str, Any]) -> None:
    record["dollars"] /= 2


def fewer_tokens(record: dict[str, Any]) -> None:
    record["tokens"]["intern_new"] -= 1


def refused(capsys: pytest.CaptureFixture[str], *given: str | Path) -> str:
    with pytest.raises(SystemExit) as ended:
        submit(*given)
    assert ended.value.code == 1
    return capsys.readouterr().err


@pytest.mark.parametrize("edit", [cheaper, fewer_tokens])
def test_a_changed_ledger_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], edit: Callable[[dict[str, Any]], None]
) -> None:
    folder = copied(world, tmp_path)
    change(folder / "ledger.jsonl", edit)
    assert "ledger" in refused(capsys, folder, "--output", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("pattern", ["samples_*.jsonl", "ledger.jsonl"])
def test_a_missing_file_is_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], pattern: str
) -> None:
    folder = copied(world, tmp_path)
    next(folder.rglob(pattern)).unlink()
    told = refused(capsys, folder, "--output", tmp_path / "out")
    assert "samples" in told or "ledger" in told
    assert not (tmp_path / "out").exists()


def record_answers(ledger: Path, samples_file: Path) -> dict[str, str]:
    """Let a ledger know the answers of a samples file; returns its checksums."""
    answers = {line["doc_id"]: line["resps"][0][0] for line in map(json.loads, samples_file.read_text().splitlines())}
    head, *records = map(json.loads, ledger.read_text().splitlines())
    for record in records:
        record["answer_sha256"] = of_answer(answers[record["doc_id"]])
    ledger.write_text("\n".join(map(json.dumps, [head, *records])) + "\n")
    return checksums(records)


def test_no_path_user_name_or_key_goes_out(world: World, tmp_path: Path) -> None:
    folder = copied(world, tmp_path)
    key, home = "hf_" + "a1B2c3D4" * 4, "/home/alice/models/secret.txt"

    def plant(sample: dict[str, Any]) -> None:
        sample["resps"][0][0] += f" see {home} with {key}"

    samples_file = next(folder.rglob("samples_*.jsonl"))
    change(samples_file, plant)
    (file,) = folder.rglob("results_*.json")
    content = json.loads(file.read_text())
    content["config"]["tandem"]["totals"]["ledger"] = record_answers(folder / "ledger.jsonl", samples_file)
    content["config"]["model_args"] |= {"cache_dir": home, "base_url": "http://alice:pw123456@gpu17.internal/v1"}
    file.write_text(json.dumps(content))
    submit(folder, "--output", tmp_path / "out")
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert len(texts) == 4
    for word in (key, "alice", "pw123456", "gpu17", str(tmp_path), str(world.prompts)):
        assert not any(word in text for text in texts), word
    assert sum("[key]" in text for text in texts) == 1


def price_list(file: Path, **prices: tuple[float, float]) -> Path:
    entries = {
        NAMES[role]: {"input_token_price_per_million": first, "output_token_price_per_million": last}
        for role, (first, last) in prices.items()
    }
    file.write_text(json.dumps(entries))
    return file


def test_prices_are_those_of_the_list(world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed = price_list(tmp_path / "model_cost.json", intern=PRICES["intern"])
    submit(world.prompts, "--output", tmp_path / "out", "--prices", listed)
    new = json.loads((tmp_path / "out" / "registration.json").read_text())
    assert new["universal_model_names.py"] == [NAMES["mentor"]]
    assert list(new["model_cost/model_cost.json"]) == [NAMES["mentor"]]
    told = capsys.readouterr().out
    assert f"add {NAMES['mentor']} to universal_model_names.py" in told
    assert "were not compared" not in told
    submit(world.prompts, "--output", tmp_path / "uncompared")
    told = capsys.readouterr().out
    assert (
        f"Names and prices of {NAMES['mentor']} and {NAMES['intern']} were not compared with the board's list" in told
    )
    assert "to universal_model_names.py" not in told
    assert "\n1. copy the folder" in told
    assert "\n2. check there" in told
    listed = price_list(tmp_path / "other.json", mentor=(1.25, 2.5), intern=PRICES["intern"])
    told = refused(capsys, world.prompts, "--output", tmp_path / "other", "--prices", listed)
    assert "mentor_price_input=1.25,mentor_price_output=2.5" in told


def test_other_prompts_than_the_boards_are_refused(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(world.prompts, "--output", tmp_path / "out", "--prompts", world.board)
    rows = json.loads(world.board.read_text())
    more, other = tmp_path / "more.json", tmp_path / "other.json"
    more.write_text(json.dumps([*rows, {"global index": "MATH_1", "prompt_formatted": "x"}]))
    rows[3]["prompt_formatted"] += " "
    other.write_text(json.dumps(rows))
    assert "lacks 1 of" in refused(capsys, world.prompts, "--output", tmp_path / "a", "--prompts", more)
    assert "GSM8K_3" in refused(capsys, world.prompts, "--output", tmp_path / "b", "--prompts", other)


def test_what_the_board_would_refuse_is_refused(
    world: World, data: Path, store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "no run on prompts" in refused(capsys, world.rephrased, "--output", tmp_path / "a")
    other = run("tandem_router_arena", tmp_path / "intern", store, policy="intern")
    assert "2 runs on prompts" in refused(capsys, world.prompts, other, "--output", tmp_path / "b")
    told = refused(capsys, world.rephrased, other, "--output", tmp_path / "c")
    assert "compares one router with itself" in told
    folder = copied(world, tmp_path)
    for file in (next(folder.rglob("results_*.json")), folder / "ledger.jsonl"):
        file.write_text(file.read_text().replace('"tandem_pair_math_train"', '"tandem_router_arena"', 1))
    assert "fitted or tuned on its data" in refused(capsys, folder, "--output", tmp_path / "d")


@pytest.mark.parametrize(
    ("accuracy", "dollars", "points"),
    [
        (0.7640, 0.18, 75.27),
        (0.7396, 10.02, 64.32),
        (0.7487, 0.29, 73.33),
        (0.3201, 0.07, 33.75),
        (0.5700, 0.34, 57.22),
    ],
)
def test_the_score_is_that_of_the_leaderboard(accuracy: float, dollars: float, points: float) -> None:
    """Sqwish Router, GPT-5, Nadir Router, RouterDC and GraphRouter, as the board had them in July 2026."""
    assert 100 * score(accuracy, dollars) == pytest.approx(points, abs=0.15)


def test_costs_beyond_the_bounds_count_as_the_bounds() -> None:
    assert score(0.5, 1e-9) == score(0.5, 0.0044) > score(0.5, 1)
    assert score(0.5, 1e9) == score(0.5, 200) == 0
    assert score(0.0, 1) == 0


def test_robustness_is_the_share_of_prompts_with_the_same_model() -> None:
    rows = [{"global index": str(i), "prediction": "a"} for i in range(4)]
    again = [{"global index": str(i), "prediction": "ab"[i % 2]} for i in range(5)]
    assert robustness(rows, again) == 0.5
    assert robustness(rows, []) is None


CHECK = Path("router_inference") / "check_config_prediction_files.py"


@pytest.mark.slow
@pytest.mark.skipif("TANDEM_ROUTER_ARENA" not in os.environ, reason="names no clone of RouteWorks/RouterArena")
def test_the_boards_own_checks_pass(world: World, tmp_path: Path) -> None:
    """Its program runs in a copy of the clone that TANDEM_ROUTER_ARENA names, with the 50 prompts as its data."""
    clone = Path(shutil.copytree(os.environ["TANDEM_ROUTER_ARENA"], tmp_path / "clone"))
    submit(world.prompts, world.rephrased, "--output", tmp_path / "out")
    shutil.copytree(tmp_path / "out" / "router_inference", clone / "router_inference", dirs_exist_ok=True)
    new = json.loads((tmp_path / "out" / "registration.json").read_text())
    with (clone / "universal_model_names.py").open("a") as names:
        names.write(f"\nuniversal_names += {new['universal_model_names.py']!r}\n")
    costs = clone / "model_cost" / "model_cost.json"
    costs.write_text(json.dumps(json.loads(costs.read_text()) | new["model_cost/model_cost.json"]))
    (clone / "dataset").mkdir(exist_ok=True)
    rephrased = [
        {name: sample["doc"][name] for name in ("global index", "prompt_formatted")}
        for sample in samples(world.rephrased)
    ]
    (clone / "dataset" / "router_data_10.json").write_text(world.board.read_text())
    (clone / "dataset" / "router_robustness.json").write_text(json.dumps(rephrased))
    for options in (["sub_10", "--check-generated-result"], ["robustness"]):
        ended = subprocess.run(
            [sys.executable, str(CHECK), "tandem", *options], cwd=clone, capture_output=True, text=True, check=False
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "ALL CHECKS PASSED" in ended.stdout


def test_a_local_copy_is_checked(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [json.loads(line) for line in (data / "tandem_router_arena.jsonl").read_text().splitlines()][:3]

    def load(*documents: dict[str, Any]) -> None:
        save(tmp_path / "tandem_router_arena.jsonl", documents)
        run("tandem_router_arena", tmp_path / "runs", tmp_path / "store.sqlite", policy="intern")

    monkeypatch.setenv(task_data.VARIABLE, str(tmp_path))
    with pytest.raises(ArgumentError, match="index GSM8K_0 of an earlier one"):
        load(*rows, rows[0])
    with pytest.raises(ArgumentError, match="no field 'prompt_formatted'"):
        load({"global index": "GSM8K_0", "answer": "1"})
    with pytest.raises(ArgumentError, match="run tandem_router_arena_full"):
        load(*map(without_answer, rows))
    monkeypatch.delenv(task_data.VARIABLE)
    with pytest.raises(ArgumentError, match="local copy of RouterArena's prompts"):
        load(*rows)
