"""A model repository of a cascade is a valid one, says what the report says, and gives the cascade back."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import (
    EvalResultEntry,
    ModelCard,
    ModelInfo,
    constants,
    eval_result_entries_to_yaml,
    parse_eval_result_entries,
)

import command_line
import hub_server
from lm_eval_tandem import _paths, cli
from lm_eval_tandem.errors import ClassifierError
from lm_eval_tandem.harness.own_questions import read_config
from lm_eval_tandem.harness.settings import read_settings
from lm_eval_tandem.judge import artefact, input_schemas
from lm_eval_tandem.judge.estimators import LogisticJudge
from lm_eval_tandem.judge.repository import HubRepository
from lm_eval_tandem.submissions import hub_registry
from reports.world import POLICIES, World

ROOT = Path(__file__).resolve().parents[2]
RESULTS, REAL = ROOT / "results" / "pair", ROOT / "results" / "real" / "coder-0.5b"
CARD_FIELDS = set("language license license_name license_link library_name tags datasets metrics base_model".split())
CARD_FIELDS |= {"pipeline_tag", "base_model_relation", "model-index"}
"""The fields that the Hub's documentation of model cards gives (modelcard.md of huggingface/hub-docs)."""
REPOSITORY, COMMIT = "lab/pair-cascade", "0123456789abcdef0123456789abcdef01234567"
OPTIONS = ["--repository", REPOSITORY, "--license", "apache-2.0"]
TASKS = ("tandem_pair_code", "tandem_pair_math")

needs_results = pytest.mark.skipif(not RESULTS.is_dir(), reason="the committed results are not there")


def submit(results: Sequence[Path], output: Path, *options: str) -> list[str]:
    """Run `lm-eval-tandem submit hub` in this process; returns the lines that it printed."""
    import contextlib
    import io

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        cli.main(["submit", "hub", *map(str, results), "--output", str(output), *options])
    return printed.getvalue().splitlines()


def refused(capsys: pytest.CaptureFixture[str], results: Sequence[Path], output: Path, *options: str) -> str:
    """The sentence with which the command refuses."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["submit", "hub", *map(str, results), "--output", str(output), *options])
    sentence = capsys.readouterr().err
    assert ended.value.code == 1
    assert sentence.count("\n") == 1
    return sentence


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The repository of the bundled pair's cascade, and what was printed."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    return folder, submit([RESULTS], folder, *OPTIONS)


def tables(text: str) -> list[list[list[str]]]:
    """The tables of a Markdown text, as rows of cells."""
    found: list[list[list[str]]] = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")]
        if not line.startswith("|"):
            inside = False
        elif not inside:
            inside = True
            found.append([cells])
        elif not set(line) <= set("|-"):
            found[-1].append(cells)
    return found


@needs_results
def test_the_repository_holds_what_it_says_and_nothing_else(exported: tuple[Path, list[str]]) -> None:
    folder, printed = exported
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    own = {"README.md", "config.json", "model.safetensors", "out_of_fold.safetensors"}
    drawings = {name for name in files if name.startswith("figures/")}
    assert files - drawings == {"README.md", "tandem.yaml", "SHA256SUMS", *(f"classifier/pair/{name}" for name in own)}
    assert len(drawings) == len(TASKS)
    text = "\n".join(printed)
    for task in TASKS:
        assert f"{task} gets no .eval_results: it is no benchmark that is registered on the Hub." in text
    assert "Nothing was uploaded." in text
    assert f"hf upload {REPOSITORY} {folder} ." in text


@needs_results
def test_the_card_is_one_that_the_hubs_library_reads(exported: tuple[Path, list[str]]) -> None:
    folder, _ = exported
    text = (folder / "README.md").read_text()
    card = ModelCard.load(folder / "README.md")
    assert card.content == text
    data = card.data.to_dict()
    assert set(data) <= CARD_FIELDS
    assert data["license"] == "apache-2.0"
    assert data["metrics"] == ["accuracy"]
    assert data["pipeline_tag"] == "text-generation"
    assert data["library_name"] == "lm-eval-tandem"
    assert "lm-evaluation-harness" in data["tags"]
    assert "model-index" not in data
    strings = [data["license"], data["pipeline_tag"], *data["tags"], *data["metrics"]]
    assert all(isinstance(value, str) and value for value in strings)
    for link in re.findall(r"!\[[^]]*\]\(([^)]+)\)", card.text):
        assert (folder / link).read_text().startswith("<svg "), link


@needs_results
@pytest.mark.slow
@pytest.mark.skipif("TANDEM_HUB" not in os.environ, reason="without TANDEM_HUB=1 nothing is asked of huggingface.co")
def test_the_hub_finds_no_fault_in_the_card(exported: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = exported
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    ModelCard.load(folder / "README.md").validate()


@needs_results
def test_every_figure_of_the_card_is_that_of_the_report(exported: tuple[Path, list[str]]) -> None:
    folder, _ = exported
    report = [table for table in tables((RESULTS / "README.md").read_text()) if "whole bill (MFLOPs)" in table[0]]
    card = [table for table in tables((folder / "README.md").read_text()) if table[0][0] == "policy"]
    assert len(card) == len(TASKS)
    compared = 0
    for table in card:
        headings = table[0]
        labels = {row[0]: row for row in table[1:]}
        cascade = labels["cascade"]
        (same,) = [
            other
            for other in report
            if any(row[0] == "cascade (pair)" and row[1] == cascade[1] for row in other[1:])
            and any(row[0] == "intern" and row[1] == labels["intern"][1] for row in other[1:])
        ]
        rows = {row[0]: dict(zip(same[0], row, strict=True)) for row in same[1:]}
        for label, row in labels.items():
            theirs = rows["cascade (pair)" if label == "cascade" else label]
            for heading, cell in zip(headings[1:], row[1:], strict=True):
                assert cell == theirs[heading], (label, heading)
                compared += 1
        assert {"intern", "mentor", "stage:3", "oracle (not a policy)"} <= set(labels)
    assert compared > 80


@needs_results
def test_the_accuracies_are_those_of_the_harness(exported: tuple[Path, list[str]]) -> None:
    folder, _ = exported
    checksum = artefact.load(folder).config["sha256"]
    accuracies = set()
    for file in (RESULTS / "tandem-pair-cascade").glob("results_*.json"):
        results = json.loads(file.read_text())
        about = results["config"]["tandem"]
        if (about["judge"]["sha256"], about["classifier"]) == (checksum, "pair"):
            accuracies |= {f"{100 * results['results'][task]['acc,none']:.1f}" for task in TASKS}
    assert accuracies
    card = [table for table in tables((folder / "README.md").read_text()) if table[0][0] == "policy"]
    assert {row[1].split()[0] for table in card for row in table if row[0] == "cascade"} == accuracies


@needs_results
def test_the_classifier_is_the_same_but_for_the_names(exported: tuple[Path, list[str]]) -> None:
    folder, _ = exported
    shipped, ours = _paths.classifiers() / "pair", folder / "classifier" / "pair"
    for name in ("model.safetensors", "out_of_fold.safetensors"):
        assert (ours / name).read_bytes() == (shipped / name).read_bytes()
    assert json.loads((ours / "config.json").read_text()) == json.loads((shipped / "config.json").read_text())
    assert (ours / "README.md").read_text() == (shipped / "README.md").read_text()


@needs_results
def test_the_configuration_is_one_for_both_commands(exported: tuple[Path, list[str]]) -> None:
    folder, _ = exported
    content = yaml.safe_load((folder / "tandem.yaml").read_text())
    assert content["tasks"] == list(TASKS)
    arguments = read_config(folder / "tandem.yaml")["model_args"]
    assert content["model_args"] == arguments
    assert arguments["classifier"] == f"hub:{REPOSITORY}"
    settings = read_settings(arguments, lambda backend: None)
    assert settings.classifier == HubRepository(REPOSITORY)
    assert settings.bundled
    assert settings.efforts == (18, 24, 40)
    assert not set(arguments) & {"store", "ledger", "device", "token"}


def test_the_configuration_asks_in_the_same_way(tmp_path: Path) -> None:
    """Without a word on them, the task's own number of examples and the harness's own turns would hold."""
    runs = world(tmp_path, 30, "tandem_gsm8k")
    for file in runs.glob("*/results_*.json"):
        content = json.loads(file.read_text()) | {"chat_template_sha": "0" * 64, "fewshot_as_multiturn": False}
        file.write_text(json.dumps(content))
    submit([runs], tmp_path / "out", *OPTIONS, "--base_models", "lab/large,lab/small")
    asked = yaml.safe_load((tmp_path / "out" / "tandem.yaml").read_text())
    assert (asked["num_fewshot"], asked["apply_chat_template"], asked["fewshot_as_multiturn"]) == (0, True, False)


def answers(folder: Path) -> list[tuple[int, Any, float]]:
    return [(sample["doc_id"], sample["resps"], sample["acc"]) for sample in command_line.samples(folder)]


@needs_results
def test_a_hub_gives_back_the_cascade_with_the_same_answers(exported: tuple[Path, list[str]], tmp_path: Path) -> None:
    folder, _ = exported
    taken = {}
    with hub_server.Hub.of(REPOSITORY, COMMIT, folder).running() as hub:
        environment = command_line.ENVIRONMENT | {
            **{"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0"},
            **{"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1"},
        }
        for name, classifier in {"shipped": "pair", "hub": f"hub:{REPOSITORY}@{COMMIT}", "copy": str(folder)}.items():
            command = command_line.command("tandem_pair_math", policy="cascade", classifier=classifier)
            command += ["--limit", "200", "--log_samples", "--output_path", str(tmp_path / name), "--device", "cpu"]
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=command_line.PATIENCE
            )
            assert done.returncode == 0, done.stderr
            assert "was fitted on the pair" not in done.stderr
            taken[name] = answers(tmp_path / name)
        assert hub.fetched
    assert len(taken["shipped"]) == 200
    assert taken["hub"] == taken["copy"] == taken["shipped"]
    about = {name: command_line.results(tmp_path / name)["config"]["tandem"] for name in taken}
    assert about["hub"]["judge"]["repository"] == REPOSITORY
    assert about["hub"]["judge"]["commit"] == COMMIT
    assert about["hub"]["classifier"] == about["shipped"]["classifier"] == "pair"
    assert "commit" not in about["copy"]["judge"]
    assert {one["stage_share"]["0"] for one in (about[name]["totals"] for name in taken)} == {
        about["shipped"]["totals"]["stage_share"]["0"]
    }


@needs_results
@pytest.mark.parametrize(
    "file", ["classifier/pair/config.json", "classifier/pair/model.safetensors", "tandem.yaml", "SHA256SUMS"]
)
def test_a_tampered_repository_is_refused(exported: tuple[Path, list[str]], file: str, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(exported[0], copy)
    content = (copy / file).read_bytes()
    (copy / file).write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])
    with pytest.raises(ClassifierError) as error:
        artefact.load(copy)
    assert "\n" not in str(error.value)
    if file == "tandem.yaml":
        command = command_line.command("tandem_pair_math", policy="cascade", classifier=copy)
        assert "tandem.yaml of the repository" in command_line.run_forked([*command, "--device", "cpu"], tmp_path, 1)


@needs_results
def test_real_runs_on_some_questions_make_no_result_of_the_benchmark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [REAL / "tandem_gsm8k", REAL / "tandem_humaneval"]
    options = [*OPTIONS, "--classifier", str(REAL / "classifier")]
    assert "--base_models" in refused(capsys, runs, tmp_path, *options)
    ids = "Qwen/Qwen2.5-Coder-1.5B-Instruct-GGUF,Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF"
    printed = submit(runs, tmp_path / "out", *options, "--base_models", ids)
    assert any("200 questions were asked, and openai/gsm8k has 1,319." in line for line in printed)
    assert not (tmp_path / "out" / ".eval_results").exists()
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert data["datasets"] == ["openai/gsm8k"]
    assert data["base_model"] == ids.split(",")
    assert data["base_model_relation"] in ("adapter", "merge", "quantized", "finetune")
    arguments = yaml.safe_load((tmp_path / "out" / "tandem.yaml").read_text())["model_args"]
    assert arguments["mentor"] == "qwen2.5-coder-1.5b-instruct-q4_k_m.gguf"
    assert artefact.load(tmp_path / "out").pair["mentor"] == arguments["mentor"]


PLANTED = ("/home/alice", "alice", "gpu17", "hf_abcdefghijklmnop", "sk-abcdefghijklmnop", "10.1.2.3", "s3cretword")


def world(tmp_path: Path, questions: int, task: str, models: dict[str, str] | None = None, pair: str = "p") -> Path:
    """Runs of a pair on a task, with its classifier, full of what must not go out."""
    random = np.random.default_rng(0)
    features = random.random((80, len(input_schemas.names(input_schemas.STATISTICS))))
    fitted = LogisticJudge().fit(features, (features[:, 0] > 0.5).astype(int))
    models = models or {"mentor": "/home/alice/models/large", "intern": "/home/alice/models/small"}
    artefact.save(
        tmp_path / "runs" / "judge",
        fitted,
        (0.5, 0.5, 0.5),
        pair=models,
        fitted_on={"tasks": [f"{task}_train"], "questions": 80, "note": "/home/alice/notes.txt on gpu17.lab"},
        recipe="default",
        card="# fitted in /home/alice with hf_abcdefghijklmnop\n",
    )
    checksum = json.loads((tmp_path / "runs" / "judge" / "config.json").read_text())["sha256"]
    judge = {"tasks": [f"{task}_train"], "sha256": checksum}
    made = World.random(questions, task=task, models=models, judge=judge, pair=pair)
    given = {
        **models,
        **{"dtype": "bfloat16", "think_end_token": "</think>", "mentor_peft": "/home/alice/adapter"},
        **{"mentor_base_url": "http://10.1.2.3:8000/v1", "mentor_api_key_env": "ALICE", "token": "s3cretword"},
        **{"store": "/home/alice/store.sqlite", "api_key": "sk-abcdefghijklmnop", "prompts": "/home/alice/words.json"},
        **{"revision": "hf_abcdefghijklmnop", "classifier": "/home/alice/judge"},
    }
    for policy in POLICIES:
        file = made.write(tmp_path / "runs", policy, with_ledger=False, arguments={**given, "policy": policy})
        results = json.loads(file.read_text())
        samples = [json.loads(line) for line in next(file.parent.glob("samples_*.jsonl")).read_text().splitlines()]
        results["results"] = {task: {"acc,none": float(np.mean([sample["acc"] for sample in samples]))}}
        results["n-samples"] = {task: {"original": questions, "effective": questions}}
        results |= {"n-shot": {task: 0}, "date": 1_767_225_600.0, "pretty_env_info": "gpu17, /home/alice/venv"}
        results["configs"][task]["dataset_path"] = "openai/gsm8k"
        file.write_text(json.dumps(results))
    return tmp_path / "runs"


def test_a_result_on_a_registered_benchmark_is_an_entry_of_the_hub(tmp_path: Path) -> None:
    runs = world(tmp_path, 1319, "tandem_gsm8k")
    submit([runs], tmp_path / "out", *OPTIONS, "--base_models", "lab/large,lab/small")
    (file,) = (tmp_path / "out" / ".eval_results").iterdir()
    assert file.name == "gsm8k.yaml"
    content = yaml.safe_load(file.read_text())
    (entry,) = parse_eval_result_entries(content)
    assert isinstance(entry, EvalResultEntry)
    assert eval_result_entries_to_yaml([entry]) == content
    assert (entry.dataset_id, entry.task_id) == ("openai/gsm8k", "gsm8k")
    cascade = next((runs).glob("*-cascade-*/results_*.json"))
    accuracy = json.loads(cascade.read_text())["results"]["tandem_gsm8k"]["acc,none"]
    assert entry.value == pytest.approx(100 * accuracy, rel=1e-9)
    assert 1 < entry.value < 100
    assert entry.date == "2026-01-01"
    assert entry.source_url == f"https://huggingface.co/{REPOSITORY}"
    assert entry.notes == (
        "lm-evaluation-harness task tandem_gsm8k, 0-shot, acc; a cascade of two models: lab/large guides lab/small"
    )
    answered = [{"filename": f".eval_results/{file.name}", "verified": False, "data": one} for one in content]
    info = ModelInfo(id=REPOSITORY, evalResults=answered)  # what the API returns with expand=["evalResults"]
    assert info.eval_results == [entry]
    assert ModelCard.load(tmp_path / "out" / "README.md").data.datasets == ["openai/gsm8k"]


def test_nothing_of_the_machine_goes_out(tmp_path: Path) -> None:
    runs = world(tmp_path, 40, "tandem_gsm8k")
    printed = submit([runs], tmp_path / "out", *OPTIONS, "--base_models", "lab/large,lab/small")
    for path in (tmp_path / "out").rglob("*"):
        content = path.read_bytes() if path.is_file() else b""
        for word in (*PLANTED, str(tmp_path), os.uname().nodename if len(os.uname().nodename) > 5 else PLANTED[0]):
            assert word.lower().encode() not in content.lower(), (path, word)
    arguments = yaml.safe_load((tmp_path / "out" / "tandem.yaml").read_text())["model_args"]
    assert arguments["mentor"] == "lab/large"
    assert arguments["dtype"] == "bfloat16"
    assert arguments["think_end_token"] == "</think>"
    assert any("leaves out mentor_peft, prompts, revision" in line for line in printed)
    assert artefact.load(tmp_path / "out").pair == {"mentor": "lab/large", "intern": "lab/small"}


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--repository", "cascade"], "--repository cascade is no id of the Hub"),
        (["--repository", "lab/a--b"], "--repository lab/a--b is no id of the Hub"),
        (["--license", "free"], "--license free is no licence that the Hub knows"),
        (["--license", "other"], "--license other is no licence that the Hub knows"),
        (["--base_models", "lab/large"], "--base_models lab/large has to be two ids"),
        (["--base_models", "lab/large,/srv/small"], "has to be two ids"),
        (
            ["--base_models", "a/b,c/d", "--classifier", "pair"],
            "none of the runs is a cascade with the classifier pair",
        ),
        ([], "the mentor of these runs is large, which is no id of the Hub"),
    ],
)
def test_what_cannot_be_published_is_refused_in_one_sentence(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = world(tmp_path, 12, "t")
    assert reason in refused(capsys, [runs], tmp_path / "out", *OPTIONS, *options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--base_models", "lab/large"], "--base_models lab/large has to be two ids"),
        ([], "the mentor of these runs is large, which is no id of the Hub"),
        (["--base_models", "a/b,c/d", "--classifier", "nowhere"], "nowhere"),
        (["--base_models", "a/b,c/d", "--output", "file"], "is a file; name a folder for the repository"),
    ],
)
def test_wrong_options_are_refused_before_the_samples_are_read(
    options: list[str], reason: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = world(tmp_path, 12, "t")
    for file in runs.rglob("samples_*.jsonl"):
        file.unlink()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert "samples" in refused(capsys, [runs], tmp_path / "out", *OPTIONS, "--base_models", "a/b,c/d")
    assert reason in refused(capsys, [runs], tmp_path / "out", *OPTIONS, *options)


def test_own_tasks_are_named(tmp_path: Path) -> None:
    runs = world(tmp_path, 12, "my_task")
    given = [*OPTIONS, "--base_models", "lab/large,lab/small"]
    submit([runs], tmp_path / "unknown", *given)
    for file in runs.rglob("results_*.json"):
        content = json.loads(file.read_text())
        content["configs"]["my_task"]["metadata"] = {"config_source": "/home/alice/tasks/my_task.yaml"}
        file.write_text(json.dumps(content))
    printed = submit([runs], tmp_path / "own", *given)
    assert any(line.startswith("my_task: own tasks, whose files the repository does not hold;") for line in printed)
    for name in ("README.md", "tandem.yaml"):
        text = (tmp_path / "own" / name).read_text()
        assert "run --config tandem.yaml --include_path FOLDER\n" in text
        assert "Neither lm-eval nor lm-eval-tandem has my_task: FOLDER stands for the folder with the file of" in text
        assert "alice" not in text
        assert "include_path" not in (tmp_path / "unknown" / name).read_text()


def test_results_without_a_cascade_and_folders_of_another_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = world(tmp_path, 12, "t")
    given = [*OPTIONS, "--base_models", "lab/large,lab/small"]
    (tmp_path / "out" / "classifier" / "another").mkdir(parents=True)
    assert "holds the classifier another already" in refused(capsys, [runs], tmp_path / "out", *given)
    judge = runs / "judge"
    shutil.move(judge, tmp_path / "judge")
    assert "the classifier to publish is not clear" in refused(capsys, [runs], tmp_path / "new", *given)
    submit([runs], tmp_path / "new", *given, "--classifier", str(tmp_path / "judge"))
    (cascade,) = runs.glob("*-cascade-*")
    shutil.rmtree(cascade)
    assert "hold no run of policy=cascade" in refused(capsys, [runs], tmp_path / "third", *given)


def test_a_model_that_is_on_no_hub_is_no_base_model(tmp_path: Path) -> None:
    runs = world(tmp_path, 12, "t")
    printed = submit([runs], tmp_path / "out", *OPTIONS, "--base_models", "none,lab/small")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.base_model == ["lab/small"]
    assert any(line.startswith("the mentor, large, gets no base_model") for line in printed)


def test_the_bundled_models_are_no_base_models(tmp_path: Path) -> None:
    bundled = {"mentor": "pair/mentor", "intern": "pair/intern"}
    printed = submit([world(tmp_path, 12, "t", bundled, "pair")], tmp_path / "out", *OPTIONS)
    data = ModelCard.load(tmp_path / "out" / "README.md").data.to_dict()
    assert not {"base_model", "base_model_relation"} & set(data)
    assert sum("gets no base_model" in line for line in printed) == 2
    assert artefact.load(tmp_path / "out").pair == bundled


@pytest.mark.parametrize("ids", ["lab/a,lab/b", "none,lab/b"])
def test_the_bundled_models_get_no_other_names(ids: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The configuration would load the bundled ones all the same, and the card would name others."""
    runs = world(tmp_path, 12, "t", {"mentor": "pair/mentor", "intern": "pair/intern"}, "pair")
    sentence = refused(capsys, [runs], tmp_path / "out", *OPTIONS, "--base_models", ids)
    assert "which ships with lm-eval-tandem" in sentence
    assert "leave --base_models out" in sentence
    assert not (tmp_path / "out").exists()
    submit([runs], tmp_path / "out", *OPTIONS, "--base_models", "none,none")


def test_card_and_configuration_say_that_some_questions_were_asked(tmp_path: Path) -> None:
    runs = world(tmp_path, 12, "tandem_gsm8k")
    given = [*OPTIONS, "--base_models", "lab/large,lab/small"]
    submit([runs], tmp_path / "all", *given)
    for file in runs.rglob("results_*.json"):
        content = json.loads(file.read_text())
        content["n-samples"]["tandem_gsm8k"]["original"] = 1319
        file.write_text(json.dumps(content))
    submit([runs], tmp_path / "some", *given)
    for name in ("README.md", "tandem.yaml"):
        said = "of 12 of 1,319 questions of tandem_gsm8k"
        assert said not in (tmp_path / "all" / name).read_text()
        assert said in (tmp_path / "some" / name).read_text()
    assert "limit" not in yaml.safe_load((tmp_path / "some" / "tandem.yaml").read_text())
    assert "`pip install -c constraints.txt .`" in (tmp_path / "some" / "README.md").read_text()


def test_the_registered_benchmarks_are_told_from_others() -> None:
    known = {
        **{"tandem_gsm8k": "openai/gsm8k", "gsm8k_cot_zeroshot": "openai/gsm8k", "mmlu_pro": "TIGER-Lab/MMLU-Pro"},
        **{"gpqa_diamond_cot_zeroshot": "Idavidrein/gpqa", "hle": "cais/hle"},
        **{"gsm8k_platinum": None, "gpqa_diamond_zeroshot": None, "tandem_math500": None, "mmlu_pro_math": None},
    }
    for task, dataset in known.items():
        found = hub_registry.benchmark_of(task)
        assert (found and found.dataset) == dataset, task


def test_the_command_says_what_it_takes() -> None:
    command = [sys.executable, "-c", "from lm_eval_tandem.cli import main; main(['submit', 'hub', '--help'])"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    for option in ("--repository", "--license", "--base_models", "--classifier", "--metric", "--output"):
        assert option in done.stdout
